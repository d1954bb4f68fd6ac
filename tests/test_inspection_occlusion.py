"""What a class loses when parts of the image are covered."""

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from torch.testing import assert_close

from explicit_attention import IMAGES, tiny
from real_model import real_model, real_photos
from vitreous.classifier import ClassifierConfig
from vitreous.errors import InputError
from vitreous.inspection.occlusion import occlusion
from vitreous.pooling import Mean
from vitreous.resnet import ResNetConfig


def by_hand(
    model, images: torch.Tensor, places: list[tuple[int, int]], *, window: int, side: int, classes
) -> np.ndarray:
    """Each patch's mean over the windows at `places` that cover it, image by image."""
    rows, columns = images.shape[-2] // side, images.shape[-1] // side
    found = np.zeros((len(images), rows, columns))
    for i, image in enumerate(images):

        def said(pixels: torch.Tensor, i: int = i) -> float:
            return log_softmax(model(pixels[None]).detach().double().numpy()[0])[classes[i]]

        whole, drops = said(image), {patch: [] for patch in np.ndindex(rows, columns)}
        for top, left in places:
            covered = image.clone()
            covered[:, top * side : (top + window) * side, left * side : (left + window) * side] = 0
            drop = whole - said(covered)
            for patch in np.ndindex(window, window):
                drops[top + patch[0], left + patch[1]].append(drop)
        for patch, given in drops.items():
            found[i][patch] = np.mean(given)
    return found


@pytest.mark.parametrize(
    ("window", "stride", "rows", "columns"),
    [
        (1, 1, range(3), range(5)),
        (2, 1, range(2), range(4)),
        (2, 2, (0, 1), (0, 2, 3)),
        (3, 2, (0,), (0, 2)),
    ],
)
def test_drops_equal_those_of_each_window_in_float64(window, stride, rows, columns):
    classifier, images = tiny(num_registers=1), torch.randn(2, 3, 12, 20)
    places = [(row, column) for row in rows for column in columns]
    expected = by_hand(classifier, images, places, window=window, side=4, classes=(3, 0))
    found = occlusion(classifier, images, classes=torch.tensor([3, 0]), window=window, stride=stride)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_drops_of_real_weights_on_a_real_photo_equal_those_of_timm(shared):
    ours, theirs = real_model(shared)
    photos = real_photos(shared, 1)
    best = theirs(photos.double()).argmax(-1).tolist()
    places = [(row, column) for row in (0, 7) for column in (0, 7)]
    expected = by_hand(theirs, photos.double(), places, window=7, side=16, classes=best)
    np.testing.assert_allclose(occlusion(ours, photos, window=7, stride=7), expected, rtol=1e-3, atol=1e-4)


def test_a_patch_that_changes_nothing_has_no_drop():
    classifier = tiny()
    images = IMAGES.clone()
    images[:, :, 4:8, 8:12] = 0  # grey already
    found = occlusion(classifier, images, window=1, stride=1)
    assert torch.equal(found[:, 1, 2], torch.zeros(2))
    assert found.abs().flatten(1).sort(1).values[:, 1:].min() > 0


def test_an_image_that_does_not_divide_is_covered_to_its_edge():
    classifier = tiny(pad=True)
    assert occlusion(classifier, torch.randn(1, 3, 10, 13), window=2, stride=2).shape == (1, 3, 4)


def test_a_resnet_is_covered_as_well():
    resnet = ClassifierConfig(encoder=ResNetConfig(units=(1,)), pooling=Mean(), num_classes=3).build().eval()
    torch.nn.init.normal_(resnet.head.linear.weight)
    found = occlusion(resnet, torch.randn(1, 3, 12, 12), window=1, stride=1)
    assert found.shape == (1, 3, 3)
    assert found.abs().min() > 0


def test_the_images_are_left_as_they_are():
    images = IMAGES.clone()
    occlusion(tiny(), images, window=1, stride=1)
    assert_close(images, IMAGES, rtol=0, atol=0)


def test_windows_that_do_not_fit_or_leave_gaps_are_refused():
    with pytest.raises(InputError, match=r"^a window of 3 patches does not fit an image of 2 x 3; make it smaller$"):
        occlusion(tiny(), IMAGES, window=3, stride=1)
    with pytest.raises(InputError, match=r"^a stride of 2 patches leaves gaps between windows of 1; give 1 to 1$"):
        occlusion(tiny(), IMAGES, window=1, stride=2)

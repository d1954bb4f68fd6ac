"""Deletion and insertion."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter1d
from scipy.special import softmax
from sklearn.metrics import auc

from explicit_attention import IMAGES, tiny
from real_model import real_model, real_photos
from vitreous.errors import InputError
from vitreous.inspection.faithfulness import blur, faithfulness
from vitreous.inspection.occlusion import occlusion

MAPS = torch.rand(2, 2, 3, generator=torch.Generator().manual_seed(0))
CLASSES = torch.tensor([2, 4])


def by_hand(classifier, images: torch.Tensor, maps: torch.Tensor, counts: list[int], start) -> np.ndarray:
    """Probabilities while patches of `start` give way to, or take the place of, those of the images, in float64."""
    found = np.zeros((len(images), len(counts)))
    for i, (before, after) in enumerate(zip(*start)):
        columns = maps.shape[2]
        order = sorted(range(maps[i].numel()), key=lambda patch, i=i: (-maps[i].flatten()[patch].item(), patch))
        for step, count in enumerate(counts):
            mixed = before.clone()
            for patch in order[:count]:
                row, column = 4 * (patch // columns), 4 * (patch % columns)
                mixed[:, row : row + 4, column : column + 4] = after[:, row : row + 4, column : column + 4]
            found[i, step] = softmax(classifier(mixed[None]).detach().double().numpy()[0])[CLASSES[i]]
    return found


@pytest.mark.parametrize(("num_steps", "counts"), [(6, [0, 1, 2, 3, 4, 5, 6]), (4, [0, 2, 3, 4, 6]), (1, [0, 6])])
def test_curves_equal_those_of_patches_moved_one_by_one_and_areas_equal_sklearns(num_steps, counts):
    classifier = tiny()
    found = faithfulness(classifier, IMAGES, MAPS, classes=CLASSES, num_steps=num_steps)
    grey, blurred = torch.zeros_like(IMAGES), blur(IMAGES)
    deletion = by_hand(classifier, IMAGES, MAPS, counts, (IMAGES, grey))
    insertion = by_hand(classifier, IMAGES, MAPS, counts, (blurred, IMAGES))
    np.testing.assert_allclose(found.steps, np.array(counts) / 6, rtol=1e-6)
    for curves, areas, expected in (
        (found.deletion, found.deletion_area, deletion),
        (found.insertion, found.insertion_area, insertion),
    ):
        np.testing.assert_allclose(curves, expected, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(areas, [auc(np.array(counts) / 6, curve) for curve in expected], rtol=1e-4)


def test_curves_begin_and_end_with_the_whole_image():
    classifier = tiny()
    found = faithfulness(classifier, IMAGES, MAPS, num_steps=3)
    whole = classifier(IMAGES).softmax(-1).amax(-1).detach()
    np.testing.assert_allclose(found.deletion[:, 0], whole, rtol=1e-5)
    np.testing.assert_allclose(found.insertion[:, -1], whole, rtol=1e-5)


def test_equal_patches_go_in_raster_order():
    classifier = tiny()
    even = faithfulness(classifier, IMAGES, torch.zeros(2, 2, 3), num_steps=6)
    falling = faithfulness(classifier, IMAGES, -torch.arange(6.0).view(1, 2, 3).expand(2, -1, -1), num_steps=6)
    assert torch.equal(even.deletion, falling.deletion)


def test_the_blur_equals_scipys():
    images = torch.randn(2, 3, 24, 30)
    expected = images.double().numpy()
    for axis in (2, 3):
        expected = gaussian_filter1d(expected, 5.0, axis=axis, mode="constant", radius=5)
    np.testing.assert_allclose(blur(images), expected, atol=1e-6)


def test_occlusion_is_more_faithful_on_real_photos_than_its_opposite(shared):
    ours, _ = real_model(shared)
    photos = real_photos(shared, 4)
    map_ = occlusion(ours, photos, window=4, stride=4)
    right, wrong = (faithfulness(ours, photos, maps, num_steps=7) for maps in (map_, -map_))
    assert right.deletion_area.mean() < wrong.deletion_area.mean() - 0.1
    assert right.insertion_area.mean() > wrong.insertion_area.mean() + 0.1


def test_an_image_that_does_not_divide_loses_its_edge_as_well():
    found = faithfulness(tiny(pad=True), torch.randn(1, 3, 10, 13), torch.rand(1, 3, 4), num_steps=12)
    grey = tiny(pad=True)(torch.zeros(1, 3, 10, 13)).softmax(-1)
    assert found.deletion[0, -1] in grey


def test_maps_and_steps_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match=r"^these images need maps of 2 x 2 x 3 patches, got 2 x 3 x 2$"):
        faithfulness(tiny(), IMAGES, MAPS.transpose(1, 2))
    with pytest.raises(InputError, match=r"^6 patches go in 1 to 6 steps, not 28$"):
        faithfulness(tiny(), IMAGES, MAPS)

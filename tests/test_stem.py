import pytest
import torch

from references import random_images, randomise
from vitreous.errors import InputError
from vitreous.stem import Patchify


def build(**changes):
    return Patchify().build(**{"channels": 3, "width": 10, "patch_size": 4, **changes})


@torch.no_grad()
def test_the_convolution_is_one_linear_layer_on_each_flattened_patch():
    stem, images = randomise(build()), random_images(2, 3, 8, 12)
    patches = torch.nn.functional.unfold(images, 4, stride=4).mT  # raster order, channel-major
    expected = patches @ stem.weight.flatten(1).T + stem.bias
    torch.testing.assert_close(stem(images).flatten(2).mT, expected)


def test_it_starts_lecun_normal_truncated_at_two_deviations():
    torch.manual_seed(0)
    stem = build(width=768, patch_size=16)
    with torch.no_grad():
        stem.init_weights()
    deviation = (3 * 16 * 16) ** -0.5
    assert stem.weight.std().item() == pytest.approx(deviation, rel=0.005)
    assert stem.weight.abs().max().item() == pytest.approx(2 * deviation / 0.8796, rel=0.001)
    assert not stem.bias.any()


@pytest.mark.parametrize("size", [(7, 8), (8, 7)])
def test_an_image_that_does_not_divide_is_refused_before_pixels_are_lost(size):
    with pytest.raises(InputError, match=f"{size[0]} x {size[1]} pixels does not divide into patches of 4"):
        build()(torch.zeros(1, 3, *size))

import math

import numpy as np
import pytest
import scipy.ndimage
import torch

from references import random_images, randomise, tiny, twins
from vitreous.classifier import ClassifierConfig
from vitreous.errors import InputError
from vitreous.position import Learned, RoPE2d, SinCos2d, coordinates, resample
from vitreous.weights.timm import to_timm

CPU = torch.device("cpu")


@pytest.mark.parametrize("grid", [(24, 24), (32, 32), (7, 7), (10, 10), (37, 37), (20, 9), (1, 5), (14, 28)])
def test_resampling_equals_the_zoom_of_the_papers_code(grid):
    table = random_images(14, 14, 8)
    expected = scipy.ndimage.zoom(table.numpy(), (grid[0] / 14, grid[1] / 14, 1), order=1)
    assert expected.shape == (*grid, 8)
    np.testing.assert_allclose(resample(table, grid).numpy(), expected, atol=5e-6, rtol=0)  # float32 at values up to 4


def test_resampling_to_the_same_grid_changes_no_bit():
    table = random_images(5, 7, 8)
    assert resample(table, (5, 7)) is table


def posemb_sincos_2d(height, width_in_patches, width, temperature=10_000.0):
    """big_vision's formula, in NumPy float64."""
    y, x = np.mgrid[:height, :width_in_patches]
    omega = 1.0 / temperature ** (np.arange(width // 4) / (width // 4 - 1))
    y, x = np.einsum("m,d->md", y.flatten(), omega), np.einsum("m,d->md", x.flatten(), omega)
    return np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], axis=1)


@pytest.mark.parametrize("grid", [(14, 14), (3, 5), (37, 2)])
def test_sine_cosine_positions_equal_big_visions_formula(grid):
    table = SinCos2d().build(width=64, head_dim=16, grid=(1, 1), class_token=True).table(grid, CPU)
    np.testing.assert_allclose(table.numpy(), posemb_sincos_2d(*grid, 64), atol=1e-5, rtol=0)


def dinov3_angles(height, width, head_dim, base):
    """DINOv3's formula ("separate" coordinates, no augmentation), in NumPy float64."""
    rows, columns = (np.arange(0.5, height) / height, np.arange(0.5, width) / width)
    coords = 2.0 * np.stack(np.meshgrid(rows, columns, indexing="ij"), axis=-1).reshape(-1, 2) - 1.0
    periods = base ** (2 * np.arange(head_dim // 4) / (head_dim // 2))
    return (2 * math.pi * coords[:, :, None] / periods[None, None, :]).reshape(len(coords), -1)


@pytest.mark.parametrize("grid", [(14, 14), (3, 5), (37, 2)])
@pytest.mark.parametrize("base", [100.0, 10_000.0])
def test_rotary_angles_equal_dinov3s_formula(grid, base):
    embedding = RoPE2d(base=base).build(width=64, head_dim=16, grid=(1, 1), class_token=True)
    angles = embedding.angles(coordinates(grid, CPU)[None])[0]
    np.testing.assert_allclose(angles.numpy(), dinov3_angles(*grid, 16, base), atol=1e-5, rtol=0)


def test_coordinates_are_patch_centres_in_raster_order():
    expected = [[-0.5, -2 / 3], [-0.5, 0], [-0.5, 2 / 3], [0.5, -2 / 3], [0.5, 0], [0.5, 2 / 3]]
    torch.testing.assert_close(coordinates((2, 3), CPU), torch.tensor(expected))


SIZES = [(32, 32), (64, 64), (48, 16)]


@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_rotary_positions_equal_timms_at_any_image_size(size):
    config = ClassifierConfig(encoder=tiny(position=RoPE2d(), num_registers=2), num_classes=3)
    ours, theirs = twins(config, img_size=size)
    images = random_images(2, 3, *size)
    torch.testing.assert_close(ours(images), theirs(images), atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("position", [Learned(), Learned(class_token_slot=False), SinCos2d()])
@torch.no_grad()
def test_positions_that_are_added_equal_timms_with_the_table_of_that_size(size, position):
    config = ClassifierConfig(encoder=tiny(position=position), num_classes=3)
    ours, grid = randomise(config.build()), (size[0] // 8, size[1] // 8)
    _, theirs = twins(config, dynamic_img_size=True)
    theirs.set_input_size(size)
    if isinstance(position, SinCos2d):
        places = posemb_sincos_2d(*grid, 32)
    else:
        table = ours.encoder.position.table.numpy()
        places = scipy.ndimage.zoom(table, (grid[0] / 4, grid[1] / 4, 1), order=1).reshape(-1, 32)
    theirs.pos_embed[:, -len(places) :] = torch.from_numpy(places)
    images = random_images(2, 3, *size)
    torch.testing.assert_close(ours(images), theirs(images), atol=1e-5, rtol=0)


def test_the_place_of_the_class_token_is_added_to_it_alone():
    encoder = randomise(tiny(num_registers=2).build())
    added = encoder.position.add_prefix(encoder.prefix) - encoder.prefix
    torch.testing.assert_close(added[0], encoder.position.class_token[0])
    assert not added[1:].any()


def test_without_a_class_token_there_is_no_place_for_one():
    encoder = tiny(class_token=False).build()
    assert encoder.position.class_token is None
    assert to_timm(ClassifierConfig(encoder=tiny()).build())["pos_embed"].shape == (1, 17, 32)


@pytest.mark.parametrize(
    ("position", "changes", "message"),
    [
        (SinCos2d(), {"width": 30, "num_heads": 2}, "width of 8, 12, 16"),
        (SinCos2d(), {"width": 4, "num_heads": 1}, "width of 8, 12, 16"),
        (RoPE2d(), {"num_heads": 16}, "divisible by 4, got 2"),
    ],
)
def test_a_width_the_formula_cannot_fill_is_refused(position, changes, message):
    with pytest.raises(InputError, match=message):
        tiny(position=position, **changes).build()

from collections import OrderedDict

import pytest
import scipy.ndimage
import torch
import torch.nn.functional as F
from timm.layers import resample_abs_pos_embed
from torch.testing import assert_close
from torchvision.models.vision_transformer import interpolate_embeddings

from references import random_images, randomise, tiny
from vitreous.position import Learned
from vitreous.resampling import interpolation_matrix, resample

METHODS = {
    "aligned_bilinear": {"mode": "bilinear", "align_corners": True},
    "bilinear": {"mode": "bilinear"},
    "aligned_bicubic": {"mode": "bicubic", "align_corners": True},
    "bicubic": {"mode": "bicubic"},
    "antialiased_bicubic": {"mode": "bicubic", "antialias": True},
    "offset_bicubic": {"mode": "bicubic"},
}
GRIDS = [
    ((14, 14), (24, 24)),  # up
    ((14, 14), (37, 37)),
    ((16, 16), (7, 7)),  # down
    ((37, 37), (5, 5)),
    ((14, 14), (20, 9)),  # not square
    ((5, 8), (8, 5)),
    ((4, 6), (1, 1)),  # to one
    ((6, 4), (1, 9)),
    ((1, 1), (3, 5)),  # from one
    ((1, 7), (4, 4)),
]


def interpolated(table, grid, method):
    """torch's own, in the table's precision; DINOv2 gives a scale instead of a size."""
    where = {"size": grid}
    if method == "offset_bicubic":
        where = {"scale_factor": tuple((new + 0.1) / old for new, old in zip(grid, table.shape))}
    image = table.permute(2, 0, 1)[None]
    return F.interpolate(image, **where, **METHODS[method])[0].permute(1, 2, 0)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("old", "new"), GRIDS)
def test_every_method_is_torchs_in_float64(method, old, new):
    table = random_images(*old, 8)
    expected = interpolated(table.double(), new, method)
    assert expected.shape == (*new, 8)
    # float32 at values up to 4; the antialiased filter's places are rounded, too
    atol = 8e-6 if method == "antialiased_bicubic" else 4e-6
    assert_close(resample(table, new, method).double(), expected, atol=atol, rtol=0)


@pytest.mark.parametrize("side", [24, 32, 7, 10, 37])
def test_the_default_is_the_zoom_of_the_papers_code(side):
    table = random_images(14, 14, 64)
    expected = scipy.ndimage.zoom(table.double().numpy(), (side / 14, side / 14, 1), order=1)
    assert_close(resample(table, (side, side)).double(), torch.from_numpy(expected), atol=1e-6, rtol=0)


def test_antialiased_bicubic_is_timms():
    table = random_images(14, 14, 8)
    for grid in [(24, 24), (7, 7), (10, 20)]:
        expected = resample_abs_pos_embed(table.reshape(1, 196, 8), list(grid), [14, 14], num_prefix_tokens=0)
        assert_close(resample(table, grid, "antialiased_bicubic").reshape(1, -1, 8), expected, atol=5e-6, rtol=0)


def test_aligned_bicubic_is_torchvisions():
    table = random_images(14, 14, 8)
    for side in (24, 7):
        state = OrderedDict({"encoder.pos_embedding": F.pad(table.reshape(1, 196, 8), (0, 0, 1, 0))})
        expected = interpolate_embeddings(side * 16, 16, state)["encoder.pos_embedding"][:, 1:]
        assert_close(resample(table, (side, side), "aligned_bicubic").reshape(1, -1, 8), expected, atol=5e-6, rtol=0)


def test_bicubic_is_that_of_transformers():
    from transformers.models.vit.modeling_vit import ViTConfig, ViTEmbeddings

    theirs = randomise(ViTEmbeddings(ViTConfig(hidden_size=8, image_size=224, patch_size=16)))
    table = theirs.position_embeddings[0, 1:].unflatten(0, (14, 14))
    for grid in [(24, 24), (7, 7), (10, 20)]:
        tokens = torch.zeros(1, 1 + grid[0] * grid[1], 8)
        expected = theirs.interpolate_pos_encoding(tokens, 16 * grid[0], 16 * grid[1])
        assert_close(resample(table, grid, "bicubic").reshape(1, -1, 8), expected[:, 1:], atol=5e-6, rtol=0)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("grid", [(9, 3), (2, 7)])
def test_gradients_are_torchs(method, grid):
    table, weight = random_images(5, 6, 4), random_images(*grid, 4, seed=2)
    ours, theirs = table.clone().requires_grad_(), table.double().requires_grad_()
    (resample(ours, grid, method) * weight).sum().backward()
    (interpolated(theirs, grid, method) * weight).sum().backward()
    assert_close(ours.grad.double(), theirs.grad, atol=5e-6, rtol=0)


@pytest.mark.parametrize("method", METHODS)
def test_the_weights_of_a_place_sum_to_one(method):
    for old in (1, 2, 5, 14):
        for new in (1, 3, 14, 40):
            assert_close(interpolation_matrix(old, new, method=method).sum(1), torch.ones(new), atol=1e-6, rtol=0)


def test_the_same_grid_changes_no_bit():
    table = random_images(5, 7, 8)
    assert resample(table, (5, 7)) is table


def test_half_precision_rounds_once_at_the_end():
    table = random_images(5, 7, 8).bfloat16()
    assert torch.equal(resample(table, (9, 4)), resample(table.float(), (9, 4)).bfloat16())


@pytest.mark.parametrize("method", METHODS)
def test_autocast_changes_no_bit(method):
    table = random_images(5, 7, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = resample(table, (9, 4), method)
    assert torch.equal(under_autocast, resample(table, (9, 4), method))


def test_any_axes_may_follow_the_grid():
    table = random_images(5, 7, 3, 2)
    assert_close(resample(table, (4, 9))[..., 1], resample(table[..., 1], (4, 9)))


class Patches(torch.nn.Module):
    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, images):
        return self.encoder(images).patches


@torch.no_grad()
def test_an_exported_program_resamples_for_sizes_it_was_not_exported_with():
    model = Patches(randomise(tiny(position=Learned(resampling="bicubic")).build()))
    rows, columns = (torch.export.Dim(name, min=2, max=16) for name in ("rows", "columns"))
    shapes = ({2: 8 * rows, 3: 8 * columns},)
    program = torch.export.export(model, (random_images(2, 3, 48, 64),), dynamic_shapes=shapes).module()
    for size in [(48, 64), (80, 24), (16, 32)]:  # 32 rows of pixels, as in training, are another program
        images = random_images(2, 3, *size)
        assert_close(program(images), model(images), atol=1e-6, rtol=0)


@torch.no_grad()
def test_a_program_exported_at_another_size_contains_the_resampled_table():
    model, images = Patches(randomise(tiny().build())), random_images(2, 3, 24, 64)
    program = torch.export.export(model, (images,)).module()
    expected = model(images)
    assert_close(program(images), expected, atol=1e-6, rtol=0)
    table = interpolated(model.encoder.position.table, (3, 8), "aligned_bilinear")
    fixed = randomise(tiny(image_size=(24, 64)).build())
    fixed.load_state_dict({**model.encoder.state_dict(), "position.table": table})
    assert_close(expected, fixed(images).patches, atol=1e-5, rtol=0)

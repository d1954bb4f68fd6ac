from functools import partial

import pytest
import torch
from timm.layers import HybridEmbed, StdConv2dSame
from timm.models.resnetv2 import create_resnetv2_stem
from timm.models.vision_transformer_hybrid import _resnetv2
from torch.testing import assert_close

from references import random_images, randomise
from vitreous.errors import InputError
from vitreous.resnet import ResNetStem
from vitreous.stem import Patchify


def build(**changes):
    return Patchify().build(**{"channels": 3, "width": 10, "patch_size": 4, **changes})


@torch.no_grad()
def test_the_convolution_is_one_linear_layer_on_each_flattened_patch():
    stem, images = randomise(build()), random_images(2, 3, 8, 12)
    patches = torch.nn.functional.unfold(images, 4, stride=4).mT  # raster order, channel-major
    expected = patches @ stem.weight.flatten(1).T + stem.bias
    assert_close(stem(images).flatten(2).mT, expected)


@torch.no_grad()
def test_without_a_bias_an_empty_patch_is_zero():
    stem = randomise(Patchify(bias=False).build(channels=3, width=10, patch_size=4))
    assert stem.bias is None
    assert not stem(torch.zeros(1, 3, 8, 8)).any()
    stem.init_weights()


def test_it_starts_lecun_normal_truncated_at_two_deviations():
    torch.manual_seed(0)
    stem = build(width=768, patch_size=16)
    with torch.no_grad():
        stem.init_weights()
    deviation = (3 * 16 * 16) ** -0.5
    assert stem.weight.std().item() == pytest.approx(deviation, rel=0.005)
    assert stem.weight.abs().max().item() == pytest.approx(2 * deviation / 0.8796, rel=0.001)
    assert not stem.bias.any()


def timms_hybrid(ours, units, patch):
    """timm's `HybridEmbed` of that many units, in timm's own convolutions, with the weights of `ours`."""
    if units:
        backbone, root = _resnetv2(layers=units), "backbone.stem."
    else:
        backbone, root = create_resnetv2_stem(3, 64, "same", False, partial(StdConv2dSame, eps=1e-8)), "backbone."
    theirs = HybridEmbed(backbone, img_size=64, patch_size=patch, embed_dim=10, flatten=False, strict_img_size=False)
    tensors = {}
    for name, tensor in ours.state_dict().items():
        module, _, rest = name.partition(".")
        if module == "stages":
            stage, unit, rest = rest.split(".", 2)
            rest = rest.replace("shortcut_norm", "downsample.norm").replace("shortcut", "downsample.conv")
            tensors[f"backbone.stages.{stage}.blocks.{unit}.{rest}"] = tensor
        else:
            tensors[{"root": f"{root}conv.", "norm": f"{root}norm.", "patches": "proj."}[module] + rest] = tensor
    theirs.load_state_dict(tensors)
    return theirs.to(tensors[f"{root}conv.weight"].dtype).eval()


@pytest.mark.parametrize("size", [(64, 64), (64, 128), (57, 99)])
@pytest.mark.parametrize(("units", "patch_size"), [((1, 2), 8), ((2, 1, 1), 16), ((1,), 16), ((), 32)])
@torch.no_grad()
def test_the_resnet_stem_is_timms_hybrid_backbone_in_float64(units, patch_size, size):
    config = ResNetStem(units=units, norm_eps=1e-5, variance_eps=1e-8, deviation_eps=0.0)
    ours = randomise(config.build(channels=3, width=10, patch_size=patch_size)).double()
    theirs = timms_hybrid(ours, units, patch_size // (4 * 2 ** max(len(units) - 1, 0)))
    images = random_images(1, 3, *size).double()
    assert_close(ours(images), theirs(images), atol=1e-10, rtol=1e-10)


@torch.no_grad()
def test_the_resnet_stem_is_near_timms_in_float32():
    config = ResNetStem(units=(1, 2), norm_eps=1e-5, variance_eps=1e-8, deviation_eps=0.0)
    ours = randomise(config.build(channels=3, width=10, patch_size=8))
    images = random_images(1, 3, 64, 64)
    expected = timms_hybrid(ours, (1, 2), 1)(images)
    assert (ours(images) - expected).norm() < 1e-5 * expected.norm()


@torch.no_grad()
def test_a_resnet_stem_without_units_is_root_and_pool():
    stem = randomise(ResNetStem(units=()).build(channels=3, width=10, patch_size=32))
    assert len(stem.stages) == 0
    assert stem.patches.kernel_size == (8, 8)
    assert stem(torch.zeros(1, 3, 64, 32)).shape == (1, 10, 2, 1)


@pytest.mark.parametrize("units", [(1,), (2, 1)])
@torch.no_grad()
def test_every_unit_of_a_fresh_resnet_stem_is_its_shortcut(units):
    stem = ResNetStem(units=units).build(channels=3, width=10, patch_size=32)
    stem.init_weights()
    for stage in stem.stages:
        for unit in stage:
            x = random_images(1, unit.conv1.in_channels, 8, 8)
            expected = x if unit.shortcut is None else unit.shortcut_norm(unit.shortcut(x))
            assert_close(unit(x), expected.relu())


@pytest.mark.parametrize(("units", "shrink"), [((3, 4, 9), 16), ((3, 4, 6, 3), 32), ((), 4)])
def test_patches_smaller_than_the_stem_shrinks_are_refused(units, shrink):
    with pytest.raises(InputError, match=f"shrinks the image by {shrink}, so patch_size must be a multiple of it"):
        ResNetStem(units=units).build(channels=3, width=8, patch_size=shrink // 2)


def test_a_stage_without_units_is_refused():
    with pytest.raises(InputError, match="units is 0; it must be 1 or more"):
        ResNetStem(units=(3, 0, 9))

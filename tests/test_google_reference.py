"""timm, and numbers that Google's own code gave, say whether the NumPy reference is right."""

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.layers.hybrid_embed import HybridEmbed
from timm.layers.padding import pad_same
from timm.layers.std_conv import StdConv2d, StdConv2dSame
from timm.models.resnetv2 import ResNetV2, create_resnetv2_stem
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from google_reference import (
    as_bfloat16,
    big_vision_forward,
    big_vision_tree,
    bit_forward,
    bit_tree,
    from_bfloat16,
    interpolate_positions,
    save_npz,
    vit_jax_forward,
    vit_jax_tree,
)

SHAPE: dict[str, Any] = {"width": 24, "depth": 2, "heads": 3, "mlp_dim": 40, "classes": 5}

HYBRID: dict[str, Any] = {"hybrid_layers": (2, 1), "resnet_width": 32, "patch": 1}
ROOT_ONLY: dict[str, Any] = {"hybrid_layers": (), "resnet_width": 32, "patch": 2}


def random_images(side, batch=2):
    return np.random.RandomState(5).standard_normal((batch, side, side, 3))


def assert_equal(ours, theirs):
    assert ours.dtype == theirs.dtype == np.float64
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= 1e-13 * np.abs(theirs).max()


@torch.no_grad()
def logits_of(model: nn.Module, images):
    return model.eval().double()(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()


def timm_vit(path, *, image, patch=8, num_classes=5, **changes):
    model = VisionTransformer(
        img_size=image,
        patch_size=patch,
        embed_dim=24,
        depth=2,
        num_heads=3,
        mlp_ratio=40 / 24,
        num_classes=num_classes,
        fc_norm=False,
        act_layer="gelu_tanh",
        **changes,
    )
    model.load_pretrained(str(path))
    return model


class GoogleConv2d(nn.Conv2d):
    """timm's convolution with epsilon where the hybrids have it, beside the deviation instead of in the variance."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options, bias=False)

    def forward(self, input):
        padded = pad_same(input, list(self.kernel_size), list(self.stride))
        deviation, mean = torch.std_mean(self.weight, dim=(1, 2, 3), keepdim=True, correction=0)
        return F.conv2d(padded, (self.weight - mean) / (deviation + 1e-5), None, self.stride)


def timm_hybrid(path, *, image, layers, patch, conv: Callable[..., nn.Module] = GoogleConv2d, norm_eps=1e-6):
    if layers:
        backbone = ResNetV2(
            list(layers),
            channels=(128, 256),
            stem_chs=32,
            stem_type="same",
            preact=False,
            num_classes=0,
            global_pool="",
            conv_layer=conv,
        )
    else:
        backbone = create_resnetv2_stem(3, 32, stem_type="same", preact=False, conv_layer=conv)
    for module in backbone.modules():
        if isinstance(module, nn.GroupNorm):
            module.eps = norm_eps
    return timm_vit(path, image=image, patch=patch, embed_layer=partial(HybridEmbed, backbone=backbone))


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "weights.npz"


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_original_vit_equals_timm(path, pool):
    tree = vit_jax_tree(**SHAPE, patch=8, image=32, class_token=pool == "token")
    save_npz(path, tree)
    theirs = timm_vit(path, image=32, class_token=pool == "token", global_pool=pool)
    images = random_images(32)
    assert_equal(vit_jax_forward(tree, images), logits_of(theirs, images))


def test_representation_is_a_dense_layer_and_tanh_on_timms_features(path):
    tree = vit_jax_tree(**SHAPE, patch=8, image=32, representation=16)
    save_npz(path, tree)
    images = random_images(32)
    x = torch.from_numpy(logits_of(timm_vit(path, image=32, num_classes=0), images))
    for name, activation in (("pre_logits", torch.tanh), ("head", torch.nn.Identity())):
        kernel, bias = (torch.from_numpy(tree[f"{name}/{part}"]).double() for part in ("kernel", "bias"))
        x = activation(F.linear(x, kernel.T, bias))
    assert_equal(vit_jax_forward(tree, images), x.numpy())


@pytest.mark.parametrize("side", [30, 32, 33])  # SAME pads each of them differently
def test_hybrid_equals_timm(path, side):
    tree = vit_jax_tree(**SHAPE, **HYBRID, image=side, old_group_norm=True)
    save_npz(path, tree)
    theirs = timm_hybrid(path, image=side, layers=(2, 1), patch=1)
    images = random_images(side)
    assert_equal(vit_jax_forward(tree, images), logits_of(theirs, images))


@pytest.mark.parametrize("side", [30, 32])
def test_hybrid_of_the_root_alone_equals_timm(path, side):
    tree = vit_jax_tree(**SHAPE, **ROOT_ONLY, image=side)
    save_npz(path, tree)
    theirs = timm_hybrid(path, image=side, layers=(), patch=2)
    images = random_images(side)
    assert_equal(vit_jax_forward(tree, images), logits_of(theirs, images))


def test_timms_own_epsilons_are_not_those_of_the_hybrids(path):
    tree = vit_jax_tree(**SHAPE, **HYBRID, image=32)
    save_npz(path, tree)
    conv = partial(StdConv2dSame, eps=1e-8)
    theirs = timm_hybrid(path, image=32, layers=(2, 1), patch=1, conv=conv, norm_eps=1e-5)
    images = random_images(32)
    difference = np.abs(vit_jax_forward(tree, images) - logits_of(theirs, images)).max()
    assert 1e-4 < difference < 0.1


@pytest.mark.parametrize(
    ("tree", "same"),
    [
        (vit_jax_tree(**SHAPE, patch=8, image=32, current_names=True), vit_jax_tree(**SHAPE, patch=8, image=32)),
        (vit_jax_tree(**SHAPE, patch=8, image=32, prefix="opt/target/"), vit_jax_tree(**SHAPE, patch=8, image=32)),
        (vit_jax_tree(**SHAPE, **HYBRID, image=32, old_group_norm=True), vit_jax_tree(**SHAPE, **HYBRID, image=32)),
    ],
    ids=["names", "prefix", "group norm"],
)
def test_a_layout_changes_no_logit(tree, same):
    images = random_images(32)
    assert np.array_equal(vit_jax_forward(tree, images), vit_jax_forward(same, images))
    assert {name: array.shape for name, array in tree.items()} != {name: array.shape for name, array in same.items()}


@pytest.mark.parametrize(("scanned", "prefix"), [(False, "params/"), (True, "params/img/"), (True, "")])
@pytest.mark.parametrize("pool", ["gap", "map", "tok"])
def test_big_vision_equals_timm(path, pool, scanned, prefix):
    tree = big_vision_tree(**SHAPE, patch=8, image=32, pool=pool, scanned=scanned, prefix=prefix)
    save_npz(path, tree)
    theirs = timm_vit(
        path,
        image=32,
        class_token=pool == "tok",
        no_embed_class=True,
        global_pool={"gap": "avg", "map": "map", "tok": "token"}[pool],
    )
    images = random_images(32)
    assert_equal(big_vision_forward(tree, images), logits_of(theirs, images))


def test_big_vision_without_a_head_returns_what_is_pooled(path):
    tree = big_vision_tree(**{**SHAPE, "classes": None}, patch=8, image=32, pool="map", prefix="params/img/")
    save_npz(path, tree)
    theirs = timm_vit(path, image=32, num_classes=0, class_token=False, global_pool="map")
    images = random_images(32)
    assert_equal(big_vision_forward(tree, images), logits_of(theirs, images))


def test_bfloat16_rounds_as_torch_does():
    halfway = np.array([1, 1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8, 0, -0.0, 1e-40, 3.38e38], dtype=np.float32)
    numbers = np.concatenate([halfway, np.random.RandomState(0).standard_normal(100_000).astype(np.float32)])
    theirs = torch.from_numpy(numbers).bfloat16()
    assert np.array_equal(as_bfloat16(numbers).view("<i2"), theirs.view(torch.int16).numpy())
    assert np.array_equal(from_bfloat16(as_bfloat16(numbers)), theirs.float().numpy())


def test_bfloat16_file_has_two_opaque_bytes_a_number(path):
    tree = big_vision_tree(**SHAPE, patch=8, image=32, pool="map", bfloat16=True)
    save_npz(path, tree)
    with np.load(path) as file:
        loaded = dict(file)
    assert {array.dtype.str for array in loaded.values()} == {"|V2"}
    decoded = {name: from_bfloat16(array) for name, array in tree.items()}
    save_npz(path, decoded)
    images = random_images(32)
    logits = big_vision_forward(loaded, images)
    assert_equal(logits, logits_of(timm_vit(path, image=32, class_token=False, global_pool="map"), images))
    exact = big_vision_forward(big_vision_tree(**SHAPE, patch=8, image=32, pool="map"), images)
    assert 1e-4 < np.abs(logits - exact).max() < 0.1


@pytest.mark.parametrize("side", [30, 32, 45])
def test_bit_equals_timm(path, side):
    tree = bit_tree(layers=(1, 2), width=32, classes=5)
    save_npz(path, tree)
    theirs = ResNetV2(
        [1, 2],
        channels=(128, 256),
        stem_chs=32,
        stem_type="fixed",
        num_classes=5,
        conv_layer=partial(StdConv2d, eps=1e-10),
    )
    theirs.load_pretrained(str(path))
    images = random_images(side)
    assert_equal(bit_forward(tree, images), logits_of(theirs, images))


@pytest.mark.parametrize(("old", "new"), [(14, 24), (14, 7), (7, 16), (12, 37), (24, 14), (4, 4)])
def test_positions_are_interpolated_linearly_between_aligned_corners(old, new):
    table = np.random.RandomState(0).standard_normal((1, 1 + old * old, 6))
    resized = interpolate_positions(table, new)
    grid = torch.from_numpy(table[:, 1:]).unflatten(1, (old, old)).permute(0, 3, 1, 2)
    theirs = F.interpolate(grid, size=(new, new), mode="bilinear", align_corners=True).flatten(2).mT.numpy()
    assert np.array_equal(resized[:, :1], table[:, :1])
    assert_equal(resized[:, 1:], theirs)
    assert np.array_equal(interpolate_positions(table[:, 1:], new, class_token=False), resized[:, 1:])


def test_reference_needs_neither_torch_nor_vitreous():
    code = "import sys, google_reference; print(*{'torch', 'vitreous', 'timm'} & sys.modules.keys())"
    command = [sys.executable, "-c", code]
    answer = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == ""


GOOGLES = {
    "vit": (vit_jax_forward, partial(vit_jax_tree, **SHAPE, patch=8, image=32, representation=16), 32),
    "hybrid": (vit_jax_forward, partial(vit_jax_tree, **SHAPE, **HYBRID, image=30), 30),
    "root only": (vit_jax_forward, partial(vit_jax_tree, **SHAPE, **ROOT_ONLY, image=32), 32),
    "gap": (big_vision_forward, partial(big_vision_tree, **SHAPE, patch=8, image=32, pool="gap"), 32),
    "map": (big_vision_forward, partial(big_vision_tree, **SHAPE, patch=8, image=32, pool="map"), 32),
    "tok": (big_vision_forward, partial(big_vision_tree, **SHAPE, patch=8, image=32, pool="tok"), 32),
    "bit": (bit_forward, partial(bit_tree, layers=(1, 2), width=32, classes=5), 32),
}

# The first image's logits, from Google's own modules in float64: vision_transformer at c6de1e5 and big_vision at
# 0127fb6, with flax 0.12.8 and jax 0.10.2, where a module that fixes its dtype to float32 was given float64. BiT is
# big_vision's bit_paper with the root of big_transfer at 140de6e, whose max-pool is padded with zeros.
RECORDED = {
    "vit": [0.9146538416544775, 0.010570245147159096, -0.7480389254637309, 0.7506749375981057, 0.10983812695428097],
    "hybrid": [0.5898306066065998, -0.2545425621498324, 0.32124121814535295, 0.3272849305361982, 1.9803571449278174],
    "root only": [
        0.3026862648046502,
        -0.30259143414694156,
        -0.9427778518156573,
        0.8028052874157388,
        1.2685029579503049,
    ],
    "gap": [0.148963035372789, -0.4133546062168667, 0.5208631833733282, 0.1561525438432298, 0.09033540604244505],
    "map": [-1.284150006836447, 0.6021116761102806, -1.4165699939366239, 0.31190463567899485, 0.17744103390520533],
    "tok": [0.8213841917642642, 1.0157882870835937, 0.275542670202999, -0.9729118409693147, -2.639860805124749],
    "bit": [0.31862457325500615, -0.5067317359658037, -0.006658919128277624, 0.8581990787392938, 0.5685496960392896],
}


@pytest.mark.parametrize("case", GOOGLES)
def test_logits_equal_those_of_googles_code(case):
    forward, tree, side = GOOGLES[case]
    assert_equal(forward(tree(), random_images(side))[0], np.array(RECORDED[case]))

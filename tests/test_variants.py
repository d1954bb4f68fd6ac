import pytest
import timm
import torch

from vitreous.block import Parallel, PreNorm
from vitreous.errors import InputError
from vitreous.resnet import ResNetConfig, ResNetStem
from vitreous.stem import Patchify
from vitreous.variants import PUBLISHED, SIZES, TIMM_RESNETS, TIMM_VITS, encoder, paper_name, timm_name, title, vit
from vitreous.vit import ViTConfig

TABLE_1 = {"B": (12, 768, 3072, 12), "L": (24, 1024, 4096, 16), "H": (32, 1280, 5120, 16)}


@pytest.mark.parametrize("letter", TABLE_1)
def test_sizes_are_those_of_the_papers_table_1(letter):
    config = vit(f"{letter}/16")
    assert (config.depth, config.width, config.mlp_dim, config.num_heads) == TABLE_1[letter]


@pytest.mark.parametrize("name", ["B/16", "ViT-B/16", "vit-b/16", "ViT-B-16", "vit_base_patch16_224", "B/16@224"])
def test_one_model_has_many_names(name):
    assert vit(name) == vit("B/16")


@pytest.mark.parametrize("letter", SIZES)
def test_a_name_is_that_of_its_config(letter):
    assert paper_name(vit(f"{letter}/14")) == f"{letter}/14"


def test_small_and_large_g_differ_and_other_letters_do_not():
    assert vit("g/14").width == 1408
    assert vit("G/14").width == 1664
    assert vit("h/14") == vit("H/14")
    assert vit("SO400M/14") == vit("So400m/14")
    assert (vit("g-OPT/14").depth, vit("G-OPT/14").depth) == (40, 48)
    assert vit("22b/14") == vit("22B/14")


def test_the_image_size_is_read_from_the_name_and_fits_the_patch():
    assert vit("L/14@336").image_size == 336
    assert vit("vit_large_patch16_384").image_size == 384
    assert vit("B/15").image_size == 210
    assert vit("B/300").image_size == 300


def test_a_shape_without_a_name_is_spelt_out():
    config = vit("128x6/4@32")
    assert (config.width, config.depth, config.num_heads, config.mlp_dim) == (128, 6, 4, 512)
    assert (config.patch_size, config.image_size) == (4, 32)
    assert paper_name(config) == "128x6/4"


def test_any_field_can_be_changed():
    assert vit("B/16", depth=2, image_size=32).grid == (2, 2)


@pytest.mark.parametrize("name", timm.list_models("vit_*_patch*_224", exclude_filters=["*_*_*_*_*"]))
def test_timms_plain_names_mean_timms_shapes(name):
    if "intern300m" in name:
        pytest.skip("not a size of ours")
    arguments = timm.create_model(name, device="meta", depth=1)
    config = vit(name)
    assert (config.width, config.num_heads) == (arguments.embed_dim, arguments.blocks[0].attn.num_heads)
    assert config.mlp_dim == arguments.blocks[0].mlp.fc1.out_features
    assert config.patch_size == arguments.patch_embed.patch_size[0]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("B16", "did you mean.*B/16"),
        ("vit_bse_patch16_224", "did you mean vit_base_patch16_224"),
        ("X/16", "unknown model 'X/16'"),
        ("B/0", "unknown model"),
        ("100x6/4", "multiple of 32"),
        ("128x0/4", "depth at least 1"),
        ("resnet50", "did you mean resnetv2_50x1_bit"),
        ("convnext", "choose one of Ti/16"),
        ("", "choose one of Ti/16"),
    ],
)
def test_a_name_that_is_none_is_answered_with_those_that_are(name, message):
    with pytest.raises(InputError, match=message):
        vit(name)


HYBRIDS = {  # the units of each stage, the whole stride, and what remains of it for patches of the map
    "R+Ti/16": ((), 32, 8),
    "R26+S/32": ((2, 2, 2, 2), 32, 1),
    "R26+B/32": ((2, 2, 2, 2), 32, 1),
    "R50+B/32": ((3, 4, 6, 3), 32, 1),
    "R50+B/16": ((3, 4, 9), 16, 1),
    "R50+L/32": ((3, 4, 6, 3), 32, 1),
    "R50+L/16": ((3, 4, 9), 16, 1),
}


@pytest.mark.parametrize("name", HYBRIDS)
def test_a_hybrid_is_a_vit_after_the_stages_of_a_resnet(name):
    units, stride, patch = HYBRIDS[name]
    config = vit(name)
    assert config.stem == ResNetStem(units=units)
    assert (config.stride, config.grid) == (stride, (224 // stride, 224 // stride))
    plain = vit(name.split("+")[1])
    assert (config.width, config.depth, config.mlp_dim) == (plain.width, plain.depth, plain.mlp_dim)
    with torch.device("meta"):
        assert config.build().stem.patches.kernel_size == (patch, patch)


RESNETS = {
    "R50x1": ((3, 4, 6, 3), 1),
    "R50x2": ((3, 4, 6, 3), 2),
    "R101x1": ((3, 4, 23, 3), 1),
    "R152x1": ((3, 8, 36, 3), 1),
    "R152x2": ((3, 8, 36, 3), 2),
    "R200x3": ((3, 24, 36, 3), 3),
}


@pytest.mark.parametrize("name", RESNETS)
def test_a_resnet_is_named_by_its_layers_and_its_multiplier(name):
    units, multiplier = RESNETS[name]
    assert encoder(name) == ResNetConfig(units=units, multiplier=multiplier)
    assert 2 + 3 * sum(units) == int(name[1:].split("x")[0])  # root, head, and three convolutions a unit
    assert title(encoder(name)) == f"BiT {name}"


@pytest.mark.parametrize("name", ["R50x1", "r50x1", "R50X1", "BiT-R50x1", "50x1", "resnetv2_50x1_bit"])
def test_one_resnet_has_many_names(name):
    assert encoder(name) == ResNetConfig()


@pytest.mark.parametrize(
    ("name", "image_size"),
    [("R50x1@480", 480), ("R50+B/16@384", 384), ("R+Ti/16@384", 384), ("vit_tiny_r_s16_p8_384", 384)],
)
def test_the_image_size_is_read_from_every_kind_of_name(name, image_size):
    assert encoder(name).image_size == image_size


def test_any_field_of_any_kind_can_be_changed():
    assert encoder("R50x1", image_size=(64, 96)).grid == (2, 3)
    assert encoder("R50+B/16", image_size=(64, 96)).grid == (4, 6)
    assert vit("R50+B/16", stem=Patchify()).stem == Patchify()


def test_a_vit_22b_is_that_of_its_paper():
    config = vit("22B/14")
    assert (config.width, config.depth, config.mlp_dim, config.num_heads) == (6144, 48, 24576, 48)
    assert (config.block, config.qk_norm, config.qkv_bias, config.rms_norm) == (Parallel(), True, False, True)
    assert vit("e/14").block == PreNorm()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("R50", "unknown model 'R50'; did you mean R50x"),
        ("R50x0", "unknown model 'R50x0'; did you mean R50x"),
        ("R51x1", "unknown model 'R51x1'; did you mean R50x1"),
        ("R99+B/16", r"unknown model 'R99\+B/16'; did you mean R50\+B/16"),
        ("R50+B16", r"unknown model 'R50\+B16'; did you mean R50\+B/16"),
        ("vit_base_resnet50_384", "did you mean vit_base_r50_s16_224"),
        ("resnetv2_50x1_bot", "did you mean resnetv2_50x1_bit"),
        ("R50x1@0", "image_size is 0"),
    ],
)
def test_a_name_that_is_none_is_answered_with_the_nearest_of_every_kind(name, message):
    with pytest.raises(InputError, match=message):
        encoder(name)


def test_a_hybrid_with_patches_smaller_than_its_stride_is_refused_when_it_is_built():
    with pytest.raises(InputError, match="shrinks the image by 32, so patch_size must be a multiple of it, got 8"):
        vit("R50+B/8").build()


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_name_is_a_name(name):
    config = encoder(name)
    assert paper_name(config) == name
    assert title(config) == f"{'BiT' if isinstance(config, ResNetConfig) else 'ViT'} {name}"
    assert isinstance(config, ResNetConfig | ViTConfig)


@pytest.mark.parametrize("name", PUBLISHED)
def test_timms_names_are_timms_and_mean_the_same(name):
    config = encoder(name)
    theirs = timm_name(config)
    assert (theirs is None) == (name not in TIMM_VITS | TIMM_RESNETS)
    if theirs is not None:
        assert timm.is_model(theirs)
        assert encoder(theirs) == config


def test_timm_has_no_model_where_none_is_named():
    known = set(timm.list_models())
    for name in PUBLISHED:
        letter, _, patch = name.rpartition("+")[2].partition("/")
        if timm_name(encoder(name)) is None and letter in SIZES and "+" not in name:
            assert f"vit_{SIZES[letter].timm}_patch{patch}_224" not in known


@pytest.mark.parametrize("units", [(1, 2), (3, 4, 6, 3)])
def test_a_shape_of_stages_without_a_name_is_spelt_out(units):
    name = "50" if units == (3, 4, 6, 3) else "1-2"
    assert paper_name(ResNetConfig(units=units, multiplier=2)) == f"R{name}x2"
    stem = ResNetStem(units=units)
    assert paper_name(ViTConfig(stem=stem, patch_size=32)) == f"R{name}+B/32"
    assert timm_name(ResNetConfig(units=(1, 2))) is None

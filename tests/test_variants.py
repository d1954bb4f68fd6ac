import pytest
import timm

from vitreous.errors import InputError
from vitreous.variants import PUBLISHED, SIZES, TIMM_LACKS, paper_name, timm_name, vit

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
    assert vit(timm_name(vit(f"{letter}/14"))) == vit(f"{letter}/14")


def test_small_and_large_g_differ_and_other_letters_do_not():
    assert vit("g/14").width == 1408
    assert vit("G/14").width == 1664
    assert vit("h/14") == vit("H/14")
    assert vit("SO400M/14") == vit("So400m/14")


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
        ("resnet50", "choose one of Ti/16"),
        ("", "choose one of Ti/16"),
    ],
)
def test_a_name_that_is_none_is_answered_with_those_that_are(name, message):
    with pytest.raises(InputError, match=message):
        vit(name)


def test_every_published_name_is_a_name():
    assert [paper_name(vit(name)) for name in PUBLISHED] == list(PUBLISHED)


def test_timms_names_are_timms():
    import timm

    known = set(timm.list_models())
    assert {name for name in PUBLISHED if timm_name(vit(name)) not in known} == TIMM_LACKS

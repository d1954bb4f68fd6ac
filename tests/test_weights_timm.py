import re
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file

from references import difference, epsilons, random_images, randomise, read, same_tensors, tiny, twins
from vitreous.classifier import ClassifierConfig
from vitreous.errors import InputError
from vitreous.feed_forward import GELU
from vitreous.head import LinearHead
from vitreous.pooling import AttentionPool, Mean
from vitreous.position import NoPosition
from vitreous.relative import RelativeBias
from vitreous.resnet import TIMM, ResNetStem
from vitreous.weights import layouts
from vitreous.weights.timm import read as read_timm
from vitreous.weights.timm_config import describe
from vitreous.weights.timm_tensors import to_timm

ALL = timm.list_models(["vit_*", "deit*", "flexivit*", "resnetv2_*_bit*"])
LACKING = re.compile(
    r".*_rope_.*|vit_pe_.*|.*_lingbot|.*_sapiens2|.*_18x2_.*|.*_mci_.*|.*_resnet\d+d_.*|vit_d(wee|little|pwee)_.*"
)
"""Other rotary forms, two branches side by side, other stems, differential attention."""


def config_json(name: str, model: Any, side: int) -> dict[str, Any]:
    """The config.json that timm puts beside the weights of such a model."""
    said = {key: model.pretrained_cfg[key] for key in ("crop_pct", "interpolation", "mean", "std")}
    document = {"architecture": name, "num_classes": model.num_classes}
    if isinstance(getattr(model, "global_pool", None), str):
        document["global_pool"] = model.global_pool
    return document | {"pretrained_cfg": {**said, "input_size": [3, side, side]}}


@torch.no_grad()
def difference_from_timm(name: str, **arguments: Any) -> float:
    """How far what we read from timm's model of that name, with random weights, is from it."""
    model: Any = randomise(timm.create_model(name, **arguments))
    side = arguments.get("img_size", model.pretrained_cfg["input_size"][-1])
    foreign = layouts.read(dict(model.state_dict()), config_json(name, model, side))
    ours, images = layouts.classifier_of(foreign), random_images(1, 3, side, side)
    whole = side // ours.config.encoder.stride * ours.config.encoder.stride
    known = images[..., :whole, :whole] if "siglip" in name else images  # at 384, timm drops what is no whole patch
    assert epsilons(ours) == epsilons(model)
    found = ours(known) if "head.linear.weight" in foreign.tensors else ours.features(known)
    return difference(found, model(images))


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("vit_tiny_patch16_224", 64),
        ("vit_small_patch32_224", 64),
        ("vit_base_patch16_224_miil", 32),
        ("vit_small_patch16_36x1_224", 32),
        ("vit_xsmall_patch16_clip_224", 32),
        ("vit_base_patch32_clip_quickgelu_224", 64),
        ("vit_base_patch16_siglip_224", 32),
        ("vit_base_patch32_siglip_256", 64),
        ("vit_so400m_patch16_siglip_256", 32),
        ("vit_base_patch16_siglip_gap_224", 32),
        ("vit_base_patch16_gap_224", 32),
        ("vit_medium_patch16_reg4_gap_256", 32),
        ("vit_so150m_patch16_reg4_map_256", 32),
        ("vit_small_patch14_dinov2", 28),
        ("vit_small_patch14_reg4_dinov2", 28),
        ("vit_giant_patch14_dinov2", 28),
        ("vit_small_patch16_dinov3", 64),
        ("vit_tiny_patch16_dinov3_qkvb", 64),
        ("vit_huge_plus_patch16_dinov3", 32),
        ("deit_tiny_patch16_224", 32),
        ("deit_tiny_distilled_patch16_224", 32),
        ("deit3_small_patch16_224", 32),
        ("flexivit_small", 32),
        ("vit_relpos_small_patch16_224", 64),
        ("vit_srelpos_small_patch16_224", 64),
        ("vit_relpos_base_patch16_cls_224", 32),
        ("vit_relpos_base_patch16_clsgap_224", 32),
        ("vit_relpos_small_patch16_rpn_224", 32),
        ("vit_base_patch16_rpn_224", 32),
        ("vit_pwee_patch16_reg1_gap_256", 32),
        ("vit_base_patch16_xp_224", 32),
        ("vit_base_patch16_radio_v3", 32),
        ("vit_base_patch14_reg1_tipsv2", 28),
        ("vit_tiny_r_s16_p8_224", 32),
        ("vit_small_r26_s32_224", 64),
        ("vit_base_r50_s16_224", 32),
    ],
)
def test_a_model_of_each_family_computes_what_timm_computes(name, side):
    assert difference_from_timm(name, depth=2, img_size=side) < 1e-5


def test_a_resnet_of_timms_computes_what_timm_computes():
    theirs = randomise(timm.create_model("resnetv2_50x1_bit"))
    ours, images = read(theirs.state_dict(), {"architecture": "resnetv2_50x1_bit"}), random_images(1, 3, 48, 33)
    assert difference(ours(images), theirs(images)) < 1e-5
    assert epsilons(ours) == epsilons(theirs)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in ALL if not LACKING.fullmatch(name)])
def test_every_model_that_is_read_computes_what_timm_computes(name):
    depth = {} if name.startswith("resnetv2") else {"depth": 1}
    assert difference_from_timm(name, **depth) < 1e-5


def read_names(names):
    """Those of the names whose models are read, as far as a name tells."""
    found, refused = set(), []
    for name in names:
        try:
            read_timm({}, {"architecture": name})
            found.add(name)
        except InputError as error:
            refused.append((name, str(error)))
    line = "timm's {} has parts that vitreous lacks; it reads most of vit_*, deit*, flexivit_* and resnetv2_*_bit"
    assert refused == [(name, line.format(name)) for name, _ in refused]
    return found


def test_every_other_name_of_timms_is_refused_for_what_it_has():
    assert read_names(ALL) == {name for name in ALL if not LACKING.fullmatch(name)}
    assert len(ALL) > 200
    assert not read_names(set(timm.list_models()) - set(ALL))


def test_the_tag_of_a_name_says_nothing_of_the_model():
    assert read_names(["vit_tiny_patch16_224.augreg_in21k", "vit_base_patch16_rope_224.tag"]) == {
        "vit_tiny_patch16_224.augreg_in21k"
    }


MODELS: dict[str, ClassifierConfig] = {
    "plain": ClassifierConfig(encoder=tiny(layer_scale=0.1), num_classes=3),
    "attention pooling": ClassifierConfig(encoder=tiny(class_token=False), pooling=AttentionPool(), num_classes=3),
    "relative": ClassifierConfig(encoder=tiny(position=RelativeBias()), num_classes=3),
    "hybrid": ClassifierConfig(
        encoder=tiny(
            stem=ResNetStem(
                units=(3, 4, 9),
                norm_eps=TIMM.norm,
                variance_eps=TIMM.variance,
                deviation_eps=TIMM.deviation,
            ),
            patch_size=16,
        ),
        num_classes=3,
    ),
}


@pytest.mark.parametrize("config", MODELS.values(), ids=MODELS)
def test_gradients_are_timms(config):
    ours, theirs = twins(config)
    images = random_images(2, 3, 32, 32)
    ours(images).square().sum().backward()
    theirs(images).square().sum().backward()
    for model in (ours, theirs):
        for parameter in (p for p in model.parameters() if p.numel()):
            assert parameter.grad is not None
            parameter.data = parameter.grad  # so that the gradients can be converted as the weights are
    found, expected = to_timm(ours), theirs.state_dict()
    scale = max(tensor.abs().max() for tensor in expected.values())
    for name, tensor in expected.items():
        assert (found[name] - tensor).abs().max() < 1e-5 * max(tensor.abs().max(), 1e-3 * scale), name


@pytest.fixture(scope="module")
def real(shared):
    return load_file(shared / "weights" / "vit_tiny_patch16_224.augreg_in21k_ft_in1k" / "model.safetensors")


@torch.no_grad()
def test_the_real_vit_tiny_equals_timm(real):
    theirs = timm.create_model("vit_tiny_patch16_224").eval()
    theirs.load_state_dict(real)
    images = random_images(2, 3, 224, 224)
    torch.testing.assert_close(read(real)(images), theirs(images), atol=1e-5, rtol=0)


def test_the_real_vit_tiny_goes_back_to_timms_names_bit_by_bit(real):
    assert same_tensors(to_timm(read(real)), real)


def test_config_json_knows_what_shapes_cannot_tell():
    config = ClassifierConfig(encoder=tiny(position=NoPosition(), feed_forward=GELU(tanh=True)), num_classes=7)
    document = {**describe(config), "pretrained_cfg": {"input_size": [3, 32, 32]}}
    assert read(to_timm(config.build()), document).config == config


@torch.no_grad()
def test_a_timm_model_that_norms_after_pooling_is_read():
    theirs = randomise(timm.create_model("vit_tiny_patch16_224", depth=1, global_pool="avg"))
    ours, images = read(theirs.state_dict(), {"global_pool": "avg"}), random_images(1, 3, 224, 224)
    assert ours.config.pooling == Mean(norm=True)
    assert difference(ours(images), theirs(images)) < 1e-5


@torch.no_grad()
def test_a_timm_model_without_a_head_has_the_same_features():
    theirs = randomise(timm.create_model("vit_tiny_patch16_224", depth=1, num_classes=0, init_values=0.1, reg_tokens=2))
    ours, images = read(theirs.state_dict()), random_images(1, 3, 224, 224)
    assert difference(ours.features(images), theirs(images)) < 1e-5
    assert ours(images).tolist() == [[0.0]]


@torch.no_grad()
def test_places_of_registers_are_added_to_the_registers():
    theirs = randomise(timm.create_model("vit_tiny_patch16_224", depth=1, reg_tokens=2, num_classes=3))
    images = random_images(1, 3, 224, 224)
    assert difference(read(theirs.state_dict())(images), theirs(images)) < 1e-5


@pytest.mark.parametrize(
    "document",
    [{"model_args": {"img_size": [224, 112]}}, {"pretrained_cfg": {"input_size": [3, 224, 112]}}],
    ids=["arguments", "input size"],
)
@torch.no_grad()
def test_positions_of_an_oblong_image_are_read_where_config_json_says_so(document):
    theirs = randomise(timm.create_model("vit_tiny_patch16_224", depth=1, img_size=(224, 112)))
    ours = read(theirs.state_dict(), {"architecture": "vit_tiny_patch16_224", **document})
    images = random_images(1, 3, 224, 112)
    assert ours.config.encoder.image_size == (224, 112)
    assert difference(ours(images), theirs(images)) == 0.0


@torch.no_grad()
def test_relative_positions_of_an_oblong_image_are_read_where_config_json_says_so():
    arguments = {"img_size": [224, 112], "rel_pos_type": "bias"}
    theirs = randomise(timm.create_model("vit_relpos_small_patch16_224", depth=1, **arguments))
    ours = read(theirs.state_dict(), {"architecture": "vit_relpos_small_patch16_224", "model_args": arguments})
    images = random_images(1, 3, 224, 112)
    assert difference(ours(images), theirs(images)) < 1e-5


def test_a_grid_that_config_json_does_not_say_is_refused():
    theirs = timm.create_model("vit_tiny_patch16_224", depth=1)
    document = {"architecture": "vit_tiny_patch16_224", "model_args": {"img_size": [112, 250]}}
    with pytest.raises(InputError, match=r"197 places, no grid of 7 x 15 patches after 1 or 0 .*; fetch config\.json"):
        read(theirs.state_dict(), document)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("vit_tiny_patch16_224", {}, "pos_embed has 99 places, no square grid of patches after 1 or 0 of other tokens"),
        (
            "vit_relpos_small_patch16_224",
            {"rel_pos_type": "bias"},
            "relative_position_bias_table has 351 places, no square grid of patches after 0 of other tokens",
        ),
    ],
)
def test_positions_of_an_oblong_grid_are_refused(name, arguments, message):
    theirs = timm.create_model(name, depth=1, img_size=(224, 112), **arguments)
    with pytest.raises(InputError, match=f"{message}; fetch the weights again, and if the images were not square"):
        read(theirs.state_dict(), {"architecture": name})


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("vit_tiny_patch16_224", {"fc_norm": True, "global_pool": "token"}),
        ("vit_tiny_patch16_224", {"fc_norm": True, "global_pool": "avg"}),
        ("vit_small_patch16_dinov3", {"rope_temperature": 10.0}),
    ],
    ids=str,
)
@torch.no_grad()
def test_arguments_that_change_the_function_are_read(name, arguments):
    theirs = randomise(timm.create_model(name, depth=2, **arguments))
    ours = read(theirs.state_dict(), {"architecture": name, "model_args": arguments})
    images = random_images(1, 3, *ours.config.encoder.image_shape)
    answers = ours.features(images) if name.endswith("dinov3") else ours(images)
    assert difference(answers, theirs(images)) < 1e-5


def test_a_norm_before_and_one_after_pooling_are_not_one(real):
    tensors = {**real, "fc_norm.weight": real["norm.weight"], "fc_norm.bias": real["norm.bias"]}
    with pytest.raises(InputError, match="are the same part of a model"):
        read(tensors, {"architecture": "vit_tiny_patch16_224", "global_pool": "token"})


def test_two_norms_of_pooling_are_refused():
    arguments = {"fc_norm": True, "global_pool": "map", "class_token": False}
    theirs = timm.create_model("vit_tiny_patch16_224", depth=1, **arguments)
    with pytest.raises(InputError, match=r"attn_pool\.norm\.weight and fc_norm\.weight|fc_norm\.weight and attn_pool"):
        read(theirs.state_dict(), {"architecture": "vit_tiny_patch16_224", "model_args": arguments})


def test_a_number_of_classes_that_is_not_the_heads_is_left_behind_and_said():
    theirs = timm.create_model("vit_tiny_patch16_224", depth=1, num_classes=7)
    document = {"architecture": "vit_tiny_patch16_224", "num_classes": 10}
    assert layouts.read(theirs.state_dict(), document).left == ("num_classes 10 of config.json, for the head has 7",)
    assert layouts.read(theirs.state_dict(), document | {"num_classes": 7}).left == ()


def test_an_old_representation_layer_is_read():
    classifier = randomise(ClassifierConfig(encoder=tiny(), head=LinearHead(representation=8), num_classes=3).build())
    tensors = to_timm(classifier)
    assert {name for name in tensors if name.startswith("pre_logits")} == {"pre_logits.fc.weight", "pre_logits.fc.bias"}
    assert same_tensors(
        read(tensors, {"architecture": "vit_tiny_patch16_224", "model_args": {"num_heads": 4}}).state_dict(),
        classifier.state_dict(),
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"act_layer": "relu"}, "act_layer=relu"),
        ({"act_layer": "silu"}, "act_layer=silu"),
        ({"norm_layer": "rmsnorm"}, "norm_layer=rmsnorm"),
        ({"mlp_layer": "swiglu"}, "mlp_layer=swiglu"),
        ({"attn_layer": "diff"}, "attn_layer=diff"),
        ({"global_pool": "avgmax"}, "pool by 'avgmax'"),
        ({"global_pool": "avg", "pool_include_prefix": True}, "pool_include_prefix=True"),
        ({"scale_mlp_norm": True}, "scale_mlp_norm=True"),
        ({"rope_rotate_half": False}, "rope_rotate_half=False"),
    ],
)
def test_arguments_that_change_the_function_without_a_trace_are_refused(arguments, message):
    theirs = timm.create_model("vit_tiny_patch16_224", depth=1)
    with pytest.raises(InputError, match=message):
        read(theirs.state_dict(), {"architecture": "vit_tiny_patch16_224", "model_args": arguments})


@torch.no_grad()
def test_positions_are_resized_as_timm_resizes_them():
    theirs = randomise(timm.create_model("vit_tiny_patch16_224", depth=1, dynamic_img_size=True))
    ours, images = read(theirs.state_dict()), random_images(1, 3, 160, 320)
    assert difference(ours(images), theirs(images)) < 1e-5

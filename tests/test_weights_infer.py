import pytest
import timm
import torch
from safetensors.torch import load_file

from references import random_images, randomise, tiny
from vitreous.classifier import ClassifierConfig
from vitreous.errors import InputError
from vitreous.feed_forward import GELU
from vitreous.pooling import AttentionPool, Mean
from vitreous.position import Learned, NoPosition, RoPE2d
from vitreous.variants import vit
from vitreous.weights.infer import convert
from vitreous.weights.timm import describe, to_timm


@pytest.fixture(scope="module")
def real(shared):
    return load_file(shared / "weights" / "vit_tiny_patch16_224.augreg_in21k_ft_in1k" / "model.safetensors")


def test_the_real_vit_tiny_equals_timm(real):
    theirs = timm.create_model("vit_tiny_patch16_224", pretrained=False).eval()
    theirs.load_state_dict(real)
    images = random_images(2, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(convert(real)(images), theirs(images), atol=1e-5, rtol=0)


def test_the_real_vit_tiny_is_recognised_from_its_shapes(real):
    assert convert(real).config == ClassifierConfig(encoder=vit("Ti/16"))


def test_the_real_vit_tiny_goes_back_to_timms_names_bit_by_bit(real):
    back = to_timm(convert(real))
    assert back.keys() == real.keys()
    assert all(torch.equal(back[name], real[name]) for name in real)


@pytest.mark.parametrize(
    "encoder",
    [
        tiny(num_heads=1),
        tiny(num_heads=1, num_registers=3),
        tiny(num_heads=1, num_registers=3, class_token=False),
        tiny(num_heads=1, position=Learned(class_token_slot=False), layer_scale=1e-5),
        tiny(num_heads=1, channels=1, image_size=64),
    ],
)
@pytest.mark.parametrize("pooling", [Mean(), AttentionPool()])
def test_a_config_is_inferred_from_the_shapes_of_timms_tensors(encoder, pooling):
    config = ClassifierConfig(encoder=encoder, pooling=pooling, num_classes=7)
    hints = {"global_pool": "avg", "architecture": "vit_tiny_patch16_224"}
    assert convert(to_timm(randomise(config.build())), hints=hints).config == config


def test_the_hints_know_what_shapes_cannot_tell():
    config = ClassifierConfig(encoder=tiny(position=NoPosition(), feed_forward=GELU(tanh=True)), num_classes=7)
    document = {**describe(config), "pretrained_cfg": {"input_size": [3, 32, 32]}}
    assert convert(to_timm(config.build()), hints=document).config == config


@pytest.mark.parametrize("name", ["vit_base_patch16_clip_quickgelu_224", "resnet50", "vit_base_patch16_siglip_224"])
def test_an_architecture_that_is_no_plain_vit_is_refused(name):
    config = ClassifierConfig(encoder=tiny())
    with pytest.raises(InputError, match="no plain ViT"):
        convert(to_timm(config.build()), hints={"architecture": name})


def test_a_timm_model_that_norms_after_pooling_is_refused():
    theirs = timm.create_model("vit_tiny_patch16_224", depth=1, global_pool="avg")
    with pytest.raises(InputError, match=r"fc_norm\.weight"):
        convert(theirs.state_dict(), hints={"global_pool": "avg"})


def test_weights_without_a_head_are_an_encoder_with_a_zero_head():
    theirs = timm.create_model("vit_tiny_patch16_224", depth=1, num_classes=0, init_values=0.1, reg_tokens=2).eval()
    ours, images = convert(theirs.state_dict()), random_images(1, 3, 224, 224)
    torch.testing.assert_close(ours.features(images), theirs(images), atol=1e-5, rtol=0)
    assert ours(images).tolist() == [[0.0]]


def test_places_of_registers_are_added_to_the_registers():
    theirs = randomise(timm.create_model("vit_tiny_patch16_224", depth=1, reg_tokens=2, num_classes=3))
    images = random_images(1, 3, 224, 224)
    torch.testing.assert_close(convert(theirs.state_dict())(images), theirs(images), atol=1e-5, rtol=0)


def test_positions_of_an_oblong_grid_are_refused():
    theirs = timm.create_model("vit_tiny_patch16_224", depth=1, img_size=(224, 112))
    with pytest.raises(InputError, match="99 places"):
        convert(theirs.state_dict())


def test_weights_without_positions_need_a_config():
    with pytest.raises(InputError, match="no position table"):
        convert(ClassifierConfig(encoder=tiny(position=RoPE2d())).build().state_dict())


def test_tensors_of_something_else_are_refused():
    with pytest.raises(InputError, match=r"no.* ViT.*conv1\.weight"):
        convert(timm.create_model("resnet18").state_dict())

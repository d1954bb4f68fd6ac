from collections import OrderedDict
from typing import Any

import pytest
import torch
from torchvision.models import VisionTransformer
from torchvision.models.vision_transformer import interpolate_embeddings

from references import difference, epsilons, random_images, randomise, read, same_tensors, tiny
from vitreous.block import Parallel
from vitreous.classifier import ClassifierConfig
from vitreous.errors import InputError
from vitreous.feed_forward import GELU, SwiGLU
from vitreous.head import LinearHead
from vitreous.pooling import Mean
from vitreous.position import Learned, RoPE2d
from vitreous.resnet import ResNetConfig
from vitreous.weights import layouts, torchvision
from vitreous.weights.mapping import rename
from vitreous.weights.product import load_product
from vitreous.weights.torchvision import OLD_RULES, RULES

IMAGES = random_images(2, 3, 32, 32)


def theirs(**changes) -> VisionTransformer:
    """torchvision's ViT, small and with random weights; one head, as this width is taken to have."""
    shape: dict[str, Any] = {"image_size": 32, "patch_size": 8, "num_layers": 2, "num_classes": 5}
    shape |= {"num_heads": 1, "hidden_dim": 32, "mlp_dim": 48}
    return randomise(VisionTransformer(**(shape | changes)))


@pytest.mark.parametrize("changes", [{}, {"representation_size": 24}, {"image_size": 48, "num_layers": 1}])
@torch.no_grad()
def test_a_model_computes_what_torchvision_computes(changes):
    model = theirs(**changes)
    images = random_images(2, 3, *(2 * [changes.get("image_size", 32)]))
    ours = read(model.state_dict())
    assert difference(ours(images), model(images)) < 1e-5
    assert epsilons(ours) == epsilons(model)


@torch.no_grad()
def test_the_heads_of_a_published_width_are_known():
    model = theirs(num_heads=3, hidden_dim=192)
    assert difference(read(model.state_dict())(IMAGES), model(IMAGES)) < 1e-5


def test_gradients_are_torchvisions():
    model = theirs()
    ours = read(model.state_dict())
    ours(IMAGES).square().sum().backward()
    model(IMAGES).square().sum().backward()
    gradients: dict[str, Any] = {name: parameter.grad for name, parameter in ours.named_parameters()}
    attention: Any = model.encoder.layers.get_submodule("encoder_layer_1.self_attention")
    assert difference(gradients["encoder.blocks.1.attention.qkv.weight"], attention.in_proj_weight.grad) < 1e-5
    stem: Any = model.conv_proj.weight.grad
    assert difference(gradients["encoder.stem.weight"], stem) < 1e-5


def test_names_of_before_version_0_13_are_the_same_model():
    tensors = theirs().state_dict()
    now = tuple((ours, new) for ours, new in RULES if ".mlp." in ours)
    before = rename(rename(tensors, tuple((new, ours) for ours, new in now)), OLD_RULES)
    assert "encoder.layers.encoder_layer_1.mlp.linear_2.weight" in before
    assert same_tensors(read(before).state_dict(), read(tensors).state_dict())


@pytest.mark.parametrize("head", [LinearHead(), LinearHead(representation=24)])
@torch.no_grad()
def test_torchvision_loads_what_is_written(head):
    ours = randomise(ClassifierConfig(encoder=tiny(), head=head, num_classes=5).build())
    model = theirs(num_heads=4, representation_size=head.representation)
    model.load_state_dict(torchvision.write(ours))
    assert difference(model(IMAGES), ours(IMAGES)) < 1e-5


@pytest.mark.parametrize("changes", [{}, {"representation_size": 24}])
def test_what_is_written_is_what_was_read_bit_for_bit(changes):
    tensors = theirs(**changes).state_dict()
    assert same_tensors(torchvision.write(read(tensors)), tensors)


def test_an_encoder_alone_has_the_same_features():
    model = theirs()
    foreign = layouts.read({n: t for n, t in model.state_dict().items() if not n.startswith("heads.")}, {})
    found = layouts.classifier_of(foreign).features(IMAGES)
    model.heads = torch.nn.Sequential()
    assert difference(found, model(IMAGES)) < 1e-5


@torch.no_grad()
def test_positions_are_resized_as_torchvision_resizes_them():
    tensors, images = theirs().state_dict(), random_images(2, 3, 56, 56)
    larger = theirs(image_size=56)
    larger.load_state_dict(interpolate_embeddings(56, 8, OrderedDict(tensors)))
    assert difference(read(tensors)(images), larger(images)) < 1e-5


def test_the_preparation_of_images_is_torchvisions_and_said_to_be_assumed(tmp_path):
    torch.save(theirs().state_dict(), tmp_path / "vit.pth")
    product = load_product(tmp_path, weights="vit.pth")
    assert (product.view.crop_ratio, product.view.interpolation) == (0.875, "bilinear")
    assert product.view.mean == (0.485, 0.456, 0.406)
    assert product.extra["assumed"] == (
        "no config.json says otherwise: assumed 1 heads, ImageNet mean and deviation, bilinear resize, crop ratio 0.875"
    )


def test_positions_of_an_oblong_image_are_refused():
    tensors = theirs().state_dict() | {"encoder.pos_embedding": torch.zeros(1, 13, 32)}
    with pytest.raises(
        InputError, match=r"encoder\.pos_embedding has 13 places, no square grid of patches after 1 of other tokens"
    ):
        read(tensors)


@pytest.mark.parametrize(
    ("config", "lack"),
    [
        (ClassifierConfig(encoder=tiny(num_registers=4)), "num_registers=4"),
        (ClassifierConfig(encoder=tiny(feed_forward=SwiGLU())), "feed_forward=SwiGLU"),
        (ClassifierConfig(encoder=tiny(feed_forward=GELU(tanh=True))), r"feed_forward=GELU\(tanh=True\)"),
        (ClassifierConfig(encoder=tiny(position=RoPE2d())), "position=RoPE2d"),
        (ClassifierConfig(encoder=tiny(position=Learned(class_token_slot=False))), "position=Learned"),
        (ClassifierConfig(encoder=tiny(block=Parallel())), "block=Parallel"),
        (ClassifierConfig(encoder=tiny(norm_eps=1e-5)), "norm_eps=1e-05"),
        (ClassifierConfig(encoder=tiny(image_size=(32, 48))), r"image_size=\(32, 48\)"),
        (ClassifierConfig(encoder=tiny(), pooling=Mean()), "pooling=Mean"),
        (ClassifierConfig(encoder=ResNetConfig(units=(1,)), pooling=Mean()), "encoder=ResNetConfig"),
        (
            ClassifierConfig(encoder=tiny(num_registers=4, layer_scale=0.1)),
            "layer_scale=0.1, num_registers=4|=4, layer_scale=0.1",
        ),
    ],
)
def test_what_torchvision_lacks_is_not_written(config, lack):
    with pytest.raises(InputError, match=f"torchvision has no model with .*({lack}).*; write vitreous or timm"):
        torchvision.write(config.build())

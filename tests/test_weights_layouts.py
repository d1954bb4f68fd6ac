import dataclasses

import pytest
import timm
import torch
from torch import Tensor

from references import random_images, randomise, read, tiny
from vitreous.block import Parallel
from vitreous.classifier import ClassifierConfig
from vitreous.errors import InputError
from vitreous.feed_forward import GELU, SwiGLU
from vitreous.head import DistilledHead, LinearHead
from vitreous.pooling import AttentionPool, ClassAndDistillation, Mean
from vitreous.relative import RelativeBias
from vitreous.resnet import ResNetConfig, ResNetStem
from vitreous.tokens import Encoder
from vitreous.weights import google, huggingface, layouts, torchvision
from vitreous.weights.infer import RANKS
from vitreous.weights.mapping import Tensors
from vitreous.weights.timm_tensors import to_timm

IMAGES = random_images(1, 3, 32, 32)
SMALL = tiny(mlp_dim=40)


def classifier(encoder: Encoder = SMALL, **parts):
    return randomise(ClassifierConfig(encoder=encoder, num_classes=5, **parts).build())


def of(encoder=SMALL, **changes):
    return dataclasses.replace(encoder, **changes)


def dinov2() -> Tensors:
    """DINOv2's names, with registers and a SwiGLU."""
    tensors = to_timm(classifier(of(layer_scale=0.1, feed_forward=SwiGLU())))
    tensors = {name.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3"): t for name, t in tensors.items()}
    tensors |= {"mask_token": torch.randn(1, 32), "register_tokens": torch.randn(1, 2, 32)}
    return {name: tensor for name, tensor in tensors.items() if not name.startswith("head.")}


PLAIN = classifier()
REPRESENTED = classifier(head=LinearHead(representation=24))
ATTENDING = classifier(of(class_token=False, feed_forward=GELU(tanh=True)), pooling=AttentionPool())
HYBRID = classifier(of(stem=ResNetStem(units=(1, 1))))
RESNET = classifier(ResNetConfig(units=(1, 1), image_size=32), pooling=Mean())
EXAMPLES: dict[str, Tensors] = {
    "vitreous": PLAIN.state_dict(),
    "vitreous, attention pooling": ATTENDING.state_dict(),
    "vitreous, ResNet": RESNET.state_dict(),
    "timm": to_timm(PLAIN),
    "timm, registers": to_timm(classifier(of(num_registers=2, layer_scale=0.1))),
    "timm, attention pooling": to_timm(ATTENDING),
    "timm, distilled": to_timm(classifier(of(num_registers=1), pooling=ClassAndDistillation(), head=DistilledHead())),
    "timm, normed mean": to_timm(classifier(of(final_norm=False), pooling=Mean(norm=True))),
    "timm, relative": to_timm(classifier(of(position=RelativeBias(), class_token=False, depth=3), pooling=Mean())),
    "timm, parallel": to_timm(classifier(of(block=Parallel(), layer_scale=0.1, qk_norm=True))),
    "timm, hybrid": to_timm(HYBRID),
    "timm, ResNet": to_timm(RESNET),
    "Google": google.write(REPRESENTED),
    "Google, big_vision": google.write(ATTENDING),
    "Google, hybrid": google.write(HYBRID),
    "Google, BiT": google.write(RESNET),
    "transformers": huggingface.write(PLAIN),
    "torchvision": torchvision.write(REPRESENTED),
    "DINOv2": dinov2(),
}
"""A small model in each layout."""

MAY_LACK = {
    ("vitreous", "encoder.stem.bias"),
    ("vitreous, attention pooling", "encoder.stem.bias"),
    ("vitreous", "encoder.position.class_token"),
    ("DINOv2", "mask_token"),
    ("DINOv2", "register_tokens"),
    ("Google, big_vision", "pos_embedding"),
}
"""What models of the layout do without: a file that lacks it is one of those."""


def damages(name: str, tensor: Tensor) -> dict[str, dict[str, Tensor]]:
    """What can become of one tensor of a file: the tensors that stand in its place."""
    longest = max(range(tensor.ndim), key=lambda axis: tensor.shape[axis])
    found = {
        "missing": {},
        "renamed": {name[:-1] + "_": tensor},
        "truncated": {name: tensor.narrow(longest, 0, tensor.shape[longest] - 1)},
        "transposed": {name: tensor.transpose(0, -1)},
        "flat": {name: tensor.flatten() if tensor.ndim > 1 else tensor[None]},
    }
    if tensor.shape == tensor.transpose(0, -1).shape:  # nobody can see that
        del found["transposed"]
    return found


def ours_of(tensors: Tensors) -> dict[str, set[str]]:
    """For each tensor of a layout, our names of what it becomes, found by painting each in a colour of its own."""
    painted = {name: torch.full_like(tensor, i + 1.0) for i, (name, tensor) in enumerate(tensors.items())}
    found = read(painted).state_dict()
    colours = {name: set(tensor.unique().tolist()) for name, tensor in found.items()}
    return {name: {o for o, c in colours.items() if i + 1.0 in c} for i, name in enumerate(tensors)}


@pytest.mark.parametrize("example", EXAMPLES)
@torch.no_grad()
def test_a_damaged_tensor_is_refused_in_one_line_that_names_it_or_makes_no_difference(example):
    tensors = EXAMPLES[example]
    whole, becomes = read(tensors)(IMAGES), ours_of(tensors)
    for name, tensor in tensors.items():
        deciding = not becomes[name].isdisjoint(RANKS)
        for damage, instead in damages(name, tensor).items():
            if damage == "missing" and (example, name) in MAY_LACK:
                continue
            damaged = {other: t for other, t in tensors.items() if other != name} | instead
            try:
                found = read(damaged)(IMAGES)
            except InputError as error:
                message = str(error)
                assert "\n" not in message, (name, damage)
                named = [*instead, name, name.removeprefix("vit."), *becomes[name]]
                named += [part.replace("qkv", kind) for part in named for kind in ("query", "key", "value")]
                named += [part.rpartition(".")[0] for part in named] + ["positions"] * ("pos" in name)
                if not (deciding and damage in ("truncated", "transposed")):  # then all others do not fit to it
                    assert any(part in message for part in named), (name, damage, message)
                assert any(advice in message for advice in ("fetch", "choose", "they are", "vitreous reads")), message
            else:
                assert torch.equal(found, whole), (name, damage)


@pytest.mark.parametrize("example", EXAMPLES)
def test_a_tensor_too_many_is_refused_by_its_name(example):
    with pytest.raises(InputError, match=r"1 unexpected \(something\.else\)"):
        read(EXAMPLES[example] | {"something.else": torch.zeros(3)})


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "swin_tiny_patch4_window7_224", "mixer_s16_224"])
def test_tensors_of_another_network_are_refused(name):
    with torch.device("meta"):
        tensors = timm.create_model(name).state_dict()
    with pytest.raises(InputError, match="ViT") as error:
        read(tensors)
    assert "\n" not in str(error.value)


def test_tensors_of_nothing_known_are_shown():
    with pytest.raises(InputError, match=r"not the tensors of a ViT .*; they are a, b, c and 1 more"):
        layouts.read(dict.fromkeys("abcd", torch.zeros(1)), {})

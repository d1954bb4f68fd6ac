import dataclasses
import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from contracts import UNBUILDABLE, configs, variants
from references import random_images, randomise, tiny
from vitreous.block import Axial, Block
from vitreous.classifier import ClassifierConfig
from vitreous.config import from_dict
from vitreous.feed_forward import FeedForward
from vitreous.fields import walk
from vitreous.head import DistilledHead, Head
from vitreous.pooling import ClassAndDistillation, Mean, Pooling
from vitreous.position import Position
from vitreous.resnet import ResNetConfig
from vitreous.stem import Stem
from vitreous.vit import ViTConfig

CONFIGS = [cls for cls in configs() if cls.__name__ not in UNBUILDABLE]
LONG = tiny(patch_size=16, num_registers=1, image_size=32)  # what every part can work with
PARTS = [
    *(
        ClassifierConfig(encoder=replace(LONG, **{field: part}, **more), pooling=Mean(), num_classes=3)
        for field, base in (("stem", Stem), ("position", Position), ("feed_forward", FeedForward), ("block", Block))
        for part in variants(base)
        for more in [{"class_token": False, "num_registers": 0} if isinstance(part, Axial) else {}]
    ),
    *(ClassifierConfig(encoder=LONG, num_classes=3, pooling=part) for part in variants(Pooling)),
    *(ClassifierConfig(encoder=LONG, num_classes=3, head=part) for part in variants(Head) if part != DistilledHead()),
    ClassifierConfig(encoder=LONG, num_classes=3, pooling=ClassAndDistillation(), head=DistilledHead()),
    ClassifierConfig(encoder=ResNetConfig(units=(1, 2)), num_classes=3, pooling=Mean()),
    ClassifierConfig(encoder=replace(LONG, qk_norm=True, rms_norm=True, qkv_bias=False, stem_norm=True), num_classes=3),
    ClassifierConfig(encoder=tiny(num_registers=2, layer_scale=0.1, dropout=0.1, attention_dropout=0.1), num_classes=3),
]


def test_the_families_are_found():
    assert {ViTConfig, ClassifierConfig} <= set(CONFIGS)
    assert len(PARTS) > 10


@pytest.mark.parametrize("cls", CONFIGS)
def test_a_config_builds_without_arguments_and_survives_json(cls):
    config = cls()
    back = from_dict(json.loads(json.dumps(config.to_dict())))
    assert back == config
    assert type(back) is cls


@pytest.mark.parametrize("cls", CONFIGS)
def test_a_config_is_frozen_and_takes_keywords_only(cls):
    assert cls.__dataclass_params__.frozen
    assert all(field.kw_only for field in dataclasses.fields(cls))


@pytest.mark.parametrize("cls", CONFIGS)
def test_every_field_has_a_sentence_that_becomes_its_help(cls):
    undocumented = [field.path for field in walk(cls()) if "." not in field.path and not field.doc.endswith((".", "?"))]
    assert undocumented == []


@pytest.mark.parametrize(
    "config", PARTS, ids=lambda config: str([f.value for f in walk(config) if f.path.count(".") < 2][1:])
)
def test_a_variant_trains_every_parameter(config):
    torch.manual_seed(0)
    model = randomise(config.build()).train()
    loss = F.cross_entropy(model(random_images(4, 3, 32, 32)), torch.tensor([0, 1, 2, 0]))
    loss.backward()
    assert loss.isfinite()
    assert loss.dtype == torch.float32
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.numel()}
    still = [name for name, gradient in gradients.items() if gradient is None or not gradient.any()]
    assert all(gradient.isfinite().all() for gradient in gradients.values() if gradient is not None)
    assert still == []

import dataclasses
import json

import pytest
import torch
import torch.nn.functional as F

from contracts import UNBUILDABLE, configs, variants
from references import random_images, randomise, tiny
from vitreous.classifier import ClassifierConfig
from vitreous.config import from_dict
from vitreous.feed_forward import FeedForward
from vitreous.fields import walk
from vitreous.head import Head
from vitreous.pooling import Pooling
from vitreous.position import Position
from vitreous.stem import Stem
from vitreous.vit import ViTConfig

CONFIGS = [cls for cls in configs() if cls.__name__ not in UNBUILDABLE]
PARTS = [
    *(
        ClassifierConfig(encoder=tiny(**{field: part}), num_classes=3)
        for field, base in (("stem", Stem), ("position", Position), ("feed_forward", FeedForward))
        for part in variants(base)
    ),
    *(ClassifierConfig(encoder=tiny(), num_classes=3, pooling=part) for part in variants(Pooling)),
    *(ClassifierConfig(encoder=tiny(), num_classes=3, head=part) for part in variants(Head)),
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
    still = [
        n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all() or not p.grad.any()
    ]
    assert still == []

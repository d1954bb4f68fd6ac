import dataclasses
import itertools
import json
import random
from typing import Any

import pytest
import timm
import torch

from references import IN_TIMM, difference, epsilons, random_images, randomise, same_tensors, tiny, twins
from vitreous.block import Axial, BranchNorm, Parallel, PreNorm
from vitreous.classifier import ClassifierConfig
from vitreous.errors import InputError
from vitreous.feed_forward import GELU, QuickGELU, SwiGLU
from vitreous.head import DistilledHead, LinearHead
from vitreous.pooling import AttentionPool, ClassAndDistillation, ClassToken, Mean
from vitreous.position import EveryLayer, Learned, Learned2d, NoPosition, RoPE2d, SinCos2d
from vitreous.relative import RelativeBias, RelativeKeys, RelativeMLP
from vitreous.resnet import ResNetConfig, ResNetStem
from vitreous.stem import Patchify
from vitreous.variants import SIZES, vit
from vitreous.weights.timm_config import describe, lacks, mlp_ratio
from vitreous.weights.timm_tensors import from_timm, to_timm


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_timm_computes_the_same_mlp_dim(size):
    encoder = vit("B/16", width=size.width, mlp_dim=size.mlp_dim, num_heads=1)
    assert int(encoder.width * mlp_ratio(encoder)) == encoder.mlp_dim


@pytest.mark.parametrize("gated", [False, True])
def test_every_mlp_dim_survives_timms_ratio(gated):
    for mlp_dim in range(1, 500):
        changed = tiny(width=192, mlp_dim=mlp_dim)
        assert int(192 * mlp_ratio(changed, doubled=gated)) == mlp_dim * (2 if gated else 1)


def in_timm(config):
    """timm's model of the arguments, once they have been JSON, and our model, with the same weights."""
    described = json.loads(json.dumps(describe(config)))
    theirs = timm.create_model(described["architecture"], num_classes=config.num_classes, **described["model_args"])
    ours = randomise(config.build())
    theirs.load_state_dict(to_timm(ours))
    return theirs.eval(), ours


@pytest.mark.parametrize("config", IN_TIMM.values(), ids=IN_TIMM)
@torch.no_grad()
def test_timm_builds_the_same_function_from_the_description(config):
    theirs, ours = in_timm(config)
    images = random_images(2, config.encoder.channels, *config.encoder.image_shape)
    assert difference(ours(images), theirs(images)) < 2e-6
    assert epsilons(ours) == epsilons(theirs)


@pytest.mark.parametrize("config", IN_TIMM.values(), ids=IN_TIMM)
def test_a_known_config_undoes_what_was_written_for_timm(config):
    ours = randomise(config.build()).state_dict()
    assert same_tensors(from_timm(to_timm(randomise(config.build())), config=config), ours)


@pytest.mark.parametrize("position", [SinCos2d(), RoPE2d(), NoPosition(), Learned()])
@pytest.mark.parametrize("layer_scale", [None, 0.1])
def test_that_holds_with_many_registers(position, layer_scale):
    config = ClassifierConfig(encoder=tiny(position=position, layer_scale=layer_scale, num_registers=5))
    ours, _ = twins(config)
    assert same_tensors(from_timm(to_timm(ours), config=config), ours.state_dict())


def of(config, **changes):
    return dataclasses.replace(config, encoder=dataclasses.replace(config.encoder, **changes))


PLAIN, MEAN = IN_TIMM["class token"], IN_TIMM["mean"]
CLIP, ROTARY, RELATIVE = IN_TIMM["CLIP"], IN_TIMM["rotary"], IN_TIMM["relative bias beside a class token"]
HYBRID, DISTILLED = IN_TIMM["hybrid of R50"], IN_TIMM["distilled"]
R50 = ResNetStem(norm_eps=1e-5, variance_eps=1e-8, deviation_eps=0.0)
NOT_IN_TIMM = {
    "rows and columns": ("position", of(PLAIN, position=Learned2d())),
    "positions in every layer": ("position", of(PLAIN, position=EveryLayer())),
    "relative keys": ("position", of(PLAIN, position=RelativeKeys())),
    "axial": ("block", of(MEAN, block=Axial())),
    "RMS norms": ("rms_norm", of(PLAIN, rms_norm=True)),
    "no norm at the end": ("final_norm", of(PLAIN, final_norm=False)),
    "two norms at the end": ("pooling", dataclasses.replace(MEAN, pooling=Mean(norm=True))),
    "another epsilon": ("norm_eps", of(PLAIN, norm_eps=1e-12)),
    "a stem without bias": ("stem", of(PLAIN, stem=Patchify(bias=False))),
    "a stem with bias and norm": ("stem_norm", of(CLIP, stem=Patchify())),
    "representation": ("head", dataclasses.replace(PLAIN, head=LinearHead(representation=8))),
    "rotary with normed queries": ("qk_norm", of(ROTARY, qk_norm=True)),
    "rotary, SwiGLU and parallel": ("block position", of(ROTARY, feed_forward=SwiGLU(), block=Parallel())),
    "rotary and tanh": ("feed_forward", of(ROTARY, feed_forward=GELU(tanh=True))),
    "rotary and attention pooling beside a class token": (
        "pooling",
        dataclasses.replace(ROTARY, pooling=AttentionPool()),
    ),
    "relative and tanh": ("feed_forward", of(RELATIVE, feed_forward=GELU(tanh=True))),
    "relative with registers": ("num_registers", of(RELATIVE, num_registers=1)),
    "relative and parallel": ("block position", of(RELATIVE, block=Parallel())),
    "parallel and SwiGLU": ("block feed_forward", of(PLAIN, block=Parallel(), feed_forward=SwiGLU())),
    "norms behind layers, scaled": ("layer_scale", of(PLAIN, block=BranchNorm(), layer_scale=0.1)),
    "attention pooling and SwiGLU": (
        "pooling",
        dataclasses.replace(of(MEAN, feed_forward=SwiGLU()), pooling=AttentionPool()),
    ),
    "distilled with more registers": ("num_registers", of(DISTILLED, num_registers=3)),
    "distilled without places": ("position", of(DISTILLED, position=NoPosition())),
    "distilled hybrid": ("head stem", of(DISTILLED, stem=R50, patch_size=16)),
    "two tokens and one head": (
        "pooling",
        of(dataclasses.replace(PLAIN, pooling=ClassAndDistillation()), num_registers=1),
    ),
    "a hybrid with Google's epsilons": ("stem", of(HYBRID, stem=ResNetStem())),
    "a hybrid of other stages": ("stem", of(HYBRID, stem=dataclasses.replace(R50, units=(1, 1, 1)))),
    "a hybrid with a norm before the blocks": ("stem_norm", of(HYBRID, stem_norm=True)),
    "a ResNet with Google's epsilons": ("epsilons", ClassifierConfig(encoder=ResNetConfig(), pooling=Mean())),
    "a ResNet of other stages": ("units", of(IN_TIMM["ResNet"], units=(3, 4, 6))),
    "a wide ResNet that timm lacks": ("units", of(IN_TIMM["ResNet"], multiplier=2)),
    "a ResNet with a representation": (
        "head",
        dataclasses.replace(IN_TIMM["ResNet"], head=LinearHead(representation=8)),
    ),
}


@pytest.mark.parametrize(("fields", "config"), NOT_IN_TIMM.values(), ids=NOT_IN_TIMM)
def test_what_timm_cannot_build_is_named(fields, config):
    found = lacks(config)
    assert found.keys() == set(fields.split())
    assert all(value.lower().startswith(name) for name, value in found.items())


@pytest.mark.parametrize("config", IN_TIMM.values(), ids=IN_TIMM)
def test_a_model_that_timm_has_lacks_nothing(config):
    assert lacks(config) == {}


OPTIONS: dict[str, list[Any]] = {
    "position": [
        *(Learned(), Learned(), Learned(class_token_slot=False), SinCos2d(), NoPosition(), RoPE2d(), RelativeBias()),
        *(RelativeBias(shared=True), RelativeMLP(hidden=8), Learned2d(), EveryLayer(), RelativeKeys()),
    ],
    "feed_forward": [GELU(), GELU(), GELU(tanh=True), QuickGELU(), SwiGLU()],
    "block": [PreNorm(), PreNorm(), Parallel(), BranchNorm(), Axial()],
    "stem": [Patchify(), Patchify(), Patchify(bias=False)],
    "qkv_bias": [True, True, False],
    "qk_norm": [False, False, True],
    "rms_norm": [False, False, False, True],
    "norm_eps": [1e-6, 1e-6, 1e-6, 1e-5, 1e-12],
    "class_token": [True, True, False],
    "num_registers": [0, 0, 1, 3],
    "layer_scale": [None, None, 0.1],
    "stem_norm": [False, False, False, True],
    "final_norm": [True, True, True, False],
    "image_size": [32, (32, 48)],
    "mlp_dim": [48, 49],
}
PARTS: list[dict[str, Any]] = [
    *({"pooling": ClassToken()}, {"pooling": Mean()}, {"pooling": Mean(norm=True)}, {"pooling": AttentionPool()}),
    *({"head": LinearHead(representation=8)}, {"pooling": ClassAndDistillation(), "head": DistilledHead()}),
]


def drawn(seed):
    """Configs of random parts, most of them near the plain one."""
    draw = random.Random(seed)
    while True:
        changes = {name: draw.choice(values) for name, values in OPTIONS.items() if draw.random() < 0.4}
        try:
            config = ClassifierConfig(encoder=tiny(depth=1, **changes), num_classes=3, **draw.choice(PARTS))
            config.build()
        except InputError:  # parts that contradict each other
            continue
        yield config


@pytest.mark.parametrize("seed", [0, pytest.param(range(1, 20), marks=pytest.mark.slow)])
@torch.no_grad()
def test_whatever_is_described_timm_builds(seed):
    seeds = [seed] if isinstance(seed, int) else seed
    for config in itertools.chain.from_iterable(itertools.islice(drawn(s), 300) for s in seeds):
        if lacks(config):
            continue
        theirs, ours = in_timm(config)
        images = random_images(2, config.encoder.channels, *config.encoder.image_shape)
        assert difference(ours(images), theirs(images)) < 1e-5, config
        assert epsilons(ours) == epsilons(theirs), config
        assert same_tensors(from_timm(to_timm(ours), config=config), ours.state_dict()), config

import dataclasses

import pytest
import torch

from references import tiny, twins
from vitreous.classifier import ClassifierConfig
from vitreous.feed_forward import GELU, SwiGLU
from vitreous.head import LinearHead
from vitreous.position import Learned, NoPosition, RoPE2d, SinCos2d
from vitreous.variants import SIZES, vit
from vitreous.weights.timm import describe, from_timm, mlp_ratio, to_timm


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_timm_computes_the_same_mlp_dim(size):
    encoder = vit("B/16", width=size.width, mlp_dim=size.mlp_dim, num_heads=1)
    assert int(encoder.width * mlp_ratio(encoder)) == encoder.mlp_dim


def test_every_mlp_dim_survives_timms_ratio():
    encoder = tiny()
    for mlp_dim in range(1, 500):
        changed = dataclasses.replace(encoder, width=192, mlp_dim=mlp_dim)
        assert int(192 * mlp_ratio(changed)) == mlp_dim


@pytest.mark.parametrize(
    "config",
    [
        ClassifierConfig(encoder=tiny(feed_forward=SwiGLU())),
        ClassifierConfig(encoder=tiny(norm_eps=1e-5)),
        ClassifierConfig(encoder=tiny(position=RoPE2d(), feed_forward=GELU(tanh=True))),
        ClassifierConfig(encoder=tiny(), head=LinearHead(representation=8)),
    ],
)
def test_what_timm_cannot_build_is_not_described(config):
    assert describe(config) is None


@pytest.mark.parametrize("position", [SinCos2d(), RoPE2d(), NoPosition(), Learned()])
@pytest.mark.parametrize("layer_scale", [None, 0.1])
def test_a_known_config_undoes_what_was_written_for_timm(position, layer_scale):
    config = ClassifierConfig(encoder=tiny(position=position, layer_scale=layer_scale, num_registers=5))
    ours, _ = twins(config)
    back = from_timm(to_timm(ours), config=config)
    assert back.keys() == ours.state_dict().keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in ours.state_dict().items())

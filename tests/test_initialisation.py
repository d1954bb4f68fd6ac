import math

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from contracts import variants
from references import random_images, tiny
from vitreous.block import Attention, Axial, Block
from vitreous.classifier import ClassifierConfig
from vitreous.feed_forward import FeedForward, SwiGLU
from vitreous.head import DistilledHead, LinearHead
from vitreous.initialisation import Initialisation, PaperInitialisation, TimmInitialisation
from vitreous.pooling import AttentionPool, ClassAndDistillation, ClassToken, Mean
from vitreous.position import EveryLayer, Learned2d, Position
from vitreous.relative import RelativeMLP
from vitreous.resnet import ResNetConfig, ResNetStem
from vitreous.vit import ViTConfig


def uniform_within(weight, bound):
    """Uniform in +-bound, by its largest value and its deviation."""
    largest, deviation = weight.abs().max().item(), weight.std().item()
    return 0.999 * bound < largest <= bound and deviation == pytest.approx(bound / math.sqrt(3), rel=0.01)


@pytest.mark.parametrize("block", [b for b in variants(Block) if not isinstance(b, Axial)])
def test_weights_start_as_the_papers_code_draws_them(block):
    torch.manual_seed(0)
    encoder = ViTConfig(width=384, num_heads=6, mlp_dim=1536, depth=1, num_registers=16, block=block).build()
    block = encoder.blocks[0]
    attention, mlp = block.attention, block.mlp
    square, wide = math.sqrt(6 / (2 * 384)), math.sqrt(6 / (384 + 1536))
    assert all(uniform_within(weight, square) for weight in attention.qkv.weight.chunk(3))
    assert uniform_within(attention.out.weight, square)
    assert uniform_within(mlp.up.weight, wide)
    assert uniform_within(mlp.down.weight, wide)
    for bias in (mlp.up.bias, mlp.down.bias):
        assert bias.std().item() == pytest.approx(1e-6, rel=0.1)
    for zero in (attention.qkv.bias, attention.out.bias, encoder.prefix[0], encoder.stem.bias):
        assert not zero.any()
    assert encoder.prefix[1:].std().item() == pytest.approx(0.02, rel=0.05)
    assert encoder.position.table.std().item() == pytest.approx(0.02, rel=0.01)
    assert encoder.position.class_token.std().item() == pytest.approx(0.02, rel=0.15)
    lecun = (3 * 16 * 16) ** -0.5
    assert encoder.stem.weight.std().item() == pytest.approx(lecun, rel=0.01)
    assert encoder.stem.weight.abs().max().item() == pytest.approx(2 * lecun / 0.8796, rel=0.002)
    for norm in (module for module in encoder.modules() if isinstance(module, nn.LayerNorm)):
        assert (norm.weight == 1).all()
        assert not norm.bias.any()


@pytest.mark.parametrize("feed_forward", variants(FeedForward))
def test_biases_of_every_feed_forward_layer_start_near_zero(feed_forward):
    torch.manual_seed(0)
    encoder = tiny(mlp_dim=2000, feed_forward=feed_forward).build()
    layers = [module for module in encoder.blocks[0].mlp.modules() if isinstance(module, nn.Linear)]
    for layer in layers:
        assert layer.weight.abs().max() <= math.sqrt(6 / 2032)
        assert 5e-7 < layer.bias.std() < 2e-6


def test_an_axial_block_is_two_blocks_of_the_papers():
    torch.manual_seed(0)
    encoder = tiny(width=256, block=Axial(), class_token=False).build()
    layers = [module for module in encoder.modules() if isinstance(module, Attention)]
    assert len(layers) == 4
    for layer in layers:
        assert all(uniform_within(weight, math.sqrt(6 / 512)) for weight in layer.qkv.weight.chunk(3))


def statistics(tensor):
    return tensor.mean().item(), tensor.std().item(), tensor.abs().max().item()


def test_timms_initialisation_is_timms_tensor_by_tensor():
    torch.manual_seed(0)
    shape = {"depth": 1, "num_classes": 0}
    theirs = dict(timm.create_model("vit_small_patch16_224", init_values=0.1, **shape).named_parameters())
    encoder = ViTConfig(
        width=384, num_heads=6, mlp_dim=1536, depth=1, layer_scale=0.1, initialisation=TimmInitialisation()
    ).build()
    block = encoder.blocks[0]
    pairs = {
        "cls_token": encoder.prefix,
        "pos_embed": torch.cat([encoder.position.class_token, encoder.position.table.flatten(0, 1)]),
        "blocks.0.ls1.gamma": block.residual1.scale,
        "blocks.0.ls2.gamma": block.residual2.scale,
    }
    modules = {
        "patch_embed.proj": encoder.stem,
        "norm": encoder.norm,
        "blocks.0.norm1": block.norm1,
        "blocks.0.attn.qkv": block.attention.qkv,
        "blocks.0.attn.proj": block.attention.out,
        "blocks.0.norm2": block.norm2,
        "blocks.0.mlp.fc1": block.mlp.up,
        "blocks.0.mlp.fc2": block.mlp.down,
    }
    pairs |= {f"{name}.{leaf}": p for name, module in modules.items() for leaf, p in module.named_parameters()}
    assert pairs.keys() == theirs.keys()
    assert sum(p.numel() for p in pairs.values()) == sum(p.numel() for p in encoder.parameters())
    for name, ours in pairs.items():
        expected, found = statistics(theirs[name]), statistics(ours)
        if not expected[1]:  # a constant
            assert torch.equal(ours.flatten(), theirs[name].flatten()), name
            continue
        large = ours.numel() > 10_000
        assert found[1] == pytest.approx(expected[1], rel=0.05 if large else 0.2), name
        assert found[2] == pytest.approx(expected[2], rel=0.15 if large else 0.5), name
        assert abs(found[0] - expected[0]) < 5 * expected[1] / math.sqrt(ours.numel()), name
        if "patch_embed" in name:  # torch's own: uniform within 1 / sqrt(fan-in)
            assert found[2] <= (3 * 16 * 16) ** -0.5


def test_timms_initialisation_draws_registers_too_and_leaves_positions_no_bias():
    torch.manual_seed(0)
    encoder = tiny(num_registers=100, initialisation=TimmInitialisation(), position=RelativeMLP()).build()
    assert encoder.prefix.std().item() == pytest.approx(1e-6, rel=0.1)
    for layer in encoder.position.layers:
        assert layer.up.weight.std().item() == pytest.approx(0.02, rel=0.3)
        assert not layer.up.bias.any()
        assert not layer.down.bias.any()


def test_timms_initialisation_draws_positions_of_every_kind_with_the_same_deviation():
    torch.manual_seed(0)
    for position in (Learned2d(), EveryLayer()):
        encoder = tiny(position=position, image_size=256, initialisation=TimmInitialisation()).build()
        for name, parameter in encoder.position.named_parameters():
            few = parameter.numel() < 100
            assert parameter.std().item() == pytest.approx(0.02, rel=0.5 if few else 0.1), name
            assert 0.03 < parameter.abs().max() < 0.1


def test_a_hybrid_starts_the_same_whoever_draws_the_rest():
    for initialisation in variants(Initialisation):
        torch.manual_seed(0)
        stem = tiny(stem=ResNetStem(units=(1,)), patch_size=4, initialisation=initialisation).build().stem
        assert stem.root.weight.std().item() == pytest.approx((3 * 49) ** -0.5, rel=0.05)
        assert not stem.stages[0][0].norm3.weight.any()
        assert stem.patches.weight.std().item() == pytest.approx(256**-0.5, rel=0.05)


POOLINGS = [
    (ClassToken(), LinearHead()),
    (ClassToken(), LinearHead(representation=16)),
    (ClassAndDistillation(), DistilledHead()),
    (ClassAndDistillation(), LinearHead()),
    (Mean(), LinearHead()),
    (Mean(norm=True), LinearHead()),
    (AttentionPool(), LinearHead()),
]
ENCODERS = {
    "ViT": tiny(num_registers=1),
    "timm's ViT": tiny(num_registers=1, initialisation=TimmInitialisation()),
    "hybrid": tiny(num_registers=1, stem=ResNetStem(units=(1,))),
    "root and pool": tiny(num_registers=1, stem=ResNetStem(units=())),
}


@pytest.mark.parametrize(
    ("encoder", "pooling", "head"),
    [*((name, *parts) for name in ENCODERS for parts in POOLINGS), ("ResNet", Mean(), LinearHead())],
)
def test_the_first_loss_is_the_logarithm_of_the_number_of_classes(encoder, pooling, head):
    for num_classes in (10, 1000):
        shape = ENCODERS.get(encoder) or ResNetConfig(units=(1,))
        config = ClassifierConfig(encoder=shape, pooling=pooling, head=head, num_classes=num_classes)
        logits = config.build()(random_images(4, 3, 32, 32))
        loss = F.cross_entropy(logits, torch.tensor([0, 1, 0, 1]))
        assert loss.item() == torch.tensor(math.log(num_classes)).item()


@pytest.mark.parametrize("initialisation", variants(Initialisation))
@pytest.mark.parametrize(
    "changes",
    [
        *({"position": position} for position in variants(Position)),
        *({"block": block, "class_token": False} for block in variants(Block)),
        {"num_registers": 2, "layer_scale": 0.1, "feed_forward": SwiGLU(), "qk_norm": True, "stem_norm": True},
        {"rms_norm": True, "qk_norm": True, "qkv_bias": False},
        {"stem": ResNetStem(units=(1,))},
    ],
    ids=str,
)
def test_initialisation_reaches_every_parameter(changes, initialisation):
    encoder = tiny(**changes, initialisation=initialisation).build()
    for parameter in encoder.parameters():
        nn.init.constant_(parameter, math.nan)  # as memory is that a meta model was given
    encoder.init_weights()
    assert [name for name, parameter in encoder.named_parameters() if not parameter.isfinite().all()] == []


@pytest.mark.parametrize("head", [LinearHead(representation=8), DistilledHead()])
def test_initialisation_reaches_every_parameter_of_pooling_and_head(head):
    for part in (AttentionPool().build(tiny(feed_forward=SwiGLU())), head.build(32, 3)):
        for parameter in part.parameters():
            nn.init.constant_(parameter, math.nan)
        part.init_weights()
        assert all(parameter.isfinite().all() for parameter in part.parameters())


def test_the_same_seed_draws_the_same_weights():
    assert tiny().initialisation == PaperInitialisation()
    draws = []
    for _ in range(2):
        torch.manual_seed(5)
        draws.append(list(tiny().build().parameters()))
    assert all(torch.equal(first, second) for first, second in zip(*draws))

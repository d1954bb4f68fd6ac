"""Attention maps and rollout."""

import pytest
import torch
from torch.testing import assert_close

from vitreous.block import Axial, Parallel
from vitreous.classifier import Classifier, ClassifierConfig
from vitreous.errors import InputError
from vitreous.inspection.attention import attends, attention_maps, attention_weights, rollout
from vitreous.pooling import ClassToken, Mean
from vitreous.position import EveryLayer, Learned, Learned2d, RoPE2d, Where
from vitreous.relative import RelativeBias, RelativeKeys
from vitreous.resnet import ResNetConfig, ResNetStem
from vitreous.vit import ViTConfig

IMAGES = torch.randn(2, 3, 8, 12, generator=torch.Generator().manual_seed(0))
GRID = 2, 3


def tiny(**changes) -> Classifier:
    torch.manual_seed(0)
    encoder = {
        "patch_size": 4,
        "width": 32,
        "depth": 3,
        "num_heads": 4,
        "mlp_dim": 48,
        "image_size": 12,
        **changes,
    }
    pooling = ClassToken() if encoder.get("class_token", True) else Mean()
    config = ClassifierConfig(encoder=ViTConfig(**encoder), pooling=pooling, num_classes=5)
    classifier = config.build().eval()
    for parameter in classifier.parameters():  # a fresh head gives zeros, whatever the encoder does
        torch.nn.init.normal_(parameter, std=0.2)
    return classifier


def by_hand(classifier: Classifier) -> list[torch.Tensor]:
    """The weights of every layer, each head by itself in float64, from the definition."""
    model = classifier.double()
    encoder, weights = model.encoder, []
    tokens = encoder.embed(IMAGES.double())
    num_prefix, position = tokens.prefix.shape[1], encoder.position
    x = torch.cat([tokens.prefix, tokens.patches], dim=1)
    for layer, block in enumerate(encoder.blocks):
        x = position.before_block(x, layer, tokens)
        parallel = isinstance(encoder.config.block, Parallel)
        normed = (block.norm if parallel else block.norm1)(x)
        q, k, v = block.attention.qkv(normed).chunk(3, dim=-1)
        heads, mixed = [], []
        for head, (q_h, k_h, v_h) in enumerate(zip(q.split(8, -1), k.split(8, -1), v.split(8, -1))):
            q_h, k_h = block.attention.query_norm(q_h), block.attention.key_norm(k_h)
            if isinstance(encoder.config.position, RoPE2d):
                angles = position.angles(tokens.coords).double()
                q_h, k_h = (turn(side, angles, num_prefix) for side in (q_h, k_h))
            logits = torch.einsum("bqd,bkd->bqk", q_h, k_h) / 8**0.5
            if isinstance(encoder.config.position, RelativeBias):
                logits = logits + plain_bias(position.layers[layer], head, num_prefix)
            attention = torch.softmax(logits, dim=-1)
            heads.append(attention)
            mixed.append(attention @ v_h)
        weights.append(torch.stack(heads, dim=1))
        attended = block.attention.out(torch.cat(mixed, dim=-1))
        x = x + attended + block.mlp(normed) if parallel else x + attended
        x = x if parallel else x + block.mlp(block.norm2(x))
    classifier.float()
    return weights


def turn(x: torch.Tensor, angles: torch.Tensor, num_prefix: int) -> torch.Tensor:
    """Each pair (i, i + 4) of the patch tokens as a complex number, turned by its angle."""
    turned = torch.complex(x[..., :4], x[..., 4:])[:, num_prefix:] * torch.exp(1j * angles)
    return torch.cat([x[:, :num_prefix], torch.cat([turned.real, turned.imag], dim=-1)], dim=1)


def plain_bias(layer: torch.nn.Module, head: int, num_prefix: int) -> torch.Tensor:
    """A head's bias for a class token, a register and the patches of a grid like the trained one, pair by pair."""
    table, (rows, columns) = layer.table, GRID
    patches = [(i, j) for i in range(rows) for j in range(columns)]
    bias = torch.zeros(num_prefix + len(patches), num_prefix + len(patches), dtype=torch.float64)
    for q, (i, j) in enumerate(patches):
        for k, (r, s) in enumerate(patches):
            bias[num_prefix + q, num_prefix + k] = table[i - r + rows - 1, j - s + columns - 1, head]
    bias[0], bias[:, 0], bias[0, 0] = layer.class_token[:, head]
    return bias


KINDS = {
    "class token": {},
    "class token and registers": {"num_registers": 2},
    "rotary": {"position": RoPE2d(), "num_registers": 1},
    "no class token": {"class_token": False, "num_registers": 1},
    "normed queries and keys": {"qk_norm": True, "position": RoPE2d()},
    "relative": {"position": RelativeBias(), "num_registers": 1, "image_size": (8, 12)},
    "positions in every layer": {"position": EveryLayer(kind=Learned2d())},
    "parallel": {"block": Parallel()},
    "hybrid": {"stem": ResNetStem(units=())},
}


@pytest.mark.parametrize("kind", KINDS)
def test_maps_equal_the_definition_in_float64(kind):
    classifier = tiny(**KINDS[kind])
    prefix = classifier.encoder.prefix.shape[0]
    maps = attention_maps(classifier, IMAGES, layers=(-1, 0))
    for ours, weights in zip(maps, (by_hand(classifier)[2], by_hand(classifier)[0])):
        if classifier.config.encoder.class_token:
            expected = weights[:, :, 0, prefix:]
        else:
            expected = weights[:, :, prefix:, prefix:].mean(dim=2)
        expected = expected / expected.sum(-1, keepdim=True)
        assert_close(ours, expected.unflatten(-1, GRID).float(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_rollout_equals_the_authors_product_in_float64(kind):
    classifier = tiny(**KINDS[kind])
    prefix = classifier.encoder.prefix.shape[0]
    ours = rollout(classifier, IMAGES)
    flow = None
    for weights in by_hand(classifier):
        mixed = (weights.mean(1) + torch.eye(weights.shape[-1])) / 2
        flow = mixed if flow is None else torch.bmm(mixed, flow)
    assert flow is not None
    expected = flow[:, 0, prefix:] if classifier.config.encoder.class_token else flow[:, prefix:, prefix:].mean(1)
    expected = expected / expected.sum(-1, keepdim=True)
    assert_close(ours, expected.unflatten(-1, GRID).float(), rtol=1e-4, atol=1e-6)


def test_weights_of_a_token_sum_to_one():
    block = tiny().encoder.blocks[0]
    weights = attention_weights(block.attention, torch.randn(2, 7, 32), Where(GRID))
    assert weights.shape == (2, 4, 7, 7)
    assert_close(weights.sum(-1), torch.ones(2, 4, 7))


@pytest.mark.parametrize("kind", KINDS)
def test_maps_of_a_wide_image_keep_its_grid_and_sum_to_one(kind):
    classifier = tiny(**KINDS[kind])
    maps = attention_maps(classifier, IMAGES, layers=(0, 1))
    assert maps.shape == (2, 2, 4, *GRID)
    assert_close(maps.sum((-2, -1)), torch.ones(2, 2, 4))
    flow = rollout(classifier, IMAGES)
    assert flow.shape == (2, *GRID)
    assert_close(flow.sum((-2, -1)), torch.ones(2))


@pytest.mark.parametrize("kind", ["class token", "no class token"])
def test_uniform_attention_gives_uniform_maps(kind):
    classifier = tiny(position=Learned(), **KINDS[kind])
    for name, parameter in classifier.named_parameters():
        if "qkv" in name:
            torch.nn.init.zeros_(parameter)
    patches = GRID[0] * GRID[1]
    assert_close(attention_maps(classifier, IMAGES), torch.full((1, 2, 4, *GRID), 1 / patches))
    assert_close(rollout(classifier, IMAGES), torch.full((2, *GRID), 1 / patches))


def test_looking_leaves_the_output_bit_for_bit_and_no_hook_behind():
    classifier = tiny(position=RoPE2d())
    outputs = [classifier(IMAGES).detach()]
    during = []
    handle = classifier.encoder.register_forward_hook(lambda *parts: during.append(parts[2].prefix.clone()))
    classifier(IMAGES)
    attention_maps(classifier, IMAGES, layers=range(3))
    rollout(classifier, IMAGES)
    handle.remove()
    outputs.append(classifier(IMAGES).detach())
    assert torch.equal(outputs[0], outputs[1])
    assert outputs[0].abs().max() > 0
    assert torch.equal(during[0], during[1])
    assert torch.equal(during[0], during[2])
    assert not any(module._forward_pre_hooks for module in classifier.modules())


def test_a_hook_is_removed_when_the_model_fails():
    classifier = tiny()
    with pytest.raises(InputError):
        attention_maps(classifier, torch.zeros(1, 3, 7, 7))
    assert not any(module._forward_pre_hooks for module in classifier.modules())


def test_a_layer_that_is_not_there_is_named():
    with pytest.raises(InputError, match=r"no layers \[3\] in a model of 3; give 0 to 2"):
        attention_maps(tiny(), IMAGES, layers=(3,))


@torch.no_grad()
def test_weights_are_those_that_mix_the_values():
    for position in (RelativeKeys(), RelativeBias(), RoPE2d()):
        encoder = tiny(position=position, qk_norm=True).encoder
        tokens, attention = encoder.embed(IMAGES), encoder.blocks[1].attention
        x = torch.cat([tokens.prefix, tokens.patches], dim=1)
        where = encoder.position.attention(tokens, 3)[1]
        values = attention.heads(x, where)[2]
        mixed = attention_weights(attention, x, where) @ values
        assert_close(attention.out(mixed.transpose(1, 2).flatten(2)), attention(x, where), rtol=1e-4, atol=1e-5)


def test_a_model_whose_tokens_do_not_all_attend_to_each_other_is_refused():
    resnet = ClassifierConfig(encoder=ResNetConfig(units=(1,)), pooling=Mean(), num_classes=3).build()
    axial = tiny(block=Axial(), class_token=False)
    assert attends(tiny())
    for model, kind in ((resnet, "a ResNet"), (axial, "one with axial blocks")):
        assert not attends(model)
        for look in (attention_maps, rollout):
            with pytest.raises(InputError, match=f"need a ViT whose tokens all attend to each other, not {kind}$"):
                look(model, IMAGES)

import math
from functools import partial

import pytest
import torch
from timm.models.vision_transformer import ParallelScalingBlock
from timm.models.vision_transformer_relpos import RelPosBlock, ResPostRelPosBlock
from torch import nn
from torch.testing import assert_close

from contracts import variants
from references import random_images, randomise, tiny
from vitreous.block import Attention, Axial, Block, BranchNorm, Parallel, PreNorm, Residual, attend, rotate
from vitreous.errors import InputError
from vitreous.feed_forward import SwiGLU
from vitreous.position import Learned, NoPosition, RoPE2d, Where
from vitreous.relative import RelativeBias

GRID = (2, 3)
NOWHERE = Where(GRID)
FLAGS = [{}, {"qkv_bias": False}, {"qk_norm": True}, {"qk_norm": True, "rms_norm": True, "norm_eps": 1e-3}]


def layer_norm(x, norm):
    """Of the last axis, in float64; RMS norms have no bias and no mean."""
    if isinstance(norm, nn.Identity):
        return x
    weight, bias = norm.weight.double(), getattr(norm, "bias", None)
    if bias is None:
        return x / (x.square().mean(-1, keepdim=True) + norm.eps).sqrt() * weight
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + norm.eps).sqrt() * weight + bias.double()


def softmax_attention(x, attention, *, angles=None, bias=None):
    """Equations 5 to 8 of the paper, in float64, head by head."""
    qkv = attention.qkv
    weight = qkv.weight.double()
    qkv_bias = torch.zeros(len(weight)) if qkv.bias is None else qkv.bias
    mixed = []
    for head in range(attention.num_heads):
        head_dim = x.shape[-1] // attention.num_heads
        q, k, v = (
            x @ weight[start : start + head_dim].T + qkv_bias[start : start + head_dim].double()
            for start in (part * x.shape[-1] + head * head_dim for part in range(3))
        )
        q, k = layer_norm(q, attention.query_norm), layer_norm(k, attention.key_norm)
        if angles is not None:
            q, k = (torch.view_as_real(complex_pairs(t) * torch.exp(1j * angles)).mT.flatten(-2) for t in (q, k))
        logits = q @ k.mT / math.sqrt(head_dim) + (0 if bias is None else bias[:, head])
        scores = torch.exp(logits)
        mixed.append(scores / scores.sum(-1, keepdim=True) @ v)
    return torch.cat(mixed, -1) @ attention.out.weight.double().T + attention.out.bias.double()


@pytest.mark.parametrize("biased", [False, True])
def test_attention_in_bfloat16_is_the_same_whether_a_gradient_is_needed_or_not(biased):
    """Of both ways the error is that of rounding: eight bits, a few times."""
    drawn = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, 17, 16, generator=drawn).bfloat16() for _ in range(3))
    bias = torch.randn(1, 3, 17, 17, generator=drawn).bfloat16() if biased else None
    exact = [x.double().requires_grad_() for x in (q, k, v)]
    logits = exact[0] @ exact[1].mT / 4 + (0 if bias is None else bias.double())
    wanted = logits.softmax(-1) @ exact[2]
    kept = [x.clone().requires_grad_() for x in (q, k, v)]
    found = attend(*kept, bias=bias)
    assert found.dtype == torch.bfloat16
    assert_close(attend(q, k, v, bias=bias).double(), wanted.detach(), rtol=0, atol=0.02)
    assert_close(found.detach().double(), wanted.detach(), rtol=0, atol=0.02)
    assert not any(type(node).__name__.startswith("Scaled") for node, _ in found.grad_fn.next_functions)
    towards = torch.randn(wanted.shape, generator=drawn)
    found.backward(towards.bfloat16())
    wanted.backward(towards.bfloat16().double())
    for ours, theirs in zip(kept, exact):
        assert_close(ours.grad.double(), theirs.grad, rtol=0.03, atol=0.05)


def complex_pairs(x):
    return torch.complex(*x.chunk(2, dim=-1))


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("flags", FLAGS, ids=str)
@torch.no_grad()
def test_attention_equals_the_papers_formula_in_float64(flags, turned, biased):
    attention = randomise(Attention(tiny(**flags))).double()
    x, angles, bias = (random_images(*shape).double() for shape in ((2, 6, 32), (2, 6, 4), (2, 4, 6, 6)))
    rotation = (angles.cos(), angles.sin()) if turned else None
    where = Where(GRID, rotation=rotation, bias=(lambda queries: bias) if biased else None)
    expected = softmax_attention(x, attention, angles=angles if turned else None, bias=bias if biased else None)
    assert_close(attention(x, where), expected, atol=1e-12, rtol=0)


@torch.no_grad()
def test_a_bias_is_computed_from_queries_that_are_normed_and_turned():
    attention, seen = randomise(Attention(tiny(qk_norm=True))), []
    x, angles = random_images(2, 6, 32), random_images(2, 6, 4)
    rotation = (angles.cos(), angles.sin())
    attention(x, Where(GRID, rotation=rotation, bias=lambda q: seen.append(q) or torch.zeros(1, 1, 6, 6)))
    q = attention.qkv(x)[..., :32].unflatten(-1, (4, 8)).transpose(1, 2)
    assert_close(seen[0], rotate(attention.query_norm(q), *rotation))


def test_a_rotation_by_zero_is_none_and_any_rotation_keeps_lengths():
    x, angles = random_images(2, 3, 5, 8), random_images(2, 5, 4)
    zero = torch.zeros(2, 5, 4)
    assert torch.equal(rotate(x, zero.cos(), zero.sin()), x)
    assert_close(rotate(x, angles.cos(), angles.sin()).norm(dim=-1), x.norm(dim=-1))


def norm_names(block):
    return {type(m).__name__ for m in block.modules() if "Norm" in type(m).__name__ and not list(m.children())}


@pytest.mark.parametrize("block", variants(Block))
def test_every_norm_is_rms_where_it_is_told(block):
    flags = {"qk_norm": True, "stem_norm": True, "block": block, "class_token": False}
    assert norm_names(tiny(**flags, rms_norm=True).build()) == {"RMSNorm"}
    assert norm_names(tiny(**flags).build()) == {"LayerNorm"}
    built = tiny(**flags, rms_norm=True, norm_eps=0.25).build()
    assert {m.eps for m in built.modules() if isinstance(m, nn.RMSNorm)} == {0.25}


def copy_block(ours, theirs):
    """timm's block with the weights of ours, where attention and MLP are modules of their own."""
    words = {"attention.qkv": "attn.qkv", "attention.out": "attn.proj", "mlp.up": "mlp.fc1", "mlp.down": "mlp.fc2"}
    words |= {"attention.query_norm": "attn.q_norm", "attention.key_norm": "attn.k_norm"}
    words |= {"residual1.scale": "ls1.gamma", "residual2.scale": "ls2.gamma"}
    tensors = {}
    for name, tensor in ours.state_dict().items():
        module, _, leaf = name.rpartition(".")
        tensors[words.get(name) or f"{words.get(module, module)}.{leaf}"] = tensor
    theirs.load_state_dict(tensors)
    return theirs.eval()


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize(("block", "kind"), [(PreNorm(), RelPosBlock), (BranchNorm(), ResPostRelPosBlock)])
@torch.no_grad()
def test_sequential_blocks_equal_timms(block, kind, qk_norm):
    config = tiny(qk_norm=qk_norm, layer_scale=0.1 if kind is RelPosBlock else None)
    ours, norm = randomise(block.build(config, drop_path=0.0)), partial(nn.LayerNorm, eps=1e-6)
    theirs = kind(32, 4, mlp_ratio=1.5, qkv_bias=True, qk_norm=qk_norm, init_values=config.layer_scale, norm_layer=norm)
    x = random_images(2, 6, 32)
    assert_close(ours(x, NOWHERE), copy_block(ours, theirs)(x), atol=1e-5, rtol=0)


@pytest.mark.parametrize("flags", [{}, {"qk_norm": True, "qkv_bias": False}, {"layer_scale": 0.1}], ids=str)
@torch.no_grad()
def test_the_parallel_block_equals_timms_with_its_projections_fused(flags):
    config = tiny(**flags)
    ours, bias = randomise(Parallel().build(config, drop_path=0.0)), config.qkv_bias
    theirs = ParallelScalingBlock(
        32,
        4,
        mlp_ratio=1.5,
        qkv_bias=bias,
        qk_norm=config.qk_norm,
        init_values=config.layer_scale,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
    ).eval()
    state = ours.state_dict()
    tensors = {"in_proj.weight": torch.cat([state["mlp.up.weight"], state["attention.qkv.weight"]])}
    up = state["mlp.up.bias"]
    tensors |= {"in_proj.bias": torch.cat([up, state["attention.qkv.bias"]])} if bias else {"mlp_bias": up}
    words = {"norm": "in_norm", "attention.query_norm": "q_norm", "attention.key_norm": "k_norm", "residual": "ls"}
    words |= {"attention.out": "attn_out_proj", "mlp.down": "mlp_out_proj"}
    for name, tensor in state.items():
        module, _, leaf = name.rpartition(".")
        if module in words:
            tensors[f"{words[module]}.{leaf.replace('scale', 'gamma')}"] = tensor
    theirs.load_state_dict(tensors)
    x = random_images(2, 6, 32)
    assert_close(ours(x, NOWHERE), theirs(x), atol=1e-5, rtol=0)


@pytest.mark.parametrize("position", [NoPosition(), Learned(), RoPE2d()])
@torch.no_grad()
def test_axial_attention_equals_a_loop_over_rows_then_columns(position):
    config = tiny(position=position, block=Axial(), class_token=False, image_size=(24, 40), qk_norm=True)
    encoder, (rows, columns) = randomise(config.build()), (3, 5)
    tokens = encoder.embed(random_images(2, 3, 24, 40))
    x, rotation = tokens.patches, encoder.position.attention(tokens, 1)[0].rotation
    for block in encoder.blocks:
        for part, lines in (
            (block.rows, [[i * columns + j for j in range(columns)] for i in range(rows)]),
            (block.columns, [[i * columns + j for i in range(rows)] for j in range(columns)]),
        ):
            new = torch.empty_like(x)
            for line in lines:
                turned = rotation and tuple(angle[:, line] for angle in rotation)
                new[:, line] = part(x[:, line], Where((rows, columns), rotation=turned))
            x = new
    assert_close(encoder.encode(tokens).patches, encoder.norm(x), atol=1e-5, rtol=0)


def axial(**changes):
    return tiny(block=Axial(), **{"class_token": False, **changes}).build()


@pytest.mark.parametrize(
    "changes", [{"class_token": True}, {"num_registers": 1}, {"position": RelativeBias()}], ids=str
)
def test_axial_attention_refuses_what_is_no_grid_of_patches(changes):
    with pytest.raises(InputError, match="axial"):
        axial(**changes)(torch.zeros(1, 3, 32, 32))


def test_axial_attention_refuses_dropped_patches():
    encoder = axial()
    tokens = encoder.embed(torch.zeros(1, 3, 32, 32))
    with pytest.raises(InputError, match="drops no patches"):
        encoder.encode(tokens.keep(torch.arange(12)[None]))


@pytest.mark.parametrize("block", variants(Block))
@pytest.mark.parametrize("layer_scale", [None, 0.1])
@torch.no_grad()
def test_every_block_is_the_identity_when_its_branches_are_silent(block, layer_scale):
    built = randomise(block.build(tiny(layer_scale=layer_scale), drop_path=0.0))
    for name, parameter in built.named_parameters():
        silent = ".scale" in name if layer_scale else "out." in name or "down." in name
        if silent or (isinstance(block, BranchNorm) and name.startswith("norm")):
            parameter.zero_()
    x = random_images(2, 6, 32)
    assert torch.equal(built(x, NOWHERE), x)


def test_layer_scale_starts_where_it_is_told():
    for block in variants(Block):
        scales = [
            p
            for n, p in tiny(layer_scale=0.25, block=block, class_token=False).build().named_parameters()
            if n.endswith("scale")
        ]
        assert len(scales) == 2 * {"Parallel": 1, "Axial": 4}.get(type(block).__name__, 2)
        assert all((scale == 0.25).all() for scale in scales)


def test_drop_path_drops_whole_images_and_keeps_the_mean():
    torch.manual_seed(0)
    residual = Residual(tiny(), 0.25).train()
    branch = residual(torch.zeros(20_000, 2, 3), torch.ones(20_000, 2, 3), NOWHERE)
    per_image = branch.flatten(1)
    assert (per_image == per_image[:, :1]).all()
    assert_close(per_image[:, 0].unique(), torch.tensor([0, 4 / 3]))
    assert per_image.mean().item() == pytest.approx(1, abs=0.02)  # 5 standard errors


def test_drop_path_drops_whole_images_of_axial_blocks():
    torch.manual_seed(0)
    built = randomise(Axial().build(tiny(), drop_path=0.5)).train()
    for block in (built.rows, built.columns):
        for layer in (block.attention.out, block.mlp.down):
            torch.nn.init.zeros_(layer.weight)
            torch.nn.init.ones_(layer.bias)
    added = built(torch.zeros(200, 6, 32), Where(grid=(2, 3)))
    assert (added == added[:, :1, :1]).all()
    assert_close(added[:, 0, 0].unique(), torch.arange(5.0) * 2)  # none to all four branches, each twice as large


@pytest.mark.parametrize("block", [PreNorm(), BranchNorm(), Parallel()])
def test_drop_path_skips_every_branch_of_a_block_in_training_alone(block):
    torch.manual_seed(0)
    built, x = randomise(block.build(tiny(), drop_path=1 - 1e-6)), random_images(3, 6, 32)
    assert torch.equal(built.train()(x, NOWHERE), x)
    assert not torch.allclose(built.eval()(x, NOWHERE), x, atol=0.1)


@pytest.mark.parametrize("feed_forward", [None, SwiGLU()])
@pytest.mark.parametrize("block", [PreNorm(), Parallel()])
@torch.no_grad()
def test_dropout_silences_every_dense_layer_but_query_key_and_value(block, feed_forward):
    """With nearly everything dropped, what follows dropout is zero."""
    torch.manual_seed(0)
    config = tiny(dropout=1 - 1e-7, **({"feed_forward": feed_forward} if feed_forward else {}))
    built, seen = randomise(block.build(config, drop_path=0.0)).train(), {}
    for name, module in built.named_modules():
        if isinstance(module, nn.Linear | nn.LayerNorm):
            module.register_forward_hook(
                lambda _module, given, output, name=name: seen.update({name: (given[0].any(), output.any())})
            )
    x = random_images(2, 6, 32)
    assert torch.equal(built(x, NOWHERE), x)  # after the output of attention and the last layer of the MLP
    silent = {name for name, (given, _) in seen.items() if not given}
    assert silent == {"mlp.down"}  # after the first layer of the MLP
    assert seen["attention.qkv"][1]
    assert seen["attention.out"][0]  # queries, keys and values are whole


def test_attention_dropout_acts_on_attention_weights_in_training(monkeypatch):
    given = []
    attend = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional,
        "scaled_dot_product_attention",
        lambda *qkv, dropout_p, **more: given.append(dropout_p) or attend(*qkv, dropout_p=dropout_p, **more),
    )
    attention = Attention(tiny(attention_dropout=0.3))
    attention.train()(random_images(1, 6, 32), NOWHERE)
    attention.eval()(random_images(1, 6, 32), NOWHERE)
    assert given == [0.3, 0.0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 5}, "num_heads 5 does not divide width 32"),
        ({"dropout": 1.0}, "dropout is 1.0; it must be 0 or more and less than 1"),
        ({"norm_eps": -1e-6}, "norm_eps is -1e-06"),
        ({"mlp_dim": 0}, "mlp_dim is 0"),
    ],
)
def test_a_shape_that_cannot_be_is_refused(changes, message):
    with pytest.raises(InputError, match=message):
        tiny(**changes)

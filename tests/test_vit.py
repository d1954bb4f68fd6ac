import math

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from references import random_images, randomise, tiny, twins
from vitreous.classifier import ClassifierConfig
from vitreous.errors import InputError
from vitreous.feed_forward import SwiGLU
from vitreous.pooling import AttentionPool, Mean
from vitreous.position import Learned, NoPosition, RoPE2d, SinCos2d
from vitreous.variants import SIZES
from vitreous.vit import Attention, Residual, ViTConfig, rotate
from vitreous.weights.timm import to_timm


@pytest.mark.parametrize("letter", SIZES)
@torch.no_grad()
def test_every_size_equals_timm_on_the_same_weights(letter):
    size = SIZES[letter]
    encoder = ViTConfig(
        patch_size=16,
        image_size=32,
        width=size.width,
        depth=2,
        num_heads=size.num_heads,
        mlp_dim=size.mlp_dim,
    )
    ours = randomise(ClassifierConfig(encoder=encoder, num_classes=3).build())
    theirs = VisionTransformer(
        img_size=32,
        patch_size=16,
        num_classes=3,
        embed_dim=size.width,
        depth=2,
        num_heads=size.num_heads,
        mlp_ratio=(size.mlp_dim + 0.5) / size.width,
        weight_init="skip",
    ).eval()
    theirs.load_state_dict(to_timm(ours), assign=True)
    images = random_images(2, 3, 32, 32)
    tokens = ours.encoder(images)
    features = theirs.forward_features(images)
    torch.testing.assert_close(tokens.prefix[:, 0], features[:, 0], atol=1e-5, rtol=0)
    torch.testing.assert_close(tokens.patches, features[:, 1:], atol=1e-5, rtol=0)


def test_gradients_equal_timms():
    ours, theirs = twins(ClassifierConfig(encoder=tiny(num_registers=1, layer_scale=0.1), num_classes=3))
    images, labels = random_images(4, 3, 32, 32), torch.tensor([0, 1, 2, 1])
    for model in (ours, theirs):
        torch.nn.functional.cross_entropy(model(images), labels).backward()
    for parameter in ours.parameters():  # so that `to_timm` renames gradients
        parameter.data = parameter.grad
    expected = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    renamed = to_timm(ours)
    renamed["pos_embed"][:, 1] = expected["pos_embed"][:, 1]  # timm's place of the register; we have none
    assert renamed.keys() == expected.keys()
    for name, gradient in renamed.items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-6, rtol=1e-4)


def softmax_attention(x, attention, angles=None):
    """Equations 5 to 8 of the paper, in float64, head by head."""
    weight, bias = attention.qkv.weight.double(), attention.qkv.bias.double()
    mixed = []
    for head in range(attention.num_heads):
        head_dim = x.shape[-1] // attention.num_heads
        q, k, v = (
            x @ weight[start : start + head_dim].T + bias[start : start + head_dim]
            for start in (part * x.shape[-1] + head * head_dim for part in range(3))
        )
        if angles is not None:
            q, k = (torch.view_as_real(complex_pairs(t) * torch.exp(1j * angles)).mT.flatten(-2) for t in (q, k))
        scores = torch.exp(q @ k.mT / math.sqrt(head_dim))
        mixed.append(scores / scores.sum(-1, keepdim=True) @ v)
    return torch.cat(mixed, -1) @ attention.out.weight.double().T + attention.out.bias.double()


def complex_pairs(x):
    return torch.complex(*x.chunk(2, dim=-1))


@pytest.mark.parametrize("turned", [False, True])
@torch.no_grad()
def test_attention_equals_the_papers_formula_in_float64(turned):
    attention = randomise(Attention(tiny()))
    x, angles = random_images(2, 7, 32), random_images(2, 7, 4) if turned else None
    expected = softmax_attention(x.double(), attention, None if angles is None else angles.double())
    torch.testing.assert_close(attention(x, angles).double(), expected, atol=1e-5, rtol=0)


def test_a_rotation_by_zero_is_none_and_any_rotation_keeps_lengths():
    x, angles = random_images(2, 3, 5, 8), random_images(2, 5, 4)
    assert torch.equal(rotate(x, torch.zeros(2, 5, 4)), x)
    torch.testing.assert_close(rotate(x, angles).norm(dim=-1), x.norm(dim=-1))


@pytest.mark.parametrize("position", [NoPosition(), Learned(), SinCos2d(), RoPE2d()])
def test_patches_may_come_in_any_order_once_they_know_their_places(position):
    encoder = randomise(tiny(position=position, num_registers=2).build())
    tokens = encoder.embed(random_images(1, 3, 32, 32))
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))[None]
    shuffled, straight = encoder.encode(tokens.keep(order)), encoder.encode(tokens)
    torch.testing.assert_close(shuffled.patches, straight.patches[:, order[0]])
    torch.testing.assert_close(shuffled.prefix, straight.prefix)


def test_fill_replaces_the_masked_patches_alone():
    tokens = randomise(tiny().build()).embed(random_images(2, 3, 32, 32))
    mask = torch.zeros(2, 16, dtype=torch.bool)
    mask[0, 3] = mask[1, 5] = True
    filled = tokens.fill(mask, torch.full((32,), 7.0))
    assert (filled.patches[mask] == 7).all()
    assert torch.equal(filled.patches[~mask], tokens.patches[~mask])


def test_registers_stand_after_the_class_token_and_are_used():
    encoder = randomise(tiny(num_registers=3).build())
    images = random_images(1, 3, 32, 32)
    before = encoder(images)
    assert before.prefix.shape == (1, 4, 32)
    with torch.no_grad():
        encoder.prefix[3] *= -1
    assert not torch.allclose(encoder(images).patches, before.patches)


def test_layer_scale_zero_makes_every_block_the_identity():
    encoder = randomise(tiny(layer_scale=0.1).build())
    with torch.no_grad():
        for block in encoder.blocks:
            block.residual1.scale.zero_()
            block.residual2.scale.zero_()
    tokens = encoder.embed(random_images(1, 3, 32, 32))
    torch.testing.assert_close(encoder.encode(tokens).patches, encoder.norm(tokens.patches))


def test_layer_scale_starts_where_it_is_told():
    encoder = tiny(layer_scale=0.25).build()
    assert all(
        (block.residual1.scale == 0.25).all() and (block.residual2.scale == 0.25).all() for block in encoder.blocks
    )


def test_drop_path_rises_linearly_from_zero_to_its_end():
    encoder = tiny(depth=5, drop_path=0.4).build()
    assert [block.residual1.drop for block in encoder.blocks] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    assert [block.residual2.drop for block in encoder.blocks] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])


def test_drop_path_drops_whole_images_and_keeps_the_mean():
    torch.manual_seed(0)
    residual = Residual(tiny(), 0.25).train()
    branch = residual(torch.zeros(20_000, 2, 3), torch.ones(20_000, 2, 3))
    per_image = branch.flatten(1)
    assert (per_image == per_image[:, :1]).all()
    torch.testing.assert_close(per_image[:, 0].unique(), torch.tensor([0, 4 / 3]))
    assert per_image.mean().item() == pytest.approx(1, abs=0.02)  # 5 standard errors


def test_nothing_is_dropped_in_evaluation():
    encoder = randomise(tiny(drop_path=0.5, dropout=0.5, attention_dropout=0.5).build())
    images = random_images(2, 3, 32, 32)
    assert torch.equal(encoder(images).patches, encoder(images).patches)


def test_dropout_stands_after_positions_and_every_dense_layer_but_query_key_and_value(monkeypatch):
    widths = []
    dropout = torch.nn.functional.dropout
    monkeypatch.setattr(
        torch.nn.functional,
        "dropout",
        lambda x, p, *rest: widths.append((x.shape[-1], p)) or dropout(x, p, *rest),
    )
    tiny(dropout=0.1, depth=1, mlp_dim=48).build().train()(random_images(1, 3, 32, 32))
    prefix_and_patches, attention_out, mlp = [(32, 0.1)] * 2, [(32, 0.1)], [(48, 0.1), (32, 0.1)]
    assert widths == prefix_and_patches + attention_out + mlp


def test_attention_dropout_acts_on_attention_weights_in_training(monkeypatch):
    given = []
    attend = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional,
        "scaled_dot_product_attention",
        lambda *qkv, dropout_p: given.append(dropout_p) or attend(*qkv, dropout_p=dropout_p),
    )
    encoder = tiny(attention_dropout=0.3, depth=1).build()
    encoder.train()(random_images(1, 3, 32, 32))
    encoder.eval()(random_images(1, 3, 32, 32))
    assert given == [0.3, 0.0]


def test_weights_start_as_the_papers_code_draws_them():
    torch.manual_seed(0)
    encoder = ViTConfig(depth=1, num_registers=16).build()
    block = encoder.blocks[0]
    square, wide = math.sqrt(6 / (768 + 768)), math.sqrt(6 / (768 + 3072))
    matrices = [(part, square) for part in (*block.attention.qkv.weight.chunk(3), block.attention.out.weight)]
    for weight, bound in [*matrices, (block.mlp.up.weight, wide), (block.mlp.down.weight, wide)]:
        assert 0.999 * bound < weight.abs().max() <= bound
        assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.01)
    for bias in (block.mlp.up.bias, block.mlp.down.bias):
        assert bias.std().item() == pytest.approx(1e-6, rel=0.1)
    assert not block.attention.qkv.bias.any()
    assert not block.attention.out.bias.any()
    assert not encoder.prefix[0].any()
    assert encoder.prefix[1:].std().item() == pytest.approx(0.02, rel=0.05)
    assert encoder.position.table.std().item() == pytest.approx(0.02, rel=0.01)
    for norm in (block.norm1, block.norm2, encoder.norm):
        assert (norm.weight == 1).all()
        assert not norm.bias.any()


def test_initialisation_reaches_every_parameter():
    config = ClassifierConfig(
        encoder=tiny(num_registers=2, layer_scale=0.1, feed_forward=SwiGLU()),
        pooling=AttentionPool(),
        num_classes=3,
    )
    model = config.build()
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, math.nan)  # as memory is that a meta model was given
    for part in (model.encoder, model.pooling, model.head):
        part.init_weights()
    assert [name for name, parameter in model.named_parameters() if not parameter.isfinite().all()] == []


def test_bfloat16_is_finite_and_near_float32():
    model = randomise(
        ClassifierConfig(encoder=tiny(position=RoPE2d(), width=64), pooling=Mean(), num_classes=3).build()
    )
    images = random_images(2, 3, 32, 32)
    exact = model(images)
    half = model.bfloat16()(images.bfloat16())
    assert half.dtype == torch.bfloat16
    assert half.isfinite().all()
    torch.testing.assert_close(half.float(), exact, atol=0.1, rtol=0.05)


@pytest.mark.parametrize("size", [(30, 32), (32, 33)])
def test_an_image_that_does_not_divide_into_patches_is_refused(size):
    with pytest.raises(InputError, match="does not divide into patches of 8"):
        tiny().build()(torch.zeros(1, 3, *size))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 5}, "num_heads 5 does not divide width 32"),
        ({"image_size": 30}, "not a multiple.*take 32"),
    ],
)
def test_a_shape_that_cannot_be_is_refused(changes, message):
    with pytest.raises(InputError, match=message):
        tiny(**changes)


def test_outputs_do_not_depend_on_the_rest_of_the_batch():
    encoder = randomise(tiny().build())
    images = random_images(3, 3, 32, 32)
    torch.testing.assert_close(encoder(images).patches[1], encoder(images[1:2]).patches[0])


def test_timms_dynamic_image_size_agrees_without_positions():
    config = ClassifierConfig(encoder=tiny(position=NoPosition()), num_classes=3)
    ours, theirs = twins(config, dynamic_img_size=True)
    for size in [(32, 32), (48, 16)]:
        images = random_images(1, 3, *size)
        torch.testing.assert_close(ours(images), theirs(images), atol=1e-5, rtol=0)


@pytest.mark.parametrize("position", [NoPosition(), Learned(), SinCos2d(), RoPE2d()])
def test_under_autocast_tokens_stay_float32_between_blocks(position):
    model = tiny(position=position).build()
    seen = []
    model.blocks[-1].register_forward_pre_hook(lambda block, inputs: seen.append(inputs[0].dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(random_images(1, 3, 32, 32))
    assert seen == [torch.float32]

import dataclasses

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch.testing import assert_close

from contracts import variants
from references import random_images, randomise, tiny, twins
from vitreous.block import BranchNorm, Parallel
from vitreous.classifier import ClassifierConfig
from vitreous.errors import InputError
from vitreous.feed_forward import QuickGELU, SwiGLU
from vitreous.pooling import Mean
from vitreous.position import EveryLayer, Learned, NoPosition, Position, RoPE2d, SinCos2d, Where
from vitreous.relative import RelativeBias, RelativeKeys
from vitreous.resnet import ResNetStem
from vitreous.stem import Patchify
from vitreous.tokens import gather
from vitreous.variants import SIZES, vit
from vitreous.vit import ViTConfig, divisible_size
from vitreous.weights.timm_tensors import to_timm


@pytest.mark.parametrize("letter", [letter for letter in SIZES if letter != "22B"])
@torch.no_grad()
def test_every_size_equals_timm_on_the_same_weights(letter):
    size = SIZES[letter]
    encoder = ViTConfig(
        patch_size=16,
        image_size=32,
        width=size.width,
        depth=1,
        num_heads=size.num_heads,
        mlp_dim=size.mlp_dim,
    )
    ours = randomise(ClassifierConfig(encoder=encoder, num_classes=3).build())
    theirs = VisionTransformer(
        img_size=32,
        patch_size=16,
        num_classes=3,
        embed_dim=size.width,
        depth=1,
        num_heads=size.num_heads,
        mlp_ratio=(size.mlp_dim + 0.5) / size.width,
        weight_init="skip",
        device="meta",
    ).eval()
    theirs.load_state_dict(to_timm(ours), assign=True)
    images = random_images(2, 3, 32, 32)
    tokens = ours.encoder(images)
    features = theirs.forward_features(images)
    assert_close(tokens.prefix[:, 0], features[:, 0], atol=1e-5, rtol=0)
    assert_close(tokens.patches, features[:, 1:], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "changes",
    [
        {"qk_norm": True, "qkv_bias": False},
        {"stem_norm": True, "norm_eps": 1e-5, "stem": Patchify(bias=False)},
        {"stem_norm": True, "norm_eps": 1e-5, "stem": Patchify(bias=False), "feed_forward": QuickGELU()},
        {"block": Parallel(), "qk_norm": True, "layer_scale": 0.1},
        {"feed_forward": SwiGLU(), "layer_scale": 0.1},
        {"layer_scale": 0.1, "num_registers": 2},
        {"image_size": (32, 48)},
        {"image_size": (16, 48), "position": Learned(class_token_slot=False)},
        {"image_size": (48, 24), "position": RoPE2d()},
        {"image_size": (48, 24), "position": SinCos2d()},
    ],
    ids=str,
)
@torch.no_grad()
def test_every_option_equals_timms(changes):
    ours, theirs = twins(ClassifierConfig(encoder=tiny(**changes), num_classes=3))
    images = random_images(2, 3, *ours.config.encoder.image_shape)
    assert_close(ours(images), theirs(images), atol=2e-5, rtol=0)


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
        assert_close(gradient, expected[name], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("size", [(32, 32), (30, 27), (25, 32), (47, 9)])
@torch.no_grad()
def test_a_padded_image_equals_timms(size):
    encoder = tiny(position=NoPosition() if size == (47, 9) else Learned())
    ours, theirs = twins(ClassifierConfig(encoder=encoder, num_classes=3), dynamic_img_pad=True, dynamic_img_size=True)
    padded = ClassifierConfig(encoder=dataclasses.replace(encoder, pad=True), num_classes=3).build().eval()
    padded.load_state_dict(ours.state_dict())
    images = random_images(2, 3, *size)
    assert_close(padded(images), theirs(images), atol=1e-5, rtol=0)


def test_padding_is_zeros_at_the_right_and_below():
    encoder = randomise(tiny(pad=True, image_size=(30, 27)).build())
    assert encoder.config.grid == (4, 4)
    images = random_images(2, 3, 30, 27)
    padded = torch.zeros(2, 3, 32, 32)
    padded[..., :30, :27] = images
    assert torch.equal(encoder(images).patches, encoder(padded).patches)
    assert torch.equal(encoder(images).coords, encoder(padded).coords)


def test_a_hybrid_is_padded_to_its_whole_stride():
    encoder = randomise(tiny(pad=True, stem=ResNetStem(units=(1, 1))).build())
    images = random_images(1, 3, 31, 17)
    assert torch.equal(encoder(images).patches, encoder(torch.nn.functional.pad(images, (0, 7, 0, 1))).patches)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((30, 32), "30 x 32 pixels does not divide into patches of 8; take 32 x 32, or set pad to true"),
        ((48, 33), "48 x 33 pixels does not divide into patches of 8; take 48 x 32, or set pad to true"),
        ((32, 3), "take 32 x 8"),
    ],
)
def test_an_image_that_does_not_divide_into_patches_is_refused(size, message):
    with pytest.raises(InputError, match=message):
        tiny().build()(torch.zeros(1, 3, *size))
    with pytest.raises(InputError, match=message):
        tiny(image_size=size)


def test_a_size_that_divides_is_the_nearest_and_never_empty():
    assert [divisible_size(size, 16) for size in (1, 23, 25, 224, 230)] == [16, 16, 32, 224, 224]


@torch.no_grad()
def test_norms_stand_before_the_first_block_and_after_the_last():
    for stem_norm in (False, True):
        for final_norm in (False, True):
            encoder = randomise(tiny(stem_norm=stem_norm, final_norm=final_norm, num_registers=1).build())
            tokens = encoder.embed(random_images(2, 3, 32, 32))
            x = torch.cat([tokens.prefix, tokens.patches], dim=1)
            norms = [
                lambda x, norm=norm: (
                    torch.nn.functional.layer_norm(x, (32,), norm.weight, norm.bias, 1e-6)
                    if isinstance(norm, torch.nn.LayerNorm)
                    else x
                )
                for norm in (encoder.stem_norm, encoder.norm)
            ]
            x = norms[0](x)
            for block in encoder.blocks:
                x = block(x, Where((4, 4)))
            found = encoder.encode(tokens)
            assert_close(torch.cat([found.prefix, found.patches], dim=1), norms[1](x), atol=1e-5, rtol=0)
            assert isinstance(encoder.stem_norm, torch.nn.LayerNorm) == stem_norm
            assert isinstance(encoder.norm, torch.nn.LayerNorm) == final_norm


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
    assert_close(encoder.encode(tokens).patches, encoder.norm(tokens.patches))


@pytest.mark.parametrize("block", [None, BranchNorm(), Parallel()])
def test_drop_path_rises_linearly_from_zero_to_its_end(block):
    encoder = tiny(depth=5, drop_path=0.4, **({"block": block} if block else {})).build()
    rates = [{m.drop for name, m in b.named_modules() if name.startswith("residual")} for b in encoder.blocks]
    assert [list(rate) for rate in rates] == [[pytest.approx(i / 10)] for i in range(5)]


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


def test_with_nearly_everything_dropped_no_token_says_anything():
    torch.manual_seed(0)
    encoder = randomise(tiny(dropout=1 - 1e-7, num_registers=1).build()).train()
    images = random_images(2, 3, 32, 32)
    assert encoder.stem(images).all()
    tokens = encoder.embed(images)
    assert not tokens.patches.any()
    assert not tokens.prefix.any()
    found = encoder.encode(tokens)
    assert_close(found.patches, encoder.norm.bias.expand_as(found.patches))


def test_bfloat16_is_finite_and_near_float32():
    model = randomise(
        ClassifierConfig(encoder=tiny(position=RoPE2d(), width=64), pooling=Mean(), num_classes=3).build()
    )
    images = random_images(2, 3, 32, 32)
    exact = model(images)
    half = model.bfloat16()(images.bfloat16())
    assert half.dtype == torch.bfloat16
    assert half.isfinite().all()
    assert_close(half.float(), exact, atol=0.1, rtol=0.05)


@pytest.mark.parametrize("position", variants(Position))
@pytest.mark.parametrize("registers", [0, 2])
def test_a_compiler_gets_the_whole_model_as_one_graph(position, registers):
    encoder = tiny(position=position, num_registers=registers)
    model = randomise(ClassifierConfig(encoder=encoder, num_classes=3).build())
    images = random_images(2, 3, 32, 32)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")  # a break in the graph is an error
    assert_close(compiled(images), model(images), atol=1e-6, rtol=0)
    compiled(images).sum().backward()


@pytest.mark.parametrize("position", variants(Position))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@torch.no_grad()
def test_every_position_computes_in_the_type_of_the_weights(position, dtype):
    encoder = randomise(tiny(position=position).build())
    images = random_images(2, 3, 24, 48)
    exact, found = encoder(images).patches, encoder.to(dtype)(images.to(dtype)).patches
    assert found.dtype == dtype
    assert (found.float() - exact).norm() < (0.1 if dtype == torch.bfloat16 else 1e-5) * exact.norm()


@pytest.mark.parametrize("position", variants(Position))
def test_under_autocast_tokens_stay_float32_between_blocks(position):
    model = tiny(position=position).build()
    seen = []
    model.blocks[-1].register_forward_pre_hook(lambda block, inputs: seen.append(inputs[0].dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = model(random_images(1, 3, 32, 32))
    assert seen == [torch.float32]
    assert found.patches.isfinite().all()


@pytest.mark.parametrize("position", [RelativeKeys(), RelativeBias(), EveryLayer()])
@torch.no_grad()
def test_an_exported_program_computes_the_same(position):
    class Patches(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = randomise(tiny(position=position, depth=1).build())

        def forward(self, images):
            return self.encoder(images).patches

    model, images = Patches(), random_images(2, 3, 24, 48)
    program = torch.export.export(model, (images,)).module()
    assert_close(program(images), model(images), atol=1e-6, rtol=0)


def test_timms_dynamic_image_size_agrees_without_positions():
    config = ClassifierConfig(encoder=tiny(position=NoPosition()), num_classes=3)
    ours, theirs = twins(config, dynamic_img_size=True)
    for size in [(32, 32), (48, 16)]:
        images = random_images(1, 3, *size)
        assert_close(ours(images), theirs(images), atol=1e-5, rtol=0)


def test_a_hybrids_patch_size_is_its_whole_stride():
    config = tiny(stem=ResNetStem(units=(1, 1)), patch_size=16)
    assert config.grid == (2, 2)
    assert config.stride == 16
    assert config.build().stem.patches.kernel_size == (2, 2)


def test_dropped_patches_are_other_ones_each_time_and_none_when_it_is_measured():
    torch.manual_seed(0)
    encoder = vit("32x2/4", image_size=32, patch_drop=0.4).build()
    images, shown = torch.randn(3, 3, 32, 32), []
    encode = encoder.encode
    encoder.encode = lambda tokens, **options: shown.append(tokens) or encode(tokens, **options)
    encoder(images)
    encoder(images)
    whole = encoder.embed(images)
    for tokens in shown:
        assert tokens.patches.shape == (3, 38, 32)  # of 64, rounded
        places = tokens.places[..., 0] * 8 + tokens.places[..., 1]
        assert (places.diff(dim=1) > 0).all()
        assert_close(tokens.patches, gather(whole.patches, places))
    assert not torch.equal(shown[0].coords, shown[1].coords)
    assert not torch.equal(shown[0].coords[0], shown[0].coords[1])
    assert encoder.eval()(images).patches.shape == (3, 64, 32)

"""Attention weights and maps, beside a model that is left as it is."""

import pytest
import torch
from torch.testing import assert_close

from explicit_attention import GRID, IMAGES, KINDS, explicit, tiny
from vitreous.block import Axial
from vitreous.classifier import Classifier, ClassifierConfig
from vitreous.errors import InputError
from vitreous.inspection import attention
from vitreous.inspection.attention import attends, attention_maps, full_attention, watch, watch_gradients
from vitreous.inspection.relevance import relevance
from vitreous.inspection.rollout import gradient_rollout, rollout
from vitreous.packing import packed
from vitreous.pooling import ClassAndDistillation, Mean
from vitreous.position import Learned, RoPE2d
from vitreous.relative import RelativeBias, RelativeKeys
from vitreous.resnet import ResNetConfig


def look(classifier: Classifier) -> tuple[torch.Tensor, torch.Tensor]:
    """What the encoder gives while all its weights are looked at."""
    tokens = watch(classifier, IMAGES, lambda layer, images, weights: None)
    return tokens.prefix, tokens.patches


@pytest.mark.parametrize("kind", KINDS)
def test_weights_equal_the_definition_in_float64(kind):
    classifier = tiny(**KINDS[kind])
    expected = torch.stack(explicit(classifier).weights)
    found = full_attention(classifier, IMAGES)
    assert found.dtype == torch.float32
    assert_close(found, expected.float(), rtol=1e-4, atol=1e-6)
    some = full_attention(classifier, IMAGES, layers=(2, -3), heads=(3, 0, -3))
    assert_close(some, expected[[2, 0]][:, :, [3, 0, 1]].float(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_maps_equal_the_definition_in_float64(kind):
    classifier = tiny(**KINDS[kind])
    reference = explicit(classifier)
    maps = attention_maps(classifier, IMAGES, layers=(-1, 0), heads=(2, 1))
    for ours, weights in zip(maps, (reference.weights[2], reference.weights[0])):
        for position, head in enumerate((2, 1)):
            expected = reference.read(weights[:, head])
            expected = expected / expected.sum((-2, -1), keepdim=True)
            assert_close(ours[:, position], expected.float(), rtol=1e-4, atol=1e-6)


def test_class_and_distillation_token_are_read_together():
    classifier = tiny(num_registers=1, pooling=ClassAndDistillation())
    rows = explicit(classifier).weights[-1][:, :, :2, 2:].mean(dim=2)
    expected = (rows / rows.sum(-1, keepdim=True)).unflatten(-1, GRID)
    assert_close(attention_maps(classifier, IMAGES)[0], expected.float(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_maps_of_a_wide_image_keep_its_grid_and_sum_to_one(kind):
    maps = attention_maps(tiny(**KINDS[kind]), IMAGES, layers=(0, 1))
    assert maps.shape == (2, 2, 4, *GRID)
    assert_close(maps.sum((-2, -1)), torch.ones(2, 2, 4))


@pytest.mark.parametrize("kind", ["class token", "no class token"])
def test_uniform_attention_gives_uniform_maps(kind):
    classifier = tiny(position=Learned(), **KINDS[kind])
    for name, parameter in classifier.named_parameters():
        if "qkv" in name:
            torch.nn.init.zeros_(parameter)
    assert_close(attention_maps(classifier, IMAGES), torch.full((1, 2, 4, *GRID), 1 / 6))


@pytest.mark.parametrize("mode", ["plain", "inference", "bfloat16", "packed"])
@pytest.mark.parametrize("kind", KINDS)
def test_looking_leaves_the_output_bit_for_bit(kind, mode):
    classifier = tiny(**KINDS[kind])
    if mode == "packed":
        if not torch.backends.mkldnn.is_available():
            pytest.skip("packed weights need oneDNN")
        classifier = packed(classifier)
    with torch.inference_mode(mode != "plain"), torch.autocast("cpu", torch.bfloat16, enabled=mode == "bfloat16"):
        tokens = classifier.encoder(IMAGES)
        seen = look(classifier)
    assert tokens.patches.abs().max() > 0
    assert torch.equal(seen[0], tokens.prefix)
    assert torch.equal(seen[1], tokens.patches)


@pytest.mark.parametrize("mode", ["bfloat16", "packed"])
def test_weights_are_those_of_the_run_they_are_seen_in(mode):
    classifier = tiny(position=RelativeBias(), num_registers=1, image_size=(8, 12))
    exact = full_attention(classifier, IMAGES)
    if mode == "packed":
        assert_close(full_attention(packed(classifier), IMAGES), exact, rtol=1e-4, atol=1e-6)
    else:
        with torch.autocast("cpu", torch.bfloat16):
            seen = full_attention(classifier, IMAGES)
        assert seen.dtype == torch.float32
        assert_close(seen.sum(-1), torch.ones(3, 2, 4, 8))  # bfloat16 would miss it by 1e-3
        assert_close(seen, exact, rtol=0.5, atol=0.05)
        assert not torch.equal(seen, exact)


def test_gradients_leave_the_output_bit_for_bit_and_nothing_behind():
    classifier = tiny(**KINDS["rotary"])
    with torch.enable_grad():
        expected = classifier.encoder(IMAGES)
    images = IMAGES.clone()
    tokens = watch_gradients(classifier, images, lambda *seen: None)
    assert torch.equal(tokens.prefix, expected.prefix)
    assert torch.equal(tokens.patches, expected.patches)
    assert not images.requires_grad
    assert all(parameter.grad is None for parameter in classifier.parameters())


def test_only_what_is_asked_for_is_computed(monkeypatch):
    computed = []
    plain = attention.Attended.weights

    def counting(self, *arguments):
        computed.append(plain(self, *arguments))
        return computed[-1]

    monkeypatch.setattr(attention.Attended, "weights", counting)
    attention_maps(tiny(), IMAGES, layers=(1,), heads=(0, 2))
    assert [weights.shape for weights in computed] == [(2, 2, 7, 7)]


def test_weights_are_formed_for_a_few_images_at_a_time(monkeypatch):
    classifier, images = tiny(), torch.randn(5, 3, 8, 12)
    functions = (full_attention, rollout, gradient_rollout, relevance)
    whole = [function(classifier, images) for function in functions]
    monkeypatch.setattr(attention, "PART_BYTES", 2 * 4 * 4 * 7 * 7 + 1)  # two images
    seen = []
    watch(classifier, images, lambda layer, part, weights: seen.append((layer, part, weights.shape[0])))
    parts = [(slice(0, 2), 2), (slice(2, 4), 2), (slice(4, 5), 1)]
    assert seen == [(layer, *part) for layer in range(3) for part in parts]
    for function, expected in zip(functions, whole):
        assert_close(function(classifier, images), expected)
    monkeypatch.setattr(attention, "PART_BYTES", 1)  # less than an image
    assert_close(rollout(classifier, images), whole[1])


@torch.no_grad()
@pytest.mark.parametrize("position", [RelativeKeys(), RelativeBias(), RoPE2d()])
def test_weights_are_those_that_mix_the_values(position):
    classifier = tiny(position=position, qk_norm=True)
    layer, inputs, mixed = classifier.encoder.blocks[1].attention, [], []
    layer.register_forward_pre_hook(lambda module, given: inputs.append(given))
    layer.out.register_forward_pre_hook(lambda module, given: mixed.append(given[0]))
    weights = full_attention(classifier, IMAGES, layers=(1,))[0]
    values = layer.heads(*inputs[0])[2]
    assert_close((weights @ values).transpose(1, 2).flatten(2), mixed[0], rtol=1e-4, atol=1e-5)


def test_a_model_that_fails_is_no_longer_watched():
    seen = []
    with pytest.raises(InputError):
        watch(tiny(), torch.zeros(1, 3, 7, 7), lambda *given: seen.append(given))
    tiny()(IMAGES)
    assert not seen


def test_a_layer_or_head_that_is_not_there_is_named():
    with pytest.raises(InputError, match=r"^no layers \[3\] in a model of 3; give 0 to 2$"):
        attention_maps(tiny(), IMAGES, layers=(3,))
    with pytest.raises(InputError, match=r"^no heads \[0, 4\] in a layer of 4; give 0 to 3$"):
        attention_maps(tiny(), IMAGES, heads=(0, 4))


def test_a_model_whose_tokens_do_not_all_attend_to_each_other_is_refused():
    resnet = ClassifierConfig(encoder=ResNetConfig(units=(1,)), pooling=Mean(), num_classes=3).build()
    axial = tiny(block=Axial(), class_token=False)
    assert attends(tiny())
    for model, kind in ((resnet, "a ResNet"), (axial, "one with axial blocks")):
        assert not attends(model)
        for function in (attention_maps, full_attention, rollout, gradient_rollout, relevance):
            with pytest.raises(InputError, match=f"need a ViT whose tokens all attend to each other, not {kind}$"):
                function(model, IMAGES)

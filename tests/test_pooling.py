import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from references import random_images, randomise, tiny, twins
from vitreous.classifier import ClassifierConfig
from vitreous.errors import InputError
from vitreous.pooling import AttentionPool, ClassAndDistillation, ClassToken, Mean
from vitreous.resnet import ResNetConfig


def tokens(encoder):
    return randomise(encoder.build())(random_images(2, 3, 32, 32))


def test_the_class_token_is_the_first_of_the_prefix():
    encoder = tiny(num_registers=2)
    found = tokens(encoder)
    assert torch.equal(ClassToken().build(encoder)(found), found.prefix[:, 0])


def test_class_and_distillation_token_stand_side_by_side():
    encoder = tiny(num_registers=2)
    found = tokens(encoder)
    pooled = ClassAndDistillation().build(encoder)(found)
    assert torch.equal(pooled, torch.cat([found.prefix[:, 0], found.prefix[:, 1]], dim=-1))
    assert ClassAndDistillation().features(encoder) == pooled.shape[1] == 64


def test_the_mean_is_of_patches_alone():
    encoder = tiny(num_registers=2)
    found = tokens(encoder)
    assert_close(Mean().build(encoder)(found), found.patches.sum(1) / 16)


def test_the_mean_of_a_resnet_is_its_global_average():
    encoder = ResNetConfig(units=(1,))
    found = tokens(encoder)
    assert_close(Mean().build(encoder)(found), found.patches.sum(1) / 64)


@torch.no_grad()
def test_a_normed_mean_is_normed_after_it_is_taken():
    encoder = tiny(final_norm=False)
    found, pool = tokens(encoder), randomise(Mean(norm=True).build(encoder))
    expected = F.layer_norm(found.patches.mean(1), (32,), pool.norm.weight, pool.norm.bias, 1e-6)
    assert_close(pool(found), expected)
    with_rms = randomise(Mean(norm=True).build(tiny(rms_norm=True, norm_eps=0.5)))
    assert_close(with_rms(found), F.rms_norm(found.patches.mean(1), (32,), with_rms.norm.weight, 0.5))


@torch.no_grad()
def test_a_normed_mean_equals_timms_on_the_same_weights():
    encoder = tiny(final_norm=False, num_registers=1)
    ours, theirs = twins(ClassifierConfig(encoder=encoder, pooling=Mean(norm=True), num_classes=3))
    assert isinstance(theirs.norm, nn.Identity)
    images = random_images(2, 3, 32, 32)
    assert_close(ours(images), theirs(images), atol=1e-5, rtol=0)


@torch.no_grad()
def test_attention_pooling_equals_its_formula_in_float64():
    encoder = tiny()
    found, pool = tokens(encoder), randomise(AttentionPool().build(encoder)).double()
    patches, mixed = found.patches.double(), []
    query, key_value = pool.query(pool.probe[0, 0]), pool.key_value(patches)
    for head in range(4):
        channels = slice(8 * head, 8 * head + 8)
        key, value = key_value[..., :32][..., channels], key_value[..., 32:][..., channels]
        scores = torch.exp(key @ query[channels] / math.sqrt(8))
        mixed.append(torch.einsum("bp,bpc->bc", scores / scores.sum(1, keepdim=True), value))
    x = pool.out(torch.cat(mixed, -1))
    expected = x + pool.mlp(pool.norm(x))
    found.patches = patches
    assert_close(pool(found), expected, atol=1e-12, rtol=0)


@torch.no_grad()
def test_attention_pooling_equals_timms_on_the_same_weights():
    encoder = tiny(num_registers=1)
    ours, theirs = twins(ClassifierConfig(encoder=encoder, pooling=AttentionPool(), num_classes=3))
    images = random_images(2, 3, 32, 32)
    assert_close(ours(images), theirs(images), atol=1e-5, rtol=0)


def test_attention_pooling_starts_xavier_uniform():
    torch.manual_seed(0)
    pool = AttentionPool().build(tiny(width=512, num_heads=8))
    bound = math.sqrt(6 / 1024)
    for weight in (pool.query.weight, *pool.key_value.weight.chunk(2), pool.out.weight):
        assert 0.99 * bound < weight.abs().max() <= bound
    assert pool.probe.abs().max() <= math.sqrt(6 / 513)
    assert not pool.key_value.bias.any()


@pytest.mark.parametrize(
    ("pooling", "encoder", "message"),
    [
        (ClassToken(), tiny(class_token=False), r"class_token=True; or pool with Mean\(\)"),
        (ClassAndDistillation(), tiny(), "class_token=True and num_registers=1; or pool with"),
        (ClassAndDistillation(), tiny(class_token=False, num_registers=2), "class_token=True and num_registers=1"),
        (ClassToken(), ResNetConfig(), r"class-token pooling needs a ViT, not ResNetConfig; pool with Mean\(\)"),
        (ClassAndDistillation(), ResNetConfig(), "class-and-distillation pooling needs a ViT"),
        (AttentionPool(), ResNetConfig(), "attention pooling needs a ViT"),
        (Mean(norm=True), ResNetConfig(), "normed mean pooling needs a ViT"),
    ],
)
def test_pooling_what_is_not_there_is_refused(pooling, encoder, message):
    with pytest.raises(InputError, match=message):
        pooling.build(encoder)

import math

import pytest
import torch

from references import random_images, randomise, tiny, twins
from vitreous.classifier import ClassifierConfig
from vitreous.errors import InputError
from vitreous.pooling import AttentionPool, ClassToken, Mean


def tokens(encoder):
    return randomise(encoder.build())(random_images(2, 3, 32, 32))


def test_the_class_token_is_the_first_of_the_prefix():
    encoder = tiny(num_registers=2)
    found = tokens(encoder)
    assert torch.equal(ClassToken().build(encoder)(found), found.prefix[:, 0])


def test_the_mean_is_of_patches_alone():
    encoder = tiny(num_registers=2)
    found = tokens(encoder)
    torch.testing.assert_close(Mean().build(encoder)(found), found.patches.sum(1) / 16)


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
    torch.testing.assert_close(pool(found), expected, atol=1e-12, rtol=0)


@torch.no_grad()
def test_attention_pooling_equals_timms_on_the_same_weights():
    encoder = tiny(num_registers=1)
    ours, theirs = twins(ClassifierConfig(encoder=encoder, pooling=AttentionPool(), num_classes=3))
    images = random_images(2, 3, 32, 32)
    torch.testing.assert_close(ours(images), theirs(images), atol=1e-5, rtol=0)


def test_attention_pooling_starts_xavier_uniform():
    torch.manual_seed(0)
    pool = AttentionPool().build(tiny(width=512, num_heads=8))
    bound = math.sqrt(6 / 1024)
    for weight in (pool.query.weight, *pool.key_value.weight.chunk(2), pool.out.weight):
        assert 0.99 * bound < weight.abs().max() <= bound
    assert pool.probe.abs().max() <= math.sqrt(6 / 513)
    assert not pool.key_value.bias.any()


def test_pooling_a_class_token_that_is_not_there_is_refused():
    with pytest.raises(InputError, match=r"class_token=True; or pool with Mean\(\)"):
        ClassToken().build(tiny(class_token=False))

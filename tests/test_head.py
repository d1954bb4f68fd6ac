import pytest
import torch
from timm.models.deit import VisionTransformerDistilled
from torch.testing import assert_close

from references import random_images, randomise, tiny, twins
from vitreous.classifier import ClassifierConfig
from vitreous.errors import InputError
from vitreous.head import DistilledHead, LinearHead
from vitreous.pooling import ClassAndDistillation


@pytest.mark.parametrize("head", [LinearHead(), LinearHead(representation=6), DistilledHead()])
def test_a_fresh_head_says_zero_whatever_it_sees(head):
    assert not head.build(8, 5)(random_images(3, 8)).any()


def test_a_bias_is_that_of_every_class():
    assert LinearHead(bias=-10.0).build(8, 3)(random_images(2, 8)).tolist() == [[-10.0] * 3] * 2


def test_a_representation_layer_stands_before_the_scores_with_tanh():
    head = randomise(LinearHead(representation=6).build(8, 3)).double()
    x = random_images(2, 8).double()
    hidden = torch.tanh(x @ head.representation.weight.T + head.representation.bias)
    assert_close(head(x), hidden @ head.linear.weight.T + head.linear.bias)


def test_a_representation_layer_starts_xavier_uniform():
    torch.manual_seed(0)
    head = LinearHead(representation=300).build(700, 3)
    bound = (6 / 1000) ** 0.5
    assert head.representation.weight.abs().max().item() == pytest.approx(bound, rel=0.001)
    assert not head.representation.bias.any()
    assert not head.linear.weight.any()


def test_a_distilled_head_averages_the_scores_of_two_halves():
    head, x = randomise(DistilledHead().build(8, 3)).double(), random_images(2, 8).double()
    first = x[:, :4] @ head.linear.weight.T + head.linear.bias
    second = x[:, 4:] @ head.distillation.weight.T + head.distillation.bias
    assert_close(head(x), (first + second) / 2)


@torch.no_grad()
def test_a_distilled_classifier_equals_timms_deit():
    encoder = tiny(num_registers=1)
    parts = {"pooling": ClassAndDistillation(), "head": DistilledHead(), "num_classes": 3}
    ours, theirs = twins(ClassifierConfig(encoder=encoder, **parts))
    assert isinstance(theirs, VisionTransformerDistilled)
    images = random_images(2, 3, 32, 32)
    assert_close(ours(images), theirs(images), atol=1e-5, rtol=0)


def test_a_representation_without_channels_is_refused():
    with pytest.raises(InputError, match="representation is 0; it must be 1 or more"):
        LinearHead(representation=0)

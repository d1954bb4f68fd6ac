import pytest
import torch

from references import random_images, randomise
from vitreous.head import LinearHead


def test_a_fresh_head_says_zero_whatever_it_sees():
    assert not LinearHead().build(8, 5)(random_images(3, 8)).any()


def test_a_bias_is_that_of_every_class():
    assert LinearHead(bias=-10.0).build(8, 3)(random_images(2, 8)).tolist() == [[-10.0] * 3] * 2


def test_a_representation_layer_stands_before_the_scores_with_tanh():
    head = randomise(LinearHead(representation=6).build(8, 3)).double()
    x = random_images(2, 8).double()
    hidden = torch.tanh(x @ head.representation.weight.T + head.representation.bias)
    torch.testing.assert_close(head(x), hidden @ head.linear.weight.T + head.linear.bias)


def test_a_representation_layer_starts_xavier_uniform():
    torch.manual_seed(0)
    head = LinearHead(representation=300).build(700, 3)
    bound = (6 / 1000) ** 0.5
    assert head.representation.weight.abs().max().item() == pytest.approx(bound, rel=0.001)
    assert not head.representation.bias.any()
    assert not head.linear.weight.any()

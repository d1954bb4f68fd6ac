import math

import pytest
import timm
import torch

from references import random_images, randomise
from vitreous.feed_forward import GELU, SwiGLU

X = random_images(3, 5, 8)


def gelu(x, *, tanh):
    if tanh:
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


@pytest.mark.parametrize("tanh", [False, True])
@torch.no_grad()
def test_gelu_equals_its_formula_in_float64(tanh):
    mlp = randomise(GELU(tanh=tanh).build(8, 20, dropout=0.0)).double()
    expected = mlp.down(gelu(mlp.up(X.double()), tanh=tanh))
    torch.testing.assert_close(mlp(X.double()), expected, atol=1e-12, rtol=0)


@torch.no_grad()
def test_the_two_gelus_differ_as_much_as_the_approximation():
    x = torch.linspace(-5, 5, 10_001)
    difference = torch.nn.functional.gelu(x) - torch.nn.functional.gelu(x, approximate="tanh")
    ours = [randomise(GELU(tanh=tanh).build(1, 1, dropout=0.0)) for tanh in (False, True)]
    for mlp in ours:
        for linear in (mlp.up, mlp.down):
            linear.weight.fill_(1.0)
            linear.bias.zero_()
    measured = ours[0](x[:, None]) - ours[1](x[:, None])
    assert measured.abs().max().item() == pytest.approx(4.73e-4, rel=0.01)  # at x = 2.70
    torch.testing.assert_close(measured[:, 0], difference)


@torch.no_grad()
def test_swiglu_equals_timms_on_the_same_weights():
    ours = randomise(SwiGLU().build(8, 20, dropout=0.0))
    theirs = timm.layers.SwiGLU(8, 20).eval()
    names = {"fc1_g": ours.gate, "fc1_x": ours.up, "fc2": ours.down}
    theirs.load_state_dict({f"{name}.{k}": v for name, layer in names.items() for k, v in layer.state_dict().items()})
    torch.testing.assert_close(ours(X), theirs(X))


@pytest.mark.parametrize("variant", [GELU(), SwiGLU()])
def test_dropout_follows_both_layers(variant):
    torch.manual_seed(0)
    mlp = randomise(variant.build(8, 500, dropout=0.5)).train()
    hidden = []
    mlp.down.register_forward_hook(lambda _module, given, _output: hidden.append(given[0]))
    output = mlp(X.expand(3, 5, 8))
    assert (hidden[0] == 0).float().mean().item() == pytest.approx(0.5, abs=0.05)
    assert (output == 0).float().mean().item() == pytest.approx(0.5, abs=0.2)

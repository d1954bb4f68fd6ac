import torch
from torch.testing import assert_close

from vitreous.classifier import ClassifierConfig
from vitreous.optim import SGD, AdamW
from vitreous.pooling import AttentionPool
from vitreous.variants import vit


def tiny():
    return ClassifierConfig(encoder=vit("32x2/4", image_size=8), pooling=AttentionPool(), num_classes=3).build()


def test_decay_reaches_matrices_but_no_bias_norm_position_or_token():
    module = tiny()
    decayed, free = AdamW(weight_decay=0.3).build(dict(module.named_parameters())).param_groups
    names = {parameter: name for name, parameter in module.named_parameters()}
    assert decayed["weight_decay"] == 0.3
    assert free["weight_decay"] == 0.0
    assert {names[p].rpartition(".")[2] for p in decayed["params"]} == {"weight"}
    assert {"encoder.prefix", "encoder.position.table", "pooling.probe"} <= {names[p] for p in free["params"]}
    assert len(decayed["params"]) + len(free["params"]) == len(names)


def test_adamw_takes_the_step_of_the_formula():
    module = torch.nn.Linear(3, 2).double()
    before, gradient = module.weight.detach().clone(), torch.randn(2, 3).double()
    optimizer = AdamW(weight_decay=0.1, betas=(0.9, 0.999)).build(dict(module.named_parameters()))
    for group in optimizer.param_groups:
        group["lr"] = 0.01
    module.weight.grad = gradient.clone()
    optimizer.step()
    mean, square = 0.1 * gradient / (1 - 0.9), 0.001 * gradient**2 / (1 - 0.999)
    expected = before * (1 - 0.01 * 0.1) - 0.01 * mean / (square.sqrt() + 1e-8)
    assert_close(module.weight.detach(), expected)


def test_sgd_has_momentum_and_by_default_no_decay():
    optimizer = SGD().build(dict(tiny().named_parameters()))
    assert {group["momentum"] for group in optimizer.param_groups} == {0.9}
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0}

from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay
from torch.testing import assert_close

from vitreous.classifier import ClassifierConfig
from vitreous.errors import InputError
from vitreous.optim import SGD, Adafactor, Adam, AdamW, Muon, OptimizerConfig
from vitreous.parallel import FullShard
from vitreous.pooling import AttentionPool, Mean
from vitreous.resnet import ResNetConfig
from vitreous.run import Run
from vitreous.schedule import Constant, Linear
from vitreous.variants import vit

RATE = 0.01


def tiny():
    return ClassifierConfig(encoder=vit("32x2/4", image_size=8), pooling=AttentionPool(), num_classes=3).build()


def groups(config: OptimizerConfig, module: torch.nn.Module) -> dict[str, dict]:
    """The group of each parameter, by its name."""
    found = config.build(dict(module.named_parameters())).param_groups
    names = {parameter: name for name, parameter in module.named_parameters()}
    return {names[parameter]: group for group in found for parameter in group["params"]}


def stepped(config: OptimizerConfig, shape: tuple[int, ...], gradients: list[torch.Tensor]) -> torch.Tensor:
    """A parameter of ones after steps with these gradients."""
    parameter = torch.nn.Parameter(torch.ones(shape, dtype=torch.float64))
    optimizer = config.build({"blocks.0.weight": parameter})
    for gradient in gradients:
        config.set_rate(optimizer, Linear(peak=0.1, warmup_ratio=0.0), 0.9)  # RATE
        parameter.grad = gradient.clone()
        optimizer.step()
    return parameter.detach()


def drawn(shape: tuple[int, ...], number: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, dtype=torch.float64, generator=generator) for _ in range(number)]


@pytest.mark.parametrize("config", [AdamW(weight_decay=0.3), Muon(weight_decay=0.3), Adafactor(weight_decay=0.3)])
def test_decay_reaches_matrices_but_no_bias_norm_position_or_token(config):
    module = tiny()
    found = groups(config, module)
    assert found.keys() == dict(module.named_parameters()).keys()
    decayed = {name for name, group in found.items() if group["weight_decay"] == 0.3}
    assert {name.rpartition(".")[2] for name in decayed} == {"weight"}
    assert not decayed & {"encoder.prefix", "encoder.position.table", "pooling.probe", "encoder.norm.weight"}
    assert {group["weight_decay"] for name, group in found.items() if name not in decayed} == {0.0}


def test_everything_decays_where_that_is_asked():
    assert {group["weight_decay"] for group in groups(AdamW(decayed="all"), tiny()).values()} == {0.1}


def test_the_head_may_decay_otherwise():
    found = groups(AdamW(weight_decay=0.03, head_decay=3.0), tiny())
    assert {name for name, group in found.items() if group["weight_decay"] == 3.0} == {"head.linear.weight"}


def test_layers_learn_at_the_rates_of_timms():
    theirs = timm.create_model("vit_tiny_patch16_224", num_classes=3)
    expected = {}
    for group in param_groups_layer_decay(theirs, layer_decay=0.7):
        members = {id(parameter) for parameter in group["params"]}
        expected |= {n: group["lr_scale"] for n, p in theirs.named_parameters() if id(p) in members}
    ours = groups(AdamW(layer_decay=0.7), ClassifierConfig(encoder=vit("Ti/16"), num_classes=3).build())
    ratios = {name: group["rate_ratio"] for name, group in ours.items()}
    for i in range(12):
        theirs_here = {value for name, value in expected.items() if name.startswith(f"blocks.{i}.")}
        ours_here = {value for name, value in ratios.items() if f"blocks.{i}." in name}
        assert len(ours_here) == 1
        assert list(ours_here) == pytest.approx(list(theirs_here))
    below = ("encoder.prefix", "encoder.stem.weight", "encoder.position.table")
    assert [ratios[name] for name in below] == pytest.approx([expected["patch_embed.proj.weight"]] * 3)
    assert ratios["head.linear.weight"] == expected["head.weight"] == 1.0
    assert ratios["encoder.norm.weight"] == 1.0  # as in BEiT and MAE; timm counts it to the last block


def test_the_learning_rate_follows_the_layers():
    config, module = AdamW(layer_decay=0.5), tiny()
    optimizer = config.build(dict(module.named_parameters()))
    config.set_rate(optimizer, Constant(value=0.8), 0.5)
    assert {group["lr"] for group in optimizer.param_groups} == {0.8, 0.4, 0.2, 0.1}


def test_an_encoder_without_blocks_has_no_layers_to_slow_down():
    module = ClassifierConfig(encoder=ResNetConfig(units=(1,), image_size=32), pooling=Mean(), num_classes=3).build()
    with pytest.raises(InputError, match="layer_decay needs the blocks of a ViT"):
        AdamW(layer_decay=0.7).build(dict(module.named_parameters()))


def test_adamw_takes_the_steps_of_the_formula():
    gradients, expected, mean, square = drawn((2, 3)), 1.0, 0.0, 0.0
    for t, gradient in enumerate(gradients, 1):
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
        moved = (mean / (1 - 0.9**t)) / ((square / (1 - 0.999**t)).sqrt() + 1e-8)
        expected = expected * (1 - RATE * 0.1) - RATE * moved
    assert_close(stepped(AdamW(), (2, 3), gradients), expected)


def test_adams_decay_is_a_part_of_the_gradient():
    (gradient,) = drawn((2, 3), 1)
    total = gradient + 0.5
    expected = 1 - RATE * total / (total.abs() + 1e-8)
    assert_close(stepped(Adam(weight_decay=0.5), (2, 3), [gradient]), expected)


@pytest.mark.parametrize("config", [AdamW(weight_decay=0.2), Adafactor(weight_decay=0.2)])
def test_decay_apart_from_the_rate_is_that_of_the_peak(config):
    """At a tenth of the peak a tenth of the decay, whatever the peak is."""
    zeros = [torch.zeros(2, 3, dtype=torch.float64)]
    assert_close(stepped(config, (2, 3), zeros), torch.full((2, 3), 1 - RATE * 0.2, dtype=torch.float64))
    apart = replace(config, decay_by_rate=False)
    assert_close(stepped(apart, (2, 3), zeros), torch.full((2, 3), 1 - 0.1 * 0.2, dtype=torch.float64))


def test_decay_apart_from_the_rate_is_the_same_in_every_layer():
    config, module = AdamW(layer_decay=0.5, decay_by_rate=False, weight_decay=0.2), tiny()
    optimizer = config.build(dict(module.named_parameters()))
    for rate in (0.5, 1.0):
        config.set_rate(optimizer, Linear(peak=1.0, warmup_ratio=0.0), 1 - rate)
        taken = {round(group["lr"] * group["weight_decay"], 12) for group in optimizer.param_groups}
        assert taken == {0.0, rate * 0.2}


def test_sgd_has_momentum_and_by_default_no_decay():
    optimizer = SGD().build(dict(tiny().named_parameters()))
    assert {group["momentum"] for group in optimizer.param_groups} == {0.9}
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0}


def test_nesterov_looks_ahead():
    first, second = drawn((2, 3), 2)
    expected = 1 - RATE * (1.9 * first) - RATE * (second + 0.9 * (0.9 * first + second))
    assert_close(stepped(SGD(nesterov=True), (2, 3), [first, second]), expected)
    with pytest.raises(InputError, match="nesterov looks ahead along the momentum, which is 0"):
        SGD(nesterov=True, momentum=0)


def test_muon_moves_matrices_along_the_nearest_orthogonal_one_and_the_rest_by_adamw():
    gradient, vector = torch.randn(64, 32), torch.randn(64)
    config = Muon(weight_decay=0.0)
    parameters = {
        "encoder.blocks.0.mlp.up.weight": torch.nn.Parameter(torch.zeros(64, 32)),
        "encoder.blocks.0.mlp.up.bias": torch.nn.Parameter(torch.zeros(64)),
        "head.linear.weight": torch.nn.Parameter(torch.zeros(64, 32)),
    }
    optimizer = config.build(parameters)
    config.set_rate(optimizer, Constant(value=RATE), 0.0)
    for parameter, of in zip(parameters.values(), (gradient, vector, gradient)):
        parameter.grad = of.clone()
    optimizer.step()
    matrix, bias, head = (parameter.detach() for parameter in parameters.values())
    assert_close(bias, -RATE * vector.sign(), atol=1e-6, rtol=1e-4)
    assert_close(head, -RATE * gradient.sign(), atol=1e-5, rtol=1e-3)
    left, _, right = torch.linalg.svd(gradient, full_matrices=False)
    singular = torch.linalg.svdvals(matrix) / (RATE * 0.2 * 8)  # 0.2 times the root of the longer side
    assert 0.6 < singular.min() <= singular.max() < 1.3  # Newton-Schulz comes no nearer
    assert torch.cosine_similarity(matrix.flatten(), -(left @ right).flatten(), dim=0) > 0.97
    assert set(optimizer.state[parameters["encoder.blocks.0.mlp.up.weight"]]) == {"momentum_buffer"}
    assert "exp_avg" in optimizer.state[parameters["head.linear.weight"]]


@pytest.mark.parametrize("shape", [(40, 50), (50, 40), (3, 33, 40), (40, 4, 33), (33, 5), (31, 31), (7,)])
def test_adafactor_takes_the_steps_of_the_formula(shape):
    """In NumPy, from the definition: the longest two axes are factored where both are 32 or longer."""
    gradients, weights, momentum = drawn(shape), np.ones(shape), np.zeros(shape)
    order = np.argsort(shape, kind="stable")
    factored = len(shape) > 1 and shape[order[-2]] >= 32
    rows = columns = whole = 0.0
    for t, gradient in enumerate((g.numpy() for g in gradients), 1):
        beta = min(0.999, 1 - t**-0.8)
        square = gradient**2 + 1e-30
        if factored:
            short, long = int(order[-2]), int(order[-1])
            rows = beta * rows + (1 - beta) * square.mean(axis=long, keepdims=True)
            columns = beta * columns + (1 - beta) * square.mean(axis=short, keepdims=True)
            scaled = gradient / np.sqrt(rows * columns / rows.mean(axis=short, keepdims=True))
        else:
            whole = beta * whole + (1 - beta) * square
            scaled = gradient / np.sqrt(whole)
        momentum = 0.9 * momentum + 0.1 * scaled
        weights = weights * (1 - RATE * 0.1 * (len(shape) > 1)) - RATE * momentum
        momentum = torch.from_numpy(momentum).bfloat16().double().numpy()  # as it is kept between steps
    assert_close(stepped(Adafactor(), shape, gradients), torch.from_numpy(weights), atol=1e-6, rtol=1e-6)


def test_adafactor_remembers_less_than_half_of_adam():
    def held(config: OptimizerConfig) -> int:
        parameter = torch.nn.Parameter(torch.zeros(768, 3072))
        optimizer = config.build({"blocks.0.weight": parameter})
        parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        return sum(tensor.nbytes for tensor in optimizer.state[parameter].values())

    assert held(Adafactor()) < 0.26 * held(AdamW())


@pytest.mark.parametrize("optimizer", [Muon(), Adafactor()])
def test_whole_matrices_are_asked_for(optimizer):
    with pytest.raises(InputError, match=f"{type(optimizer).__name__} needs whole matrices, which FullShard divides"):
        Run(optimizer=optimizer, parallel=FullShard())

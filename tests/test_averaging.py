from contextlib import suppress

import numpy as np
import pytest
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from test_training import WORLD, carried_out, pictures, same_bits, tiny
from vitreous.averaging import Average
from vitreous.console import Console
from vitreous.run_folder import RunFolder
from vitreous.training import Training
from vitreous.weights.product import Product

NO, YES = torch.zeros(()), torch.ones(())


def moved(steps: int = 50, decay: float = 0.97) -> tuple[torch.nn.Module, Average, list[np.ndarray], AveragedModel]:
    """A module that walked about, its average, everywhere it was, and what torch makes of it."""
    torch.manual_seed(0)
    module = torch.nn.Linear(7, 5)
    average = Average(module, decay)
    theirs = AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(decay))
    theirs.update_parameters(module)  # its first only copies, and so ours begins
    path = [module.weight.detach().numpy().astype(np.float64)]
    for _ in range(steps):
        with torch.no_grad():
            for parameter in module.parameters():
                parameter += torch.randn_like(parameter)
        average.update(NO)
        theirs.update_parameters(module)
        path.append(module.weight.detach().numpy().astype(np.float64))
    return module, average, path, theirs


def test_it_is_the_exponential_average_of_all_weights_there_were():
    _, average, path, _ = moved(decay=0.97)
    wanted = path[0]
    for weights in path[1:]:
        wanted = 0.97 * wanted + 0.03 * weights
    np.testing.assert_allclose(average.tensors["weight"].numpy(), wanted, rtol=0, atol=2e-6)
    powers = 0.03 * 0.97 ** np.arange(len(path) - 1)[::-1]
    closed = np.tensordot(powers, path[1:], axes=1) + 0.97 ** (len(path) - 1) * path[0]
    np.testing.assert_allclose(average.tensors["weight"].numpy(), closed, rtol=0, atol=2e-6)


def test_it_equals_that_of_torch_within_rounding():
    _, average, _, theirs = moved()
    for name, tensor in average.tensors.items():
        torch.testing.assert_close(tensor, theirs.module.get_parameter(name).detach(), rtol=0, atol=2e-6)


def test_in_float64_the_decay_is_not_rounded():
    module = torch.nn.Linear(3, 2).double()
    average = Average(module, 0.9999)
    before = average.tensors["weight"].clone()
    with torch.no_grad():
        module.weight += 1
    average.update(NO)
    torch.testing.assert_close(
        average.tensors["weight"] - before, torch.full_like(before, 1 - 0.9999), rtol=1e-11, atol=0
    )


@pytest.mark.parametrize("value", [1.0, torch.nan, torch.inf])
def test_a_step_that_did_not_happen_leaves_every_bit(value):
    module, average, _, _ = moved(steps=3)
    before = {name: tensor.clone() for name, tensor in average.tensors.items()}
    with torch.no_grad():
        module.weight[0, 0] = value
    average.update(YES)
    assert all(torch.equal(average.tensors[name], tensor) for name, tensor in before.items())


def test_in_place_of_the_weights_it_stands_there_and_goes_again():
    module, average, _, _ = moved()
    weights = {name: p.detach().clone() for name, p in module.named_parameters()}
    averages = {name: tensor.clone() for name, tensor in average.tensors.items()}
    with suppress(ZeroDivisionError), average.in_place():
        assert all(torch.equal(module.get_parameter(name), tensor) for name, tensor in averages.items())
        raise ZeroDivisionError
    assert all(torch.equal(module.get_parameter(name), tensor) for name, tensor in weights.items())
    assert all(torch.equal(average.tensors[name], tensor) for name, tensor in averages.items())


def test_what_is_not_trained_is_not_averaged():
    module = torch.nn.Linear(3, 2)
    module.bias.requires_grad_(False)
    assert list(Average(module, 0.9).tensors) == ["weight"]


def test_the_average_is_what_a_run_gives_and_what_is_measured(tmp_path):
    """It is followed from outside, by the formula in float64."""
    run = tiny(ema_decay=0.8, num_evaluations=1)
    training = Training(
        run,
        pictures(),
        held_out=("test", pictures()),
        folder=RunFolder(tmp_path),
        world=WORLD,
        console=Console(quiet=True),
        fingerprint="",
    )
    trainee = training.trainee
    wanted = {name: p.detach().double() for name, p in trainee.objective.named_parameters()}
    take = trainee.take

    def followed(step, batches):
        taken = take(step, batches)
        for name, parameter in trainee.objective.named_parameters():
            wanted[name] = 0.8 * wanted[name] + 0.2 * parameter.detach().double()
        return taken

    trainee.take = followed
    given = training.carry_out(None)
    for name, parameter in given.named_parameters():
        torch.testing.assert_close(parameter.detach().double(), wanted[name], rtol=0, atol=1e-6)
    assert not same_bits(given.classifier, carried_out(tiny(num_evaluations=1), tmp_path / "without"))
    last = [line for line in RunFolder(tmp_path).measurements() if line["split"] == "test"][-1]
    product = Product(classifier=given.classifier, view=run.eval_view, classes=pictures().classes)
    right = sum(
        int(product.classifier.eval()(run.eval_view.normalise(run.eval_view(pictures().image(i))[None])).argmax())
        == i % 3
        for i in range(60)
    )
    assert last["top1"] == right / 60

import torch

from test_training import WORLD, pictures, same_bits, tiny
from vitreous import trainee
from vitreous.data.loader import training_batches
from vitreous.trainee import Trainee, build_objective


def test_building_twice_gives_the_same_weights_whatever_was_drawn_before():
    first = build_objective(tiny(), num_classes=3)
    torch.rand(7)
    assert same_bits(first, build_objective(tiny(), num_classes=3))


def test_where_fused_optimizers_are_deaf_the_loop_listens(monkeypatch):
    """On Apple GPUs `found_inf` has no effect, so a refused step must not be taken at all."""
    run, told = tiny(), []
    for deaf in (set(), {"cpu"}):
        monkeypatch.setattr(trainee, "DEAF", deaf)
        work = Trainee(run, WORLD, num_classes=3)
        step = work.optimizer.step
        monkeypatch.setattr(work.optimizer, "step", lambda step=step, deaf=deaf: (told.append(bool(deaf)), step())[1])
        batches = training_batches(pictures(), run.train_view, batch_size=run.batch_size, seed=0, first_step=0, steps=2)
        work.take(0, batches)
        before = {name: tensor.clone() for name, tensor in work.tensors().items()}
        monkeypatch.setattr(work, "_clipped_norm", lambda: torch.tensor(float("inf")))
        assert float(work.take(1, batches).skipped) == 1
        assert all(torch.equal(before[name], tensor) for name, tensor in work.tensors().items())
    assert told == [False, False, True]

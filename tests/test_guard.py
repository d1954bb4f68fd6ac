import json
import math
import warnings
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch

from injection import PLACES, Fault, inject
from processes import in_processes
from test_training import WORLD, carried_out, pictures, same_bits, tiny
from vitreous import distributed
from vitreous.data.loader import training_batches
from vitreous.distributed import World
from vitreous.errors import InputError
from vitreous.guard import Guard
from vitreous.optim import SGD, Adafactor, Adam, AdamW, Muon
from vitreous.parallel import FullShard, Parallel, Replicate, local
from vitreous.run import Run
from vitreous.run_folder import RunFolder
from vitreous.stopping import Stopped
from vitreous.trainee import Trainee
from vitreous.training import Diverged

FAULTS = [
    Fault(place, steps=(step,), rank=number % 2, value=value)
    for number, (place, value, step) in enumerate(product(PLACES, (math.nan, math.inf), range(2, 7)))
]


def state(trainee: Trainee) -> dict[str, torch.Tensor]:
    return {name: local(tensor.detach()).clone() for name, tensor in trainee.tensors().items()}


def untouched(run: Run, world: World, faults: list[Fault]) -> list[tuple[float, bool, str]]:
    """For each fault: whether the step was refused, whether no bit of the state changed, the numbers that all saw.

    After each refused step the same is taken without the fault, so that there is always something to lose.
    """
    found = []
    source = pictures()
    trainee = Trainee(run, world, num_classes=3)

    def take(step: int):
        batches = training_batches(
            source,
            run.train_view,
            batch_size=run.batch_size,
            num_micro_batches=trainee.num_micro_batches,
            mine=trainee.mine,
            seed=0,
            first_step=step,
            steps=step + 1,
        )
        return trainee.take(step, batches)

    for fault in faults:
        before = state(trainee)
        with pytest.MonkeyPatch.context() as patch:
            inject(replace(fault, rank=fault.rank % world.size), patch)
            taken = take(fault.steps[0] - 1)
        after = state(trainee)
        for name in set(after) - set(before):  # an optimizer begins its state, at zero, in its first step
            assert not after.pop(name).any()
        same = before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
        found.append((float(taken.skipped), same, f"{float(taken.grad_norm)}"))
        assert float(take(fault.steps[0] - 1).skipped) == 0
        assert any(not torch.equal(before[name], tensor) for name, tensor in state(trainee).items() if name in before)
    return found


@pytest.mark.parametrize(
    "optimizer",
    [AdamW(layer_decay=0.7, decay_by_rate=False), Adam(), SGD(), SGD(momentum=0.0), Muon(), Adafactor()],
    ids=["adamw", "adam", "sgd", "plain", "muon", "adafactor"],
)
def test_of_50_steps_with_a_number_that_is_none_no_bit_of_the_state_changes(optimizer):
    run = tiny(optimizer=optimizer, max_skipped_steps=9, ema_decay=0.9)
    assert [answer[:2] for answer in untouched(run, WORLD, FAULTS)] == [(1.0, True)] * 50


@pytest.mark.parametrize("parallel", [Replicate(), FullShard()], ids=["replicate", "shard"])
def test_when_one_process_of_two_meets_it_both_refuse_the_step_and_lose_nothing(parallel: Parallel):
    def work() -> list[tuple[float, bool, str]]:
        warnings.simplefilter("error")
        world = distributed.start(device="cpu", threads=1, precision="float32", timeout_s=60)
        run = tiny(parallel=parallel, max_skipped_steps=9, ema_decay=0.9)
        found = untouched(run, world, FAULTS)
        world.leave()
        return found

    first, second = in_processes(2, work)
    assert [answer[:2] for answer in first] == [(1.0, True)] * 50
    assert first == second


def test_it_refuses_steps_for_good_after_more_than_so_many_in_a_row():
    guard, good, bad = Guard(torch.device("cpu"), 2), torch.tensor(1.0), torch.tensor(math.nan)

    def refused(losses: list[torch.Tensor]) -> list[float]:
        return [float(guard.refuses(loss, good)) for loss in losses]

    assert refused([good, bad, bad, good, bad, bad, good]) == [0, 1, 1, 0, 1, 1, 0]
    assert not guard.halted
    assert refused([bad, bad, bad, good, good]) == [1, 1, 1, 1, 1]
    assert guard.halted


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_it_looks_at_the_loss_and_at_the_norm(value):
    guard, good = Guard(torch.device("cpu"), 9), torch.tensor(1.0)
    assert guard.refuses(torch.tensor(value), good) == 1
    assert guard.refuses(good, torch.tensor(value)) == 1
    assert guard.refuses(good, good) == 0


def events(folder: Path) -> list[tuple[str, int]]:
    return [(line["event"], line["step"]) for line in RunFolder(folder).measurements() if "event" in line]


def test_training_halts_before_the_step_and_goes_on_from_there_once_the_cause_is_gone(tmp_path):
    undisturbed = carried_out(tiny(), tmp_path / "whole")
    folder = RunFolder(tmp_path / "parts")
    with pytest.MonkeyPatch.context() as patch:
        inject(Fault("layer", steps=(5,)), patch)
        for _ in range(2):  # trying again is the same again
            with pytest.raises(
                Diverged,
                match=r"number at step 5, .* classifier\.encoder\.blocks\.1 is the first layer that gives NaN",
            ):
                carried_out(tiny(), folder.path)
            failure = json.loads(folder.failure.read_text())
            assert failure["step"] == 5
            assert [path.name for path in folder.checkpoints.iterdir()] == ["step-00000004"]
    assert same_bits(undisturbed, carried_out(tiny(), folder.path))
    assert not folder.failure.exists()
    lines = [[line[name] for name in ("split", "step", "loss")] for line in folder.measurements()]
    assert lines == [
        [line[name] for name in ("split", "step", "loss")] for line in RunFolder(tmp_path / "whole").measurements()
    ]


def test_as_many_steps_in_a_row_as_allowed_are_skipped_and_written_down(tmp_path, monkeypatch):
    inject(Fault("loss", steps=(4, 5, 9)), monkeypatch)
    carried_out(tiny(max_skipped_steps=2), tmp_path)
    assert events(tmp_path) == [("skipped", 4), ("skipped", 5), ("skipped", 9)]
    assert [line["loss"] for line in RunFolder(tmp_path).measurements() if "event" in line] == ["nan"] * 3
    assert not RunFolder(tmp_path).failure.exists()


def test_one_more_in_a_row_halts(tmp_path, monkeypatch):
    inject(Fault("gradient", steps=(4, 5, 6, 7)), monkeypatch)
    for _ in range(2):
        with pytest.raises(
            Diverged,
            match=r"at step 6, .* the gradient that comes back to the output of .*\.blocks\.1 has NaN, for image made/",
        ):
            carried_out(tiny(max_skipped_steps=2), tmp_path)
        assert events(tmp_path) == [("skipped", 4), ("skipped", 5)]


def test_lines_are_means_over_the_steps_that_were_taken(tmp_path, monkeypatch):
    monkeypatch.setattr(Run, "log_every", 2)
    inject(Fault("data", steps=(2, 5, 6)), monkeypatch)
    carried_out(tiny(max_skipped_steps=2), tmp_path)
    lines = {line["step"]: line for line in RunFolder(tmp_path).measurements() if line.get("split") == "train"}
    assert lines[2]["loss"] == pytest.approx(math.log(3), abs=1e-6)  # that of step 1 alone
    assert lines[6]["loss"] is None  # none was taken, and JSON has no NaN


def test_stopped_in_the_middle_of_skipped_steps_it_has_the_bits_of_an_undisturbed_run(tmp_path, monkeypatch):
    inject(Fault("loss", steps=(4, 5, 8)), monkeypatch)
    run = tiny(max_skipped_steps=2, ema_decay=0.9)
    undisturbed = carried_out(run, tmp_path / "whole")
    for _ in range(11):
        with pytest.raises(Stopped):
            carried_out(run, tmp_path / "parts", time_limit_s=0.0)
    assert same_bits(undisturbed, carried_out(run, tmp_path / "parts"))
    assert events(tmp_path / "parts") == events(tmp_path / "whole") == [("skipped", 4), ("skipped", 5), ("skipped", 8)]


def test_stopped_in_the_middle_it_halts_at_the_same_step(tmp_path, monkeypatch):
    inject(Fault("loss", steps=(4, 5, 6)), monkeypatch)
    for _ in range(5):
        with pytest.raises(Stopped):
            carried_out(tiny(max_skipped_steps=2), tmp_path, time_limit_s=0.0)
    with pytest.raises(Diverged, match="at step 6,"):
        carried_out(tiny(max_skipped_steps=2), tmp_path, time_limit_s=0.0)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_broke_by_themselves_are_not_saved_and_the_run_goes_on_from_before(tmp_path, value):
    undisturbed = carried_out(tiny(), tmp_path / "whole")
    with pytest.raises(Stopped):
        carried_out(tiny(), tmp_path / "parts", time_limit_s=0.0)
    take, name = Trainee.take, "classifier.encoder.blocks.1.attention.qkv.weight"

    def broken(self, step, batches):
        if step == 4:
            with torch.no_grad():
                self.objective.get_parameter(name)[3, 4] = value
        return take(self, step, batches)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainee, "take", broken)
        with pytest.raises(InputError, match=f"at step 5, .*: the weights {name} hold some that are not finite"):
            carried_out(tiny(), tmp_path / "parts")
    assert [path.name for path in (tmp_path / "parts" / "checkpoints").iterdir()] == ["step-00000001"]
    assert same_bits(undisturbed, carried_out(tiny(), tmp_path / "parts"))

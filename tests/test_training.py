import math
import os
import shutil
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch

from processes import in_processes
from vitreous import distributed, stopping
from vitreous.checkpoint import CheckpointConfig
from vitreous.classifier import Classifier
from vitreous.console import Console
from vitreous.data.augment import RandAugment
from vitreous.data.mixing import Mixing
from vitreous.data.source import ArraySource
from vitreous.data.views import EvalView, TrainView
from vitreous.errors import InputError
from vitreous.objectives.supervised import Supervised, SupervisedObjective
from vitreous.optim import Adafactor, Adam, AdamW, Muon
from vitreous.run import Run
from vitreous.run_folder import RunFolder
from vitreous.schedule import Constant, Cosine, Schedule
from vitreous.stopping import Lost, Stopped
from vitreous.trainee import Trainee
from vitreous.training import Diverged, train
from vitreous.variants import vit
from vitreous.weights.open import open_model

WORLD = distributed.World(rank=0, size=1, device=torch.device("cpu"), dtype=torch.float32, threads=1)


def pictures(number: int = 60) -> ArraySource:
    """Three classes: bright above, bright below, bright everywhere; with noise."""
    random = np.random.default_rng(0)
    labels = np.arange(number) % 3
    pixels = random.integers(0, 100, (number, 8, 8))
    pixels[labels != 1, :4] += 120
    pixels[labels != 0, 4:] += 120
    return ArraySource(pixels.astype(np.uint8), prefix="made", classes=("above", "below", "both"), labels=labels)


def tiny(**changes) -> Run:
    run = Run(
        train_view=TrainView(image_size=8, min_area_ratio=0.5, shift_ratio=0.1),
        eval_view=EvalView(image_size=8, crop_ratio=1.0),
        model=vit("32x2/4", image_size=8, dropout=0.1, drop_path=0.1),
        learning_rate=Cosine(peak=3e-3),
        batch_size=16,
        steps=12,
        num_evaluations=2,
    )
    return replace(run, **changes)


def carried_out(run: Run, path, *, time_limit_s: float | None = None, world: distributed.World = WORLD) -> Classifier:
    data = pictures()
    folder = RunFolder(path)
    path.mkdir(exist_ok=True)
    objective = train(
        run,
        data,
        held_out=("test", data),
        folder=folder,
        world=world,
        console=Console(quiet=True),
        time_limit_s=time_limit_s,
    )
    assert isinstance(objective, SupervisedObjective)
    return objective.classifier


def same_bits(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_first_loss_is_exactly_the_logarithm_of_the_number_of_classes(tmp_path):
    carried_out(tiny(), tmp_path)
    first = next(iter(RunFolder(tmp_path).measurements()))
    assert first["step"] == 1
    assert first["loss"] == pytest.approx(math.log(3), abs=1e-6)


def test_it_learns(tmp_path):
    carried_out(
        tiny(
            steps=80,
            model=vit("32x2/4", image_size=8),
            train_view=TrainView(image_size=8, min_area_ratio=1.0, flip=False),
        ),
        tmp_path,
    )
    last = [line for line in RunFolder(tmp_path).measurements() if line["split"] == "test"][-1]
    assert last["top1"] > 0.95


RANDOM = {
    "objective": Supervised(mixing=Mixing(mixup=0.8, cutmix=1.0), loss="sigmoid", label_smoothing=0.1),
    "train_view": TrainView(image_size=8, augment=RandAugment()),
    "model": vit("32x2/4", image_size=8, patch_drop=0.3),
    "num_repeats": 2,
    "grow_from": 0.5,
}
"""Whatever else draws at random."""


@pytest.mark.parametrize(
    "changes",
    [{}, RANDOM, {"optimizer": Adam()}, {"optimizer": Adafactor()}, {"optimizer": Muon()}],
    ids=["plain", "random", "adam", "adafactor", "muon"],
)
def test_stopped_and_gone_on_with_it_has_the_bits_of_an_undisturbed_run(changes, tmp_path):
    run = tiny(**changes)
    undisturbed = carried_out(run, tmp_path / "whole")
    codes = []
    while True:
        try:
            again = carried_out(run, tmp_path / "parts", time_limit_s=0.0)
            break
        except Stopped as stopped:
            codes.append(stopped.exit_code)
    assert codes == [75] * 11
    assert same_bits(undisturbed, again)
    whole, parts = (list(RunFolder(tmp_path / name).measurements()) for name in ("whole", "parts"))
    timeless = [{k: v for k, v in line.items() if k in ("split", "step", "loss", "top1")} for line in parts]
    assert timeless == [{k: line[k] for k in ("split", "step", "loss", "top1") if k in line} for line in whole]


def test_reader_processes_change_nothing(tmp_path):
    alone = carried_out(tiny(steps=4, num_evaluations=0), tmp_path / "alone")
    helped = carried_out(tiny(steps=4, num_evaluations=0, num_workers=2), tmp_path / "helped")
    assert same_bits(alone, helped)


def test_another_seed_gives_other_weights(tmp_path):
    assert not same_bits(carried_out(tiny(steps=1), tmp_path / "a"), carried_out(tiny(steps=1, seed=1), tmp_path / "b"))


def test_a_loss_that_is_no_number_stops_with_the_way_out(tmp_path):
    wild = tiny(learning_rate=Constant(value=1e30), optimizer=AdamW(clip_norm=None))
    with pytest.raises(
        Diverged, match=r"no finite number at step 2, .* is the first layer .*--learning_rate.value 3.3e"
    ):
        carried_out(wild, tmp_path)


def test_a_full_disk_at_a_checkpoint_does_not_stop_training(tmp_path, monkeypatch):
    from vitreous.checkpoint import Checkpoints

    def refuse(*arguments, **keywords):
        raise InputError("cannot write there: the disk is full")

    said = []
    monkeypatch.setattr(Checkpoints, "save", refuse)
    monkeypatch.setattr(Console, "say", lambda self, line="": said.append(line))
    carried_out(tiny(checkpoint=CheckpointConfig(every_s=0.0, background=False)), tmp_path)
    assert sum("warning: no checkpoint at step" in line for line in said) == 12


def test_a_signal_during_the_last_step_is_not_forgotten(tmp_path, monkeypatch):
    after_step = SupervisedObjective.after_step

    def interrupted(self, progress):
        if progress == 11 / 12:
            os.kill(os.getpid(), signal.SIGTERM)
        after_step(self, progress)

    monkeypatch.setattr(SupervisedObjective, "after_step", interrupted)
    with pytest.raises(Stopped, match="asked to end after step 12 of 12") as stopped:
        carried_out(tiny(), tmp_path)
    assert stopped.value.exit_code == 75
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000012"]


def test_readers_that_die_of_the_same_signal_do_not_hide_it(tmp_path, monkeypatch):
    def killed(*_, **__):
        yield next(batches)
        os.kill(os.getpid(), signal.SIGTERM)
        raise InputError("loading images failed: a worker process died")

    batches = Trainee(tiny(), WORLD, num_classes=3).batches(pictures(), first_step=0, steps=12)
    monkeypatch.setattr(Trainee, "batches", killed)
    with pytest.raises(Stopped, match="asked to end after step 1 of 12"):
        carried_out(tiny(), tmp_path)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]


def test_one_of_many_processes_whose_readers_die_of_the_same_signal_leaves_to_try_again(tmp_path, monkeypatch):
    def killed(*_, **__):
        os.kill(os.getpid(), signal.SIGTERM)
        raise InputError("loading images failed: a worker process died")
        yield

    def work() -> tuple[str, int]:
        monkeypatch.setattr(Trainee, "batches", killed)
        world = distributed.start(device="cpu", threads=1)
        with pytest.raises(Lost) as lost:
            carried_out(tiny(num_micro_batches=2), tmp_path, world=world)
        return str(lost.value), lost.value.exit_code

    assert in_processes(2, work) == [
        (f"process {rank} was asked to end after step 0 of 12", stopping.EXIT_TRY_AGAIN) for rank in range(2)
    ]


CACHED = {"train_view": TrainView(image_size=8, margin=0.5, shift_ratio=0.1), "cache_gb": 1.0}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_run_from_a_cache_has_the_bits_of_one_from_the_files(num_workers, tmp_path, monkeypatch):
    plain = carried_out(tiny(**{**CACHED, "cache_gb": 0.0}), tmp_path / "plain")
    with pytest.raises(Stopped):
        carried_out(tiny(**CACHED), tmp_path / "cached", time_limit_s=0.0)
    assert (tmp_path / "cached" / "cache" / "pixels").stat().st_size == 60 * 3 * 12 * 12
    monkeypatch.setattr(ArraySource, "crop", None)  # what is kept is not made again, nor read from anywhere else
    ours = carried_out(tiny(**CACHED, num_workers=num_workers), tmp_path / "cached")
    assert same_bits(ours, plain)
    assert not (tmp_path / "cached" / "cache").exists()


def test_processes_share_a_cache_and_have_the_bits_of_those_without(tmp_path):
    def work() -> bool:
        world = distributed.start(device="cpu", threads=1)
        plain = carried_out(tiny(**{**CACHED, "cache_gb": 0.0}), tmp_path / "plain", world=world)
        if world.rank:
            ArraySource.crop = None  # pyright: ignore[reportAttributeAccessIssue]
        ours = carried_out(tiny(**CACHED), tmp_path / "cached", world=world)
        return same_bits(ours, plain)

    (tmp_path / "plain").mkdir()
    (tmp_path / "cached").mkdir()
    assert in_processes(2, work) == [True, True]


def test_a_run_whose_cache_the_disk_refuses_goes_on_without(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(Console, "say", lambda self, line="": said.append(line))
    ours = carried_out(tiny(**{**CACHED, "cache_gb": 1e-6}), tmp_path / "cached")
    assert [line for line in said if "cache" in line] == [
        "warning: no cache at step 0: the 60 images are not kept, for they take 2.6e-05 GB or more; cache_gb is 1e-06"
    ]
    assert same_bits(ours, carried_out(tiny(**{**CACHED, "cache_gb": 0.0}), tmp_path / "plain"))


def test_a_damaged_checkpoint_is_said(tmp_path, monkeypatch):
    for _ in range(2):
        with pytest.raises(Stopped):
            carried_out(tiny(), tmp_path, time_limit_s=0.0)
    os.truncate(tmp_path / "checkpoints" / "step-00000002" / "rank-00000.safetensors", 9)
    said = []
    monkeypatch.setattr(Console, "say", lambda self, line="": said.append(line))
    with pytest.raises(Stopped):
        carried_out(tiny(), tmp_path, time_limit_s=0.0)
    assert "step-00000002 is damaged" in said[0]
    assert "going on from step 1 of 12" in said[1]


def test_out_of_time_is_the_exit_code_for_try_again():
    assert stopping.EXIT_TRY_AGAIN == 75


def test_readers_that_die_before_the_first_step_leave_no_checkpoint(tmp_path, monkeypatch):
    def killed(*_, **__):
        os.kill(os.getpid(), signal.SIGTERM)
        raise InputError("loading images failed: a worker process died")
        yield

    undisturbed = carried_out(tiny(), tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(Trainee, "batches", killed)
        with pytest.raises(Stopped, match="after step 0 of 12"):
            carried_out(tiny(), tmp_path / "parts")
    assert same_bits(undisturbed, carried_out(tiny(), tmp_path / "parts"))


@pytest.mark.parametrize(("steps", "number"), [(19, 10), (12, 12), (12, 5), (3, 10), (7, 0)])
def test_it_is_measured_as_often_as_asked(steps, number, tmp_path):
    carried_out(tiny(steps=steps, num_evaluations=number, batch_size=4), tmp_path)
    lines = [line["step"] for line in RunFolder(tmp_path).measurements() if line["split"] == "test"]
    assert len(lines) == min(number, steps)
    assert not lines or lines[-1] == steps


def test_weights_that_are_gone_are_not_missed_when_going_on(tmp_path, trained):
    moved = shutil.copytree(trained / "model", tmp_path / "moved")
    product = open_model(str(moved))
    encoder = product.classifier.config.encoder
    run = tiny(
        weights=str(moved),
        model=encoder,
        train_view=TrainView(image_size=encoder.image_size),
        eval_view=EvalView(image_size=encoder.image_size),
    )
    with pytest.raises(Stopped):
        carried_out(run, tmp_path / "run", time_limit_s=0.0)
    shutil.rmtree(moved)
    carried_out(run, tmp_path / "run")


def test_a_schedule_of_ones_own_that_is_too_steep_is_answered_too(tmp_path):
    class Steep(Schedule):
        def __call__(self, progress: float) -> float:
            return 1e30

    wild = tiny(learning_rate=Steep(), optimizer=AdamW(clip_norm=None))
    with pytest.raises(InputError, match=r"the learning rate, 1e\+30, may be too high; try a lower one"):
        carried_out(wild, tmp_path)

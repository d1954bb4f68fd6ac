import json
import shlex
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch._dynamo

from injection import Fault, inject
from processes import in_processes
from test_training import tiny
from vitreous import distributed
from vitreous.checkpoint import CheckpointConfig
from vitreous.console import Console
from vitreous.data.data_config import DataConfig
from vitreous.errors import InputError
from vitreous.experiment import carry_out, look
from vitreous.objectives.supervised import Supervised
from vitreous.parallel import FullShard, HybridShard
from vitreous.recorded import SAME
from vitreous.replay import Replayed, digest, replay
from vitreous.run import Run
from vitreous.run_folder import RunFolder
from vitreous.trainee import Trainee

STEPS = 12


def begun(run: Run, path: Path, *, processes: int = 1) -> None:
    """`run` as the command line carries it out, in that many processes, until its end."""

    def work() -> None:
        warnings.simplefilter("error")
        world = distributed.start(device="cpu", threads=1, precision=run.precision, timeout_s=60)
        folder, console = RunFolder(path), Console(quiet=True)
        prepared = world.on_main(lambda: look(run.data, folder, console))
        carry_out(run, folder, prepared=prepared, world=world, console=console)
        world.leave()

    in_processes(processes, work) if processes > 1 else work()


def replayed(path: Path, *, step: int, processes: int = 1) -> Replayed:
    def work() -> Replayed:
        warnings.simplefilter("error")
        run = run_of(path)
        world = distributed.start(device="cpu", threads=1, precision=run.precision, timeout_s=60)
        found = replay(RunFolder(path), run, step=step, world=world, console=Console(quiet=True))
        world.leave()
        return found

    if processes == 1:
        return work()
    first, *others = in_processes(processes, work)
    assert [other.after for other in others] == [first.after] * len(others)
    return first


def run_of(path: Path) -> Run:
    from vitreous.recipes.shipped import run_from_record

    return run_from_record(RunFolder(path).read(), str(path))


def on(photos: Path, **changes) -> Run:
    return tiny(data=DataConfig(path=str(photos)), checkpoint=CheckpointConfig(every_s=0.0, keep_last=99), **changes)


def files(path: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(file.relative_to(path)): (file.read_bytes(), file.stat().st_mtime_ns)
        for file in sorted(path.rglob("*"))
        if file.is_file()
    }


@pytest.fixture(scope="module")
def run(photos, tmp_path_factory) -> Path:
    """A finished run with a checkpoint of most of its steps."""
    path = tmp_path_factory.mktemp("replay") / "run"
    begun(on(photos, ema_decay=0.9), path)
    return path


def test_any_step_is_the_same_bit_for_bit_whatever_it_is_computed_from(run, tmp_path):
    saved = {int(path.name[5:]) for path in (run / "checkpoints").iterdir()}
    assert len(saved) >= 3
    bare = shutil.copytree(run, tmp_path / "bare")
    for path in (bare / "checkpoints").iterdir():
        if path.name not in ("step-00000012",):
            shutil.rmtree(path)
    before = None
    for step in (1, 5, 6, STEPS):
        near, far = replayed(run, step=step), replayed(bare, step=step)
        assert replace(near, start=0, agrees={}) == replace(far, start=0, agrees={})
        assert (near.start, far.start) == (max((s for s in saved if s < step), default=0), 0)
        assert near.agrees["metrics.jsonl"] == far.agrees["metrics.jsonl"] == SAME
        assert set(near.agrees.values()) == {SAME}
        assert (f"checkpoint of step {step}" in near.agrees) == (step in saved)
        assert near.doubts == []
        assert before is None or step != 6 or near.before == before
        before = near.after


def test_nothing_in_the_folder_changes(run):
    before = files(run)
    replayed(run, step=7)
    assert files(run) == before


def test_a_line_of_several_steps_is_compared_at_its_end(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(Run, "log_every", 5)
    begun(on(photos), tmp_path / "run")
    for path in (tmp_path / "run" / "checkpoints").iterdir():
        if path.name not in ("step-00000007", "step-00000008"):
            shutil.rmtree(path)
    assert replayed(tmp_path / "run", step=3).agrees == {
        "metrics.jsonl": "has the mean over steps 1 to 5 only; --step 5 compares that"
    }
    for step, steps in ((5, "1 to 5"), (10, "6 to 10"), (12, "11 to 12")):
        assert replayed(tmp_path / "run", step=step).agrees["metrics.jsonl"] == f"{SAME}, over steps {steps}"


def test_what_was_recorded_otherwise_is_said(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "copy")
    lines = [json.loads(line) for line in (copy / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        if line["step"] == 5 and line["split"] == "train":
            line["loss"] += 1e-9
    (copy / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    said = replayed(copy, step=5).agrees["metrics.jsonl"]
    assert said.startswith("differs: loss ")
    assert replayed(copy, step=6).agrees["metrics.jsonl"] == SAME


def test_what_is_shown_is_what_the_step_gave(run):
    found = replayed(run, step=6)
    line = next(line for line in RunFolder(run).measurements() if line["step"] == 6 and line["split"] == "train")
    assert {**found.numbers, "learning_rate": found.learning_rate} == {
        name: line[name] for name in (*found.numbers, "learning_rate")
    }
    losses = [image.loss for image in found.images]
    assert len(losses) == 16
    assert losses == sorted(losses, reverse=True)
    assert sum(losses) / 16 == pytest.approx(found.numbers["loss"], rel=1e-6)
    assert all(image.name.startswith(f"{image.label}/") for image in found.images)
    squares = 0.0
    objective = Trainee(
        run_of(run), distributed.World(0, 1, torch.device("cpu"), torch.float32, 1), num_classes=3
    ).objective
    for part in found.parts:
        own = (
            [p for n, p in objective.named_parameters() if n.startswith(f"{part.name}.")]
            if "blocks" in part.name
            else [p for n, p in objective.named_parameters() if n.rpartition(".")[0] == part.name]
        )
        squares += part.gradient**2 * sum(p.numel() for p in own)
    assert squares**0.5 == pytest.approx(found.numbers["grad_norm"], rel=1e-6)
    assert [part.name for part in found.parts if "blocks" in part.name] == [
        f"classifier.encoder.blocks.{i}" for i in (0, 1)
    ]


def test_label_smoothing_is_in_the_loss_of_an_image(photos, tmp_path):
    begun(on(photos, steps=3, objective=Supervised(label_smoothing=0.2)), tmp_path / "run")
    found = replayed(tmp_path / "run", step=3)
    assert sum(image.loss or 0 for image in found.images) / 16 == pytest.approx(found.numbers["loss"], rel=1e-6)


@pytest.mark.parametrize(
    ("changes", "processes", "again"),
    [
        ({}, 2, 1),
        ({}, 4, 1),
        ({}, 4, 2),
        ({"parallel": HybridShard(group_size=2)}, 4, 1),
        ({"parallel": FullShard()}, 2, 2),
        ({"exact": True, "num_micro_batches": 4}, 2, 1),
        ({"num_micro_batches": 4}, 2, 2),
    ],
)
def test_what_several_processes_did_others_do_again_with_the_same_bits(photos, tmp_path, changes, processes, again):
    begun(on(photos, steps=5, num_evaluations=0, **changes), tmp_path / "run", processes=processes)
    found = replayed(tmp_path / "run", step=5, processes=again)
    assert found.agrees == {"metrics.jsonl": SAME, "checkpoint of step 5": SAME}
    assert found.doubts == []
    assert len(found.images) == 16


def test_where_bits_may_differ_it_is_said_with_the_way_to_the_same(photos, tmp_path):
    begun(on(photos, steps=3, num_evaluations=0, num_micro_batches=4), tmp_path / "run", processes=2)
    said = replayed(tmp_path / "run", step=3)
    assert said.doubts[0] == "processes 2 then, 1 now"
    assert "torchrun --nproc-per-node 2 -m vitreous replay" in said.doubts[1]
    assert said.numbers["loss"] == pytest.approx(next(RunFolder(tmp_path / "run").measurements())["loss"], rel=0.05)


def test_too_many_processes_are_refused(photos, run):
    with pytest.raises(AssertionError, match="2 processes cannot share 1 micro-batches"):
        replayed(run, step=3, processes=2)


def test_a_damaged_checkpoint_is_passed_over(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "copy")
    saved = sorted(int(path.name[5:]) for path in (copy / "checkpoints").iterdir())
    newest = saved[-2]
    part = copy / "checkpoints" / f"step-{newest:08d}" / "rank-00000.safetensors"
    part.write_bytes(part.read_bytes()[:-1] + b"x")
    found = replayed(copy, step=newest + 1)
    assert found.start == saved[-3]
    assert found.agrees["metrics.jsonl"] == SAME
    assert part.exists()


def fresh(path: Path) -> Path:
    shutil.rmtree(path / "checkpoints")
    return path


def test_weights_that_the_run_began_with_are_found_again_or_missed(run, tmp_path, monkeypatch):
    """Their path counts from where the run was begun."""
    (tmp_path / "there").mkdir()
    shutil.copytree(run / "model", tmp_path / "there" / "moved")
    monkeypatch.chdir(tmp_path / "there")
    shape = run_of(run)
    begun(replace(shape, weights="moved", steps=3, num_evaluations=0, checkpoint=CheckpointConfig()), Path("run"))
    monkeypatch.chdir(tmp_path)
    path = fresh(Path("there/run"))
    assert replayed(path, step=2).agrees == {"metrics.jsonl": SAME}
    shutil.rmtree("there/moved")
    with pytest.raises(InputError, match=r"no checkpoint before step 2 is left, and the weights .* put them back"):
        replayed(path, step=2)


def test_the_digest_tells_every_bit_and_every_name():
    tensors = {"a": torch.zeros(2, 3), "b": torch.tensor(1.0), "c": torch.zeros(0)}
    assert digest(tensors) == digest(dict(reversed(tensors.items())))
    others = [
        {**tensors, "a": torch.zeros(3, 2)},
        {**tensors, "a": -torch.zeros(2, 3)},
        {**tensors, "b": torch.tensor(1.0).double()},
        {**tensors, "d": torch.zeros(0)},
    ]
    assert len({digest(other) for other in (tensors, *others)}) == 5


# The command


def step_of_failure(path: Path) -> dict:
    return json.loads((path / "failure.json").read_text())


@pytest.mark.parametrize("place", ["data", "layer", "loss", "gradient"])
def test_a_failure_is_looked_at_by_the_command_that_its_one_line_names(place, vitreous, photos, tmp_path, monkeypatch):
    inject(Fault(place, steps=(4,)), monkeypatch)
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps({"config": on(photos).to_dict()}))
    answer = vitreous("train", recipe, "--out", "a run", "--device", "cpu")
    assert answer.code == 2
    said = [line for line in answer.err.splitlines() if line.startswith("vitreous: ")]
    assert len(said) == 1
    what, command = said[0].split(", or look at it: vitreous ")
    assert command == "replay 'a run' --step 4"
    again = vitreous(*shlex.split(command), "--json", "--device", "cpu")
    assert again.code == 0
    found = json.loads(again.out)
    assert found["skipped"]
    assert found["before"] == found["after"]
    assert "nan" in (found["numbers"]["loss"], found["numbers"]["grad_norm"])
    assert found["cause"] in what
    assert found["agrees"]["failure.json"] == "not finite there, nor here"
    name, worst = found["cause"].rpartition("for image ")[2].partition(" ")[0], found["images"][0]
    if place in ("data", "layer"):
        assert (worst["name"], worst["loss"]) == (name, "nan")
    later = vitreous("replay", "a run", "--step", 5, "--device", "cpu")
    assert (later.code, later.out) == (2, "")
    assert later.err.splitlines()[-1] == (
        "vitreous: training ends at step 4, whose loss or gradient is no finite number; look at that one: --step 4"
    )
    assert [line for line in later.err.splitlines() if line.startswith("vitreous: ")] == later.err.splitlines()[-1:]


def test_a_skipped_step_is_replayed_as_it_was_recorded(photos, tmp_path, monkeypatch):
    inject(Fault("loss", steps=(4, 5)), monkeypatch)
    begun(on(photos, max_skipped_steps=2), tmp_path / "run")
    for step in (4, 5):
        found = replayed(tmp_path / "run", step=step)
        assert found.skipped
        assert found.before == found.after
        assert found.agrees["event skipped"] == SAME
        assert found.agrees["metrics.jsonl"] == SAME
    after = replayed(tmp_path / "run", step=6)
    assert not after.skipped
    assert set(after.agrees.values()) == {SAME}


def test_a_step_is_shown_as_tables(vitreous, run):
    answer = vitreous("replay", run, "--step", 6, "--device", "cpu")
    assert answer.code == 0
    step, parts, images = answer.out.strip().split("\n\n")
    rows = {line[:22].strip(): line[22:].strip() for line in step.splitlines()}
    found = replayed(run, step=6)
    assert repr(found.numbers["loss"]) in step
    assert found.before in step
    assert found.after in step
    assert SAME in step
    assert rows
    assert parts.splitlines()[0].split("  ")[0] == "part"
    assert "classifier.encoder.blocks.1" in parts
    assert len(images.splitlines()) == 12
    assert images.splitlines()[-1] == "and 6 more"


@pytest.mark.parametrize(
    ("step", "message"),
    [("0", "give one of 1 to 12"), ("13", "give one of 1 to 12"), ("1.5", "takes a whole number")],
)
def test_a_step_that_is_none_is_refused_in_one_line(vitreous, run, step, message):
    answer = vitreous("replay", run, "--step", step)
    assert (answer.code, answer.out) == (2, "")
    assert len(answer.err.splitlines()) == 1
    assert message in answer.err


def test_a_folder_that_is_no_run_and_data_that_have_changed_are_one_line(vitreous, run, photos, tmp_path):
    answer = vitreous("replay", tmp_path, "--step", 1)
    assert (answer.code, len(answer.err.splitlines())) == (2, 1)
    assert "has no run.json" in answer.err
    moved = shutil.copytree(photos, tmp_path / "photos")
    begun(on(moved, steps=2, num_evaluations=0), tmp_path / "of-moved")
    (moved / "sky" / "sky3.png").write_bytes((moved / "sky" / "sky4.png").read_bytes()[:-9])
    answer = vitreous("replay", tmp_path / "of-moved", "--step", 1)
    assert (answer.code, answer.out) == (2, "")
    assert [line for line in answer.err.splitlines() if line.startswith("vitreous: ")] == answer.err.splitlines()[-1:]
    shutil.rmtree(moved / "sky")
    answer = vitreous("replay", tmp_path / "of-moved", "--step", 1)
    assert answer.code == 2


def test_it_can_be_looked_at_while_it_is_trained(run):
    """Reading takes no claim."""
    with RunFolder(run).claimed():
        assert replayed(run, step=4).agrees["metrics.jsonl"] == SAME


def test_it_is_an_input_error_if_run_json_describes_no_run(tmp_path):
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(InputError, match="which is no config of vitreous"):
        run_of(tmp_path)

import json
import math
import os
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto.event_pb2 import Event, SessionLog

from test_training import carried_out, tiny
from vitreous.data.vtab.containers import Folder
from vitreous.data.vtab.files import Member
from vitreous.data.vtab.tfrecord import records
from vitreous.errors import InputError
from vitreous.run_folder import RunFolder
from vitreous.stopping import Stopped
from vitreous.tracking.tensorboard import EventFile, event, scalars

LINES = [
    {"split": "train", "step": 10, "loss": 2.3, "accuracy": 0.125, "learning_rate": 1e-4, "seconds": 1.5},
    {"split": "test", "step": 10, "loss": 2.2, "top1": 0.25, "seconds": 2.0},
    {"step": 14, "event": "spike", "loss": 9.5, "usual_loss": 2.2},
    {"step": 15, "event": "skipped", "loss": "nan"},
    {"split": "train", "step": 20, "loss": None, "accuracy": 0.5, "learning_rate": 2e-4, "seconds": 3.0},
    {"split": "train", "step": 2**40, "loss": 1e300, "accuracy": 1, "learning_rate": -0.0, "seconds": 4.0},
]


def drawn(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Every curve that TensorBoard finds."""
    seen = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    seen.Reload()
    return curves(seen)


def curves(seen: EventAccumulator) -> dict[str, list[tuple[int, float]]]:
    return {tag: [(point.step, point.value) for point in seen.Scalars(tag)] for tag in seen.Tags()["scalars"]}


def said(lines: list[dict]) -> dict[str, list[tuple[int, float]]]:
    """The same of metrics.jsonl, rounded as TensorBoard keeps numbers."""
    found: dict[str, list[tuple[int, float]]] = {}
    with np.errstate(over="ignore"):
        for line in lines:
            for name, value in scalars(line).items():
                found.setdefault(name, []).append((line["step"], float(np.float32(value))))
    return found


def assert_drawn(folder: RunFolder) -> None:
    shown, wanted = drawn(folder.tensorboard), said(list(folder.measurements()))
    assert shown.keys() == wanted.keys()
    for tag, points in wanted.items():
        np.testing.assert_array_equal(np.array(shown[tag]), np.array(points), err_msg=tag)


@pytest.fixture
def begun() -> Iterator[Callable[[RunFolder], EventFile]]:
    """Begins the event file of a run, as each process does that goes on with it."""
    files = []

    def begin(run: RunFolder) -> EventFile:
        run.path.mkdir(exist_ok=True)
        files.append(EventFile(run))
        files[-1].begin()
        return files[-1]

    yield begin
    for file in files:
        file.close()


@pytest.fixture
def written(begun) -> Callable[[Path, list[dict]], tuple[RunFolder, EventFile]]:
    """A run whose lines were written one by one."""

    def write(path: Path, lines: list[dict]) -> tuple[RunFolder, EventFile]:
        run = RunFolder(path)
        events = begun(run)
        for line in lines:
            run.append(line)
            events.add(line)
        return run, events

    return write


def test_tensorboard_reads_back_every_number_at_its_step(tmp_path, written):
    run, events = written(tmp_path / "run", LINES)
    events.close()
    assert_drawn(run)
    shown = drawn(run.tensorboard)
    assert set(shown) == {
        *("train/loss", "train/accuracy", "train/learning_rate", "test/loss", "test/top1"),
        *("spike/loss", "spike/usual_loss", "skipped/loss"),
    }
    assert shown["train/accuracy"] == [(10, 0.125), (20, 0.5), (2**40, 1.0)]
    assert math.isnan(shown["skipped/loss"][0][1])
    assert math.isnan(shown["train/loss"][1][1])
    assert shown["train/loss"][2][1] == math.inf


def test_every_record_is_the_message_that_google_s_protocol_buffers_write():
    for values in ({"train/loss": 0.1, "straße": -3.5}, {}, {"a" * 300: 1e-40}):
        data = event(values, step=-7, wall_time=1234.5)
        theirs = Event(wall_time=1234.5, step=-7)
        theirs.summary.SetInParent()
        for name, value in values.items():
            theirs.summary.value.add(tag=name, simple_value=value)
        assert data[12:-4] == theirs.SerializeToString()
        assert struct.unpack("<Q", data[:8]) == (len(data) - 16,)


def test_our_own_reader_finds_each_checksum_right(tmp_path, written):
    run, events = written(tmp_path / "run", LINES)
    events.close()
    found = [data for _, data in records(Member(Folder(run.tensorboard), events.path.name))]
    version, start, *rest = map(Event.FromString, found)
    assert version.file_version == "brain.Event:2"
    assert start.session_log.status == SessionLog.START
    assert [one.step for one in rest] == [line["step"] for line in LINES]


def test_a_file_made_anew_is_the_one_that_was_written_line_by_line(tmp_path, written, monkeypatch):
    run, events = written(tmp_path / "run", LINES)
    before = events.path.read_bytes()
    monkeypatch.setattr(time, "time", lambda: events._zero + 4.0)
    events.begin()
    assert events.path.read_bytes() == before
    assert [path for path in run.tensorboard.iterdir() if path.stat().st_size] == [events.path]


def test_the_time_axis_is_that_of_training(tmp_path, written):
    run, events = written(tmp_path / "run", LINES)
    events.begin()
    seen = EventAccumulator(str(run.tensorboard)).Reload()
    times = [point.wall_time for point in seen.Scalars("train/loss")]
    assert np.diff(times) == pytest.approx([1.5, 1.0], abs=1e-5)
    assert times[-1] == pytest.approx(time.time(), abs=60)


def test_a_tensorboard_that_is_looking_sees_no_step_twice_when_a_killed_run_goes_on(tmp_path, written, begun):
    lines = [{"split": "train", "step": step, "loss": 1 / step, "seconds": step / 10} for step in range(1, 101)]
    run, events = written(tmp_path / "run", lines[:70])
    looking = EventAccumulator(str(run.tensorboard), size_guidance={"scalars": 0}).Reload()
    assert len(looking.Scalars("train/loss")) == 70
    with open(events.path, "ab") as file:
        file.write(event({"train/loss": 1.0}, step=71, wall_time=0.0)[:-9])  # killed within a write
    assert len(drawn(run.tensorboard)["train/loss"]) == 70
    run.forget_after(50)
    again = begun(run)
    looking.Reload()
    assert [step for step, _ in curves(looking)["train/loss"]] == list(range(1, 51))
    for line in lines[50:]:
        run.append(line)
        again.add(line)
    looking.Reload()
    assert curves(looking) == drawn(run.tensorboard)
    assert [step for step, _ in curves(looking)["train/loss"]] == list(range(1, 101))


def test_what_a_kill_leaves_between_two_files_goes(tmp_path, written, begun):
    run, _ = written(tmp_path / "run", LINES)
    (old,) = run.tensorboard.iterdir()
    (run.tensorboard / f".{old.name}.4711.tmp").write_bytes(b"half")
    foreign = run.tensorboard / "events.out.tfevents.1700000000.host"
    foreign.write_bytes(b"")
    events = begun(run)
    assert {path.name for path in run.tensorboard.iterdir()} == {events.path.name, old.name, foreign.name}
    assert old.stat().st_size == 0
    assert events.path.name > old.name
    assert begun(run).path.name > events.path.name
    assert not old.exists()


@pytest.mark.parametrize("how", ["refused", "half"])
def test_a_line_that_the_disk_refuses_comes_with_the_next(tmp_path, written, how):
    run, events = written(tmp_path / "run", LINES[:2])

    class Full:
        def __init__(self, file):
            self.file, self.fileno, self.truncate, self.close = file, file.fileno, file.truncate, file.close

        def write(self, data):
            if how == "refused":
                raise OSError(28, os.strerror(28))
            return self.file.write(data[:20])

    events._file = Full(events._file)  # pyright: ignore[reportAttributeAccessIssue]
    before = events.path.read_bytes()
    run.append(LINES[4])
    with pytest.raises(InputError, match="the disk is full"):
        events.add(LINES[4])
    assert events.path.read_bytes() == before
    run.append(LINES[5])
    events.add(LINES[5])
    assert_drawn(run)


def test_whatever_stands_in_metrics_jsonl_is_read(tmp_path, begun):
    odd = [
        {"split": {"a": 1}, "step": 1, "loss": [1], "x": True, "y": "text", "huge": 10**400, "seconds": "soon"},
        {"step": 10**30, "loss": 0.5, "\udcff\n": 1.0},
        {"step": -1, "seconds": 10**400, "loss": 1},
    ]
    run = RunFolder(tmp_path)
    run.metrics.write_text("".join(f"{json.dumps(line)}\n" for line in odd) + '{"step": 3, "lo')
    begun(run)
    assert "other/loss" in drawn(run.tensorboard)


def test_a_real_run_that_is_stopped_and_goes_on_shows_what_its_metrics_say(tmp_path):
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(Stopped):
        carried_out(tiny(), folder.path, time_limit_s=0.0)
    folder.append({"split": "train", "step": 9, "loss": 1.0, "seconds": 1.0})  # a killed process leaves later steps
    carried_out(tiny(), folder.path)
    assert_drawn(folder)
    shown = drawn(folder.tensorboard)
    assert [step for step, _ in shown["train/loss"]] == list(range(1, 13))
    assert [step for step, _ in shown["test/top1"]] == [6, 12]
    assert shown.keys() >= {f"train/{name}" for name in ("images_per_s", "data_wait", "grad_norm", "peak_mb", "mfu")}


def test_a_line_costs_less_than_a_hundredth_of_the_shortest_step(tmp_path, written):
    line = {"split": "train", "seconds": 1.0, **{f"number_{i}": i / 7 for i in range(9)}}
    _, events = written(tmp_path / "run", [])
    times = []
    for step in range(300):
        started = time.perf_counter()
        events.add({**line, "step": step})
        times.append(time.perf_counter() - started)
    print(f"{np.median(times) * 1e6:.0f} us")
    assert np.median(times) < 1e-3

import json
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from test_training import carried_out, tiny
from vitreous.errors import InputError
from vitreous.fields import walk
from vitreous.run_folder import RunFolder
from vitreous.tracking import trackers
from vitreous.tracking.services import SERVICES, check_installed
from vitreous.tracking.trackers import Trackers

CONFIG = {field.path: field.value for field in walk(tiny())}
LINES = [
    {"split": "train", "step": 1, "loss": 2.0, "accuracy": 0.5, "seconds": 1.0},
    {"split": "train", "step": 2, "loss": None, "seconds": 2.0},
    {"split": "val", "step": 2, "loss": 1.5, "top1": 0.75, "seconds": 2.5},
    {"split": "train", "step": 3, "loss": 1.0, "seconds": 3.0},
]
SENT = [
    ({"train/loss": 2.0, "train/accuracy": 0.5}, 1),
    ({"val/loss": 1.5, "val/top1": 0.75}, 2),
    ({"train/loss": 1.0}, 3),
]


@dataclass
class Server:
    """What a tracker of that name would have got, by run."""

    runs: dict[str, list[tuple[dict[str, float], int]]] = field(default_factory=dict)
    begun: list[dict[str, Any]] = field(default_factory=list)
    params: dict[str, str] = field(default_factory=dict)
    ended: list[Any] = field(default_factory=list)
    down: Callable[[], None] = lambda: None

    def enter(self, id: str | None) -> str:
        self.down()
        id = id or f"run{len(self.runs)}"
        self.runs.setdefault(id, [])
        return id

    def log(self, id: str, values: dict[str, float], step: int) -> None:
        self.down()
        self.runs[id].append((values, step))


def wandb_like(server: Server) -> ModuleType:
    """`init`, `Run.log` and `Run.finish` as both Weights & Biases and Trackio have them."""

    def init(**options):
        server.begun.append(options)
        id = server.enter(options["id"] if "id" in options else options["name"])
        log = lambda values, step: server.log(id, values, step)  # noqa: E731
        return SimpleNamespace(id=id, log=log, finish=lambda exit_code=0: server.ended.append(exit_code))

    module = ModuleType("wandb")
    module.__dict__.update(init=init)
    return module


def mlflow_like(server: Server) -> ModuleType:
    active = threading.local()  # as MLflow's own

    def start_run(run_id=None, run_name=None):
        server.begun.append({"run_id": run_id, "run_name": run_name})
        active.id = server.enter(run_id)
        return SimpleNamespace(info=SimpleNamespace(run_id=active.id))

    def log_params(params):
        assert len(params) <= 100
        server.params.update(params)

    module = ModuleType("mlflow")
    module.__dict__.update(
        start_run=start_run,
        log_params=log_params,
        log_metrics=lambda values, step: server.log(active.id, values, step),
        end_run=server.ended.append,
    )
    return module


@pytest.fixture(params=sorted(SERVICES))
def server(request, monkeypatch) -> tuple[str, Server]:
    """A tracker that seems to be installed."""
    server = Server()
    make = mlflow_like if request.param == "mlflow" else wandb_like
    monkeypatch.setitem(sys.modules, request.param, make(server))
    return request.param, server


def told(folder: Path, name: str, lines: list[dict[str, Any]]) -> list[str]:
    """Go on with a run that tracker `name` hears of, and write these lines; what is said about it."""
    said: list[str] = []
    folder.mkdir(exist_ok=True)
    run = RunFolder(folder)
    with Trackers((name,), run=run, config=CONFIG, say=said.append) as all_of_them:
        for line in lines:
            run.append(line)
            all_of_them.add(line)
    return said


def test_a_tracker_gets_every_finite_number_at_its_step_and_the_config(tmp_path, server):
    name, server = server
    assert told(tmp_path / "run", name, LINES) == []
    assert list(server.runs.values()) == [SENT]
    if name == "mlflow":
        assert server.begun == [{"run_id": None, "run_name": "run"}]
        assert server.params == {key: str(value) for key, value in CONFIG.items()}
        assert server.ended == ["FINISHED"]
    else:
        (options,) = server.begun
        assert (options["project"], options["config"], options["resume"]) == ("vitreous", CONFIG, "allow")
        assert options["name"].startswith("run")
        assert server.ended == [0]


def test_a_run_that_goes_on_is_the_same_run_there_and_sends_no_line_twice(tmp_path, server):
    name, server = server
    told(tmp_path / "run", name, LINES[:3])
    run = RunFolder(tmp_path / "run")
    run.forget_after(1)  # as from a checkpoint of step 1
    told(tmp_path / "run", name, LINES[1:])
    assert list(server.runs.values()) == [SENT]
    assert json.loads(run.trackers.read_text()) == {name: {"id": next(iter(server.runs)), "lines": 4}}


def test_two_folders_of_one_name_are_two_runs(tmp_path, server):
    name, server = server
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        told(tmp_path / place / "run", name, LINES)
    assert list(server.runs.values()) == [SENT, SENT]


@pytest.mark.parametrize("error", [ConnectionError("no\nroute"), SystemError("odd"), InputError("theirs")])
def test_a_tracker_that_fails_is_said_once_and_gets_the_rest_when_the_run_goes_on(tmp_path, server, error):
    name, server = server

    def fail() -> None:
        if any(server.runs.values()):
            raise error

    server.down = fail
    (line,) = told(tmp_path / "run", name, LINES[:3])
    message = " ".join(str(error).split())
    assert line == f"warning: {name} is left out from now on: {type(error).__name__}: {message}"
    assert list(server.runs.values()) == [SENT[:1]]
    server.down = lambda: None
    assert told(tmp_path / "run", name, LINES[3:]) == []
    assert list(server.runs.values()) == [SENT]


def test_a_tracker_that_hangs_holds_up_neither_training_nor_its_end(tmp_path, server, monkeypatch):
    name, server = server
    monkeypatch.setattr(trackers, "PATIENCE_S", 0.05)
    release = threading.Event()
    monkeypatch.setattr(server, "down", lambda: release.wait(30))
    (line,) = told(tmp_path / "run", name, LINES)
    assert line == f"warning: {name} has not got everything within 0 s; metrics.jsonl has"
    release.set()


def test_training_that_is_stopped_says_so_there(tmp_path, server):
    name, server = server
    run = RunFolder(tmp_path)
    with pytest.raises(KeyboardInterrupt), Trackers((name,), run=run, config=CONFIG, say=print):
        raise KeyboardInterrupt
    assert server.ended == (["KILLED"] if name == "mlflow" else [0] if name == "trackio" else [1])


@pytest.mark.parametrize(
    "damage", ["", "[]", '{"wandb": 3, "mlflow": {"id": 1}, "trackio": {"lines": "x"}}', "{", "\xff"]
)
def test_a_damaged_note_begins_a_new_run(tmp_path, server, damage):
    name, server = server
    told(tmp_path / "run", name, LINES[:1])
    (tmp_path / "run" / "trackers.json").write_bytes(damage.encode("latin-1"))
    assert told(tmp_path / "run", name, LINES[1:]) == []
    assert list(server.runs.values()) == [SENT[:1], SENT]


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_a_tracker_that_is_not_installed_is_said_before_training(name, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        InputError, match=rf"^{name} is not installed: pip install 'vitreous\[{name}\]'; or leave it out"
    ):
        check_installed((name,))


def test_an_unknown_tracker_is_said_with_its_neighbours():
    with pytest.raises(InputError, match=r"^no tracker 'wandbb'; did you mean wandb\?$"):
        check_installed(("wandbb",))


def test_training_hears_nothing_of_a_disk_that_refuses_tensorboard_and_says_it_once(tmp_path):
    said: list[str] = []
    run = RunFolder(tmp_path)
    run.tensorboard.write_text("a file is in the way")
    with Trackers((), run=run, config=CONFIG, say=said.append) as all_of_them:
        for line in LINES:
            run.append(line)
            all_of_them.add(line)
        run.tensorboard.unlink()
        all_of_them.add(LINES[-1])
    (line,) = said
    assert line.startswith("warning: nothing new for TensorBoard: cannot write ")
    assert len(list(run.tensorboard.iterdir())) == 1


def test_a_real_run_tells_its_trackers(tmp_path, monkeypatch):
    server = Server()
    monkeypatch.setitem(sys.modules, "wandb", wandb_like(server))
    carried_out(tiny(trackers=("wandb",)), tmp_path / "run")
    (sent,) = server.runs.values()
    lines = list(RunFolder(tmp_path / "run").measurements())
    assert [step for _, step in sent] == [line["step"] for line in lines]
    assert [values.get("train/loss", values.get("test/loss")) for values, _ in sent] == [line["loss"] for line in lines]

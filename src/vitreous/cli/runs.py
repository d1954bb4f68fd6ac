"""The command that lists runs; others about runs stand below it."""

import json as jsonlib
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cyclopts import App

from vitreous.cli.app import app
from vitreous.run_state import RunState, find_runs, state_of, visible
from vitreous.tables import table

runs_app = App(name="runs", help_format="plaintext")
app.command(runs_app)


@runs_app.default
def runs(folder: str = "runs", /, *, json: bool = False) -> int:
    """List runs, newest first: how far each is, what it has reached, what to type next.

    Parameters
    ----------
    folder
        Where to look, three folders down; or one run.
    json
        Print a JSON list.
    """
    states = [state_of(path) for path in find_runs(Path(folder))]
    states.sort(key=lambda run: run.moved, reverse=True)
    if json:
        print(jsonlib.dumps([_fields(run) for run in states], indent=1))  # in ASCII: a terminal obeys none of it
    elif not states:
        print(f"no runs in {visible(folder)}; begin one: vitreous fit PHOTOS")
    else:
        now = time.time()
        head = ("run", "state", "step", "reached", "moved", "next")
        print(table([head, *(tuple(map(visible, _cells(run, now))) for run in states)]))
    return 0


def _fields(run: RunState) -> dict[str, Any]:
    moved = datetime.fromtimestamp(run.moved, UTC).isoformat(timespec="seconds")
    return {**vars(run), "path": str(run.path), "moved": moved}


def _cells(run: RunState, now: float) -> tuple[str, ...]:
    step = "" if run.step is None else f"{run.step:,}"
    steps = "" if run.steps is None else f"/{run.steps:,}"
    figure = "" if run.loss is None else f"loss {run.loss:.3f}"
    for name, value in (("top-1", run.top1), ("mAP", run.map)):
        figure = figure if value is None else f"{name} {value:.1%}"
    todo = "; ".join(filter(None, (run.reason, run.next)))
    return str(run.path), run.state, f"{step or 0}{steps}" if step or steps else "", figure, ago(now - run.moved), todo


def ago(seconds: float) -> str:
    """How long ago that was, as people say it."""
    for unit, length in (("days", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= (2 * length if unit == "days" else length):
            return f"{seconds // length:,.0f} {unit} ago"
    return "just now"

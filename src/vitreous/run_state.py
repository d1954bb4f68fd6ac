"""Where a run stands, from what lies in its folder, and what to type next; needs no torch."""

import json
import math
import os
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from vitreous.claim import CLAIM, is_held, newest
from vitreous.errors import InputError
from vitreous.run_folder import RunFolder

DEEPEST = 3
"""How many folders down a run is looked for."""
TAIL = 1 << 16
"""Bytes at the end of metrics.jsonl, or the start of evaluation.json, in which its newest figures are."""

State = Literal["running", "finished", "stopped", "not begun", "broken"]


@dataclass(frozen=True, kw_only=True)
class RunState:
    """Where one run stands."""

    path: Path
    state: State
    moved: float
    """When something in the folder last changed, in Unix time."""
    step: int | None = None
    steps: int | None = None
    top1: float | None = None
    """Share of held-out images named right when they were last measured, in [0, 1]."""
    map: float | None = None
    """The same where images may show several classes: mean average precision."""
    loss: float | None = None
    """The newest one."""
    reason: str = ""
    """Why it is broken, or who runs it."""
    next: str = ""
    """What to type, or to do."""


def find_runs(folder: Path) -> list[Path]:
    """The runs below `folder`, three folders down at most; `folder` alone if it is one.

    Raises:
        InputError: if there is no such folder.
    """
    if not folder.is_dir():
        what = "is no folder" if folder.exists() else "does not exist"
        raise InputError(
            f"{visible(str(folder))} {what}; give the folder that holds your runs, or begin one: vitreous fit PHOTOS"
        )
    return sorted(_below(folder, DEEPEST))


def state_of(path: Path) -> RunState:
    """Where the run at `path` stands."""
    try:
        moved = max((entry.stat(follow_symlinks=False).st_mtime for entry in os.scandir(path)), default=0.0)
        return _state(RunFolder(path), moved)
    except OSError as error:
        reason = f"{error.filename or path} cannot be read: {error.strerror}"
        return RunState(path=path, state="broken", moved=0.0, reason=reason, next="see to its permissions")


def typeable(word: str) -> str:
    """`word` quoted for a shell, with nothing in it that a terminal would obey."""
    if word.isprintable():
        return shlex.quote(word)
    escaped = word.replace("\\", "\\\\").replace("'", "\\'")
    data = "".join(c if c.isprintable() else _bytes(c) for c in escaped)
    return f"$'{data}'"


def visible(text: str) -> str:
    """`text` with what a terminal would obey shown as an escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _bytes(character: str) -> str:
    errors = "surrogateescape" if "\udc80" <= character <= "\udcff" else "replace"
    return "".join(f"\\x{byte:02x}" for byte in character.encode("utf-8", errors))


def _below(folder: Path, depth: int) -> Iterator[Path]:
    try:
        if (folder / "run.json").is_file() or (folder / CLAIM).is_file():
            yield folder
            return
        below = [entry for entry in os.scandir(folder) if entry.is_dir()] if depth else []
    except OSError:  # it may be a run: `state_of` says that it cannot be seen
        yield folder
        return
    for entry in below:
        if not entry.name.startswith("."):
            yield from _below(folder / entry.name, depth - 1)


def _state(run: RunFolder, moved: float) -> RunState:
    lines = list(_last_measurements(run.metrics))
    seen = RunState(
        path=run.path,
        state="broken",
        moved=moved,
        step=max((line["step"] for line in lines), default=None),
        top1=_newest(lines, "top1"),
        map=_newest(lines, "map"),
        loss=_newest(lines, "loss"),
    )
    running = is_held(run.path, moved=moved)
    try:
        record = run.read() if run.exists() else {}
    except InputError as error:
        if not running:
            advice = f"put run.json back, or remove {typeable(str(run.path))}"
            return replace(seen, reason=str(error), next=advice)
        record = {}
    steps = record.get("config", {}).get("steps")
    seen = replace(seen, steps=steps if isinstance(steps, int) else None)
    if running:
        claim = newest(run.path)
        who = f"process {claim.pid} on {claim.host}" if claim else "another process"
        return replace(seen, state="running", reason=who)
    return _finished(run, seen) if run.finished() else _unfinished(run, seen, again=_again(record))


def _finished(run: RunFolder, seen: RunState) -> RunState:
    measured = _measured(run)
    if measured is None:
        advice = f"remove {typeable(str(run.evaluation))} and type the run's command again"
        return replace(seen, reason="evaluation.json cannot be read", next=advice)
    key, value = measured
    return replace(seen, state="finished", **{key: value}, next=f"vitreous predict {typeable(str(run.path))} IMAGES")


def _unfinished(run: RunFolder, seen: RunState, *, again: str) -> RunState:
    saved = sorted(run.checkpoints.glob("step-*"))
    whole = [int(path.name[5:]) for path in saved if path.name[5:].isdecimal() and _is_whole(path)]
    if whole:
        seen = replace(seen, step=whole[-1])
    if run.failure.is_file():
        reason, advice = _failure(run.failure)
        return replace(seen, reason=reason, next=advice)
    if whole or run.trained():
        return replace(seen, state="stopped", next=again)
    if any(path.suffix in ("", ".damaged") for path in saved):
        return replace(seen, reason="no checkpoint is whole", next=f"begin again with another --out: {again}")
    return replace(seen, state="not begun", next=again)


def _is_whole(checkpoint: Path) -> bool:
    """Whether the files of a checkpoint are there with their sizes; their contents are not read."""
    try:
        files = json.loads((checkpoint / "manifest.json").read_bytes())["manifest"]["files"]
        return all((checkpoint / name).stat().st_size == entry["bytes"] for name, entry in files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _again(record: dict[str, Any]) -> str:
    """The command that goes on with the run, from where it was begun."""
    command = " ".join(record[key] for key in ("launcher", "command") if record.get(key))
    if not command.isprintable():
        try:
            command = " ".join(map(typeable, shlex.split(command)))
        except ValueError:
            command = visible(command)
    if not command:
        return "type its command again"
    directory = record.get("directory", os.getcwd())
    return command if directory == os.getcwd() else f"cd {typeable(directory)} && {command}"


def _failure(path: Path) -> tuple[str, str]:
    """What ended the run, and what to do."""
    try:
        failure = json.loads(path.read_bytes())
        return str(failure["what"]), str(failure["advice"])
    except (ValueError, KeyError, TypeError):
        return "it failed, and failure.json cannot be read", "type its command again to see why"


def _last_measurements(metrics: Path) -> Iterator[dict[str, Any]]:
    """The lines at the end of metrics.jsonl."""
    if not metrics.is_file():
        return
    with open(metrics, "rb") as file:
        file.seek(max(metrics.stat().st_size - TAIL, 0))
        tail = file.read()
    for line in tail.splitlines():
        try:
            measurement = json.loads(line)
        except (ValueError, RecursionError):  # cut short, by a power cut or by us
            continue
        if isinstance(measurement, dict) and type(measurement.get("step")) is int:
            yield measurement


def _newest(lines: list[dict[str, Any]], figure: str) -> float | None:
    values = [line[figure] for line in lines if isinstance(line.get(figure), float) and math.isfinite(line[figure])]
    return values[-1] if values else None


def _measured(run: RunFolder) -> tuple[str, float] | None:
    """Top-1 or mean average precision in evaluation.json, by its name there, without the confusion matrix behind it."""
    with open(run.evaluation, "rb") as file:
        start = file.read(TAIL).decode(errors="replace")
    found = re.search(r'"(top1|map)": \{\s*"value": ([0-9.e+-]+)', start)
    return (found[1], float(found[2])) if found else None

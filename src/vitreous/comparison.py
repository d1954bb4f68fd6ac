"""Several runs side by side: what was set otherwise, how well and how fast they did, and their curves."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

from vitreous.config import from_dict
from vitreous.errors import InputError
from vitreous.metrics import HEADLINES, Share, headline, mean_share, share
from vitreous.run_folder import RunFolder
from vitreous.run_state import find_runs, state_of, visible

NO_RESULT = ("num_workers", "checkpoint", "parallel", "activation_checkpointing", "trackers")
"""Fields that change no result: runs may differ in them and still be one experiment."""
MEDIANS = ("images_per_s", "data_wait", "mfu")
CURVES = ("loss", *HEADLINES, "accuracy", "exact_match")
"""What of a line of metrics.jsonl is compared over the steps."""
ABSENT = "–"
LARGEST = 1e100
"""Numbers beyond are damage."""

Points = list[tuple[int, float]]


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What one run has reached; None where nothing says so."""

    name: str
    """Its path, as short as the runs can be told apart by it."""
    path: Path
    state: str
    step: int | None = None
    steps: int | None = None
    seconds: float | None = None
    """Training time."""
    images_per_s: float | None = None
    """This and the two below: the median over the lines of metrics.jsonl."""
    data_wait: float | None = None
    mfu: float | None = None
    peak_mb: float | None = None
    split: str | None = None
    """Which images are held out."""
    final: Share | None = None
    """Top-1 of evaluation.json, or where the run is not finished, of the last measurement; mean average precision where
    images may show several classes."""
    figure: str = "top-1"
    """Which of the two: top-1 or mAP."""
    best: Share | None = None
    best_step: int | None = None
    seed: int | None = None
    fingerprint: str = ""
    """Of the data."""
    fields: Mapping[str, tuple[str, bool]] = field(default_factory=dict)
    """Every field of the config by its dotted name: the value, and whether it is that by default."""
    curves: Mapping[str, Points] = field(default_factory=dict)
    """By name, such as test/top1: step and value."""
    note: str = ""
    """What is wrong with it."""


@dataclass(frozen=True)
class Group:
    """Runs that differ by their seed alone."""

    names: tuple[str, ...]
    seeds: tuple[int, ...]
    mean: float
    """Of the final top-1."""
    low: float
    high: float
    """Student's 95 % interval of that mean, over the seeds."""


@dataclass(frozen=True)
class Comparison:
    """Runs side by side."""

    runs: tuple[Figures, ...]
    differences: Mapping[str, tuple[str, ...]]
    """Fields in which they differ: a value for each run."""
    groups: tuple[Group, ...]
    notes: tuple[str, ...]
    """What to mind when reading the figures."""

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON types."""
        runs = [asdict(replace(run, fields={})) | {"path": str(run.path)} for run in self.runs]
        for run, seen in zip(runs, self.runs, strict=True):
            del run["fields"]
            run["not_default"] = {name: value for name, (value, usual) in seen.fields.items() if not usual}
        return {
            "runs": runs,
            "differences": {name: list(values) for name, values in self.differences.items()},
            "groups": [asdict(group) for group in self.groups],
            "notes": list(self.notes),
        }


def compare(places: Sequence[Path]) -> Comparison:
    """The runs at `places`, or below them.

    Raises:
        InputError: if a place is no folder or holds no run, or there are fewer than two runs.
    """
    found: dict[Path, Path] = {}
    for place in places:
        below = find_runs(place)
        if not below:
            raise InputError(f"{visible(str(place))} holds no run; give folders of runs (vitreous runs lists them)")
        for path in below:
            found.setdefault(path.resolve(), path)
    if len(found) < 2:
        raise InputError(f"compare takes two runs or more, got {len(found)}; vitreous runs lists those there are")
    shared = Path(os.path.commonpath([path.parent for path in found]))
    runs = tuple(_figures(path, name=str(whole.relative_to(shared))) for whole, path in found.items())
    names = dict.fromkeys(name for run in runs for name in run.fields)
    values = {name: tuple(run.fields.get(name, (ABSENT, False))[0] for run in runs) for name in names}
    known = [i for i, run in enumerate(runs) if run.fields]
    differing = {name: of for name, of in values.items() if len({of[i] for i in known}) > 1}
    return Comparison(runs, differing, tuple(_groups(runs)), tuple(_notes(runs)))


def common_steps(curves: Sequence[Points], *, most: int = 8) -> list[int]:
    """At most so many steps at which all of these curves have a value, evenly spaced, the last among them."""
    steps = sorted(set.intersection(*({step for step, _ in points} for points in curves))) if curves else []
    count = min(most, len(steps))
    return [steps[round((i + 1) * len(steps) / count) - 1] for i in range(count)]


def _figures(path: Path, *, name: str) -> Figures:
    """What lies in the folder of a run; what cannot be read is named."""
    folder, state = RunFolder(path), state_of(path)
    seen = Figures(name=name, path=path, state=state.state, step=state.step, steps=state.steps, note=state.reason)
    try:
        record, lines = folder.read(), list(folder.measurements())
        config = record.get("config", {})
        fields = {path: (value, value == usual) for path, value, usual in saved_fields(config, {})}
    except (InputError, OSError, RecursionError) as error:
        return replace(seen, state="broken", note=state.reason or f"{error}")
    curves = _curves(lines)
    split = next((line["split"] for line in lines if line.get("split") in ("val", "test", "dev")), None)
    key = next((key for key in HEADLINES if f"{split}/{key}" in curves), "top1")
    scores, num_images = curves.get(f"{split}/{key}", []), _num_measured(record, split)
    best_step, best = max(scores, key=lambda point: point[1], default=(None, None))
    medians = {key: _middle(curves.get(f"train/{key}", [])) for key in MEDIANS}
    seconds = [line["seconds"] for line in lines if _is_number(line.get("seconds"))]
    share_of = _share if key == "top1" else _unsure  # other figures are no shares of images
    final, figure = share_of(scores[-1][1], num_images) if scores else None, HEADLINES[key]
    try:
        if folder.evaluation.exists():
            figures = folder.figures()
            figure, found = headline(figures)
            final, split = Share(**{key: float(value) for key, value in found.items()}), figures["split"]
    except (InputError, OSError, RecursionError, AttributeError, TypeError, ValueError):
        seen = replace(seen, note=seen.note or "evaluation.json cannot be read")
    return replace(
        seen,
        **medians,
        seconds=max(seconds, default=None),
        peak_mb=max((value for _, value in curves.get("train/peak_mb", [])), default=None),
        split=split if isinstance(split, str) else None,
        final=final,
        figure=figure,
        best=None if best is None else share_of(best, num_images),
        best_step=best_step,
        seed=seed if type(seed := config.get("seed")) is int else None,
        fingerprint=record.get("data_fingerprint", ""),
        fields=fields,
        curves={name: points for name, points in curves.items() if name.partition("/")[2] in CURVES},
    )


def saved_fields(
    config: Mapping[str, Any], usual: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, str, str]]:
    """Dotted name, value and default of each field of a saved config; what an older version lacks is the default.

    `usual` is the config that stands there by default, if one does.
    """
    if usual.get("class") != config.get("class"):
        try:
            usual = from_dict({"class": config.get("class")}).to_dict()
        except InputError:  # of a version that had other classes
            usual = {}
    for name in dict.fromkeys([*usual, *config]):
        if name != "class":
            default = usual.get(name)
            value = config.get(name, default)
            yield prefix + name, _shown(value), _shown(default) if name in usual else ABSENT
            if isinstance(value, dict):
                inside = default if isinstance(default, dict) else {}
                yield from saved_fields(value, inside, f"{prefix}{name}.")


def _shown(value: Any) -> str:
    """A value as it is typed on the command line."""
    if isinstance(value, dict):
        return str(value.get("class", ABSENT)).rpartition(".")[2]
    if isinstance(value, list | tuple):
        return ",".join(map(_shown, value)) or "()"
    return str(value).lower() if value is None or isinstance(value, bool) else f"{value}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LARGEST


def _curves(lines: Sequence[Mapping[str, Any]]) -> dict[str, Points]:
    """Every number that is measured of a split, over the steps; of a step that is there twice, the last."""
    curves: dict[str, dict[int, float]] = {}
    for line in lines:
        for name, value in line.items():
            if isinstance(line.get("split"), str) and _is_number(value) and _is_number(line["step"]):
                curves.setdefault(f"{line['split']}/{name}", {})[line["step"]] = float(value)
    return {name: sorted(points.items()) for name, points in curves.items()}


def _middle(points: Points) -> float | None:
    return median(value for _, value in points) if points else None


def _num_measured(record: Mapping[str, Any], split: str | None) -> int:
    """How many held-out images are measured during training: evenly spaced, at most as many as the config says."""
    try:
        data = record["data"]
        count = data["images"][split] if "images" in data else sum(data["splits"][split].values())
        return max(-(-count // -(-count // int(record["config"]["num_evaluation_images"]))), 0)
    except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError):
        return 0


def _share(value: float, num_images: int) -> Share:
    found = share(round(min(max(value, 0.0), 1.0) * num_images), num_images)
    return replace(found, value=value)


def _unsure(value: float, num_images: int) -> Share:
    return Share(value, 0.0, 1.0)


def _groups(runs: Sequence[Figures]) -> Iterator[Group]:
    """Runs that are alike but for their seeds."""
    alike: dict[Any, dict[int, Figures]] = {}
    for run in runs:
        if run.seed is not None and run.final is not None and run.state == "finished":
            free = ("seed", *NO_RESULT)
            essence = tuple((n, v) for n, (v, _) in run.fields.items() if n.partition(".")[0] not in free)
            alike.setdefault((essence, run.fingerprint, run.split), {}).setdefault(run.seed, run)
    for members in alike.values():
        if len(members) > 1:
            tops = [run.final.value for run in members.values() if run.final]
            mean = mean_share(tops)
            yield Group(tuple(run.name for run in members.values()), tuple(members), mean.value, mean.low, mean.high)


def _notes(runs: Sequence[Figures]) -> Iterator[str]:
    known = [run for run in runs if run.fields]
    if len({run.fingerprint for run in known}) > 1:
        yield "the runs have different data: their figures are of different images"
    elif len({run.split for run in known if run.split}) > 1:
        yield "the runs are measured on different splits"
    if len({run.figure for run in known if run.final}) > 1:
        yield "of some runs it is the top-1 that stands here, of others the mAP, where images show several classes"
    for run in runs:
        if run.note:
            yield f"{run.name}: {run.note}"
        elif run.state != "finished":
            at = "" if run.step is None else f" at step {run.step:,}"
            yield f"{run.name} is {run.state}{at}: its {run.figure} is that of its last measurement"

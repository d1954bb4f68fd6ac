"""What a run has written down of a step, beside what comes out when the step is computed again."""

import json
import math
from collections.abc import Mapping
from typing import Any

from vitreous.files import read_text
from vitreous.recent import Recent, Row
from vitreous.run import Run
from vitreous.run_folder import RunFolder

SAME = "the same, bit for bit"


def agreement(
    folder: RunFolder, run: Run, *, row: Row, spike: Row, recent: Recent, learning_rate: float
) -> dict[str, str]:
    """Where the run in `folder` recorded the step of `row`, and whether it recorded the same.

    `recent` holds the steps of its line of metrics.jsonl up to this one.
    """
    step = int(row["step"])
    first = (step - 1) // run.log_every * run.log_every + 1
    last = min(first + run.log_every - 1, run.steps)
    steps = f"steps {first:,} to {last:,}" if first < last else f"step {step:,}"
    lines = list(folder.measurements())
    train = {line["step"]: line for line in lines if line.get("split") == "train"}
    found = {}
    if last not in train:
        found["metrics.jsonl"] = f"has no line of {steps}"
    elif last != step:
        found["metrics.jsonl"] = f"has the mean over {steps} only; --step {last} compares that"
    else:
        verdict = compared({"learning_rate": learning_rate, **recent.means()}, train[last])
        found["metrics.jsonl"] = f"{verdict}, over {steps}" if first < last else verdict
    events = {line["event"]: line for line in lines if line["step"] == step and "event" in line}
    ours = {"skipped": {"loss": row["loss"]} if row["skipped"] else {}, "spike": spike}
    for event, numbers in ours.items():
        if event in events:
            found[f"event {event}"] = compared(numbers, events[event]) if numbers else "differs: it is none here"
        elif numbers and any(line >= step for line in train):
            found[f"event {event}"] = "differs: the run recorded none"
    if _failed(folder) == step:
        found["failure.json"] = "not finite there, nor here" if row["skipped"] else "differs: finite here"
    return found


def _failed(folder: RunFolder) -> int | None:
    """The step at which training ended for good, if it did."""
    try:
        return json.loads(read_text(folder.failure))["step"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def compared(ours: Mapping[str, float], theirs: Mapping[str, Any]) -> str:
    """Whether `theirs` has the same numbers, to the last bit; what differs, if not."""
    odd = [
        f"{name} {theirs.get(name)} there, {ours[name]} here"
        for name in ours
        if not _same(ours[name], theirs.get(name))
    ]
    return f"differs: {'; '.join(odd)}" if odd else SAME


def _same(ours: float, theirs: Any) -> bool:
    """Whether a number is the recorded one; JSON has none for those that are not finite."""
    return ours == theirs or (not math.isfinite(ours) and theirs in (None, str(ours)))

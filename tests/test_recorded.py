import json
import math
from dataclasses import replace

import pytest

from test_training import tiny
from vitreous.recent import Recent, Row
from vitreous.recorded import SAME, agreement, compared
from vitreous.run_folder import RunFolder

RUN = replace(tiny(), steps=405)  # a line every two steps, and one at the end
ROW: Row = {"step": 10, "loss": 0.25, "grad_norm": 2.0, "skipped": 0.0}
SPIKE = {"loss": 0.25, "usual_loss": 0.125}


def agrees(folder: RunFolder, row: Row, *, spike: Row | None = None, before: tuple[Row, ...] = ()) -> dict[str, str]:
    recent = Recent(rows=[*before, row])
    return agreement(folder, RUN, row=row, spike=spike or {}, recent=recent, learning_rate=0.5)


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    """A run that has recorded two lines."""
    run = RunFolder(tmp_path)
    for step, loss in ((10, 0.375), (405, 7.0)):
        run.append(
            {"split": "train", "step": step, "learning_rate": 0.5, "loss": loss, "grad_norm": 2.0, "seconds": 1.0}
        )
    run.append({"split": "test", "step": 10, "loss": 9.0})
    return run


def test_numbers_are_the_same_to_the_last_bit_or_named():
    assert compared({"a": 1.0, "b": 2.0}, {"a": 1.0, "b": 2.0, "c": 3}) == SAME
    assert (
        compared({"a": 1.0, "b": 2.0}, {"a": 1.0000000000000002})
        == "differs: a 1.0000000000000002 there, 1.0 here; b None there, 2.0 here"
    )
    assert compared({"a": float("nan")}, {"a": None}) == compared({"a": float("nan")}, {"a": "nan"}) == SAME
    assert compared({"a": float("nan")}, {"a": 1.0}).startswith("differs")


def test_at_its_end_a_line_is_compared_as_a_whole(folder):
    first = {**ROW, "step": 9, "loss": 0.5}
    assert agrees(folder, ROW, before=(first,)) == {"metrics.jsonl": f"{SAME}, over steps 9 to 10"}
    other = {**ROW, "grad_norm": 4.0}
    said = "differs: grad_norm 2.0 there, 3.0 here, over steps 9 to 10"
    assert agrees(folder, other, before=(first,)) == {"metrics.jsonl": said}


def test_before_its_end_the_step_to_ask_for_is_named(folder):
    said = "has the mean over steps 9 to 10 only; --step 10 compares that"
    assert agrees(folder, {**ROW, "step": 9}) == {"metrics.jsonl": said}
    assert agrees(folder, {**ROW, "step": 33}) == {"metrics.jsonl": "has no line of steps 33 to 34"}


def test_the_last_line_may_be_short(folder):
    assert agrees(folder, {**ROW, "step": 405, "loss": 7.0}) == {"metrics.jsonl": SAME}


def test_events_are_compared_too(folder):
    at = {**ROW, "step": 33}
    assert agrees(folder, at, spike=SPIKE)["event spike"] == "differs: the run recorded none"
    folder.append({"step": 33, "event": "spike", **SPIKE})
    assert agrees(folder, at, spike=SPIKE)["event spike"] == SAME
    assert agrees(folder, at)["event spike"] == "differs: it is none here"
    folder.append({"step": 35, "event": "skipped", "loss": "nan"})
    bad = {**ROW, "step": 35, "loss": math.nan, "skipped": 1.0}
    assert agrees(folder, bad)["event skipped"] == SAME
    assert agrees(folder, {**bad, "loss": math.inf})["event skipped"] == "differs: loss nan there, inf here"
    assert agrees(folder, {**bad, "skipped": 0.0})["event skipped"] == "differs: it is none here"
    assert "event skipped" not in agrees(folder, {**bad, "step": 500})


def test_the_failure_is_compared(folder):
    folder.failure.write_text(json.dumps({"what": "", "step": 33, "advice": ""}))
    assert "failure.json" not in agrees(folder, ROW)
    assert agrees(folder, {**ROW, "step": 33})["failure.json"] == "differs: finite here"
    assert agrees(folder, {**ROW, "step": 33, "skipped": 1.0})["failure.json"] == "not finite there, nor here"
    folder.failure.write_text("{")
    assert "failure.json" not in agrees(folder, {**ROW, "step": 33})

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import t

from vitreous.comparison import Comparison, common_steps, compare, saved_fields
from vitreous.comparison_rows import curve_rows, field_rows, figure_rows, group_rows
from vitreous.errors import InputError
from vitreous.evaluation.classify import scores
from vitreous.fields import walk
from vitreous.metrics import share
from vitreous.optim import SGD
from vitreous.provenance import describe_run
from vitreous.recipes.smoke import smoke
from vitreous.run import Run
from vitreous.run_folder import RunFolder

HELD_OUT = 250


def made(path: Path, run: Run | None = None, *, hits: int = 200, every: int = 1, **record: Any) -> RunFolder:
    """A finished run with that many of its held-out images right; the best it was is ten more, at step 20."""
    run = replace(run or smoke(), steps=40)
    folder = RunFolder(path)
    path.mkdir(parents=True)
    data = {"splits": {"train": {"a": 500, "b": 500}, "test": {"a": 125, "b": HELD_OUT - 125}}}
    record = {"data_fingerprint": "ab", "data": data, **record}
    folder.write_record({**describe_run(run, seed=run.seed), **record})
    for step in range(every, 41, every):
        line = {
            "loss": 3 / step,
            "accuracy": 0.5,
            "images_per_s": 100.0 + step,
            "data_wait": 0.1,
            "peak_mb": 500.0 + step,
        }
        folder.append({"split": "train", "step": step, **line, "seconds": step / 2})
        if step % 20 == 0:
            top1 = (hits + (10 if step == 20 else 0)) / HELD_OUT
            folder.append({"split": "test", "step": step, "loss": 1.0, "top1": top1, "seconds": step / 2})
    labels = np.arange(HELD_OUT) % 2
    right = np.arange(HELD_OUT) < hits
    predicted = np.eye(2)[np.where(right, labels, 1 - labels)]
    figures = scores(predicted, labels, classes=("a", "b"), split="test")
    folder.evaluation.write_text(json.dumps(figures))
    for file in (folder.model / "config.json", folder.report):
        file.parent.mkdir()
        file.write_text("{}")
    return folder


def compared(*folders: RunFolder) -> Comparison:
    return compare([folder.path for folder in folders])


def test_figures_are_those_of_the_run_with_wilson_s_interval(tmp_path):
    first, _ = compared(made(tmp_path / "a", hits=200), made(tmp_path / "b")).runs
    assert (first.name, first.state, first.split, first.seed) == ("a", "finished", "test", 0)
    assert first.final == share(200, HELD_OUT)
    assert (first.best, first.best_step) == (share(210, HELD_OUT), 20)
    assert (first.seconds, first.images_per_s, first.data_wait, first.peak_mb) == (20.0, 120.5, 0.1, 540.0)
    assert first.mfu is None
    assert first.curves["test/top1"] == [(20, 210 / HELD_OUT), (40, 200 / HELD_OUT)]
    assert first.curves.keys() == {"train/loss", "train/accuracy", "test/loss", "test/top1"}


def test_exactly_the_fields_that_differ_are_named_with_what_is_default(tmp_path):
    plain = smoke()
    other = replace(plain, seed=3, optimizer=SGD(), model=replace(plain.model, depth=2))
    found = compared(made(tmp_path / "a", plain), made(tmp_path / "b", other))
    ours, theirs = ({f.path: f.value for f in walk(replace(run, steps=40))} for run in (plain, other))
    differing = {name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)}
    assert found.differences.keys() == differing >= {"seed", "optimizer", "model.depth", "optimizer.momentum"}
    assert found.differences["optimizer"] == ("AdamW", "SGD")
    rows = {row[0]: row[1:] for row in field_rows(found)}
    assert rows["field"] == ("a", "b")
    assert rows["seed"] == ("0 (default)", "3")
    assert rows["optimizer"] == ("AdamW (default)", "SGD")
    assert rows["optimizer.momentum"] == ("–", f"{SGD().momentum} (default)")


def test_what_an_older_version_did_not_know_is_what_it_is_by_default(tmp_path):
    a, b = made(tmp_path / "a"), made(tmp_path / "b")
    record = a.read()
    del record["config"]["ema_decay"], record["config"]["checkpoint"]["background"], record["config"]["objective"]
    a.record.write_text(json.dumps(record))
    assert compared(a, b).differences == {}
    assert dict((name, value) for name, value, _ in saved_fields(record["config"], {}))["objective.loss"] == "softmax"


def test_runs_that_differ_by_seed_alone_are_averaged_over_seeds(tmp_path):
    hits = {0: 200, 1: 215, 2: 190}
    runs = [made(tmp_path / f"s{seed}", replace(smoke(), seed=seed), hits=n) for seed, n in hits.items()]
    workers = made(tmp_path / "workers", replace(smoke(), seed=3, num_workers=2), hits=205)  # changes no result
    odd = made(tmp_path / "odd", replace(smoke(), seed=4, batch_size=32), hits=100)
    (group,) = compared(*runs, workers, odd).groups
    tops = np.array([*hits.values(), 205]) / HELD_OUT
    low, high = t.interval(0.95, 3, loc=tops.mean(), scale=tops.std(ddof=1) / 2)
    assert (group.names, group.seeds) == (("s0", "s1", "s2", "workers"), (0, 1, 2, 3))
    assert (group.mean, group.low, group.high) == pytest.approx((tops.mean(), low, high), rel=1e-12)
    assert len(group_rows(compared(*runs, odd))) == 2
    assert group_rows(compared(runs[0], odd)) == []


def test_the_same_seed_twice_or_other_data_are_no_group(tmp_path):
    a, b = made(tmp_path / "a"), made(tmp_path / "b")
    c = made(tmp_path / "c", replace(smoke(), seed=1), data_fingerprint="cd")
    found = compared(a, b, c)
    assert found.groups == ()
    assert found.notes == ("the runs have different data: their figures are of different images",)


def test_curves_are_shown_at_steps_that_all_have(tmp_path):
    found = compared(made(tmp_path / "a", every=1), made(tmp_path / "b", every=4))
    loss = next(rows for rows in curve_rows(found) if rows[0][0] == "train/loss")
    steps = [int(step) for step in loss[0][1:]]
    assert steps == common_steps([[(s, 0.0) for s in range(4, 41, 4)]])
    assert len(steps) == 8
    assert steps[-1] == 40
    assert loss[1] == ("a", *(f"{3 / step:.3f}" for step in steps))
    assert loss[2] == ("b", *loss[1][1:])


def test_common_steps_are_even_and_end_with_the_last():
    assert common_steps([[(s, 0.0) for s in range(1, 101)]], most=4) == [25, 50, 75, 100]
    assert common_steps([[(2, 0.0), (4, 0.0)], [(3, 0.0), (4, 0.0)]]) == [4]
    assert common_steps([[(1, 0.0)], [(2, 0.0)]]) == []
    assert common_steps([]) == []


def test_names_are_as_short_as_they_can_be_told_apart(tmp_path):
    a, b = made(tmp_path / "x" / "a"), made(tmp_path / "y" / "a")
    assert [run.name for run in compared(a, b).runs] == ["x/a", "y/a"]
    assert [run.name for run in compare([tmp_path / "x", b.path, a.path]).runs] == ["x/a", "y/a"]


def test_a_run_that_has_not_finished_is_measured_by_what_it_has_reached(tmp_path):
    a, b = made(tmp_path / "a"), made(tmp_path / "b")
    b.evaluation.unlink()
    shutil.rmtree(b.model)
    b.forget_after(30)
    found = compared(a, b)
    assert found.runs[1].final == found.runs[1].best == share(210, HELD_OUT)
    assert found.notes == ("b is not begun at step 30: its top-1 is that of its last measurement",)
    assert figure_rows(found)[2][:3] == ("b", "not begun", "30/40")


BROKEN = {
    "no run.json": ("run.json", None),
    "run.json": ("run.json", b"{"),
    "deep": ("run.json", b'{"config": ' + b'{"a": ' * 900 + b"1" + b"}" * 901),
    "too deep": ("run.json", b"[" * 100_000),
    "a list": ("run.json", b"[]"),
    "config": ("run.json", b'{"config": 3}'),
    "odd config": (
        "run.json",
        b'{"config": {"class": ["os"], "steps": {"class": "os.path"}, "x": {"class": "vitreous.run.Run"}}}',
    ),
    "odd values": ("run.json", b'{"config": {"seed": true, "num_evaluation_images": -1}, "data": {"splits": 3}}'),
    "figures": ("evaluation.json", b"{}"),
    "top-1": ("evaluation.json", None),
    "lines": (
        "metrics.jsonl",
        b'{"step": 1, "split": "test", "top1": 1e999}\n{"step": 1'
        + b"0" * 400
        + b', "split": [], "loss": 1}\n\xff\n{"st',
    ),
    "other lines": (
        "metrics.jsonl",
        b'{"step": 1'
        + b"0" * 400
        + b', "split": "test", "top1": 7, "seconds": "x"}\n{"step": 2, "split": "test", "top1": 7}\n',
    ),
    "a folder": ("metrics.jsonl", "folder"),
    "gone": ("", None),
}


@pytest.mark.parametrize("harm", BROKEN)
def test_whatever_lies_in_a_run_it_is_compared_or_named(tmp_path, harm, monkeypatch):
    from vitreous import comparison

    a, b = made(tmp_path / "a"), made(tmp_path / "b")
    file, content = BROKEN[harm]
    if not file:
        find = comparison.find_runs

        def found_then_deleted(place: Path) -> list[Path]:
            paths = find(place)
            if place == b.path:
                shutil.rmtree(b.path)
            return paths

        monkeypatch.setattr(comparison, "find_runs", found_then_deleted)
    elif content is None:
        (b.path / file).unlink()
        if harm == "no run.json":
            (b.path / "claim.json").write_text("{}")
        else:
            b.evaluation.write_text(json.dumps({**a.figures(), "top1": None}))
    elif content == "folder":
        (b.path / file).unlink()
        (b.path / file).mkdir()
    else:
        (b.path / file).write_bytes(content)
    found = compared(a, b)
    assert found.runs[0].final == share(200, HELD_OUT)
    json.dumps(found.to_dict(), allow_nan=False)
    for rows in (figure_rows(found), field_rows(found), group_rows(found), *curve_rows(found)):
        assert all(isinstance(cell, str) for row in rows for cell in row)
    if harm not in ("odd config", "odd values", "lines", "other lines", "deep", "config"):
        assert any(note.startswith("b: ") for note in found.notes), found.notes


def test_places_without_two_runs_are_refused(tmp_path):
    a = made(tmp_path / "a")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    for places, message in (
        ([a.path], "compare takes two runs or more, got 1; vitreous runs lists those there are"),
        ([a.path, a.path / ".." / "a"], "compare takes two runs or more, got 1"),
        ([a.path, tmp_path / "empty"], f"{tmp_path}/empty holds no run; give folders of runs"),
        ([a.path, tmp_path / "file"], "is no folder"),
        ([a.path, tmp_path / "nothing"], "does not exist"),
        ([], "compare takes two runs or more, got 0"),
    ):
        with pytest.raises(InputError) as refused:
            compare(places)
        assert message in str(refused.value)
        assert "\n" not in str(refused.value)

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from test_comparison import made
from vitreous.recipes.smoke import smoke


@pytest.fixture
def three(vitreous) -> list[str]:
    """Two runs that differ by seed, and one of another rate; in runs/."""
    plain = smoke()
    rate = replace(plain, learning_rate=replace(plain.learning_rate, peak=0.5))
    for name, run, hits in (("a", plain, 200), ("b", replace(plain, seed=1), 210), ("high", rate, 100)):
        made(Path("runs") / name, run, hits=hits)
    return ["runs/a", "runs/b", "runs/high"]


def test_runs_are_set_side_by_side_for_people(vitreous, three):
    answer = vitreous("runs", "compare", *three)
    assert (answer.code, answer.err) == (0, "")
    figures, groups, fields, *curves = answer.out.strip("\n").split("\n\n")
    heading = "run state step time images/s data wait memory top-1 95 % interval best at"
    assert " ".join(figures.splitlines()[0].split()) == heading
    assert re.search(
        r"^a +finished +40/40 +20 s +120 +10% +0\.54 GB +80\.00% +74\.60% to 84\.49% +84\.00% +20$", figures, re.M
    )
    assert re.search(r"^a, b +0, 1 +82\.00% +56\.59% to 100\.00%$", groups, re.M)
    assert fields.splitlines()[1:] == [
        "learning_rate.peak  0.003        0.003  0.5",
        "seed                0 (default)      1  0 (default)",
    ]
    assert [curve.split()[0] for curve in curves] == ["train/loss", "train/accuracy", "test/loss", "test/top1"]
    assert [line.split()[0] for line in curves[0].splitlines()] == ["train/loss", "a", "b", "high"]


def test_the_folder_above_them_names_them_all(vitreous, three):
    assert vitreous("runs", "compare", "runs").out == vitreous("runs", "compare", *three).out


def test_the_json_holds_all_of_it(vitreous, three):
    answer = vitreous("runs", "compare", *three, "--json")
    found = json.loads(answer.out)
    assert [run["path"] for run in found["runs"]] == three
    assert found["runs"][0]["final"]["value"] == 0.8
    assert found["runs"][0]["curves"]["test/top1"] == [[20, 0.84], [40, 0.8]]
    assert found["differences"] == {"learning_rate.peak": ["0.003", "0.003", "0.5"], "seed": ["0", "1", "0"]}
    assert found["groups"][0]["names"] == ["a", "b"]
    assert found["runs"][2]["not_default"]["learning_rate.peak"] == "0.5"


def test_the_page_stands_alone_and_shows_every_curve(vitreous, three):
    assert vitreous("runs", "compare", *three, "--page", "page.html").code == 0
    page = Path("page.html").read_text("utf-8")
    assert "http" not in page.replace("http-equiv", "")
    assert [page.count(f"<strong>{name}</strong>") for name in ("train/loss", "test/top1")] == [1, 1]
    assert page.count("<polyline") == 12
    for text in ("80.00%", "56.59% to 100.00%", "learning_rate.peak", "0 (default)"):
        assert text in page


def test_runs_of_one_config_say_so(vitreous, three):
    shutil.copytree("runs/a", "runs/copy")
    answer = vitreous("runs", "compare", "runs/a", "runs/copy", "--page", "page.html")
    assert "\nthe configs are the same\n" in answer.out
    assert "the runs have the same config" in Path("page.html").read_text("utf-8")


def test_nothing_in_a_run_reaches_the_terminal_or_the_page_as_it_is(vitreous):
    evil = "\x1b[31m<script>alert(1)</script>\n"
    made(Path("runs") / "a")
    folder = made(Path("runs") / "\x1b[2J<b>", data_fingerprint=evil)
    record = folder.read()
    record["config"]["data"]["path"] = evil
    record["config"][evil] = evil
    folder.record.write_text(json.dumps(record))
    folder.append({"split": evil, "step": 1, "loss": 1.0})
    answer = vitreous("runs", "compare", "runs", "--page", "page.html")
    assert answer.code == 0
    assert "\x1b" not in answer.out
    page = Path("page.html").read_text("utf-8")
    assert "<script>alert" not in page
    assert "<b>" not in re.sub(r"<b>[\d.]+( %)?</b>", "", page)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "compare takes two runs or more, got 0"),
        (["runs/a"], "compare takes two runs or more, got 1; vitreous runs lists those there are"),
        (["runs/a", "nowhere"], "nowhere does not exist; give the folder that holds your runs"),
        (["runs/a", "runs/a/run.json"], "runs/a/run.json is no folder; give the folder"),
        (["runs/a", "runs/b", "--page", "page.png"], "--page writes a page, so give it a name that ends in .html"),
    ],
)
def test_what_cannot_be_compared_is_one_line(vitreous, three, words, message):
    answer = vitreous("runs", "compare", *words)
    assert (answer.code, answer.out) == (2, "")
    assert answer.err.startswith("vitreous: ")
    assert answer.err.count("\n") == 1
    assert message in answer.err


def test_a_listing_is_still_what_runs_alone_gives(vitreous, three):
    head, *lines = vitreous("runs").out.splitlines()
    assert head.split() == ["run", "state", "step", "reached", "moved", "next"]
    assert sorted(line.split()[0] for line in lines) == three
    assert json.loads(vitreous("runs", "runs/a", "--json").out)[0]["path"] == "runs/a"
    shutil.copytree("runs/a", "compare")
    assert json.loads(vitreous("runs", "./compare", "--json").out)[0]["state"] == "finished"


def test_a_real_run_is_compared_with_its_like(vitreous, trained):
    shutil.copytree(trained, "runs/a")
    shutil.copytree(trained, "runs/b")
    record = json.loads(Path("runs/b/run.json").read_text())
    record["config"]["seed"] = 5
    Path("runs/b/run.json").write_text(json.dumps(record))
    found = json.loads(vitreous("runs", "compare", "runs", "--json").out)
    figures = json.loads(Path("runs/a/evaluation.json").read_text())
    assert found["differences"] == {"seed": ["0", "5"]}
    assert found["runs"][0]["final"] == figures["top1"]
    (group,) = found["groups"]
    assert (group["low"], group["mean"], group["high"]) == (figures["top1"]["value"],) * 3
    assert found["runs"][0]["mfu"] > 0
    assert found["runs"][0]["peak_mb"] > 100

import json
from pathlib import Path

from vitreous.run_folder import RunFolder

QUICK = ("smoke", "--steps", "4", "--num_evaluations", "0")


def test_a_table_ranks_the_settings_and_the_best_is_measured_on_other_images(vitreous):
    answer = vitreous(
        "sweep", *QUICK, "--over", "learning_rate.peak=1e-3,3e-3", "--over", "seed=0,1", "--dev", "0.1", "--out", "s"
    )
    assert answer.code == 0, answer.err
    head, first, second, *rest = answer.out.splitlines()
    assert head.split() == ["learning_rate.peak", "seeds", "dev", "top-1", "95", "%", "interval", "runs"]
    assert {first.split()[0], second.split()[0]} == {"1e-3", "3e-3"}
    assert rest[-1].startswith(f"on all training images, with {first.split()[0]}: ")
    assert "run 4 of 4: learning_rate.peak=3e-3 seed=1" in answer.err


def test_json_says_the_same_and_done_runs_are_not_repeated(vitreous):
    words = ("sweep", *QUICK, "--over=seed=3,4", "--json")
    said = json.loads(vitreous(*words).out)
    (setting,) = said["settings"]
    assert setting["values"] == {}
    assert [outcome["seed"] for outcome in setting["outcomes"]] == [3, 4]
    for outcome in setting["outcomes"]:
        assert outcome["path"].startswith("runs/sweep-smoke/")
        figures = RunFolder(Path(outcome["path"])).figures()
        assert outcome["score"] == figures["top1"]
    again = vitreous(*words)
    assert json.loads(again.out) == said
    assert "training on" not in again.err

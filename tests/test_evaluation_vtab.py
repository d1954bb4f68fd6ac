from dataclasses import astuple

import pytest

from vitreous.data.vtab.tasks import TASKS
from vitreous.errors import InputError
from vitreous.evaluation.vtab import PAPER, PAPER_MEANS, group_means, rows
from vitreous.tables import table


@pytest.mark.parametrize(
    ("model", "means"),
    [
        ("H/14 JFT", (86.69, 87.00, 65.03, 77.63)),
        ("L/16 JFT", (85.56, 86.73, 62.96, 76.29)),
        ("L/16 I21k", (83.27, 84.65, 57.50, 72.71)),
    ],
)
def test_means_of_table_9_are_those_the_paper_reports(model, means):
    assert astuple(group_means(PAPER[model])) == pytest.approx(means, abs=0.00501)
    assert abs(means[-1] - PAPER_MEANS[model][0]) < 0.011  # Table 2, which averages before it rounds


def test_groups_have_seven_four_and_eight_tasks():
    groups = [task.group for task in TASKS.values()]
    assert groups == ["natural"] * 7 + ["specialized"] * 4 + ["structured"] * 8
    assert len({task.title for task in TASKS.values()}) == 19


def test_mean_lacks_as_soon_as_one_of_its_tasks_does():
    scores = dict(PAPER["H/14 JFT"])
    del scores["dmlab"]
    means = group_means(scores)
    assert means.natural is not None
    assert means.specialized is not None
    assert means.structured is None
    assert means.all is None
    assert astuple(group_means({})) == (None, None, None, None)


def test_score_of_no_task_is_an_error_that_names_near_ones():
    with pytest.raises(InputError, match="did you mean cifar100"):
        group_means({"cifar10": 99.0})


def test_table_shows_ours_beside_the_papers():
    ours = {"linear": {"cifar100": 90.04, "svhn": 80.0}, "knn": {"cifar100": 60.0}}
    lines = rows(ours, official={"cifar100": True, "svhn": False})
    assert lines[0] == ("task", "group", "linear", "knn", "H/14 JFT", "L/16 JFT", "L/16 I21k", "images")
    assert ("CIFAR-100", "natural", "90.0", "60.0", "85.5", "81.9", "84.1", "official") in lines
    assert ("SVHN", "natural", "80.0", "", "88.9", "87.4", "80.9", "own choice") in lines
    assert ("DMLab", "structured", "", "", "53.1", "49.7", "41.9", "") in lines
    assert lines[-1] == ("mean of all", "", "", "", "77.63", "76.29", "72.71", "")
    assert len(table(lines).splitlines()) == 1 + 19 + 4
    full = rows({"fine-tune": PAPER["H/14 JFT"]}, official=dict.fromkeys(TASKS, True))
    assert full[-1][2] == "77.63"

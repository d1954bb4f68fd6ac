"""VTAB-1k in figures: the means over its groups, and the paper's own results to stand beside."""

from collections.abc import Mapping
from dataclasses import dataclass

from vitreous.data.vtab.tasks import GROUPS, TASKS, find_task

_TABLE9 = {
    "H/14 JFT": (
        *(95.3, 85.5, 75.2, 99.7, 97.2, 65.0, 88.9),
        *(83.3, 96.7, 91.4, 76.6),
        *(91.7, 63.8, 53.1, 79.4, 63.3, 84.5, 33.2, 51.2),
    ),
    "L/16 JFT": (
        *(95.4, 81.9, 74.3, 99.7, 96.7, 63.5, 87.4),
        *(83.6, 96.5, 89.7, 77.1),
        *(86.4, 63.1, 49.7, 74.5, 60.5, 82.2, 36.2, 51.1),
    ),
    "L/16 I21k": (
        *(90.8, 84.1, 74.1, 99.3, 92.7, 61.0, 80.9),
        *(82.5, 95.6, 85.2, 75.3),
        *(70.3, 56.1, 41.9, 74.7, 64.9, 79.9, 30.5, 41.7),
    ),
}
PAPER = {model: dict(zip(TASKS, figures, strict=True)) for model, figures in _TABLE9.items()}
"""Top-1 in % by model and task (arXiv:2010.11929, Table 9)."""
PAPER_MEANS = {
    "H/14 JFT": (77.63, 0.23),
    "L/16 JFT": (76.28, 0.46),
    "L/16 I21k": (72.72, 0.21),
    "BiT-L": (76.29, 1.70),
}
"""Mean over the 19 tasks and its standard deviation over three runs, in % (Table 2); BiT-L is ResNet152x4 on JFT."""


@dataclass(frozen=True)
class Means:
    """Arithmetic means over tasks, in the unit of the scores; None where a task is missing."""

    natural: float | None
    specialized: float | None
    structured: float | None
    all: float | None
    """Over the 19 tasks, each counting the same, as the paper reports it."""


def group_means(scores: Mapping[str, float]) -> Means:
    """The means of `scores`, which go by the name of the task.

    Raises:
        InputError: if there is no task of such a name.
    """
    names = {find_task(name).name for name in scores}

    def mean(members: list[str]) -> float | None:
        return sum(scores[name] for name in members) / len(members) if names.issuperset(members) else None

    natural, specialized, structured = (
        mean([name for name, task in TASKS.items() if task.group == group]) for group in GROUPS
    )
    return Means(natural, specialized, structured, mean(list(TASKS)))


def rows(ours: Mapping[str, Mapping[str, float]], *, official: Mapping[str, bool]) -> list[tuple[str, ...]]:
    """Each task's top-1 in %, then the means, by each of our ways to learn, beside the paper's fine-tuning.

    `ours` holds scores by way and task; `official` says of each task measured whether its images are VTAB-1k's own.
    For `vitreous.tables.table`.

    Raises:
        InputError: if a task is unknown.
    """
    columns = [*ours.values(), *PAPER.values()]
    lines = [("task", "group", *ours, *PAPER, "images")]
    for name, task in TASKS.items():
        whose = {None: "", True: "official", False: "own choice"}[official.get(name)]
        lines.append((task.title, task.group, *(_figure(scores.get(name), 1) for scores in columns), whose))
    means = [group_means(scores) for scores in columns]
    for group in (*GROUPS, "all"):
        lines.append((f"mean of {group}", "", *(_figure(getattr(mean, group), 2) for mean in means), ""))
    return lines


def _figure(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"

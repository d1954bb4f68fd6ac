"""A comparison of runs as the rows of tables, for people."""

from vitreous.comparison import Comparison, Figures, Points, common_steps
from vitreous.console import duration

Rows = list[tuple[str, ...]]

HEAD = (
    "run",
    "state",
    "step",
    "time",
    "images/s",
    "data wait",
    "memory",
    "MFU",
    "top-1",
    "95 % interval",
    "best",
    "at",
)


def figure_rows(comparison: Comparison) -> Rows:
    """A row a run, under a heading; without columns that nobody has."""
    head = tuple(_figure(comparison) if cell == "top-1" else cell for cell in HEAD)
    rows = [head, *map(_figures, comparison.runs)]
    there = [any(column[1:]) for column in zip(*rows)]
    return [tuple(cell for cell, keep in zip(row, there) if keep) for row in rows]


def group_rows(comparison: Comparison) -> Rows:
    """A row for runs that differ by their seeds alone; none if there are no such runs."""
    if not comparison.groups:
        return []
    head = ("runs alike but for the seed", "seeds", f"mean {_figure(comparison)}", "95 % interval over seeds")
    return [head] + [
        (
            ", ".join(group.names),
            ", ".join(map(str, group.seeds)),
            f"{group.mean:.2%}",
            f"{group.low:.2%} to {group.high:.2%}",
        )
        for group in comparison.groups
    ]


def field_rows(comparison: Comparison) -> Rows:
    """A row for each field in which the runs differ, a column a run; values by default are marked."""

    def shown(run: Figures, name: str, value: str) -> str:
        return f"{value} (default)" if run.fields.get(name, ("", False))[1] else value

    head = ("field", *(run.name for run in comparison.runs))
    return [head] + [
        (name, *(shown(run, name, value) for run, value in zip(comparison.runs, values)))
        for name, values in comparison.differences.items()
    ]


def curve_rows(comparison: Comparison) -> list[Rows]:
    """A table for each curve of two runs or more: a row a run, at steps that all of them have."""
    tables = []
    for name, curves in curves_of(comparison):
        if len(curves) > 1 and (steps := common_steps([points for _, points in curves])):
            rows = [(name, *(f"{step:,}" for step in steps))]
            for run, points in curves:
                value = dict(points)
                rows.append((run, *(number(name, value[step]) for step in steps)))
            tables.append(rows)
    return tables


def curves_of(comparison: Comparison) -> list[tuple[str, list[tuple[str, Points]]]]:
    """Each curve by name, with the runs that have it."""
    names = dict.fromkeys(name for run in comparison.runs for name in run.curves)
    return [(name, [(run.name, run.curves[name]) for run in comparison.runs if name in run.curves]) for name in names]


def number(curve: str, value: float) -> str:
    """A value of a curve: shares in percent, all else as it is."""
    return f"{value:.1%}" if is_share(curve) else f"{value:.3f}"


def is_share(curve: str) -> bool:
    """Whether its values are shares of images."""
    return curve.endswith(("/top1", "/map", "/accuracy", "/exact_match"))


def _figure(comparison: Comparison) -> str:
    """What the runs are compared by."""
    return " or ".join(dict.fromkeys(run.figure for run in comparison.runs if run.final is not None)) or "top-1"


def _figures(run: Figures) -> tuple[str, ...]:
    steps = "" if run.steps is None else f"/{run.steps:,}"
    step = run.steps if run.state == "finished" else run.step
    return (
        run.name,
        run.state,
        "" if step is None else f"{step:,}{steps}",
        "" if run.seconds is None else duration(run.seconds),
        "" if run.images_per_s is None else f"{run.images_per_s:,.0f}",
        "" if run.data_wait is None else f"{run.data_wait:.0%}",
        "" if run.peak_mb is None else f"{run.peak_mb / 1e3:,.2f} GB",
        "" if run.mfu is None else f"{run.mfu:.0%}",
        "" if run.final is None else f"{run.final.value:.2%}",
        "" if run.final is None else f"{run.final.low:.2%} to {run.final.high:.2%}",
        "" if run.best is None else f"{run.best.value:.2%}",
        "" if run.best_step is None else f"{run.best_step:,}",
    )

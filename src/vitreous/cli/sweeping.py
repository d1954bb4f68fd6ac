"""The command that carries out a recipe with every combination of some values."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from vitreous.cli.app import Device, app, changes, print_json
from vitreous.errors import InputError
from vitreous.tables import table


@app.command
def sweep(
    recipe: str,
    /,
    *overrides: Annotated[str, Parameter(allow_leading_hyphen=True)],
    over: Annotated[Sequence[str], Parameter(consume_multiple=False)] = (),
    dev: float = 0.0,
    out: str | None = None,
    minutes: float | None = None,
    device: Device = "auto",
    json: bool = False,
) -> int:
    """Carry out a recipe with every combination of values: vitreous sweep smoke --over learning_rate.peak=1e-3,3e-3.

    Done runs are not repeated: interrupted, the same command goes on. A table ranks the settings; give several seeds
    (--over seed=0,1,2) for means with 95 % intervals.

    Parameters
    ----------
    recipe
        A shipped recipe, my_file.py:function, or a saved RUN/run.json.
    overrides
        Any field of the run by its dotted name, for all runs.
    over
        A field and its values, FIELD=VALUE,VALUE,...; can be given several times.
    dev
        Part of the training images to choose by; the best setting is then trained on all of them and measured on the
        held-out images (the paper's App. B.1.1: 0.02 for CIFAR, 0.1 for Pets and Flowers, 0.01 for ImageNet).
    out
        The folder of all runs; by default runs/sweep-RECIPE.
    minutes
        Stop after this time, saved, with exit code 75; the same command goes on.
    json
        Print the result as JSON.
    """
    from vitreous import distributed
    from vitreous.console import Console
    from vitreous.fields import override
    from vitreous.grid import Grid, values_of
    from vitreous.recipes.shipped import recipe as find_recipe

    if minutes is not None and not (0 <= minutes < math.inf):
        raise InputError(f"--minutes must be 0 or more, got {minutes:g}")
    if not 0 <= dev < 1:
        raise InputError(f"--dev is {dev:g}; it must be 0 or more and less than 1")
    if out == "":
        raise InputError("--out is empty; give the name of a folder")
    with distributed.said_once():
        run = override(find_recipe(recipe), dict(changes(overrides)))
        fields = [values_of(text) for text in over]
        if not fields:
            raise InputError(
                "nothing to sweep; give --over FIELD=VALUE,VALUE,..., such as learning_rate.peak=1e-3,3e-3"
            )
        if len({name for name, _ in fields}) < len(fields):
            raise InputError("--over names a field twice; give all of its values at once")
    world = distributed.start(device=device, precision=run.precision)
    place = Path(out or f"runs/sweep-{Path(recipe.rpartition(':')[2]).stem}")
    limit = None if minutes is None else minutes * 60
    grid = Grid(place, world, Console(quiet=not world.is_main), time_limit_s=limit)
    swept = grid.sweep(run, dict(fields), dev_ratio=dev)
    world.leave()
    if world.is_main:
        print_json(swept.to_dict()) if json else print(_said(swept))
    return 0


def _said(swept: Any) -> str:
    head = (*swept.settings[0].values, "seeds", f"{swept.split} {swept.figure}", "95 % interval", "runs")
    rows = [head, *(_row(setting) for setting in swept.settings)]
    parts = [table(rows), *swept.notes]
    if swept.final is not None:
        name, score = " ".join(swept.final.values.values()), swept.final.score
        parts.append(f"on all training images, with {name}: {_figure(score)}  {_interval(score)}")
    return "\n".join(parts)


def _row(setting: Any) -> tuple[str, ...]:
    paths = [outcome.path for outcome in setting.outcomes]
    shown = paths[0] + (f" and {len(paths) - 1} more" if len(paths) > 1 else "")
    return *setting.values.values(), str(len(paths)), _figure(setting.score), _interval(setting.score), shown


def _figure(score: Any) -> str:
    return "diverged" if score is None else f"{score.value:.2%}"


def _interval(score: Any) -> str:
    return "" if score is None else f"{score.low:.2%} to {score.high:.2%}"

"""Commands about this machine: doctor, selftest."""

import math
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from vitreous.cli.app import Device, Whole, app, changes, print_json
from vitreous.errors import InputError
from vitreous.tables import table

FAILED = 1
"""Exit code of a selftest in which something does not hold."""
ROWS, BAR = 20, 40
"""Lines of a curve of losses, and its width."""


@app.command
def selftest(model: str | None = None, /, *, json: bool = False) -> int:
    """Check in a few seconds that this machine computes what it should; exit code 1 if something does not hold.

    Parameters
    ----------
    model
        A model to check against the logits that were saved with it.
    json
        Print a JSON list.
    """
    from vitreous.console import Console
    from vitreous.selftest import selftest as check

    checks = list(check(model, progress=Console().say))
    if json:
        print_json([vars(made) for made in checks])
    else:
        verdicts = {True: "holds", False: "DOES NOT HOLD", None: "not checked"}
        cells = [(made.name, made.expected, made.found, verdicts[made.holds]) for made in checks]
        print(table([("check", "expected", "found", ""), *cells]))
    return FAILED if any(made.holds is False for made in checks) else 0


@app.command
def doctor(
    run: str | None = None,
    /,
    *overrides: Annotated[str, Parameter(allow_leading_hyphen=True)],
    lr: bool = False,
    steps: Whole = 100,
    lowest: float = 1e-6,
    highest: float = 1.0,
    device: Device = "auto",
    json: bool = False,
) -> int:
    """Show versions, devices, threads, disk and cache; or, with a run and --lr, which learning rate suits it.

    Parameters
    ----------
    run
        A run or a recipe to examine.
    overrides
        Any field of the run by its dotted name.
    lr
        Train it from its beginning while the learning rate rises, and look at the loss; nothing is written.
    steps
        Steps of that test.
    lowest
        The learning rate it begins with.
    highest
        The learning rate it ends with, unless the loss blows up before.
    json
        Print a JSON object.
    """
    if lr or run is not None:
        if run is None or not lr:
            raise InputError("give a run or recipe and what to examine: vitreous doctor RUN-OR-RECIPE --lr")
        return _rate_test(run, overrides, steps=steps, lowest=lowest, highest=highest, device=device, json=json)
    if (steps, lowest, highest, device) != (100, 1e-6, 1.0, "auto"):
        raise InputError("--steps, --lowest, --highest and --device go with a run and --lr")
    from vitreous.doctor import examine

    facts = examine()
    if json:
        print_json(facts)
    else:
        print(table(list(facts.items())))
    return 0


def _rate_test(
    name: str, overrides: tuple[str, ...], *, steps: int, lowest: float, highest: float, device: str, json: bool
) -> int:
    from vitreous import distributed
    from vitreous.console import Console
    from vitreous.experiment import check_parts, look
    from vitreous.fields import override
    from vitreous.rate_test import rate_test
    from vitreous.recipes.shipped import recipe as find_recipe
    from vitreous.run_folder import RunFolder

    if steps < 10:
        raise InputError(f"--steps is {steps}; a test takes 10 or more")
    if not 0 < lowest < highest < math.inf:
        raise InputError(f"learning rates rise from --lowest to --highest, got {lowest:g} and {highest:g}")
    run = override(find_recipe(name), dict(changes(overrides)))
    world = distributed.start(device=device, precision=run.precision)
    console = Console(quiet=not world.is_main)
    prepared = world.on_main(
        lambda: look(run.data, RunFolder(Path(name)), console, objective=run.objective, dry_run=True)
    )
    world.on_main(lambda: check_parts(run, num_classes=len(prepared.classes)))
    with console.task("step", steps) as task:
        found = rate_test(
            run,
            prepared.train,
            world=world,
            steps=steps,
            lowest=lowest,
            highest=highest,
            progress=task.update,
        )
    world.leave()
    if world.is_main and json:
        print_json({**vars(found), "advice": found.advice})
    elif world.is_main:
        print(_curve(found))
    return 0


def _curve(found: Any) -> str:
    """Losses by learning rate, and what they say."""
    known, low, high = len(found.rates), min(found.losses), max(found.losses)
    shown = sorted({round(i * (known - 1) / (ROWS - 1)) for i in range(ROWS)})
    marks = {found.rates.index(found.steepest): "falls fastest", found.rates.index(found.lowest): "lowest"}
    rows = [("learning rate", "loss", "")]
    for row, i in enumerate(shown):
        until = shown[row + 1] if row + 1 < len(shown) else known
        marked = ", ".join(mark for place, mark in sorted(marks.items()) if i <= place < until)
        bar = "█" * (1 + round(BAR * (found.losses[i] - low) / (high - low)))
        rows.append((f"{found.rates[i]:.1e}", f"{found.losses[i]:.3f}", f"{bar} {marked}"))
    end = "it never blew up" if found.diverged is None else f"it blew up at {found.diverged:.1e}"
    return f"{table(rows)}\n\n{end}; begin with --learning_rate.peak {found.advice:.1e}"

"""Commands that train: fit, train, demo, report."""

import math
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from vitreous.cli.app import Device, Whole, app, changes, print_json
from vitreous.errors import InputError
from vitreous.tables import figure_rows, table


@app.command
def fit(
    data: str,
    /,
    *,
    val: str | None = None,
    weights: str | None = None,
    model: str | None = None,
    image_size: Whole | None = None,
    minutes: float | None = None,
    out: str | None = None,
    allow_bad: bool = False,
    seed: Whole = 0,
    device: Device = "auto",
    dry_run: bool = False,
    json: bool = False,
) -> int:
    """Train a classifier on your images: look, plan, train, measure, report.

    Parameters
    ----------
    data
        A folder of class folders (train/val/test inside are found), a tar of them, a CSV or JSONL list, or a
        name: digits, cifar10:PATH, fashion-mnist:PATH.
    val
        Other data to measure on; by default what DATA holds out as test or val, else a fifth of it.
    weights
        Pre-trained weights to fine-tune: a run, a folder, a file, timm:NAME.TAG, hf:OWNER/NAME or google:….
    model
        Size and patch, such as B/16, vit_small_patch16_224 or 128x6/4; by default chosen.
    image_size
        Side in pixels; by default chosen.
    minutes
        Training time to plan for; 10 by default.
    out
        The run's folder; by default a new one under runs/.
    allow_bad
        Go on although more than 1 % of the files cannot be read.
    seed
        Source of every random choice.
    dry_run
        Look and plan, then stop.
    json
        Print the figures as JSON.
    """
    from vitreous.experiment import Finished
    from vitreous.fitting import fit as carry_out_fit

    result = carry_out_fit(
        data,
        val=val,
        weights=weights,
        model=model,
        image_size=image_size,
        minutes=minutes,
        out=out,
        allow_bad=allow_bad,
        seed=seed,
        device=device,
        dry_run=dry_run,
    )
    if isinstance(result, Finished):
        return finish(result, json=json)
    if json:
        print_json({"config": result.run.to_dict(), "plan": result.reasons, "seconds": result.seconds})
    else:
        print("\n".join(result.reasons))
    return 0


@app.command
def train(
    recipe: str,
    /,
    *overrides: Annotated[str, Parameter(allow_leading_hyphen=True)],
    out: str | None = None,
    minutes: float | None = None,
    device: Device = "auto",
    timeout_s: float = 300.0,
    dry_run: bool = False,
    json: bool = False,
) -> int:
    """Carry out a recipe, with any of its fields changed: vitreous train smoke --model.depth 6.

    Parameters
    ----------
    recipe
        A shipped recipe (vitreous recipes lists them), my_file.py:function, or a saved RUN/run.json.
    overrides
        Any field of the run by its dotted name; --dry-run lists them all.
    out
        The run's folder; by default a new one under runs/.
    minutes
        Stop after this time, saved, with exit code 75; the same command goes on.
    timeout_s
        Of several processes (torchrun): how long one waits for the others before it gives up.
    dry_run
        Print every field of the run, what data and model they name, then stop.
    json
        Print the result as JSON.
    """
    from vitreous import distributed
    from vitreous.console import Console
    from vitreous.experiment import carry_out, look, preview, same_run
    from vitreous.fields import override, walk
    from vitreous.recipes.shipped import recipe as find_recipe
    from vitreous.run_folder import choose_folder
    from vitreous.stopping import Lost

    if minutes is not None and not (0 <= minutes < math.inf):
        raise InputError(f"--minutes must be 0 or more, got {minutes:g}")
    with distributed.said_once():
        run = override(find_recipe(recipe), dict(changes(overrides)))
    if dry_run:
        if not json:
            print(table([(f"--{field.path}", str(field.value), field.doc) for field in walk(run)]))
            print()
        facts = preview(run)
        if json:
            print_json({"config": run.to_dict(), "preview": facts})
        else:
            print(table(list(facts.items())))
        return 0
    name = Path(recipe.rpartition(":")[2]).absolute()
    name = name.parent.name if name.suffix == ".json" else name.name
    world = distributed.start(device=device, precision=run.precision, timeout_s=timeout_s)
    world.on_main(lambda: run.micro_batches(world.size))
    console = Console(quiet=not world.is_main)
    folder = world.on_main(lambda: choose_folder(out, name, same=lambda record: same_run(record.get("config"), run)))
    limit = None if minutes is None else minutes * 60
    try:
        with ExitStack() as held:
            world.on_main(lambda: _claim(folder, run, held, console, wait_s=2 * timeout_s if world.restarted else 0.0))
            prepared = world.on_main(lambda: look(run.data, folder, console, objective=run.objective))
            finished = carry_out(run, folder, prepared=prepared, world=world, console=console, time_limit_s=limit)
    except Exception as error:
        if distributed.lost(error):
            raise Lost(f"process {world.rank} lost the others") from error
        raise
    world.leave()
    return finish(finished, json=json) if world.is_main else 0


def _claim(folder: Any, run: Any, held: ExitStack, console: Any, *, wait_s: float) -> None:
    from vitreous.claim import is_held
    from vitreous.experiment import check_apart

    check_apart(folder, run.data)
    if wait_s and is_held(folder.path, moved=0.0):
        console.say(f"another process still writes into {folder.path}; waiting for its end, {wait_s:.0f} s at most")
    held.enter_context(folder.claimed(wait_s=wait_s))


@app.command
def report(run: str, /, *, json: bool = False) -> int:
    """Write the report of a run again: one page, RUN/report/index.html, that needs no network.

    Parameters
    ----------
    run
        The folder of a run.
    json
        Print the path as JSON.
    """
    from vitreous.experiment import show
    from vitreous.run_folder import RunFolder

    path = show(RunFolder(Path(run)))
    if json:
        print_json({"report": str(path)})
    else:
        print(path)
    return 0


@app.command
def demo(*, out: str = "runs/demo", minutes: float = 2.0, json: bool = False) -> int:
    """Train on handwritten digits, from nothing to a report, in about two minutes.

    Parameters
    ----------
    out
        The run's folder; a finished demo there is shown again.
    minutes
        Training time to plan for.
    json
        Print the figures as JSON.
    """
    from vitreous.console import Console
    from vitreous.demo import demo as carry_out_demo

    finished, shown = carry_out_demo(out=out, minutes=minutes, console=Console())
    if not json:
        drawings = [drawing.splitlines() for drawing, _, _ in shown]
        print("\n".join("   ".join(lines) for lines in zip(*drawings)))
        verdicts = [f"a {label}: {said.label} {said.score:.1%}" for _, label, said in shown]
        print("   ".join(verdict.ljust(16) for verdict in verdicts) + "\n")
    return finish(finished, json=json)


def finish(finished: Any, *, json: bool) -> int:
    """Figures, paths, and what to type next."""
    folder = finished.folder
    if json:
        print_json({"run": str(folder.path), "report": str(finished.report), **finished.evaluation})
        return 0
    print(table(figure_rows(finished.evaluation)))
    print(f"\nrun      {folder.path}\nmodel    {folder.model}\nreport   {finished.report}")
    print(f"\nnext     vitreous predict {folder.path} IMAGES   ·   open {finished.report}")
    return 0

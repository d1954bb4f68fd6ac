"""The practitioner's verb: look at the images, plan and say why, train, measure, report."""

import multiprocessing
import os
from contextlib import nullcontext

from vitreous import distributed
from vitreous.console import Console
from vitreous.data.data_config import DataConfig
from vitreous.data.layouts import short_name
from vitreous.errors import InputError
from vitreous.experiment import Finished, carry_out, check_apart, look
from vitreous.planning import MOST_MINUTES, Plan, Request, make_plan
from vitreous.recipes.shipped import run_from_record
from vitreous.run_folder import choose_folder
from vitreous.variants import encoder
from vitreous.weights.open import open_model


def fit(
    data: str | os.PathLike[str],
    *,
    val: str | os.PathLike[str] | None = None,
    weights: str | os.PathLike[str] | None = None,
    model: str | None = None,
    image_size: int | None = None,
    minutes: float | None = None,
    out: str | os.PathLike[str] | None = None,
    allow_bad: bool = False,
    seed: int = 0,
    device: str = "auto",
    dry_run: bool = False,
    console: Console | None = None,
) -> Finished | Plan:
    """A trained, measured, reported classifier of the images at `data`; with `dry_run` only the plan.

    In a script, call it below `if __name__ == "__main__":`, since processes that read images import the script.

    Args:
        data: a folder of class folders, a tar of them, a CSV or JSONL manifest, or a name (`digits`,
            `cifar10:PATH`, `fashion-mnist:PATH`).
        val: data to measure on, in place of what `data` holds out.
        weights: pre-trained weights to fine-tune; without, training starts from scratch.
        model: size and patch, such as "B/16"; by default chosen from the data and the machine.
        image_size: side in pixels; by default chosen.
        minutes: training time to plan for; 10 by default.
        out: the run's folder; by default a new one under runs/.
        allow_bad: go on although more than 1 % of the files cannot be read.
        seed: source of every random choice.
        device: "cpu", "cuda", "cuda:1", "mps"; by default the accelerator if there is one.
        dry_run: look and plan, write nothing.
        console: where to show progress; by default stderr.

    Raises:
        InputError: if the data or an argument cannot be used.
        Stopped: if it was interrupted; the same call goes on.
    """
    if multiprocessing.parent_process() is not None:
        raise InputError("fit runs again in a reader process; in a script, call it below: if __name__ == '__main__':")
    console = console or Console()
    request = Request(
        data=os.fspath(data),
        val=None if val is None else os.fspath(val),
        weights=None if weights is None else os.fspath(weights),
        model=model,
        image_size=image_size,
        minutes=minutes,
        allow_bad=allow_bad,
        seed=seed,
    )
    if minutes is not None and not (0 < minutes <= MOST_MINUTES):
        raise InputError(f"--minutes must be above 0 and at most {MOST_MINUTES:,} (a year), got {minutes:g}")
    if image_size is not None and image_size < 1:
        raise InputError(f"--image-size must be at least 1, got {image_size}")
    if model is not None:
        encoder(model)  # a name that is wrong is said before the images are looked at
    world = distributed.start(device=device)
    if world.size > 1:
        raise InputError(
            "fit plans for one process; leave out torchrun, or train by: torchrun -m vitreous train RECIPE"
        )
    place = None if out is None else os.fspath(out)
    folder = choose_folder(place, run_name(request.data), same=lambda record: record.get("request") == vars(request))
    config = DataConfig(path=request.data, val=request.val, allow_bad=allow_bad, split_seed=seed)
    check_apart(folder, config)
    with nullcontext() if dry_run else folder.claimed():
        begun = folder.read() if folder.exists() else None
        if begun is not None and begun.get("request") != vars(request):
            raise InputError(f"{folder.path} holds a run of another command ({begun['command']}); choose another --out")
        start = None
        if request.weights is not None and begun is None:
            start = open_model(request.weights, progress=console.say)
        prepared = look(config, folder, console, dry_run=dry_run)
        if begun is not None:
            plan = Plan(run_from_record(begun, str(folder.record)), begun["plan"], 0.0)
        else:
            plan = make_plan(prepared, request, config=config, start=start, world=world)
        if dry_run:
            return plan
        shown = [f"{folder.path} has been trained; it is shown again"] if folder.trained() else plan.reasons
        for line in shown:
            console.say(line)
        details = {"request": vars(request), "plan": plan.reasons}
        return carry_out(plan.run, folder, prepared=prepared, world=world, console=console, details=details)


def run_name(data: str) -> str:
    """What a run on `data` is called: cats for a/cats.tar, cifar10 for cifar10:PATH."""
    return short_name(data) or "run"

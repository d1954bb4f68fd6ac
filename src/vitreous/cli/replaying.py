"""The command that computes a step of a run again: replay."""

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vitreous.cli.app import Device, Whole, app, print_json
from vitreous.tables import table

MOST_IMAGES = 10


@app.command
def replay(run: str, /, *, step: Whole, device: Device = "auto", json: bool = False) -> int:
    """Compute one step of a run again, bit for bit, and look at it: vitreous replay RUN --step 120.

    Nothing in the run's folder is changed. A run of several processes is replayed by one, or by as many under torchrun.

    Parameters
    ----------
    run
        The folder of a run.
    step
        Which step, from 1.
    json
        Print the figures as JSON; numbers that are not finite as text.
    """
    from vitreous import distributed
    from vitreous.console import Console
    from vitreous.recipes.shipped import run_from_record
    from vitreous.replay import replay as carry_out_replay
    from vitreous.run_folder import RunFolder

    folder = RunFolder(Path(run))
    config = run_from_record(folder.read(), str(folder.record))
    world = distributed.start(device=device, precision=config.precision)
    console = Console(quiet=not world.is_main)
    replayed = carry_out_replay(folder, config, step=step, world=world, console=console)
    world.leave()
    if world.is_main:
        if json:
            print_json(_finite(asdict(replayed)))
        else:
            print("\n\n".join(_tables(replayed)))
    return 0


def _finite(value: Any) -> Any:
    """JSON has no numbers that are not finite."""
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _tables(replayed: Any) -> list[str]:
    """The step, the parts of the network, the images."""
    rows = [("step", f"{replayed.step:,}, from {f'step {replayed.start:,}' if replayed.start else 'the start'}")]
    rows.append(("learning rate", repr(replayed.learning_rate)))
    rows += [(name.replace("_", " "), repr(value)) for name, value in replayed.numbers.items()]
    rows += [(f"stands out: {name.replace('_', ' ')}", repr(value)) for name, value in replayed.spike.items()]
    rows += [("skipped", "yes" if replayed.skipped else "no"), ("state before", replayed.before)]
    rows += [("state after", replayed.after), *replayed.agrees.items()]
    rows += [("last bits may differ", doubt) for doubt in replayed.doubts]
    rows += [("not finite", replayed.cause)] if replayed.cause else []
    parts = [("part", "largest output", "gradient (RMS)", "weights (RMS)")]
    for part in replayed.parts:
        output = "" if part.output is None else f"{part.output:.4g}"
        parts.append((part.name, output, f"{part.gradient:.3e}", f"{part.weights:.3e}"))
    images = [("image", "label", "loss")]
    for image in replayed.images[:MOST_IMAGES]:
        images.append((image.name, image.label, "" if image.loss is None else f"{image.loss:.4f}"))
    if (more := len(replayed.images) - MOST_IMAGES) > 0:
        images.append((f"and {more:,} more", "", ""))
    return [table(rows), table(parts), table(images)]

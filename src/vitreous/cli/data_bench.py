"""The command that times reading images against what a run needs."""

import math
from dataclasses import replace
from typing import Annotated

from cyclopts import Parameter

from vitreous.cli.app import Device, Whole, changes, print_json
from vitreous.cli.data import data
from vitreous.errors import InputError
from vitreous.tables import table


@data.command
def bench(
    path: str,
    recipe: str = "fine_tune",
    /,
    *overrides: Annotated[str, Parameter(allow_leading_hyphen=True)],
    seconds: float = 5.0,
    workers: Annotated[tuple[Whole, ...] | None, Parameter(consume_multiple=True)] = None,
    device: Device = "auto",
    json: bool = False,
) -> int:
    """Say how many images a second can be read here, and how many a run takes: is it the data that one waits for?

    Parameters
    ----------
    path
        The images, as for fit.
    recipe
        The run that needs them.
    overrides
        Any field of the run by its dotted name.
    seconds
        How long each measurement takes.
    workers
        Numbers of reader processes to try; by default 0, 1, 2, 4, ... up to the cores there are.
    json
        Print a JSON object.
    """
    from vitreous import distributed
    from vitreous.console import Console
    from vitreous.cores import cores
    from vitreous.data.layouts import open_data
    from vitreous.data_speed import data_speed, labelled_alike
    from vitreous.experiment import check_parts
    from vitreous.fields import override
    from vitreous.recipes.shipped import recipe as find_recipe

    if not 0 < seconds < math.inf:
        raise InputError(f"--seconds must be above 0, got {seconds:g}")
    readers = workers or (0, *(2**k for k in range(cores().bit_length())))
    if min(readers) < 0:
        raise InputError(f"--workers are numbers of processes, got {min(readers)}")
    run = replace(override(find_recipe(recipe), dict(changes(overrides))), weights=None)  # they change no speed
    world = distributed.start(device=device, precision=run.precision)
    source = labelled_alike(open_data(path).train)
    check_parts(run, num_classes=len(source.classes))
    found = data_speed(run, source, readers=readers, world=world, seconds=seconds, say=Console().say)
    if json:
        print_json({"read": found.read, "needed": found.needed, "enough": found.enough})
        return 0
    rows = [("reader processes", "images/s", "of what training takes")]
    rows += [(str(number), f"{rate:,.0f}", f"{rate / found.needed:.2f}") for number, rate in found.read.items()]
    print(table(rows))
    advice = "a faster disk, smaller files (data pack --resize-max) or more cores would help"
    if found.enough is not None:
        advice = f"--num_workers {found.enough} is enough"
    print(f"\ntraining on {world.device.type} takes {found.needed:,.0f} images/s; {advice}")
    return 0

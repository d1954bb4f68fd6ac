"""Position tables of other projects: one row a token, most often the class token's first, then the patches'."""

import math
from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from vitreous.errors import InputError
from vitreous.resampling import Grid


def split_places(
    name: str, places: Float[Tensor, "place width"], *, prefix: Iterable[int], grid: Grid | None = None
) -> tuple[Float[Tensor, "prefix width"], Float[Tensor, "rows columns width"]]:
    """The places of prefix tokens, as many as the first of `prefix` that leaves a grid, and those of patches.

    Without `grid`, the patches are those of a square image.

    Raises:
        InputError: if no number of prefix tokens leaves that grid; `name` is what the table is called.
    """
    numbers = tuple(dict.fromkeys(prefix))
    for number in numbers:
        patches = max(len(places) - number, 0)
        rows, columns = grid or (math.isqrt(patches), math.isqrt(patches))
        if rows * columns == patches > 0:
            return places[:number], places[number:].unflatten(0, (rows, columns))
    others = " or ".join(map(str, numbers))
    if grid is not None:
        rows, columns = grid
        raise InputError(
            f"{name} has {len(places)} places, no grid of {rows} x {columns} patches after {others} of other tokens; "
            "fetch config.json, too, or again"
        )
    raise InputError(
        f"{name} has {len(places)} places, no square grid of patches after {others} of other tokens; "
        "fetch the weights again, and if the images were not square, the config.json that says so"
    )


def join_places(
    prefix: Float[Tensor, "prefix width"] | None, table: Float[Tensor, "rows columns width"]
) -> Float[Tensor, "1 place width"]:
    """One row a token again."""
    places = table.flatten(0, 1)
    return (places if prefix is None else torch.cat([prefix, places]))[None]

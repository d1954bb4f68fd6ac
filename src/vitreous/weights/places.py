"""Position tables of other projects: one row a token, most often the class token's first, then the patches'."""

import math
from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from vitreous.errors import InputError
from vitreous.resampling import Grid


def split_places(
    name: str,
    places: Float[Tensor, "place width"],
    *,
    prefix: Iterable[int],
    grid: Grid | None = None,
    image: tuple[int, int] = (1, 1),
) -> tuple[Float[Tensor, "prefix width"], Float[Tensor, "rows columns width"]]:
    """The places of prefix tokens, as many as the first of `prefix` that leaves a grid, and those of patches.

    Without `grid`, the patches are those of an image in the proportions of `image`, its height and width.

    Raises:
        InputError: if no number of prefix tokens leaves that grid; `name` is what the table is called.
    """
    numbers = tuple(dict.fromkeys(prefix))
    height, width = grid or image
    for number in numbers:
        patches = max(len(places) - number, 0)
        rows, columns = grid or (math.isqrt(patches * height // width), math.isqrt(patches * width // height))
        if rows * columns == patches > 0 and rows * width == columns * height:
            return places[:number], places[number:].unflatten(0, (rows, columns))
    wanted = f"grid of {height} x {width} patches" if grid else f"grid of patches of an image of {height} x {width}"
    if height == width and grid is None:
        wanted = "square grid of patches"
    others = " or ".join(map(str, numbers))
    raise InputError(
        f"{name} has {len(places)} places, no {wanted} after {others} of other tokens; "
        "vitreous reads positions of images that are not square only with the config.json that says so"
    )


def join_places(
    prefix: Float[Tensor, "prefix width"] | None, table: Float[Tensor, "rows columns width"]
) -> Float[Tensor, "1 place width"]:
    """One row a token again."""
    places = table.flatten(0, 1)
    return (places if prefix is None else torch.cat([prefix, places]))[None]

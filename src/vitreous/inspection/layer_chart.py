"""Charts over the layers of a model as inline SVG: a dot a head, and lines."""

import math
from collections.abc import Callable, Sequence

from jaxtyping import Float
from markupsafe import Markup
from torch import Tensor

from vitreous.inspection.plots import BOTTOM, END, HEIGHT, LEFT, TOP, WIDTH, Scale, Series, number, tag, ticks

TINY = 1e-6


def layer_chart(
    lines: Sequence[Series],
    *,
    title: str,
    unit: str,
    heads: Float[Tensor, "layer head"] | None = None,
    even: float | None = None,
    log: bool = False,
) -> Markup:
    """A figure whose y axis starts at 0; every dot of `heads` carries its layer and head, `even` is a dashed line.

    With `log` the axis is logarithmic, over whole powers of ten, for values above 0.
    """
    values = [*(y for line in lines for y in line.y), *([] if heads is None else heads.flatten().tolist())]
    depth = max(len(line.y) for line in lines)
    x = Scale(0, max(depth - 1, 1), LEFT + 8, WIDTH - END - 4)
    y, marks = _linear(max([*values, even or 0.0])) if not log else _powers(min(values), max(values))
    parts = []
    for value in marks:
        parts.append(tag("line", x1=LEFT, x2=WIDTH - END, y1=y(value), y2=y(value), class_="grid"))
        parts.append(tag("text", number(value), x=LEFT - 7, y=y(value) + 4, class_="tick end"))
    for layer in range(0, depth, max(depth // 12, 1)):
        parts.append(tag("text", layer, x=x(layer), y=HEIGHT - BOTTOM + 17, class_="tick mid"))
    parts.append(tag("line", x1=LEFT, x2=WIDTH - END, y1=HEIGHT - BOTTOM, y2=HEIGHT - BOTTOM, class_="base"))
    parts.append(tag("text", "layer", x=(LEFT + WIDTH) / 2, y=HEIGHT - BOTTOM + 32, class_="axis mid"))
    if even is not None:
        parts.append(tag("line", x1=LEFT, x2=WIDTH - END, y1=y(even), y2=y(even), class_="even"))
    for layer, row in enumerate([] if heads is None else heads.tolist()):
        for head, value in enumerate(row):
            said = tag("title", f"layer {layer}, head {head}: {number(value)} {unit}")
            place = {"cx": x(layer), "cy": y(value), "r": 4}
            parts.append(tag("circle", said, **place, class_="head", data_layer=layer, data_head=head))
    for i, line in enumerate(lines, 1 if heads is not None else 0):
        points = " ".join(f"{x(a)},{y(b)}" for a, b in zip(line.x, line.y))
        parts.append(tag("polyline", points=points, class_=f"line s{i}"))
    names = ["a head"] * (heads is not None) + [line.name for line in lines]
    keys = [tag("span", tag("i", class_=f"key s{i}"), " ", name) for i, name in enumerate(names)]
    if even is not None:
        keys.append(tag("span", tag("i", class_="key even"), " even attention"))
    ends = ", ".join(f"{line.name} from {number(line.y[0])} to {number(line.y[-1])}" for line in lines)
    box = f"0 0 {WIDTH} {HEIGHT}"
    svg = tag("svg", *parts, viewBox=box, role="img", aria_label=f"{title} ({unit}) by layer: {ends}")
    words = tag("span", tag("b", title), f" {unit}".rstrip())
    caption = tag("figcaption", words, tag("span", *keys, class_="legend"))
    return tag("figure", caption, svg, class_="chart")


def _linear(most: float) -> tuple[Scale, list[float]]:
    scale = Scale(0, 1.04 * most or 1.0, HEIGHT - BOTTOM, TOP)
    return scale, ticks(scale.low, scale.high)


def _powers(least: float, most: float) -> tuple[Callable[[float], float], list[float]]:
    low, high = (math.floor(math.log10(max(least, TINY))), math.ceil(math.log10(max(most, 10 * TINY))))
    scale = Scale(low, high, HEIGHT - BOTTOM, TOP)
    return lambda value: scale(math.log10(max(value, TINY))), [10.0**power for power in range(low, high + 1)]

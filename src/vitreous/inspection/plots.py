"""Charts as inline SVG: lines, reliability, confusion. Colours come from the page's style sheet.

The text of a chart is set in its own pixels, so each is drawn at about the width it has on a phone and grows
from there. What a name or label holds is escaped by markupsafe.
"""

import io
import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from markupsafe import Markup, escape
from PIL import Image

WIDTH, HEIGHT = 460, 216
LEFT, END, TOP, BOTTOM = 46, 10, 10, 36

RIGHT, WRONG = (20, 140, 150), (226, 125, 40)  # seen on light and on dark paper


@dataclass(frozen=True)
class Series:
    """One line: `y` over `x`; points that are not finite are left out."""

    name: str
    x: Sequence[float]
    y: Sequence[float]


@dataclass(frozen=True)
class Scale:
    """A straight line from values (low, high) to pixels (start, end)."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """The pixel of `value`; a range of one value is drawn in the middle."""
        share = (value - self.low) / (self.high - self.low) if self.high > self.low else 0.5
        return round(self.start + share * (self.end - self.start), 2)


def ticks(low: float, high: float, *, most: int = 6) -> list[float]:
    """At most `most` multiples of 1, 2 or 5 times a power of ten, all within [low, high]."""
    if not high > low:
        return [low]
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    for step in (power * factor for factor in (1, 2, 5, 10, 20)):
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first < most:
            break
    return [float(f"{i * step:.12g}") for i in range(first, last + 1)]


def number(value: float, *, digits: int = 3) -> str:
    """A value in few characters: 12000 is 12k, 0.0005 is 5e-4."""
    for limit, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            return f"{value / (1e3 if letter == 'k' else limit):.{digits}g}{letter}"
    if 0 < abs(value) < 1e-2:
        mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
        mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
        return f"{mantissa}e{int(exponent)}"
    return f"{value:.{max(digits, len(str(int(abs(value)))))}g}"


def thin(series: Series, *, most: int = 1000) -> Series:
    """The finite points of a series; where they are too many, the lowest and highest of each stretch."""
    points = [(x, y) for x, y in zip(series.x, series.y) if math.isfinite(x) and math.isfinite(y)]
    if len(points) > most:
        edges = np.linspace(0, len(points), most // 2 + 1).astype(int)
        stretches = [range(a, b) for a, b in pairwise(edges)]
        ends = ([min(s, key=lambda i: points[i][1]), max(s, key=lambda i: points[i][1])] for s in stretches)
        points = [points[i] for pair in ends for i in sorted(set(pair))]
    return Series(series.name, [x for x, _ in points], [y for _, y in points])


def tag(name: str, *children: object, **attributes: object) -> Markup:
    """An element; underscores in attribute names stand for hyphens, `class_` for class."""
    pairs = (
        Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), value)
        for key, value in attributes.items()
        if value is not None
    )
    return Markup("<{0}{1}>{2}</{0}>").format(
        Markup(name), Markup("").join(pairs), Markup("").join(map(escape, children))
    )


def line_chart(series: Iterable[Series], *, title: str, percent: bool = False) -> Markup:
    """A figure of lines over the step, with a legend that doubles as the read-out under the pointer.

    The y axis starts at 0, so that heights compare; with `percent`, values in [0, 1] are labelled in percent
    and the axis starts near the lowest. Empty when no series has a finite point.
    """
    lines = [line for line in map(thin, series) if line.x]
    if not lines:
        return Markup()
    xs, ys = [x for line in lines for x in line.x], [y for line in lines for y in line.y]
    low, high = min(0.0, *ys) if not percent else min(ys), max(ys)
    pad = 0.04 * (high - low or abs(high) or 1.0)
    low, high = (max(low - pad, 0.0), min(high + pad, 1.0)) if percent else (low, high + pad)
    x = Scale(min(xs), max(xs), LEFT, WIDTH - END)
    y = Scale(low, high, HEIGHT - BOTTOM, TOP)

    def label(value: float) -> str:
        return f"{100 * value:.3g} %" if percent else number(value)

    parts = [_axes(x, y, x_label="step", y_text=label)]
    for i, line in enumerate(lines):
        points = " ".join(f"{x(a)},{y(b)}" for a, b in zip(line.x, line.y))
        parts.append(tag("polyline", points=points, class_=f"line s{i}"))
        if len(line.x) <= 40:
            dots = zip(line.x, line.y)
            parts += [tag("circle", cx=x(a), cy=y(b), r=2.5, class_=f"dot s{i}") for a, b in dots]
    parts.append(tag("line", x1=0, x2=0, y1=TOP, y2=HEIGHT - BOTTOM, class_="cursor"))
    keys = [
        tag("span", tag("i", class_=f"key s{i}"), f" {line.name} ", tag("b", label(line.y[-1])))
        for i, line in enumerate(lines)
    ]
    said = "; ".join(f"{s.name} from {label(s.y[0])} to {label(s.y[-1])}" for s in lines)
    read = {
        "percent": percent,
        "x": [x.low, x.high, x.start, x.end],
        "lines": [[line.x, [float(f"{value:.4g}") for value in line.y]] for line in lines],
    }
    legend = tag("span", *keys, tag("span", class_="at"), class_="legend")
    return tag(
        "figure",
        tag("figcaption", tag("strong", title), legend),
        _svg(*parts, width=WIDTH, height=HEIGHT, said=f"{title} by step: {said}", tabindex=0),
        class_="chart",
        data_chart=json.dumps(read, separators=(",", ":")),
    )


def reliability_chart(bins: Sequence[dict]) -> Markup:
    """Accuracy of the predictions in each band of confidence (Guo et al., arXiv:1706.04599, Fig. 1).

    Above it the share of predictions in each band. On the diagonal, confidence is what it promises.
    """
    x = Scale(0, 1, LEFT, WIDTH - END)
    counts, y = Scale(0, max((b["count"] for b in bins), default=1), 62, 12), Scale(0, 1, 300, 84)
    parts = [
        tag("text", "predictions", x=LEFT, y=10, class_="axis"),
        tag("text", "accuracy", x=LEFT, y=78, class_="axis"),
        tag("line", x1=LEFT, x2=WIDTH - END, y1=62, y2=62, class_="base"),
        _axes(x, y, x_label="confidence", y_text=lambda v: f"{100 * v:.0f} %", percent_x=True),
    ]
    for b in (b for b in bins if b["count"]):
        left, width = x(b["low"]) + 1, max(x(b["high"]) - x(b["low"]) - 2, 1)
        top, bottom = sorted((y(b["accuracy"]), y(b["confidence"])))  # pixels grow downwards
        said = (
            f"confidence {100 * b['low']:.0f} to {100 * b['high']:.0f} %: {b['count']} predictions, "
            f"mean confidence {100 * b['confidence']:.1f} %, accuracy {100 * b['accuracy']:.1f} %"
        )
        bar = {"x": left, "width": width}
        parts.append(
            tag(
                "g",
                tag("title", said),
                tag("rect", **bar, y=counts(b["count"]), height=62 - counts(b["count"]), class_="count"),
                tag("rect", **bar, y=bottom, height=300 - bottom, class_="bar"),
                tag("rect", **bar, y=top, height=bottom - top, class_="gap"),
                tag("rect", **bar, y=y(b["accuracy"]) - 1.5, height=3, class_="mark"),
            )
        )
    parts.append(tag("line", x1=x(0), y1=y(0), x2=x(1), y2=y(1), class_="diagonal"))
    said = "Reliability: accuracy by confidence; the diagonal is perfect calibration"
    return _svg(*parts, width=WIDTH, height=336, said=said)


def confusion_chart(matrix: Sequence[Sequence[int]], classes: Sequence[str]) -> Markup:
    """Counts of (true row, predicted column); a cell's tint is its share of the row."""
    n, longest = len(classes), max(len(_short(name)) for name in classes)
    cell = max(18, min(46, (480 if n <= 16 else 720) // n))
    side = cell - 1
    left, top = 34 + 6.6 * longest, 40 + 4.8 * longest
    width, height = left + n * cell + 14 + 2.5 * longest, top + n * cell + 6
    parts = [
        tag("text", "predicted", x=left, y=14, class_="axis"),
        tag("text", "true", x=14, y=top + 4, class_="axis end", transform=f"rotate(-90 14 {top + 4})"),
    ]
    for i, name in enumerate(classes):
        middle = (i + 0.5) * cell
        turned = f"rotate(-45 {left + middle} {top - 8})"
        parts.append(tag("text", _short(name), x=left + middle, y=top - 8, transform=turned, class_="tick"))
        parts.append(tag("text", _short(name), x=left - 8, y=top + middle + 4, class_="tick end"))
        total = max(sum(matrix[i]), 1)
        for j, count in enumerate(matrix[i]):
            place = {"x": left + j * cell + 0.5, "y": top + i * cell + 0.5, "width": side, "height": side}
            if not count:
                parts.append(tag("rect", **place, class_="cell"))
                continue
            share = count / total
            said = f"true {name}, predicted {classes[j]}: {count} ({100 * share:.1f} %)"
            kind, ink = "right" if i == j else "wrong", "on" if share > 0.3 else "off"
            tint = tag("rect", **place, class_=kind, fill_opacity=round(share**0.5, 3))
            text = tag("text", count, x=left + (j + 0.5) * cell, y=top + middle + 4, class_=ink)
            parts.append(tag("g", tag("title", said), tint, text if n <= 16 else "", class_="cell"))
    said = f"Confusion matrix of {n} classes, true in rows, predicted in columns; tables tell the same"
    style = f"max-width:{width:.0f}px;min-width:{min(width, 480):.0f}px"
    return _svg(*parts, width=round(width), height=round(height), said=said, style=style)


def confusion_image(matrix: Sequence[Sequence[int]]) -> bytes:
    """The same as a PNG of one pixel a cell, for hundreds of classes; opacity is the root of the share."""
    counts = np.asarray(matrix, dtype=np.float64)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    pixels = np.empty((*counts.shape, 4), np.uint8)
    pixels[..., :3] = WRONG
    pixels[np.eye(len(counts), dtype=bool), :3] = RIGHT
    pixels[..., 3] = np.round(255 * np.sqrt(share))
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", optimize=True)
    return file.getvalue()


def _axes(x: Scale, y: Scale, *, x_label: str, y_text: Callable[[float], str], percent_x: bool = False) -> Markup:
    parts = []
    for value in ticks(y.low, y.high):
        parts.append(tag("line", x1=x.start, x2=x.end, y1=y(value), y2=y(value), class_="grid"))
        parts.append(tag("text", y_text(value), x=x.start - 7, y=y(value) + 4, class_="tick end"))
    for value in ticks(x.low, x.high):
        text = f"{100 * value:.0f} %" if percent_x else number(value)
        parts.append(tag("line", x1=x(value), x2=x(value), y1=y.start, y2=y.start + 4, class_="base"))
        anchor = "tick end" if x(value) > x.end - 8 else "tick mid"
        parts.append(tag("text", text, x=x(value), y=y.start + 17, class_=anchor))
    parts.append(tag("line", x1=x.start, x2=x.end, y1=y.start, y2=y.start, class_="base"))
    parts.append(tag("text", x_label, x=(x.start + x.end) / 2, y=y.start + 32, class_="axis mid"))
    return Markup("").join(parts)


def _svg(*parts: object, width: int, height: int, said: str, **attributes: object) -> Markup:
    box = f"0 0 {width} {height}"
    return tag("svg", *parts, viewBox=box, role="img", aria_label=said, **attributes)


def _short(name: str, *, most: int = 18) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"

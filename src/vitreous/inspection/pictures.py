"""Images as data URIs, small enough to put many on one page."""

import base64
import io

import numpy as np
from jaxtyping import Float
from PIL import Image

HEAT = ((28, 16, 68), (114, 31, 129), (205, 64, 113), (251, 135, 97), (252, 253, 191))  # dark to bright


def evenly(number: int, most: int) -> list[int]:
    """At most `most` of `number` positions, at even distances."""
    return np.unique(np.linspace(0, number - 1, min(number, most)).round().astype(int)).tolist() if number else []


def picture(image: Image.Image, *, side: int) -> str:
    """JPEG of at most `side` pixels; PNG for icons, which JPEG would smear."""
    image = image.convert("RGB")
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    icon, file = max(image.size) <= 64, io.BytesIO()
    image.save(file, "PNG" if icon else "JPEG", quality=80, optimize=True)
    return data_uri("png" if icon else "jpeg", file.getvalue())


def heat(map_: Float[np.ndarray, "row column"]) -> str:
    """A map as a PNG to lay over its image, dark to bright from its lowest value to its 98th percentile.

    The few highest values of a large model are often artefacts (arXiv:2309.16588) that would darken the rest.
    A map that is all but even stays dark.
    """
    low, high = map_.min(), np.percentile(map_, 98)
    grey = Image.fromarray(((map_ - low) / max(high - low, 0.05 * high, 1e-12)).astype(np.float32))
    scale = -(-112 // max(map_.shape))
    value = np.asarray(grey.resize((grey.width * scale, grey.height * scale), Image.Resampling.BICUBIC))
    stops = np.linspace(0, 1, len(HEAT))
    colours = [np.interp(value, stops, [colour[c] for colour in HEAT]) for c in range(3)]
    file = io.BytesIO()
    Image.fromarray(np.stack(colours, axis=-1).round().astype(np.uint8)).save(file, "PNG", optimize=True)
    return data_uri("png", file.getvalue())


def data_uri(kind: str, content: bytes) -> str:
    """`content`, an image of this kind ("png", "jpeg"), as an address that holds it."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"

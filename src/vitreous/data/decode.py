"""One way from the bytes of a file to an RGB image, with every policy stated here.

The content decides what a file is, never its suffix. Only the raster formats in `FORMATS` are tried.
The size in the header is checked before a pixel is decoded. The first frame of an animation counts.
EXIF orientation is applied, alpha is composited over white, 16-bit grey is scaled to 8 bits, CMYK,
palette, grey and 1-bit images become RGB. Float and 32-bit images are refused: nothing says what white
is. Colour profiles are not applied. A JPEG much larger than what is asked for is decoded at a fraction of
its size. Of a sharp photo, that moves the pixels which a resize then gives by 0.7 of 255 in the mean and 8 in
one of a thousand where twice the size is left (`decode`), by 0.3 and 4 where four times is (`decode_crop`).
"""

import os
import stat
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from vitreous.data import fast_jpeg
from vitreous.errors import InputError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")  # JPEG includes MPO
MAX_PIXELS = 50_000_000
MAX_BYTES = 1_000_000_000
FINER = 4
"""How many pixels to a pixel of the view, along each side, a JPEG decoded at a fraction still has."""
ORIENTATION = 0x0112
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = (TURNS[5], TURNS[6], TURNS[7], TURNS[8])
Box = tuple[int, int, int, int]
"""Left, top, right and bottom, in pixels."""
NO_RANGE = "32-bit pixels have no fixed range; save it with 8 or 16 bits"
IMAGE_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"II*\0", b"MM\0*")


class BadImage(InputError):
    """A file that gives no image; the message is the reason alone, without the file's name."""


@dataclass(frozen=True)
class Picture:
    """An RGB image and what its file said about it."""

    image: Image.Image
    format: str
    mode: str
    """Pillow's name of the pixel layout in the file, such as `CMYK`."""
    width: int
    """Pixels at full resolution, as the picture is looked at."""
    height: int
    rotated: bool
    """Whether EXIF asked for a turn."""


def decode(file: Path | bytes, *, min_side: int | None = None) -> Image.Image:
    """The image in `file` (a path, or the bytes of a file), in mode RGB.

    With `min_side`, a large JPEG is decoded at 1/2, 1/4 or 1/8 scale, as far as both sides stay at
    least twice `min_side` pixels; this is several times faster on photos.

    Raises:
        BadImage: if no image can be had from it; the message is the reason.
    """
    return decode_picture(file if isinstance(file, bytes) else read_file(file), min_side=min_side).image


def decode_picture(data: bytes, *, min_side: int | None = None) -> Picture:
    """`decode`, with what the header says."""
    with _opened(data) as file:
        return _decode(file, min_side)


def decode_crop(
    data: bytes, draw: Callable[[int, int], Box], *, shape: tuple[int, int]
) -> UInt8[np.ndarray, "height width 3"]:
    """The pixels inside the box that `draw` gives for the width and height of the upright image in the file `data`.

    Of a JPEG no more is decoded than the box needs, at 1/2, 1/4 or 1/8 scale as far as the box keeps `FINER` times the
    `shape` (height and width); its edges then move to whole pixels of that scale. simplejpeg changes no pixel.

    Raises:
        BadImage: if no image can be had from it; the message is the reason.
    """
    box, found = None, fast_jpeg.frame(data)
    if found is not None and found.width * found.height <= MAX_PIXELS and not (found.may_turn and _turned(data)):
        box = draw(found.width, found.height)
        scale = _scale(box, shape)
        if (pixels := fast_jpeg.rows(data, found, stop=box[3], scale=scale)) is not None:
            left, top, right, bottom = (edge // scale for edge in box)
            return pixels[top:bottom, left:right]
    with _opened(data) as file:
        scale = 1
        if file.format in ("JPEG", "MPO"):
            sideways = TURNS.get(_orientation(file)) in SIDEWAYS
            box = box or draw(*(file.size[::-1] if sideways else file.size))
            scale = _scale(box, shape)
            file.draft(None, (file.width // scale, file.height // scale))
        image = _decode(file, None).image
        left, top, right, bottom = (edge // scale for edge in box or draw(*image.size))
        return np.array(image.crop((left, top, right, bottom)))


def read_file(path: Path | str) -> bytes:
    """All bytes of the regular file at `path`; never waits for a pipe or a device.

    Raises:
        BadImage: if it is missing, may not be read, is no regular file or is larger than `MAX_BYTES`.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except FileNotFoundError:
        raise BadImage("broken link" if os.path.islink(path) else "no such file") from None
    except PermissionError:
        raise BadImage("no permission to read it") from None
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL
        raise BadImage(f"cannot be read ({getattr(error, 'strerror', None) or error})") from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise BadImage("a folder, not a file" if stat.S_ISDIR(status.st_mode) else "not a regular file")
        if status.st_size > MAX_BYTES:
            raise BadImage(f"{status.st_size / 1e9:.1f} GB is over the limit of {MAX_BYTES / 1e9:.0f} GB")
        with open(descriptor, "rb", closefd=False) as file:
            return file.read()
    except OSError as error:
        raise BadImage(f"cannot be read ({error.strerror})") from None
    finally:
        os.close(descriptor)


@contextmanager
def _opened(data: bytes) -> Iterator[Image.Image]:
    """The file `data` with its header read and its size checked; what fails until it is closed becomes `BadImage`."""
    if not data:
        raise BadImage("empty file")
    try:
        with _pillow(), Image.open(BytesIO(data), formats=FORMATS) as file:
            if file.width * file.height > MAX_PIXELS:
                raise BadImage(
                    f"{file.width} x {file.height} = {file.width * file.height / 1e6:.0f} MP "
                    f"is over the limit of {MAX_PIXELS / 1e6:.0f} MP"
                )
            yield file
    except BadImage:
        raise
    except UnidentifiedImageError:
        raise BadImage(_no_image(data)) from None
    except MemoryError:
        raise BadImage("needs more memory than there is") from None
    except Exception as error:
        if isinstance(error, EOFError) or "truncated" in str(error).lower():
            raise BadImage(f"truncated after {len(data):,} bytes") from None
        raise BadImage(f"damaged ({str(error).splitlines()[0] if str(error) else type(error).__name__})") from None


def _decode(file: Image.Image, min_side: int | None) -> Picture:
    width, height, mode, kind = file.width, file.height, file.mode, str(file.format)
    if min_side is not None:
        file.draft(None, (2 * min_side, 2 * min_side))  # acts on JPEG alone
    rotated = _orientation(file) in TURNS
    file.load()
    if kind == "TIFF" and file.mode == "I":
        raise BadImage(NO_RANGE)
    turn = TURNS.get(_orientation(file))  # after load: Pillow turns a TIFF itself and then says so
    image = to_rgb(file)
    if turn is not None:
        image = image.transpose(turn)
        if turn in SIDEWAYS:
            width, height = height, width
    image.info = {}  # its orientation above all: it has been followed
    return Picture(image, format=kind, mode=mode, width=width, height=height, rotated=rotated)


def _turned(data: bytes) -> bool:
    with _opened(data) as file:
        return _orientation(file) in TURNS


def _scale(box: Box, shape: tuple[int, int]) -> int:
    """How much smaller than it is stored an image may be decoded."""
    (left, top, right, bottom), (height, width) = box, shape
    finer = min((right - left) // width, (bottom - top) // height) // FINER
    return next(scale for scale in (8, 4, 2, 1) if scale <= max(finer, 1))


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(ORIENTATION, 1)
    except Exception:
        return 1


def to_rgb(image: Image.Image) -> Image.Image:
    """An image of any kind as 8-bit RGB: 16 bits scaled, transparency over white.

    Raises:
        BadImage: if its pixels have no fixed range or no colours.
    """
    if image.mode == "F":
        raise BadImage("float pixels have no fixed range; save it with 8 or 16 bits")
    if image.mode == "I" or image.mode.startswith("I;16"):
        grey = np.asarray(image)
        if grey.min() < 0 or grey.max() > 0xFFFF:
            raise BadImage(NO_RANGE)
        return Image.fromarray((grey >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    try:
        return image.convert("RGB")
    except ValueError:
        raise BadImage(f"pixels of kind {image.mode} cannot become RGB; save it as RGB") from None


def _no_image(data: bytes) -> str:
    """Why Pillow does not know `data`."""
    head = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n")
    if data.startswith(IMAGE_SIGNATURES) or data[8:12] == b"WEBP":
        return f"truncated or damaged ({len(data):,} bytes)"
    if data[4:12] in (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftypavif"):
        return "HEIC or AVIF photo, which is not supported; convert it to JPEG"
    kinds = {
        b"version https://git-lfs": "Git LFS pointer; run `git lfs pull`",
        b"<!doctype html": "HTML document",
        b"<html": "HTML document",
        b"<svg": "SVG drawing",
        b"<?xml": "XML document",
        b"%pdf": "PDF document",
        b"%!ps": "PostScript document",
        b"pk\x03\x04": "ZIP archive",
        b"\x1f\x8b": "gzip archive",
        b"{": "JSON text",
        b"[": "JSON text",
    }
    for start, kind in kinds.items():
        if head.lower().startswith(start):
            return f"not an image ({kind})"
    control = sum(byte < 32 and byte not in b"\t\r\n\f" for byte in head)
    return "not an image (text)" if head and not control else "not an image"


_using_pillow = 0
_using_pillow_lock = threading.Lock()
_saved: tuple[warnings.catch_warnings, int | None] | None = None


@contextmanager
def _pillow() -> Iterator[None]:
    """Pillow without warnings and without its own pixel limit (ours is lower, and names the size).

    Both are state of the process, so the first thread that enters sets them and the last one out
    restores them.
    """
    global _using_pillow, _saved
    with _using_pillow_lock:
        if _using_pillow == 0:
            quiet = warnings.catch_warnings()
            quiet.__enter__()
            warnings.simplefilter("ignore")
            _saved = (quiet, Image.MAX_IMAGE_PIXELS)
            Image.MAX_IMAGE_PIXELS = None
        _using_pillow += 1
    try:
        yield
    finally:
        with _using_pillow_lock:
            _using_pillow -= 1
            if _using_pillow == 0 and _saved is not None:
                quiet, Image.MAX_IMAGE_PIXELS = _saved
                quiet.__exit__(None, None, None)
                _saved = None

"""Files called images: odd ones that are sound, and those that must be refused, each with the reason."""

import struct
import zlib

import numpy as np
from PIL import Image

from pictures import bomb, encoded, noise, smooth

PHOTO = smooth(400, 300)
JPEG, PNG = encoded(PHOTO, "JPEG", quality=90), encoded(PHOTO)


def chunk(kind: bytes, data: bytes) -> bytes:
    """A part of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def header(width: int, height: int, *, depth: int = 8, colour: int = 0) -> bytes:
    """The signature and the header of a PNG."""
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))


def packed_rows(width: int, height: int) -> bytes:
    """A PNG of black pixels that unpacks to a thousand times its size."""
    packer = zlib.compressobj(9)
    rows = b"".join([*(packer.compress(bytes(1 + width)) for _ in range(height)), packer.flush()])
    return header(width, height) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def turned(orientation: int) -> bytes:
    """A photo that EXIF asks to turn."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(smooth(40, 20), "JPEG", exif=exif)


def with_size(data: bytes, width: int, height: int) -> bytes:
    """A JPEG whose frame header lies."""
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]


def frames(kind: str) -> bytes:
    """An animation."""
    first, *rest = (noise(seed, width=20) for seed in (1, 2, 3))
    return encoded(first, kind, save_all=True, append_images=rest)


def tiff(*entries: tuple[int, int, int, int], next_one: int = 0) -> bytes:
    """A TIFF of these entries: tag, type, count and value."""
    packed = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + packed + struct.pack("<I", next_one)


DEEP = Image.fromarray(np.arange(300, dtype=np.uint16).reshape(15, 20) * 200)
ODD = {
    "photo.jpg": JPEG,
    "progressive.jpg": encoded(PHOTO, "JPEG", progressive=True),
    "grey.jpg": encoded(PHOTO.convert("L"), "JPEG"),
    "cmyk.jpg": encoded(PHOTO.convert("CMYK"), "JPEG"),
    "deep.png": encoded(DEEP),
    "deep.tif": encoded(DEEP, "TIFF"),
    "palette.png": encoded(PHOTO.convert("P")),
    "palette.gif": encoded(PHOTO.convert("P"), "GIF"),
    "transparent.png": encoded(PHOTO.convert("P"), transparency=0),
    "alpha.png": encoded(Image.merge("RGBA", (*PHOTO.split(), PHOTO.convert("L")))),
    "grey alpha.png": encoded(PHOTO.convert("LA")),
    "one bit.png": encoded(PHOTO.convert("1")),
    "animated.gif": frames("GIF"),
    "animated.webp": frames("WEBP"),
    "animated.png": frames("PNG"),
    "pages.tif": frames("TIFF"),
    "photo.webp": encoded(PHOTO, "WEBP"),
    "photo.bmp": encoded(PHOTO, "BMP"),
    "photo.ppm": encoded(PHOTO, "PPM"),
    **{f"turned {orientation}.jpg": turned(orientation) for orientation in range(1, 10)},
    "exif of nothing.jpg": encoded(PHOTO, "JPEG", quality=90, exif=b"Exif\0\0MM\0*\xff\xff\xff\xff garbage"),
    "colours of nothing.jpg": encoded(PHOTO, "JPEG", quality=90, icc_profile=bytes(100_000)),
    "one pixel.png": encoded(noise(4, width=1, height=1)),
    "thin.png": encoded(noise(5, width=1, height=6000)),
    "wide.png": encoded(noise(6, width=6000, height=1)),
    "a bit turned over.png": PNG[:9000] + bytes([PNG[9000] ^ 4]) + PNG[9001:],
    "png in truth.jpg": PNG,
    "jpeg in truth.png": encoded(smooth(50, 40), "JPEG"),
    "zip behind.jpg": encoded(smooth(60, 40), "JPEG") + b"PK\x03\x04<script>alert(1)</script>",
    "żółw 猫 é 🌷.png": encoded(noise(7)),
    "quote ' and \" and , and %s {0}.png": encoded(noise(8)),
}
"""Sound, whatever they look like, by file name."""
BAD = {
    "empty.jpg": (b"", "empty file"),
    "one byte.jpg": (b"\xff", "not an image (text)"),
    "zeros.jpg": (bytes(5000), "not an image"),
    "noise.jpg": (np.random.default_rng(0).bytes(5000), "not an image"),
    "text.jpg": (b"hello there", "not an image (text)"),
    "page.jpg": (b"<!DOCTYPE html><html>404 not found</html>", "not an image (HTML document)"),
    "drawing.png": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image (SVG drawing)"),
    "pdf.jpg": (b"%PDF-1.7\n" + bytes(100), "not an image (PDF document)"),
    "postscript.jpg": (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n",
        "not an image (PostScript document)",
    ),
    "archive.jpg": (b"PK\x03\x04" + bytes(100), "not an image (ZIP archive)"),
    "gzip.jpg": (b"\x1f\x8b" + bytes(100), "not an image (gzip archive)"),
    "answer.jpg": (b'{"error": "rate limit"}', "not an image (JSON text)"),
    "pointer.jpg": (
        b"version https://git-lfs.github.com/spec/v1\n",
        "not an image (Git LFS pointer; run `git lfs pull`)",
    ),
    "photo.heic": (
        b"\0\0\0\x18ftypheic" + bytes(100),
        "HEIC or AVIF photo, which is not supported; convert it to JPEG",
    ),
    "photo.jp2": (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(100), "not an image"),
    "icon.ico": (b"\0\0\1\0\1\0" + bytes(100), "not an image"),
    **{
        f"cut at {at}.jpg": (
            JPEG[:at],
            f"truncated or damaged ({at:,} bytes)" if at < 100 else f"truncated after {at:,} bytes",
        )
        for at in (3, 20, 200, len(JPEG) // 2, len(JPEG) - 40)
    },
    "cut at 8.png": (PNG[:8], "truncated or damaged (8 bytes)"),
    "cut at 40.png": (PNG[:40], "truncated or damaged (40 bytes)"),
    "cut.png": (PNG[:9000], "truncated after 9,000 bytes"),
    "cut.gif": (encoded(PHOTO.convert("P"), "GIF")[:3000], "truncated after 3,000 bytes"),
    "cut.webp": (encoded(PHOTO, "WEBP")[:800], "damaged ("),
    "cut.bmp": (encoded(PHOTO, "BMP")[:3000], "truncated after 3,000 bytes"),
    "cut.tif": (encoded(PHOTO, "TIFF")[:3000], "truncated after 3,000 bytes"),
    "cut.ppm": (encoded(PHOTO, "PPM")[:3000], "truncated after 3,000 bytes"),
    "no pixels.png": (header(9, 9) + chunk(b"IEND", b""), "damaged ("),
    "no width.png": (
        header(0, 9) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b""),
        "truncated or damaged (65 bytes)",
    ),
    "no size.gif": (b"GIF89a" + bytes(7), "truncated or damaged (13 bytes)"),
    "depth.png": (
        header(9, 9, depth=77) + chunk(b"IDAT", zlib.compress(bytes(90))) + chunk(b"IEND", b""),
        "truncated or damaged (69 bytes)",
    ),
    "bomb.png": (bomb(), "50000 x 40000 = 2000 MP is over the limit of 50 MP"),
    "largest.png": (
        bomb(2**31 - 1, 2**31 - 1),
        "2147483647 x 2147483647 = 4611686014132 MP is over the limit of 50 MP",
    ),
    "packed bomb.png": (packed_rows(8000, 8000), "8000 x 8000 = 64 MP is over the limit of 50 MP"),
    "bomb.jpg": (with_size(JPEG, 65_500, 65_500), "65500 x 65500 = 4290 MP is over the limit of 50 MP"),
    "bomb.gif": (b"GIF89a" + struct.pack("<HH", 65_535, 65_535) + bytes(100), "truncated or damaged (110 bytes)"),
    "bomb.bmp": (
        b"BM" + struct.pack("<IIIIiiHHIIiiII", 200, 0, 54, 40, 2**30, 2**30, 1, 24, 0, 0, 0, 0, 0, 0) + bytes(99),
        "1073741824 x 1073741824 = 1152921504607 MP is over the limit of 50 MP",
    ),
    "upside down bomb.bmp": (
        b"BM" + struct.pack("<IIIIiiHHIIiiII", 200, 0, 54, 40, 2**30, -(2**30), 1, 24, 0, 0, 0, 0, 0, 0) + bytes(99),
        "1073741824 x 3221225472 = 3458764513821 MP is over the limit of 50 MP",
    ),
    "bomb.ppm": (b"P6 99999 99999 255\n" + bytes(99), "99999 x 99999 = 10000 MP is over the limit of 50 MP"),
    "digits.ppm": (b"P6 " + b"9" * 5000 + b" 1 255\n", "damaged ("),
    "bomb.tif": (
        tiff((256, 4, 1, 2**30), (257, 4, 1, 2**30), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1)),
        "truncated or damaged (74 bytes)",
    ),
    "count.tif": (tiff((256, 4, 2**31, 0), (257, 4, 1, 9)), "truncated or damaged (38 bytes)"),
    "circle.tif": (tiff((256, 4, 1, 9), (257, 4, 1, 9), next_one=8), "truncated or damaged (38 bytes)"),
    "text bomb.png": (
        PNG[:33] + chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(8_000_000), 9)) + PNG[33:],
        "damaged (",
    ),
    "more text.png": (
        PNG[:33] + chunk(b"iTXt", b"k\0\1\0\0\0" + zlib.compress(bytes(8_000_000), 9)) + PNG[33:],
        "damaged (",
    ),
    "profile bomb.png": (
        PNG[:33] + chunk(b"iCCP", b"k\0\0" + zlib.compress(bytes(8_000_000), 9)) + PNG[33:],
        "damaged (",
    ),
    "chunk.png": (PNG[:33] + struct.pack(">I", 2**31 - 1) + b"tEXt" + PNG[33:], "truncated after 17,400 bytes"),
    "float.tif": (
        encoded(Image.fromarray(np.ones((9, 9), np.float32)), "TIFF"),
        "float pixels have no fixed range; save it with 8 or 16 bits",
    ),
    "wide.tif": (
        encoded(Image.fromarray(np.full((9, 9), 2**30, np.int32)), "TIFF"),
        "32-bit pixels have no fixed range; save it with 8 or 16 bits",
    ),
}
"""What no image can be had from, by file name: the bytes, and how the reason begins."""

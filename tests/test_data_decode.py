import io
import os
import time
import warnings

import numpy as np
import pytest
from PIL import Image

from pictures import bomb, encoded, noise, smooth
from vitreous.data.decode import BadImage, decode, decode_picture, read_file

RED, WHITE = (255, 0, 0), (255, 255, 255)


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_files_give_their_pixels(kind):
    assert np.array_equal(decode(encoded(noise(), kind)), noise())


def test_lossless_webp_gives_its_pixels():
    assert np.array_equal(decode(encoded(noise(), "WEBP", lossless=True)), noise())


def test_a_path_is_read_whatever_its_suffix(tmp_path):
    (tmp_path / "really.gif").write_bytes(encoded(noise(), "PNG"))
    assert np.array_equal(decode(tmp_path / "really.gif"), noise())


def test_grey_palette_and_one_bit_images_become_rgb():
    grey = noise().convert("L")
    assert np.array_equal(decode(encoded(grey)), grey.convert("RGB"))
    palette = noise().quantize(16)
    assert np.array_equal(decode(encoded(palette)), palette.convert("RGB"))
    bits = Image.fromarray(np.eye(4, dtype=bool))
    assert np.array_equal(pixels(decode(encoded(bits)))[..., 0], 255 * np.eye(4))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_not_clipped(kind):
    values = np.array([[0, 255, 256, 300], [30000, 40000, 65000, 65535]], dtype=np.uint16)
    image = decode(encoded(Image.fromarray(values), kind))
    assert np.array_equal(pixels(image), np.repeat((values >> 8)[..., None], 3, axis=-1))


def test_16_bit_grey_in_a_wide_integer_image_is_scaled():
    values = np.array([0, 300, 65535], dtype=">u2")
    assert pixels(decode(b"P5 3 1 65535\n" + values.tobytes()))[0, :, 0].tolist() == [0, 1, 255]


def test_big_endian_16_bit_tiff_is_scaled():
    tiff = io.BytesIO()
    Image.frombytes("I;16B", (2, 1), bytes([0x12, 0x34, 0xFF, 0xFF])).save(tiff, "TIFF")
    assert pixels(decode(tiff.getvalue()))[0, :, 0].tolist() == [0x12, 0xFF]


def test_32_bit_and_float_pixels_are_refused():
    for values in ([0, 70000], [0, 255], [0, 65535]):  # what is white is not for the values of one image to say
        with pytest.raises(BadImage, match="32-bit pixels"):
            decode(encoded(Image.fromarray(np.array([values], dtype=np.int32)), "TIFF"))
    with pytest.raises(BadImage, match="float pixels"):
        decode(encoded(Image.fromarray(np.ones((2, 2), dtype=np.float32)), "TIFF"))


def test_alpha_is_composited_over_white():
    rgba = Image.new("RGBA", (3, 1))
    for x, alpha in enumerate((0, 128, 255)):
        rgba.putpixel((x, 0), (255, 0, 0, alpha))
    assert pixels(decode(encoded(rgba)))[0].tolist() == [list(WHITE), [255, 127, 127], list(RED)]
    grey = Image.new("LA", (2, 1), (0, 0))
    grey.putpixel((1, 0), (0, 255))
    assert pixels(decode(encoded(grey)))[0].tolist() == [[255] * 3, [0] * 3]


@pytest.mark.parametrize("mode", ["P", "L", "RGB"])
def test_a_transparent_colour_is_white(mode):
    image = Image.new(mode, (2, 1), 0)
    if mode == "P":
        image.putpalette([9, 9, 9, 255, 0, 0])
    image.putpixel((1, 0), {"P": 1, "L": 200, "RGB": RED}[mode])
    data = encoded(image, transparency=(0, 0, 0) if mode == "RGB" else 0)
    assert pixels(decode(data))[0].tolist() == [list(WHITE), [200] * 3 if mode == "L" else list(RED)]


def test_cmyk_becomes_rgb():
    cyan = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    picture = decode_picture(encoded(cyan, "JPEG", quality=95))
    assert picture.mode == "CMYK"
    assert np.abs(pixels(picture.image).astype(int) - [0, 255, 255]).max() <= 2


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_frame_of_an_animation_counts(kind):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    image = decode(encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options))
    assert np.array_equal(image, frames[0])


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_exif_orientation_is_applied(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    picture = decode_picture(encoded(noise(), kind, exif=exif, **options))
    wanted = pixels(noise())
    turned = {
        1: wanted,
        2: wanted[:, ::-1],
        3: wanted[::-1, ::-1],
        4: wanted[::-1],
        5: wanted.transpose(1, 0, 2),
        6: np.rot90(wanted, -1),
        7: np.rot90(wanted, 2).transpose(1, 0, 2),
        8: np.rot90(wanted),
    }
    assert np.array_equal(picture.image, turned[orientation])
    assert picture.rotated == (orientation > 1)
    assert (picture.width, picture.height) == picture.image.size


def test_a_turned_photo_says_so_and_gives_its_upright_size():
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = decode_picture(encoded(smooth(640, 480), "JPEG", exif=exif), min_side=32)
    assert picture.rotated
    assert (picture.width, picture.height) == (480, 640)
    assert not decode_picture(encoded(smooth(640, 480), "JPEG")).rotated


def test_broken_exif_does_not_cost_the_image():
    data = encoded(noise(), "PNG", exif=b"Exif\0\0II*\0garbage")
    assert np.array_equal(decode(data), noise())


def test_an_image_of_one_pixel_is_fine():
    assert pixels(decode(encoded(Image.new("RGB", (1, 1), RED)))).tolist() == [[list(RED)]]


def test_a_large_jpeg_is_decoded_small_but_never_under_twice_the_side():
    photo = encoded(smooth(1600, 1200), "JPEG", quality=95)
    full = decode(photo)
    assert full.size == (1600, 1200)
    for min_side, size in {
        600: (1600, 1200),
        300: (800, 600),
        200: (800, 600),
        150: (400, 300),
        1: (200, 150),
    }.items():
        small = decode(photo, min_side=min_side)
        assert small.size == size
        wanted = pixels(full.resize(size, Image.Resampling.BOX)).astype(int)
        assert np.abs(pixels(small) - wanted).mean() < 1


REASONS = {
    b"": "empty file",
    b"<!DOCTYPE html><html>404</html>": "not an image (HTML document)",
    b"\n<html>": "not an image (HTML document)",
    b'{"error": 404}': "not an image (JSON text)",
    b"cat 0.5 0.5\n": "not an image (text)",
    b"%PDF-1.7": "not an image (PDF document)",
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n": "not an image (PostScript document)",
    b"<svg xmlns=''/>": "not an image (SVG drawing)",
    b"PK\x03\x04rest": "not an image (ZIP archive)",
    b"version https://git-lfs.github.com/spec/v1\n": "not an image (Git LFS pointer; run `git lfs pull`)",
    b"\0\0\0\x18ftypheic\0\0": "HEIC or AVIF photo, which is not supported; convert it to JPEG",
    b"\x00\x01\x02": "not an image",
    b"\xff\xd8\xff\xe0": "truncated or damaged (4 bytes)",
}


@pytest.mark.parametrize("data", REASONS)
def test_what_is_no_image_says_what_it_is(data):
    with pytest.raises(BadImage) as error:
        decode(data)
    assert str(error.value) == REASONS[data]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP"])
@pytest.mark.parametrize("part", [0.02, 0.3, 0.6, 0.9])
def test_a_truncated_file_is_refused_with_its_length(kind, part):
    data = encoded(noise(width=64, height=64), kind)
    data = data[: int(len(data) * part)]
    with pytest.raises(BadImage, match=r"truncated|damaged"):
        decode(data)


def test_a_truncated_jpeg_is_called_that_also_at_small_scale():
    data = encoded(noise(width=640, height=480), "JPEG")[:20_000]
    for min_side in (None, 1):
        with pytest.raises(BadImage, match=r"^truncated after 20,000 bytes$"):
            decode(data, min_side=min_side)


def test_flipped_bits_give_an_image_or_a_reason():
    rng = np.random.default_rng(0)
    reasons = []
    for kind in ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"):
        whole = encoded(noise(width=40, height=40), kind)
        for _ in range(60):
            data = bytearray(whole)
            for at in rng.integers(0, len(data), 10):
                data[at] = rng.integers(256)
            try:
                assert decode(bytes(data)).mode == "RGB"
            except BadImage as error:
                reasons.append(str(error))
    assert len(reasons) > 60
    assert not any("\n" in reason for reason in reasons)


def test_a_bomb_is_refused_by_its_header_before_it_costs_anything():
    import resource

    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with pytest.raises(BadImage, match=r"^50000 x 40000 = 2000 MP is over the limit of 50 MP$"):
        decode(bomb())
    assert time.monotonic() - start < 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kB


def test_the_limit_lies_below_that_of_pillow_and_pillow_keeps_its_own():
    limit = Image.MAX_IMAGE_PIXELS
    with pytest.raises(BadImage, match="60 MP is over the limit"):
        decode(bomb(10_000, 6_000))
    with pytest.raises(BadImage, match="100 MP is over the limit"):
        decode(bomb(10_000, 10_000))
    assert limit == Image.MAX_IMAGE_PIXELS


def test_no_warning_leaks_and_the_filters_are_as_before():
    filters = list(warnings.filters)
    noisy = encoded(noise().quantize(4), transparency=bytes([0, 255, 255, 255]))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        decode(noisy)
        with pytest.raises(BadImage):
            decode(bomb(10_000, 10_000))  # Pillow would warn from 89 MP
    assert not caught
    assert warnings.filters == filters


def test_what_is_not_a_regular_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "link.jpg").symlink_to("nowhere")
    reasons = {"pipe.jpg": "not a regular file", "link.jpg": "broken link", "none.jpg": "no such file"}
    for name, reason in {**reasons, "folder.jpg": "a folder, not a file"}.items():
        with pytest.raises(BadImage) as error:
            decode(tmp_path / name)
        assert str(error.value) == reason
    with pytest.raises(BadImage, match="not a regular file"):
        read_file("/dev/zero")


def test_a_file_without_permission_says_so(forbid, tmp_path):
    (tmp_path / "secret.png").write_bytes(encoded(noise()))
    forbid(tmp_path / "secret.png")
    with pytest.raises(BadImage, match="no permission to read it"):
        decode(tmp_path / "secret.png")


def test_a_file_too_large_to_be_an_image_is_not_read(tmp_path):
    with open(tmp_path / "huge.jpg", "wb") as file:
        file.truncate(3_000_000_000)  # sparse: takes no space
    with pytest.raises(BadImage, match=r"3\.0 GB is over the limit of 1 GB"):
        decode(tmp_path / "huge.jpg")

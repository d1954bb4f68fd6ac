import io
import itertools

import numpy as np
import pytest
from PIL import Image

from pictures import bomb, encoded, noise, smooth
from vitreous.data import fast_jpeg
from vitreous.data.archives import list_archive
from vitreous.data.decode import FINER, BadImage, decode, decode_crop
from vitreous.data.layouts import open_data
from vitreous.data.resizing import resized
from vitreous.data.views import TrainView
from vitreous.seeding import generator

pytest.importorskip("simplejpeg")


def photo(width: int = 150, height: int = 130, *, seed: int = 0) -> Image.Image:
    """Slow waves with some grain."""
    grain = np.random.default_rng(seed).integers(-20, 20, (height, width, 3))
    return Image.fromarray((np.asarray(smooth(width, height)) + grain).clip(0, 255).astype(np.uint8))


def outcome(data: bytes, box: tuple[int, int, int, int], *, shape=(64, 64)) -> bytes | str:
    """The pixels in the box, or the reason why there are none."""
    try:
        crop = decode_crop(data, lambda width, height: box, shape=shape)
    except BadImage as error:
        return str(error)
    return repr(crop.shape).encode() + crop.tobytes()


@pytest.fixture
def without_library(monkeypatch):
    """A context in which there is only Pillow."""

    def call(*given, **options):
        with monkeypatch.context() as patched:
            patched.setattr(fast_jpeg, "_decoder", lambda: None)
            return outcome(*given, **options)

    return call


BOXES = [(0, 0, 150, 130), (3, 5, 90, 7), (149, 0, 150, 1), (20, 40, 130, 99), (0, 0, 150, 97), (7, 60, 97, 129)]
KINDS = [
    {"quality": quality, "subsampling": subsampling, **options}
    for quality, subsampling, options in itertools.product(
        (60, 95), (0, 1, 2, "4:1:1"), ({}, {"progressive": True}, {"restart_marker_blocks": 3}, {"optimize": True})
    )
]


@pytest.mark.parametrize("shape", [(64, 64), (8, 8), (2, 3)], ids=["full", "half", "less"])
def test_a_crop_is_that_of_pillow_to_the_bit(shape, without_library):
    files = [encoded(photo(), "JPEG", **kind) for kind in KINDS]
    files += [encoded(photo().convert("L"), "JPEG"), encoded(photo(), "JPEG", keep_rgb=True)]
    for data, box in itertools.product(files, BOXES):
        found = fast_jpeg.frame(data)
        assert found is not None
        assert (found.width, found.height) == (150, 130)
        assert outcome(data, box, shape=shape) == without_library(data, box, shape=shape)


def test_a_crop_of_a_plain_jpeg_never_meets_pillow(monkeypatch):
    data, wanted = encoded(photo(), "JPEG"), decode(encoded(photo(), "JPEG"))
    monkeypatch.setattr(Image, "open", None)
    crop = decode_crop(data, lambda width, height: (10, 20, 100, 90), shape=(64, 64))
    assert np.array_equal(crop, wanted.crop((10, 20, 100, 90)))


def test_rows_below_those_wanted_are_not_decoded():
    data = encoded(photo(64, 1000), "JPEG")
    found = fast_jpeg.frame(data)
    for stop, scale in itertools.product((1, 16, 500, 960, 1000), (1, 2, 4, 8)):
        height = min(1000, stop + fast_jpeg.MARGIN)
        assert fast_jpeg.rows(data, found, stop=stop, scale=scale).shape == (-(-height // scale), 64 // scale, 3)


def test_what_is_not_plain_is_left_to_pillow(without_library):
    exif = Image.Exif()
    turned = []
    for orientation in range(1, 9):
        exif[0x0112] = orientation
        turned.append(encoded(photo(), "JPEG", exif=exif))
    frames = {"save_all": True, "append_images": [photo(seed=1)]}
    files = [encoded(photo().convert("CMYK"), "JPEG"), encoded(photo(), "MPO", **frames), *turned]
    files += [encoded(photo(), "PNG"), encoded(photo(), "WEBP"), encoded(photo().convert("P"), "GIF"), bomb(), b""]
    files += [b"\xff\xd8\xff", b"\xff\xd8\xff\xc0\0\x0b", b"<html>"]
    for data, box in itertools.product(files, [(3, 5, 90, 7), (20, 40, 119, 99)]):
        assert outcome(data, box) == without_library(data, box)
        assert outcome(data, box, shape=(8, 8)) == without_library(data, box, shape=(8, 8))
    assert fast_jpeg.frame(files[0]) is None
    assert all(fast_jpeg.frame(data).may_turn for data in turned)


def test_a_turned_photo_is_cropped_as_it_is_looked_at():
    exif = Image.Exif()
    exif[0x0112] = 6
    seen = []

    def draw(width, height):
        seen.append((width, height))
        return 10, 20, 50, 90

    data = encoded(photo(), "JPEG", exif=exif)
    assert np.array_equal(decode_crop(data, draw, shape=(64, 64)), decode(data).crop((10, 20, 50, 90)))
    assert seen == [(130, 150)]


def test_a_truncated_or_foreign_end_gives_what_pillow_gives(without_library):
    whole = encoded(photo(), "JPEG")
    for stop in [*range(0, len(whole), 97), *range(len(whole) - 20, len(whole) + 1)]:
        for data in (whole[:stop], whole[:stop] + b"\0" * 9):
            assert outcome(data, (20, 10, 130, 30)) == without_library(data, (20, 10, 130, 30))


def test_flipped_bytes_give_what_pillow_gives(without_library):
    rng = np.random.default_rng(0)
    reasons = 0
    for seed in range(400):
        data = bytearray(encoded(photo(seed=seed), "JPEG", progressive=seed % 4 == 0))
        for at in rng.integers(0, len(data) if seed % 2 else 650, 3):
            data[at] = rng.integers(256)
        found = outcome(bytes(data), (20, 10, 130, 99))
        assert found == without_library(bytes(data), (20, 10, 130, 99))
        reasons += isinstance(found, str)
    assert 20 < reasons < 300


def test_a_header_that_promises_too_much_is_refused_before_a_box_is_drawn():
    data = bytearray(encoded(photo(), "JPEG"))
    at = fast_jpeg.frame(bytes(data)).at
    data[at : at + 4] = b"\xff\xff\xff\xff"
    with pytest.raises(BadImage, match=r"^65535 x 65535 = 4295 MP is over the limit of 50 MP$"):
        decode_crop(bytes(data), lambda *size: pytest.fail("drawn"), shape=(8, 8))


@pytest.mark.parametrize(("shape", "scale"), [((64, 64), 1), ((33, 20), 1), ((32, 20), 2), ((8, 9), 8), ((1, 1), 8)])
def test_a_crop_keeps_several_pixels_for_each_of_the_view(shape, scale):
    data = encoded(smooth(600, 400), "JPEG", quality=95)
    crop = decode_crop(data, lambda width, height: (40, 80, 40 + 296, 80 + 256), shape=shape)
    assert crop.shape == (256 // scale, 296 // scale, 3)
    assert scale == 1 or min(crop.shape[0] / shape[0], crop.shape[1] / shape[1]) >= FINER
    wanted = decode(data).crop((40, 80, 336, 336)).resize(crop.shape[1::-1], Image.Resampling.BOX)
    assert np.abs(crop.astype(int) - np.asarray(wanted)).mean() < 1


@pytest.mark.parametrize(("size", "mean", "tail", "most"), [(96, 0.1, 1, 2), (24, 0.4, 4, 12), (12, 0.5, 4, 12)])
def test_crops_of_real_photos_are_those_of_pillow_but_for_the_scale(shared, size, mean, tail, most):
    source = list_archive(shared / "data" / "imagenette224" / "imagenette224_val.tar").source
    box, differences = (8, 12, 216, 220), []
    for i in range(40):
        crop = source.crop(i, lambda width, height: box, shape=(size, size))
        assert crop.shape[0] == (208 if size > 26 else 104 if size > 13 else 52)
        ours = resized(crop, (size, size), interpolation="bicubic").permute(1, 2, 0).numpy()
        exact = Image.open(io.BytesIO(source.read(i))).convert("RGB").crop(box)
        exact = exact.resize((size, size), Image.Resampling.BICUBIC)
        differences.append(np.abs(ours.astype(int) - np.asarray(exact)))
    found = np.stack(differences)
    assert found.mean() < mean
    assert np.quantile(found, 0.999) <= tail
    assert found.max() <= most


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_the_same_generator_draws_the_same_view_from_file_and_from_pixels(tmp_path, kind):
    for name, seed in itertools.product(("a", "b"), range(3)):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / f"{seed}.img.{kind.lower()}").write_bytes(encoded(noise(seed, width=60, height=50), kind))
    source, view = open_data(str(tmp_path)).train, TrainView(image_size=24, shift_ratio=0.1, rotate=9, erase=0.5)
    for i in range(len(source)):
        from_pixels = view(decode(source.read(i)), generator(0, "x", i))
        assert (view.read(source, i, generator(0, "x", i)) == from_pixels).all()

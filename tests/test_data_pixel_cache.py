import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pictures import encoded, noise, smooth, write
from vitreous.data.augment import TrivialAugment
from vitreous.data.layouts import open_data
from vitreous.data.loader import training_batches
from vitreous.data.pixel_cache import CHUNK, Cache
from vitreous.data.source import FileSource, Source
from vitreous.data.still import MAX_STRETCH
from vitreous.data.views import TrainView
from vitreous.errors import InputError
from vitreous.seeding import generator

SIZES = [(50, 37), (37, 50), (24, 24), (10, 8), (300, 7), (5, 200), (400, 310)]
VIEW = TrainView(image_size=24, margin=0.15)


@pytest.fixture
def source(tmp_path) -> Source:
    """JPEGs of several shapes, one of them to be turned, and a PNG with transparency."""
    files = {f"a/{k}.jpg": encoded(smooth(*size), "JPEG", quality=90) for k, size in enumerate(SIZES)}
    turned = Image.Exif()
    turned[0x0112] = 6
    files["b/turned.jpg"] = encoded(smooth(60, 31), "JPEG", exif=turned)
    files["b/clear.png"] = encoded(noise(width=40, height=33).convert("LA"))
    return open_data(str(write(files, tmp_path / "photos"))).train


def cache_of(source: Source, folder: Path, view: TrainView = VIEW, *, fingerprint: str = "one") -> Cache:
    assert view.still is not None
    return Cache(folder, source, view.still, fingerprint)


def written(source: Source, folder: Path, view: TrainView = VIEW, *, most_gb: float = 1.0) -> Source:
    cache = cache_of(source, folder, view)
    cache.write(most_gb=most_gb)
    found = cache.open()
    assert found is not source
    return found


class Blind(FileSource):
    """Image files that nobody may decode any more."""

    def crop(self, i, draw, *, shape):
        raise AssertionError("it was decoded")


def blind(source: Source) -> Source:
    assert isinstance(source, FileSource)
    unseen = source.select(range(len(source)))
    unseen.__class__ = Blind
    return unseen


VIEWS = [
    VIEW,
    TrainView(image_size=(16, 40), margin=0.0, interpolation="bilinear", flip=False),
    TrainView(image_size=24, margin=1.0, rotate=20, augment=TrivialAugment(), erase=0.5),
    TrainView(image_size=24, min_area_ratio=1.0, shift_ratio=0.2),
    TrainView(image_size=(24, 16), min_area_ratio=1.0, interpolation="lanczos"),
]


@pytest.mark.parametrize("view", VIEWS)
def test_views_from_a_cache_have_the_bits_of_those_from_the_files(view, source, tmp_path):
    cached = written(source, tmp_path / "cache", view)
    kept = cache_of(blind(source), tmp_path / "cache", view).open()
    for epoch in range(3):
        for i in range(len(source)):
            wanted = view.read(source, i, generator(0, "augment", epoch, i))
            assert torch.equal(view.read(cached, i, generator(0, "augment", epoch, i)), wanted)
            assert torch.equal(view.read(kept, i, generator(0, "augment", epoch, i)), wanted)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_from_a_cache_have_the_bits_of_those_from_the_files(num_workers, source, tmp_path):
    settings = {"batch_size": 4, "seed": 3, "first_step": 1, "steps": 6, "num_repeats": 2}
    theirs = list(training_batches(source, VIEW, **settings))
    cached = written(source, tmp_path / "cache")
    ours = list(training_batches(cached, VIEW, **settings, num_workers=num_workers))
    assert len(ours) == len(theirs) == 5
    for a, b in zip(ours, theirs):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.index, b.index)
        assert torch.equal(a.labels, b.labels)


def test_views_of_real_photos_from_a_cache_have_the_bits_of_those_from_the_files(shared, tmp_path):
    source = open_data(str(next((shared / "data" / "imagenette224").glob("*train*.tar")))).train
    source = source.select(np.linspace(0, len(source) - 1, 100).astype(int))
    view = TrainView(image_size=192, margin=0.15)
    cached = written(source, tmp_path / "cache", view)
    for i in range(len(source)):
        assert torch.equal(
            view.read(cached, i, generator(0, "augment", i)), view.read(source, i, generator(0, "augment", i))
        )


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (60, 40), (224, 224)])
@pytest.mark.parametrize(("margin", "short"), [(0.0, 64), (0.15, 74), (0.5, 96)])
def test_a_view_with_a_margin_is_a_window_of_the_whole_image_as_pillow_resizes_it(size, margin, short):
    image = noise(width=size[0], height=size[1])
    wide, high = (max(short, round(side * short / min(size))) for side in size)
    whole = np.asarray(image.resize((wide, high), Image.Resampling.BICUBIC)).astype(int).transpose(2, 0, 1)
    view, tops, lefts = TrainView(image_size=64, margin=margin, flip=False), set(), set()
    for seed in range(300):
        rng = generator(seed, "test")
        top, left = (int(rng.integers(side - 64 + 1)) for side in (high, wide))
        tops.add(top)
        lefts.add(left)
        if seed < 10:
            window = whole[:, top : top + 64, left : left + 64]
            assert np.abs(view(image, generator(seed, "test")).numpy() - window).max() <= 2
    assert {0, high - 64} <= tops
    assert len(lefts) > 0.6 * min(300, wide - 63)


def test_of_a_very_long_image_the_middle_is_kept(tmp_path):
    long = Image.new("RGB", (20_000, 2), "red")
    long.paste("blue", (9_990, 0, 10_010, 2))
    source = open_data(str(write({"a/0.png": encoded(long), "b/0.png": encoded(noise())}, tmp_path / "photos"))).train
    assert VIEW.still is not None
    pixels = VIEW.still.read(source, 0)
    assert pixels.shape == (3, 28, 28 * MAX_STRETCH)
    assert (pixels[2] == 255).all()


def test_what_is_random_before_the_resize_keeps_nothing_still():
    assert TrainView().still is None
    assert TrainView(min_area_ratio=1.0).still is not None
    assert TrainView(margin=0.1, flip=False).still == TrainView(margin=0.1, erase=0.3).still


def test_a_cache_of_other_images_or_another_view_is_not_read_but_written_anew(source, tmp_path):
    folder = tmp_path / "cache"
    written(source, folder)
    others = [
        cache_of(source, folder, fingerprint="two"),
        cache_of(source, folder, TrainView(image_size=24, margin=0.2)),
        cache_of(source.select([1, 0, *range(2, len(source))]), folder),
    ]
    for other in others:
        assert other.open() is other.source
    others[2].write(most_gb=1)
    found = others[2].open()
    assert torch.equal(VIEW.read(found, 0, generator(0, "x")), VIEW.read(source, 1, generator(0, "x")))
    assert cache_of(source, folder).open() is source


def test_a_cache_that_is_whole_is_not_written_again(source, tmp_path):
    written(source, tmp_path / "cache")
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()}
    cache_of(blind(source), tmp_path / "cache").write(most_gb=1)
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()} == before
    assert before.keys() == {"pixels", "index.npz"}


@pytest.mark.parametrize("name", ["pixels", "index.npz"])
@pytest.mark.parametrize("size", [None, 0, 100])
def test_a_damaged_cache_is_written_anew(name, size, source, tmp_path):
    written(source, tmp_path / "cache")
    path = tmp_path / "cache" / name
    path.unlink() if size is None else os.truncate(path, size)
    assert cache_of(source, tmp_path / "cache").open() is source
    cached = written(source, tmp_path / "cache")
    assert torch.equal(VIEW.read(cached, 3, generator(0, "x")), VIEW.read(source, 3, generator(0, "x")))


def test_more_than_was_allowed_is_not_kept(source, tmp_path):
    with pytest.raises(
        InputError, match=r"the 9 images are not kept, for they take 2.1e-05 GB or more; cache_gb is 1e-05"
    ):
        cache_of(source, tmp_path / "cache").write(most_gb=1e-5)
    with pytest.raises(
        InputError, match=r"the 9 images are not kept, for they take more: 9 of them do; cache_gb is 3e-05"
    ):
        cache_of(source, tmp_path / "cache").write(most_gb=3e-5)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("where", ["os.fsync", "os.replace", "numpy.savez"])
def test_a_cache_is_there_whole_or_not_at_all(where, error, source, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(where, fail)
        with pytest.raises((InputError, KeyboardInterrupt)) as raised:
            cache_of(source, tmp_path / "cache").write(most_gb=1)
    assert "the disk is full" in str(raised.value) or isinstance(error, KeyboardInterrupt)
    assert not (tmp_path / "cache").exists()
    written(source, tmp_path / "cache")


def test_an_image_that_is_gone_is_named(source, tmp_path):
    (tmp_path / "photos" / "a" / "1.jpg").unlink()
    with pytest.raises(InputError, match=r"cannot read a/1.jpg any more \(no such file\); put it back"):
        cache_of(source, tmp_path / "cache").write(most_gb=1)
    assert not (tmp_path / "cache").exists()


def test_a_cache_that_goes_away_is_done_without(source, tmp_path):
    cached = written(source, tmp_path / "cache")
    cache_of(source, tmp_path / "cache").remove()
    assert torch.equal(VIEW.read(cached, 2, generator(0, "x")), VIEW.read(source, 2, generator(0, "x")))


def test_more_images_than_are_in_memory_at_once_are_counted_and_found(tmp_path):
    number = 2 * CHUNK + 3
    photos = write({f"a/{i:03}.png": encoded(noise(i)) for i in range(number)}, tmp_path / "photos")
    source = open_data(str(write({"b/0.png": encoded(noise(999))}, photos))).train
    done = []
    cache_of(source, tmp_path / "cache").write(most_gb=1, progress=done.append)
    assert done == [CHUNK, 2 * CHUNK, number + 1]
    cached = cache_of(source, tmp_path / "cache").open()
    chosen = cached.select([number - 1, 5])
    assert chosen.name(0) == source.name(number - 1)
    assert torch.equal(VIEW.read(chosen, 0, generator(0, "x")), VIEW.read(source, number - 1, generator(0, "x")))


def test_a_cached_source_travels_light_and_says_what_the_source_says(source, tmp_path):
    cached = written(source, tmp_path / "cache", TrainView(image_size=224, margin=1.0))
    VIEW.read(cached, 0, generator(0, "x"))
    travelled = pickle.dumps(cached)
    assert len(travelled) < 10_000
    cached = pickle.loads(travelled)
    for i in range(len(source)):
        assert cached.name(i) == source.name(i)
        assert cached.read(i) == source.read(i)
        assert np.array_equal(cached.image(i, min_side=9), source.image(i, min_side=9))
    assert cached.stamp() == source.stamp()
    assert cached.labels.tolist() == source.labels.tolist()
    random = TrainView(image_size=24)
    assert torch.equal(random.read(cached, 1, generator(0, "x")), random.read(source, 1, generator(0, "x")))

"""Images that look the same."""

import io
import tarfile

import numpy as np
import pytest
from PIL import Image
from scipy.fft import dctn

from vitreous.data import near_duplicates
from vitreous.data.decode import decode
from vitreous.data.near_duplicates import Looks, dct_hash, near_pairs, thumbnail


def looks(images: list[Image.Image]) -> Looks:
    grey = [image.convert("L") for image in images]
    return Looks(
        np.array([dct_hash(image) for image in grey], dtype=np.uint64),
        np.stack([thumbnail(image) for image in grey]),
        np.array([min(image.size) for image in images]),
    )


def found(looks: Looks) -> set[tuple[int, int]]:
    pairs = near_pairs(looks)
    return set(zip(pairs.first.tolist(), pairs.second.tolist()))


def saved(image: Image.Image, **options) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", **options)
    return decode(file.getvalue())


@pytest.fixture(scope="module")
def real(request) -> list[Image.Image]:
    """Photos that are all different."""
    shared = request.getfixturevalue("shared")
    with tarfile.open(shared / "data" / "imagenette224" / "imagenette224_val.tar") as tar:
        return [decode(tar.extractfile(member).read()) for member, _ in zip(tar, range(150))]


def test_hashes_differ_where_scipys_cosine_transform_does(real):
    bits, hashes = [], []
    for image in real[:20]:
        grey = image.convert("L")
        pixels = np.asarray(grey.resize((32, 32), Image.Resampling.BILINEAR), dtype=np.float64)
        low = dctn(pixels, norm="ortho")[:8, :8].ravel()
        bits.append(low > np.median(low[1:]))
        hashes.append(dct_hash(grey))
    for i in range(20):
        assert [(hashes[i] ^ other).bit_count() for other in hashes] == [(bits[i] != b).sum() for b in bits]


def test_photos_pass_where_numpy_finds_them_correlated(real, monkeypatch):
    monkeypatch.setattr(near_duplicates, "MIN_CORRELATION", 0.6)
    seen = looks(real)
    alike = Looks(np.zeros_like(seen.hashes), seen.thumbnails, seen.sides)
    expected = np.corrcoef(seen.thumbnails.astype(np.float64)) >= near_duplicates.MIN_CORRELATION
    expected &= (seen.thumbnails.std(axis=1) >= near_duplicates.PLAIN)[:, None]
    assert len(found(alike)) > 10
    assert found(alike) == {(i, j) for i, j in np.argwhere(expected).tolist() if i < j}


@pytest.mark.parametrize("block", [7, 1 << 20])
def test_every_pair_within_ten_bits_is_found_and_none_beyond(monkeypatch, block):
    monkeypatch.setattr(near_duplicates, "BLOCK", block)
    random = np.random.default_rng(1)
    hashes = random.integers(1 << 64, size=300, dtype=np.uint64)
    for i in range(1, 300, 2):  # neighbours 0 to 14 bits apart
        flips = sum(1 << int(bit) for bit in random.permutation(64)[: i % 15])
        hashes[i] = hashes[i - 1] ^ np.uint64(flips)
    same = np.tile(random.integers(256, size=256, dtype=np.uint8), (300, 1))
    expected = {
        (i, j) for i in range(300) for j in range(i + 1, 300) if (int(hashes[i]) ^ int(hashes[j])).bit_count() <= 10
    }
    assert 90 < len(expected) < 150
    assert found(Looks(hashes, same, np.full(300, 224))) == expected


def test_few_of_all_pairs_are_compared(monkeypatch):
    compared, expanded = [], near_duplicates._expanded

    def counted(low, high):
        for first, second in expanded(low, high):
            compared.append(len(first))
            yield first, second

    monkeypatch.setattr(near_duplicates, "_expanded", counted)
    random, n = np.random.default_rng(2), 20_000
    hashes = random.integers(1 << 64, size=n, dtype=np.uint64)
    thumbnails = random.integers(256, size=(n, 256), dtype=np.uint8)
    assert found(Looks(hashes, thumbnails, np.full(n, 224))) == set()
    assert sum(compared) < n * n / 2 / 100


@pytest.mark.parametrize(
    ("change", "recall"),
    [
        (lambda image: saved(image, quality=30), 1.0),
        (lambda image: saved(image.resize((112, 112), Image.Resampling.LANCZOS)), 1.0),
        (lambda image: saved(image.resize((320, 300), Image.Resampling.BICUBIC)), 1.0),
        (lambda image: saved(image.convert("L")), 1.0),
        (lambda image: image.crop((2, 2, 222, 222)), 1.0),
        (lambda image: image.crop((6, 6, 218, 218)), 0.9),
    ],
    ids=["quality 30", "half", "larger", "grey", "2 % cropped", "5 % cropped"],
)
def test_copies_of_photos_are_found_and_different_photos_are_not(real, change, recall):
    n = len(real)
    pairs = found(looks([*real, *(change(image) for image in real)]))
    copies = {(i, n + i) for i in range(n)}
    assert len(pairs & copies) >= recall * n
    assert pairs <= copies


def test_images_without_detail_are_not_taken_for_copies_of_each_other():
    images = [Image.new("RGB", (80, 80), (level, level, level)) for level in range(0, 250, 10)]
    pairs = near_pairs(looks(images))
    assert len(pairs.first) == 0
    assert pairs.left_out == len(images)


def test_small_images_need_more_likeness_and_tiny_ones_none_suffices(real):
    pairs = [(image, saved(image.resize((48, 48), Image.Resampling.LANCZOS))) for image in real[:30]]
    assert len(found(looks([image for pair in pairs for image in pair]))) == 30
    seen = looks([image for photo in real[:30] for image in (photo, photo.crop((6, 6, 218, 218)))])
    large, small, tiny = (len(found(Looks(seen.hashes, seen.thumbnails, np.full(60, side)))) for side in (64, 63, 31))
    assert large > small > tiny == 0


def test_the_search_ends_where_everything_looks_alike(monkeypatch):
    monkeypatch.setattr(near_duplicates, "MAX_PAIRS", 100)
    same = np.tile(np.arange(256, dtype=np.uint8), (50, 1))
    pairs = near_pairs(Looks(np.zeros(50, dtype=np.uint64), same, np.full(50, 224)))
    assert not pairs.complete
    assert len(pairs.first) == 100

import numpy as np
import pytest
from PIL import Image

from pictures import noise, smooth
from vitreous.data.resizing import resized


@pytest.mark.parametrize(("interpolation", "most"), [("bilinear", 1), ("bicubic", 2), ("lanczos", 0), ("nearest", 0)])
@pytest.mark.parametrize("shape", [(24, 24), (10, 40), (40, 10)])
def test_pixels_are_those_of_pillow(interpolation, most, shape):
    rng = np.random.default_rng(0)
    for seed in range(60):
        width, height = (int(side) for side in rng.integers(1, 90, 2))
        image = noise(seed, width=width, height=height) if seed % 2 else smooth(width, height)
        wanted = np.asarray(image.resize(shape[::-1], Image.Resampling[interpolation.upper()])).astype(int)
        ours = resized(np.asarray(image), shape, interpolation=interpolation)
        assert ours.is_contiguous()
        assert np.abs(ours.permute(1, 2, 0).numpy() - wanted).max() <= most


def test_a_part_of_a_larger_array_knows_nothing_of_the_rest():
    whole = np.asarray(noise(width=50, height=40))
    part = resized(whole[10:30, 5:35], (8, 8), interpolation="bicubic")
    assert (part == resized(whole[10:30, 5:35].copy(), (8, 8), interpolation="bicubic")).all()


def test_the_same_size_gives_the_same_pixels_in_memory_of_their_own():
    pixels = np.asarray(noise(width=12, height=10))
    ours = resized(pixels, (10, 12), interpolation="bicubic")
    assert np.array_equal(ours.permute(1, 2, 0), pixels)
    ours[:] = 0
    assert pixels.any()

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter, ImageOps
from torchvision.transforms import v2

from contracts import variants
from pictures import smooth
from vitreous.data.augment import (
    OPERATIONS,
    Augment,
    AutoAugment,
    BigVisionRandAugment,
    RandAugment,
    ThreeAugment,
    TrivialAugment,
)
from vitreous.errors import InputError

INTO = {"interpolation": v2.InterpolationMode.BILINEAR, "fill": [128, 128, 128]}
TORCHVISION = [
    (TrivialAugment(), v2.TrivialAugmentWide()),
    (RandAugment(), v2.RandAugment(2, 10, **INTO)),
    (RandAugment(num_ops=3, magnitude=20), v2.RandAugment(3, 20, **INTO)),
    (AutoAugment(), v2.AutoAugment(v2.AutoAugmentPolicy.IMAGENET, **INTO)),
    (AutoAugment(policy="cifar10"), v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10, **INTO)),
]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def same(one: Image.Image, other: Image.Image) -> bool:
    return np.array_equal(np.asarray(one), np.asarray(other))


@pytest.mark.parametrize(("ours", "theirs"), TORCHVISION)
def test_operations_are_torchvisions(ours, theirs):
    image = smooth(32, 24)
    for seed in range(20):
        torch.manual_seed(int(rng(seed).integers(2**63)))
        assert same(ours(image, rng(seed)), theirs(image))


def test_three_augment_does_one_of_three_things_and_changes_colours():
    image, only = smooth(32, 24), ThreeAugment(jitter=0.0)
    grey, solarised = ImageOps.grayscale(image).convert("RGB"), ImageOps.solarize(image, 128)
    for seed in range(30):
        draws = rng(seed)
        what = draws.integers(3)
        expected = (
            (grey, solarised)[what] if what < 2 else image.filter(ImageFilter.GaussianBlur(draws.uniform(0.1, 2)))
        )
        assert same(only(image, rng(seed)), expected)
        draws = rng(seed)
        torch.manual_seed([draws.integers(3), what == 2 and draws.uniform(), int(draws.integers(2**63))][-1])
        assert same(ThreeAugment()(image, rng(seed)), v2.ColorJitter(0.3, 0.3, 0.3)(expected))


@pytest.mark.parametrize("augment", variants(Augment))
def test_choices_come_from_the_generator_alone(augment):
    images = []
    for _ in range(2):
        torch.rand(1)
        before = torch.get_rng_state()
        images.append([np.asarray(augment(smooth(32, 24), rng(seed))).tobytes() for seed in range(15)])
        assert torch.equal(torch.get_rng_state(), before)
    assert images[0] == images[1]
    assert len(set(images[0])) > 5


def blended(one: np.ndarray, other: np.ndarray, factor: float) -> np.ndarray:
    """From `one` towards `other`, and beyond it."""
    return np.clip(one.astype(float) + factor * (other.astype(float) - one), 0, 255)


def from_where(pixels: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """The pixel that `matrix` sends the middle of each to, or grey; of edges either side, one above the other."""
    if len(matrix) == 2:
        return np.stack([from_where(pixels, [*matrix, [0, 0, aside]]) for aside in (-1e-3, 1e-3)])
    y, x = np.mgrid[: pixels.shape[0], : pixels.shape[1]] + 0.5 + matrix[2][2]
    u, v = (np.floor(row[0] * x + row[1] * y + row[2]).astype(int) for row in matrix[:2])
    inside = (u >= 0) & (u < pixels.shape[1]) & (v >= 0) & (v < pixels.shape[0])
    found = np.full_like(pixels, 128)
    found[inside] = pixels[v[inside], u[inside]]
    return found


def by_definition(pixels: np.ndarray, strength: float, sign: int, centre: tuple[int, int]) -> list[np.ndarray]:
    """What each of big_vision's 16 operations makes of the pixels, from their formulas."""
    height, width = pixels.shape[:2]
    low, high = pixels.min((0, 1)).astype(float), pixels.max((0, 1)).astype(float)
    grey = (pixels @ np.array([0.299, 0.587, 0.114]))[..., None].repeat(3, -1)
    factor, turned = 1.8 * strength + 0.1, np.radians(30 * strength * sign)
    equalised = np.empty_like(pixels)
    for channel in range(3):
        counts = np.bincount(pixels[..., channel].ravel(), minlength=256)
        step = (counts.sum() - counts[counts > 0][-1]) // 255
        table = np.clip((np.concatenate([[0], np.cumsum(counts)[:-1]]) + step // 2) // max(step, 1), 0, 255)
        equalised[..., channel] = table[pixels[..., channel]] if step else pixels[..., channel]
    kernel = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13
    smooth_inside = pixels.astype(float)
    smooth_inside[1:-1, 1:-1] = sum(
        kernel[i, j] * pixels[i : height - 2 + i, j : width - 2 + j] for i in range(3) for j in range(3)
    )
    cos, sin, half = np.cos(turned), np.sin(turned), int(40 * strength)
    middle = np.array([width / 2, height / 2])
    turn = np.array([[cos, -sin], [sin, cos]])
    turn = np.column_stack([turn, middle - turn @ middle])
    shear, shift = 0.3 * strength * sign, 100 * strength * sign
    painted = pixels.copy()
    y, x = centre
    painted[max(y - half, 0) : y + half, max(x - half, 0) : x + half] = 128
    mask = 256 - 2 ** (8 - min(int(4 * strength), 8))
    return [
        (pixels - low) * 255 / (high - low),
        equalised,
        255 - pixels,
        from_where(pixels, turn),
        pixels & mask,
        np.where(pixels < int(256 * strength), pixels, 255 - pixels),
        blended(grey, pixels, factor),
        blended(np.full_like(pixels, min(height * width // 256, 255)), pixels, factor),
        blended(np.zeros_like(pixels), pixels, factor),
        blended(smooth_inside, pixels, factor),
        from_where(pixels, np.array([[1, shear, 0], [0, 1, 0]])),
        from_where(pixels, np.array([[1, 0, 0], [shear, 1, 0]])),
        from_where(pixels, np.array([[1, 0, shift], [0, 1, 0]])),
        from_where(pixels, np.array([[1, 0, 0], [0, 1, shift]])),
        painted,
        np.where(pixels < 128, np.minimum(pixels + int(110 * strength), 255), pixels),
    ]


@pytest.mark.parametrize("level", [0, 5, 10, 15, 20])
def test_operations_are_big_visions(level):
    image = smooth(224, 200)
    pixels = np.asarray(image).astype(int)
    for seed in range(4):
        sign, centre = (1 if rng(seed).integers(2) else -1), rng(seed)
        expected = by_definition(pixels, level / 10, sign, (int(centre.integers(200)), int(centre.integers(224))))
        assert len(expected) == len(OPERATIONS) == 16
        for number, (operation, wanted) in enumerate(zip(OPERATIONS, expected)):
            apart = abs(np.asarray(operation(image, level / 10, rng(seed))) - wanted).max(-1)
            apart = apart.min(0) if apart.ndim == 3 else apart
            # a grey, a blend and a cut to whole numbers; multiplied where colours go beyond
            assert (apart > 1.5 + 0.6 * (1.8 * level / 10 + 0.1)).mean() < 0.002, number


def test_operations_are_drawn_evenly_and_one_after_another():
    image = smooth(32, 24)
    found = np.zeros(16)
    for seed in range(2000):
        draws = rng(seed)
        number = int(draws.integers(16))
        found[number] += 1
        once = OPERATIONS[number](image, 1.5, draws)
        twice = OPERATIONS[draws.integers(16)](once, 1.5, draws)
        assert same(BigVisionRandAugment(num_ops=2, level=15)(image, rng(seed)), twice)
    assert abs(found - 125).max() < 5 * 11  # binomial


def test_a_strength_beyond_the_scale_is_refused():
    with pytest.raises(InputError, match="level is -1; it must lie between 0 and 30"):
        BigVisionRandAugment(level=-1)
    with pytest.raises(InputError, match="magnitude is 31; it must lie between 0 and 30"):
        RandAugment(magnitude=31)

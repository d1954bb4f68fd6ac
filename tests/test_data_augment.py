import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter, ImageOps
from torchvision.transforms import v2

from contracts import variants
from pictures import smooth
from vitreous.data.augment import Augment, AutoAugment, RandAugment, ThreeAugment, TrivialAugment
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


def test_a_strength_beyond_the_scale_is_refused():
    with pytest.raises(InputError, match="magnitude is 31; it must lie between 0 and 30"):
        RandAugment(magnitude=31)

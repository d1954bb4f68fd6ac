import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform
from torch.testing import assert_close
from torchvision.transforms import v2

from pictures import noise, smooth
from vitreous import config
from vitreous.data.augment import TrivialAugment
from vitreous.data.views import EvalView, TrainView
from vitreous.errors import InputError
from vitreous.fields import walk
from vitreous.seeding import generator


def rng(seed: int = 0) -> np.random.Generator:
    return generator(seed, "test")


def still(size: int | tuple[int, int] = 8, **options) -> TrainView:
    """A training view that draws nothing."""
    return TrainView(image_size=size, **{"min_area_ratio": 1.0, "flip": False, **options})


def as_image(pixels: torch.Tensor) -> Image.Image:
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


SIZES = [
    (500, 375),
    (375, 500),
    (224, 224),
    (248, 248),
    (30, 41),
    (301, 1203),
    (1, 1),
    (777, 300),
    (225, 640),
]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("crop_ratio", [0.9, 0.875, 1.0])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_the_evaluation_view_equals_timms(size, crop_ratio, interpolation):
    view = EvalView(crop_ratio=crop_ratio, interpolation=interpolation)
    settings = {"input_size": (3, 224, 224), "crop_pct": crop_ratio, "interpolation": interpolation}
    theirs = create_transform(**settings, mean=view.mean, std=view.std)
    image = noise(width=size[0], height=size[1])
    uint8 = v2.Compose([*theirs.transforms[:2], v2.PILToTensor()])
    assert torch.equal(view(image), uint8(image))
    assert torch.equal(view.normalise(view(image)), theirs(image))


@pytest.mark.parametrize("shape", [(32, 48), (48, 32), (64, 24), (96, 90)])
@pytest.mark.parametrize("crop_ratio", [0.9, 0.875, 1.0])
def test_the_evaluation_view_of_another_shape_equals_timms(shape, crop_ratio):
    view = EvalView(image_size=shape, crop_ratio=crop_ratio)
    theirs = create_transform((3, *shape), crop_pct=crop_ratio, interpolation="bicubic")
    uint8 = v2.Compose([*theirs.transforms[:2], v2.PILToTensor()])
    for width, height in [(50, 37), (37, 50), (48, 32), (49, 33), (130, 61), (61, 130), (225, 64), (20, 20), (1, 1)]:
        image = noise(width=width, height=height)
        assert view(image).shape == (3, *shape)
        assert torch.equal(view(image), uint8(image))


def test_a_squashed_view_of_another_shape_equals_timms():
    view, image = EvalView(image_size=(96, 40), squash=True), noise(width=150, height=70)
    theirs = create_transform((3, 96, 40), crop_pct=1.0, crop_mode="squash", interpolation="bicubic")
    assert torch.equal(view(image), v2.Compose([*theirs.transforms[:2], v2.PILToTensor()])(image))


def test_a_side_means_as_much_height_as_width():
    image = noise(width=50, height=37)
    assert torch.equal(EvalView(image_size=24)(image), EvalView(image_size=(24, 24))(image))
    settings = {"shift_ratio": 0.1, "rotate": 15, "augment": TrivialAugment(), "erase": 0.5}
    for seed in range(10):
        views = [TrainView(image_size=size, **settings)(image, rng(seed)) for size in (24, (24, 24))]
        assert torch.equal(*views)


def test_the_squashed_view_equals_timms():
    view = EvalView(image_size=96, squash=True)
    theirs = create_transform((3, 96, 96), crop_pct=1.0, crop_mode="squash", interpolation="bicubic")
    image = noise(width=150, height=70)
    assert torch.equal(view(image), v2.Compose([*theirs.transforms[:2], v2.PILToTensor()])(image))


def test_normalise_takes_mean_and_std_by_channel_for_any_number_of_axes():
    view = EvalView(mean=(0.1, 0.2, 0.3), std=(0.5, 1.0, 2.0))
    images = torch.tensor([0, 128, 255], dtype=torch.uint8)[:, None, None].expand(2, 5, 3, 1, 1)
    wanted = torch.tensor([-0.1 / 0.5, (128 / 255 - 0.2) / 1.0, (1 - 0.3) / 2.0])[:, None, None]
    assert view.normalise(images).dtype == torch.float32
    assert_close(view.normalise(images), wanted.expand(2, 5, 3, 1, 1))


@pytest.mark.parametrize("size", [(20_000, 1), (1, 20_000), (3, 9_999)])
def test_a_very_long_image_does_not_grow_huge(size):
    image = Image.new("RGB", size, (9, 8, 7))
    assert (EvalView()(image) == torch.tensor([9, 8, 7])[:, None, None]).all()
    assert (TrainView()(image, rng()) == torch.tensor([9, 8, 7])[:, None, None]).all()


def test_without_switches_a_training_view_is_the_resized_centre():
    image = noise(width=30, height=20)
    wanted = np.asarray(image.crop((5, 0, 25, 20)).resize((8, 8), Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(wanted - as_image(still()(image, rng()))).max() <= 2


@pytest.mark.parametrize(("shape", "box"), [((8, 16), (0, 2, 30, 17)), ((16, 4), (12, 0, 17, 20))])
def test_without_switches_a_training_view_of_another_shape_is_the_resized_middle(shape, box):
    image = noise(width=30, height=20)
    wanted = np.asarray(image.crop(box).resize(shape[::-1], Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(wanted - as_image(still(shape)(image, rng()))).max() <= 2


@pytest.mark.parametrize(
    ("shape", "least", "largest"), [((32, 32), 0.25, 0.7), ((32, 64), 0.25, 1.01), ((64, 32), 0.1, 0.36)]
)
def test_crops_keep_to_their_area_and_shape(shape, least, largest):
    x, y = np.meshgrid(np.arange(200), np.arange(100))
    image = Image.fromarray(np.stack([x, y, np.zeros_like(x)], axis=-1).astype(np.uint8))
    view = TrainView(image_size=shape, min_area_ratio=least, flip=False, interpolation="nearest")
    aspect, areas = shape[1] / shape[0], []
    for seed in range(300):
        across, down, _ = view(image, rng(seed)).int()
        width = (across[0, -1] - across[0, 0]).item() * shape[1] / (shape[1] - 1)
        height = (down[-1, 0] - down[0, 0]).item() * shape[0] / (shape[0] - 1)
        assert 0.68 < width / height / aspect < 1.46
        areas.append(width * height / 20_000)
    assert min(areas) > 0.88 * least
    assert max(areas) < largest  # no larger box of that shape fits
    assert np.std(areas) > 0.05


def test_a_flip_mirrors_about_half_of_the_images():
    image = noise(width=8, height=8)
    plain = still()(image, rng())
    flipped = 0
    for seed in range(200):
        view = still(flip=True)(image, rng(seed))
        assert torch.equal(view, plain) or torch.equal(view, plain.flip(-1))
        flipped += torch.equal(view, plain.flip(-1))
    assert 70 < flipped < 130


def test_a_shift_moves_whole_pixels_and_repeats_the_edge():
    image = noise(width=8, height=8)
    plain = np.asarray(image)
    padded = np.pad(plain, ((2, 2), (2, 2), (0, 0)), mode="edge")
    allowed = {padded[i : i + 8, j : j + 8].tobytes(): (i, j) for i in range(5) for j in range(5)}
    seen = {allowed[np.asarray(as_image(still(shift_ratio=0.25)(image, rng(seed)))).tobytes()] for seed in range(300)}
    assert len(seen) == 25


def test_a_shift_is_a_fraction_of_the_side_it_moves_along():
    image = noise(width=16, height=8)
    padded = np.pad(np.asarray(image), ((2, 2), (4, 4), (0, 0)), mode="edge")
    allowed = {padded[i : i + 8, j : j + 16].tobytes(): (i, j) for i in range(5) for j in range(9)}
    view = still((8, 16), shift_ratio=0.25)
    seen = {allowed[np.asarray(as_image(view(image, rng(seed)))).tobytes()] for seed in range(500)}
    assert len(seen) == 45


@pytest.mark.parametrize("shape", [(64, 64), (64, 128), (128, 64), (16, 128), (3, 5)])
def test_a_rotation_leaves_no_corner_empty(shape):
    white = Image.new("RGB", (100, 100), (255, 255, 255))
    for seed in range(30):
        assert (TrainView(image_size=shape, rotate=180)(white, rng(seed)) == 255).all()


def test_a_rotation_stays_within_its_angle():
    image = smooth(64, 64)
    view = still(64, rotate=10)
    for seed in range(20):
        turned = np.asarray(as_image(view(image, rng(seed)))).astype(float)
        errors = {
            angle: np.abs(np.asarray(image.rotate(angle, Image.Resampling.BILINEAR)) - turned)[16:48, 16:48].mean()
            for angle in range(-20, 21)
        }
        assert abs(min(errors, key=errors.__getitem__)) <= 10
    still_there = still(64, rotate=0.001)(image, rng())
    assert np.abs(np.asarray(as_image(still_there)).astype(int) - np.asarray(image)).max() <= 1


def test_erasing_paints_one_rectangle_with_the_mean():
    image = Image.new("RGB", (40, 40), (255, 255, 255))
    view = still(40, erase=1.0, mean=(0.2, 0.4, 0.6))
    for seed in range(50):
        pixels = view(image, rng(seed))
        painted = (pixels == torch.tensor([51, 102, 153])[:, None, None]).all(0)
        assert ((pixels == 255).all(0) | painted).all()
        rows, columns = painted.any(1).sum(), painted.any(0).sum()
        assert painted.sum() == rows * columns
        assert 0.01 < painted.float().mean() < 0.36
    assert (still(40, erase=0.0)(image, rng()) == 255).all()
    share = np.mean([bool((still(40, erase=0.3)(image, rng(seed)) != 255).any()) for seed in range(300)])
    assert 0.2 < share < 0.4


def test_erasing_stays_within_a_view_of_any_shape():
    image = Image.new("RGB", (40, 40), (255, 255, 255))
    heights, widths = [], []
    for seed in range(100):
        pixels = still((16, 48), erase=1.0, mean=(0.0, 0.0, 0.0))(image, rng(seed))
        painted = (pixels == 0).all(0)
        rows, columns = painted.any(1).sum(), painted.any(0).sum()
        assert painted.sum() == rows * columns
        assert 0.01 < painted.float().mean() < 0.36
        heights.append(int(rows))
        widths.append(int(columns))
    assert max(heights) == 16
    assert 16 < max(widths) <= 48


def test_an_image_is_augmented_once_it_has_the_size_of_the_view():
    seen = still(32, augment=TrivialAugment())(smooth(64, 48), rng(3))
    assert np.array_equal(as_image(seen), TrivialAugment()(as_image(still(32)(smooth(64, 48), rng(3))), rng(3)))


def everything() -> TrainView:
    return TrainView(image_size=24, shift_ratio=0.1, rotate=15, augment=TrivialAugment(), erase=0.5)


def test_the_same_generator_gives_the_same_pixels_and_another_gives_others():
    image = smooth(60, 50)
    views = [everything()(image, rng(seed)) for seed in range(10)]
    assert all(torch.equal(view, everything()(image, rng(seed))) for seed, view in enumerate(views))
    assert len({view.numpy().tobytes() for view in views}) == 10


def test_no_global_generator_is_touched():
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    for seed in range(20):
        everything()(smooth(60, 50), rng(seed))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        (EvalView, "crop_ratio", 0),
        (EvalView, "crop_ratio", 1.1),
        (EvalView, "image_size", 0),
        (EvalView, "image_size", (0, 224)),
        (TrainView, "min_area_ratio", 0),
        (TrainView, "shift_ratio", -0.1),
        (TrainView, "rotate", 181),
        (TrainView, "erase", 1.5),
        (TrainView, "image_size", -1),
    ],
)
def test_a_setting_out_of_range_is_refused(kind, field, value):
    number = min(value) if isinstance(value, tuple) else value
    with pytest.raises(InputError, match=f"^{field} is {number}; it must"):
        kind(**{field: value})


def test_views_survive_json():
    for view in (everything(), EvalView(squash=True, mean=(0.1, 0.2, 0.3)), EvalView(image_size=(32, 48))):
        assert config.from_dict(view.to_dict()) == view
    assert all(field.doc for field in walk(TrainView()))


def test_a_view_asks_for_the_side_that_it_resizes_to():
    assert EvalView().min_side == 248
    assert EvalView(image_size=(90, 45)).min_side == 100
    assert EvalView(image_size=(45, 90), squash=True).min_side == 90

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from vitreous import distributed, planning
from vitreous.cores import cores
from vitreous.data.augment import TrivialAugment
from vitreous.data.data_config import DataConfig
from vitreous.data.prepare import Prepared, prepare
from vitreous.errors import InputError
from vitreous.optim import SGD
from vitreous.planning import Request, make_plan
from vitreous.position import SinCos2d
from vitreous.run import Run
from vitreous.weights.open import open_model

WORLD = distributed.World(rank=0, size=1, device=torch.device("cpu"), dtype=torch.float32, threads=1)


PROBE = planning._seconds_per_step


@pytest.fixture(autouse=True)
def known_speed(monkeypatch):
    """A step takes a tenth of a second, whatever it does."""
    monkeypatch.setattr(planning, "_seconds_per_step", lambda *_: 0.1)


def images(root, *, size: tuple[int, int] = (32, 32), colour: bool = True, each: int = 10) -> Prepared:
    random = np.random.default_rng(0)
    for name in ("a", "b"):
        (root / name).mkdir(parents=True)
        for i in range(each):
            pixels = random.integers(0, 256, (size[1], size[0], 3) if colour else (size[1], size[0]), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    return prepare(DataConfig(path=str(root)))


def planned(prepared: Prepared, *, weights: str | None = None, **asked) -> Run:
    request = Request(data="x", weights=weights, **asked)
    start = open_model(weights) if weights else None
    return make_plan(prepared, request, config=DataConfig(path="x"), start=start, world=WORLD).run


@pytest.mark.parametrize(
    ("size", "image_size", "patch_size"),
    [
        ((8, 8), 16, 4),
        ((28, 28), 28, 7),
        ((32, 32), 32, 8),
        ((64, 80), 64, 16),
        ((90, 90), 96, 16),
        ((300, 200), 128, 16),
        ((1, 1), 2, 1),
        ((500, 1), 2, 1),
    ],
)
def test_the_grid_suits_the_images(size, image_size, patch_size, tmp_path):
    run = planned(images(tmp_path / "x", size=size, each=3))
    assert (run.model.image_size, run.model.patch_size) == (image_size, patch_size)
    assert run.train_view.image_size == run.eval_view.image_size == image_size
    assert run.model.position == SinCos2d()


def test_the_users_wishes_count(tmp_path):
    prepared = images(tmp_path / "x")
    run = planned(prepared, model="S/16", image_size=64, seed=5)
    assert (run.model.width, run.model.patch_size, run.model.image_size, run.seed) == (384, 16, 64, 5)
    assert planned(prepared, model="S/16").model.image_size == 32
    with pytest.raises(InputError, match="--image-size 30 does not divide into patches of 16; take 32"):
        planned(prepared, model="S/16", image_size=30)


def test_steps_fit_the_time_and_are_no_more_than_are_worth_it(tmp_path):
    prepared = images(tmp_path / "x", each=500)
    assert planned(prepared, minutes=1.0).steps == int(60 * 0.85 / 0.1)
    assert planned(prepared, minutes=1e-9).steps == planning.MIN_STEPS
    many = planned(prepared, minutes=1e9)
    assert many.steps * many.batch_size / len(prepared.train) == pytest.approx(200, rel=0.1)


def test_the_more_often_an_image_is_seen_the_more_it_is_altered(tmp_path):
    prepared = images(tmp_path / "x", each=500)
    few, many = planned(prepared, minutes=0.1), planned(prepared, minutes=60)
    assert few.train_view.augment is None
    assert many.train_view.augment == TrivialAugment()
    assert many.train_view.min_area_ratio < few.train_view.min_area_ratio
    assert many.optimizer.weight_decay > few.optimizer.weight_decay


def test_grey_images_are_not_mirrored(tmp_path):
    assert not planned(images(tmp_path / "grey", colour=False)).train_view.flip
    assert planned(images(tmp_path / "colour")).train_view.flip


def test_a_batch_is_no_larger_than_the_data(tmp_path):
    assert planned(images(tmp_path / "x", each=5)).batch_size == 8


def test_fine_tuning_takes_shape_and_pixels_from_the_weights(trained, tmp_path):
    run = planned(images(tmp_path / "x"), weights=str(trained))
    product = open_model(str(trained))
    assert run.model == product.classifier.config.encoder
    assert run.eval_view == product.view
    assert isinstance(run.optimizer, SGD)
    assert run.weights == str(trained)
    larger = planned(images(tmp_path / "y"), weights=str(trained), image_size=32)
    assert larger.model == replace(run.model, image_size=32)
    with pytest.raises(InputError, match="holds a ViT 32x2/4, not S/16"):
        planned(images(tmp_path / "z"), weights=str(trained), model="S/16")


@pytest.mark.parametrize(
    ("multiplies", "seconds", "precision"),
    [(True, 0.5, "bfloat16"), (True, 0.95, "auto"), (True, 2.0, "auto"), (False, 0.5, "auto")],
)
def test_bfloat16_is_for_cpus_that_are_clearly_faster_in_it(multiplies, seconds, precision, tmp_path, monkeypatch):
    def measured(run, prepared, world):
        return seconds if world.dtype == torch.bfloat16 else 1.0

    monkeypatch.setattr(planning, "_seconds_per_step", measured)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: multiplies)
    config = DataConfig(path="x")
    plan = make_plan(images(tmp_path), Request(data="x"), config=config, start=None, world=WORLD)
    assert plan.run.precision == precision
    assert ("bfloat16" in "".join(plan.reasons)) == (precision == "bfloat16")


def test_the_plan_gives_reasons(tmp_path):
    prepared = images(tmp_path / "x")
    plan = make_plan(prepared, Request(data="x", minutes=0.1), config=DataConfig(path="x"), start=None, world=WORLD)
    text = "\n".join(plan.reasons)
    assert "16 images, what 0.1 min allow" in text
    assert "100 ms a step" in text
    assert f"of {cores()} CPU cores" in text
    assert plan.seconds == pytest.approx(plan.run.steps * 0.1 / 0.85)


def test_readers_are_the_cores_that_do_not_train(tmp_path, monkeypatch):
    prepared = images(tmp_path / "x")
    for idle, workers in ((4, 3), (1, 0), (0, 0)):
        monkeypatch.setattr(planning, "idle_cores", lambda n=idle: n)
        assert planned(prepared).num_workers == workers
    monkeypatch.setattr(planning, "idle_cores", lambda: 4)
    digits = DataConfig(path="digits")
    plan = make_plan(prepare(digits), Request(data="digits"), config=digits, start=None, world=WORLD)
    assert plan.run.num_workers == 0


def test_starting_readers_is_no_part_of_a_step(tmp_path, monkeypatch):
    clock = SimpleNamespace(now=0.0)

    class Slow:
        def __init__(self, *_, **__):
            pass

        def batches(self, *_, **__):
            clock.now += 100  # readers start
            while True:
                yield None

        def take(self, step, batches):
            next(batches)
            clock.now += 0.25
            return SimpleNamespace(numbers=torch.zeros(1, 1))

    prepared = images(tmp_path)
    run = planned(prepared)
    monkeypatch.setattr(planning, "time", SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr(planning, "Trainee", Slow)
    assert PROBE(run, prepared, WORLD) == 0.25

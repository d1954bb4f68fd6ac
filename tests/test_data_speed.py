import json
import time

import pytest

from test_training import WORLD, pictures, tiny
from vitreous.data.source import ArraySource
from vitreous.data.views import TrainView
from vitreous.data_speed import DataSpeed, data_speed
from vitreous.trainee import Trainee


class Slow(ArraySource):
    """A source that takes 5 ms an image."""

    def crop(self, i, draw, *, shape):
        time.sleep(0.005)
        return super().crop(i, draw, shape=shape)


def test_reading_is_timed_as_training_sees_images():
    whole = pictures()
    slow = Slow(whole.pixels, prefix="made", classes=whole.classes, labels=whole.labels)
    found = data_speed(tiny(), slow, readers=(0,), world=WORLD, seconds=0.5)
    assert 0 < found.read[0] < 200


def test_reading_is_timed_from_the_cache_that_training_would_have(monkeypatch):
    whole, crop, crops = pictures(), ArraySource.crop, []
    monkeypatch.setattr(
        ArraySource, "crop", lambda self, i, *given, **named: crops.append(i) or crop(self, i, *given, **named)
    )
    run = tiny(train_view=TrainView(image_size=8, margin=0.25), cache_gb=1)
    found = data_speed(run, whole, readers=(0,), world=WORLD, seconds=0.1)
    assert found.read[0] > 0
    in_training = run.batch_size  # its one batch comes from the files
    assert len(crops) == len(whole) + in_training


def test_training_is_timed_without_reading(monkeypatch):
    take = Trainee.take

    def slow(self, step, batches):
        time.sleep(0.1)
        return take(self, step, batches)

    monkeypatch.setattr(Trainee, "take", slow)
    found = data_speed(tiny(), pictures(), readers=(0,), world=WORLD, seconds=0.5)
    assert 0 < found.needed < 160  # batches of 16


@pytest.mark.parametrize(("needed", "enough"), [(90.0, 0), (150.0, 2), (1000.0, None)])
def test_the_least_number_of_readers_that_keeps_up_is_enough(needed, enough):
    assert DataSpeed({0: 100.0, 2: 180.0, 4: 300.0}, needed).enough == enough


def test_the_command_says_what_keeps_up_and_writes_nothing(vitreous, photos, tmp_path):
    words = ("data", "bench", photos, "smoke", "--seconds", "0.1", "--workers", "0", "1", "--model.depth", "1")
    answer = vitreous(*words)
    assert answer.code == 0, answer.err
    head, none, one, _, verdict = answer.out.splitlines()
    assert head.split("  ")[0] == "reader processes"
    assert [line.split()[0] for line in (none, one)] == ["0", "1"]
    assert verdict.startswith("training on cpu takes ")
    said = json.loads(vitreous(*words, "--json").out)
    assert said["read"].keys() == {"0", "1"}
    assert said["needed"] > 0
    assert list((tmp_path / "here").iterdir()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--seconds", "0"), "--seconds must be above 0"),
        (("--workers", "-1"), "--workers are numbers of processes, got -1"),
        (("smok",), "did you mean smoke"),
    ],
)
def test_what_cannot_be_timed_is_said(words, message, vitreous, photos):
    answer = vitreous("data", "bench", photos, *words)
    assert answer.code == 2
    assert message in answer.err

import multiprocessing
import os
import pickle
import signal
import time

import numpy as np
import pytest
import torch

from pictures import class_folders, encoded, noise, packed, write
from vitreous.data import loader
from vitreous.data.layouts import open_data
from vitreous.data.loader import evaluation_batches, order, steps_per_epoch, training_batches
from vitreous.data.source import ArraySource
from vitreous.data.views import EvalView, TrainView
from vitreous.errors import InputError

VIEW = TrainView(image_size=16, shift_ratio=0.1, erase=0.5)


def arrays(n: int = 10, *, labels=None) -> ArraySource:
    pixels = np.random.default_rng(0).integers(0, 256, (n, 20, 20, 3), dtype=np.uint8)
    labels = np.arange(n) % 3 if labels is None else labels
    return ArraySource(pixels, prefix="train", classes=("a", "b", "c"), labels=labels)


def batches(source, *, batch_size=4, seed=0, first_step=0, steps=9, view=VIEW, num_workers=0):
    options = {"batch_size": batch_size, "seed": seed, "first_step": first_step, "steps": steps}
    return list(training_batches(source, view, **options, num_workers=num_workers))


def assert_same(ours, theirs):
    assert len(ours) == len(theirs) > 0
    for a, b in zip(ours, theirs):
        assert torch.equal(a.index, b.index)
        assert torch.equal(a.labels, b.labels)
        assert torch.equal(a.images, b.images)


def test_an_order_is_a_permutation_that_depends_on_seed_and_epoch_alone():
    assert sorted(order(50, seed=0, epoch=0)) == list(range(50))
    assert np.array_equal(order(50, seed=1, epoch=2), order(50, seed=1, epoch=2))
    others = {tuple(order(50, seed=seed, epoch=epoch)) for seed in range(5) for epoch in range(5)}
    assert len(others) == 25


def test_an_epoch_gives_each_image_once_and_the_next_in_another_order():
    found = batches(arrays(12), steps=6)
    first, second = (torch.cat([b.index for b in found[k : k + 3]]).tolist() for k in (0, 3))
    assert sorted(first) == sorted(second) == list(range(12))
    assert first != second


def test_a_batch_holds_images_labels_and_positions_that_belong_together():
    source = arrays()
    view = TrainView(image_size=20, min_area_ratio=1, flip=False)
    for batch in batches(source, view=view):
        assert batch.images.shape == (1, 4, 3, 20, 20)
        assert batch.labels.tolist() == source.labels[batch.index].tolist()
        wanted = torch.from_numpy(source.pixels[batch.index].transpose(0, 3, 1, 2).copy())
        assert torch.equal(batch.images[0], view.normalise(wanted))


def test_the_ragged_end_of_an_epoch_is_dropped():
    assert steps_per_epoch(10, 4) == 2
    found = batches(arrays(10), steps=4)
    assert [len(b.index) for b in found] == [4] * 4
    assert len(set(torch.cat([b.index for b in found[:2]]).tolist())) == 8


def test_a_source_smaller_than_a_batch_gives_the_whole_source():
    assert steps_per_epoch(3, 8) == 1
    assert [sorted(b.index.tolist()) for b in batches(arrays(3), batch_size=8, steps=3)] == [[0, 1, 2]] * 3


def test_resuming_at_a_step_goes_on_as_if_nothing_had_happened():
    whole = batches(arrays(), steps=9)
    for first_step in range(9):
        assert_same(batches(arrays(), first_step=first_step, steps=9), whole[first_step:])
    assert batches(arrays(), first_step=9, steps=9) == []


def test_augmentation_differs_by_epoch_and_by_image():
    source = arrays(4)
    first, second = batches(source, batch_size=4, steps=2)
    again = {int(i): image for i, image in zip(second.index, second.images[0])}
    assert all(not torch.equal(image, again[int(i)]) for i, image in zip(first.index, first.images[0]))


@pytest.mark.parametrize("kind", ["array", "files", "tar", "tar.gz"])
def test_any_number_of_workers_gives_the_same_bits(tmp_path, kind):
    if kind == "array":
        source = arrays()
    elif kind == "files":
        source = open_data(str(class_folders(tmp_path))).train
    else:
        files = {f"{label}/{i}.png": encoded(noise(i)) for label in "ab" for i in range(5)}
        mode = "w:gz" if kind == "tar.gz" else "w"
        source = open_data(str(packed(files, tmp_path / f"a.{kind}", mode=mode))).train
    alone = batches(source)
    for num_workers in (1, 2):
        assert_same(batches(source, num_workers=num_workers), alone)
    assert_same(batches(source, num_workers=2, first_step=5), alone[5:])


def test_loading_touches_no_global_generator():
    before = torch.get_rng_state()
    for num_workers in (0, 1):
        batches(arrays(), num_workers=num_workers)
    list(evaluation_batches(arrays(), EvalView(image_size=16), batch_size=4))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_evaluation_gives_every_image_once_in_order(num_workers):
    source = arrays(10)
    view = EvalView(image_size=20, crop_ratio=1)
    found = list(evaluation_batches(source, view, batch_size=4, num_workers=num_workers))
    assert [b.index.tolist() for b in found] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    images = torch.cat([b.images[0] for b in found])
    assert torch.equal(images, view.normalise(torch.from_numpy(source.pixels.transpose(0, 3, 1, 2).copy())))


def test_a_source_without_labels_gives_none():
    (batch,) = evaluation_batches(arrays(2, labels=[-1, -1]), EvalView(image_size=8), batch_size=4)
    assert batch.labels is None


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_image_that_breaks_during_training_is_named_in_one_line(tmp_path, num_workers):
    source = open_data(str(class_folders(tmp_path))).train
    write({"dog/2.png": b"<html>"}, tmp_path)
    with pytest.raises(InputError) as error:
        batches(source, num_workers=num_workers)
    assert str(error.value) == (
        "cannot read dog/2.png any more (not an image (HTML document)); put it back, or start a new run"
    )


class Dying(ArraySource):
    """A source whose worker is killed, as by the system when memory is short."""

    def image(self, i, *, min_side=None):
        os.kill(os.getpid(), signal.SIGKILL)
        return super().image(i)


def test_a_worker_that_is_killed_is_reported_in_one_line():
    whole = arrays()
    source = Dying(whole.pixels, prefix="x", classes=whole.classes, labels=whole.labels)
    with pytest.raises(InputError, match="loading images failed: a worker process died; look at memory") as error:
        batches(source, num_workers=1)
    assert "\n" not in str(error.value)


class Stuck(ArraySource):
    """A source that never comes back, as on a dead network drive."""

    def image(self, i, *, min_side=None):
        time.sleep(60)
        return super().image(i)


def test_a_worker_that_is_stuck_is_reported(monkeypatch):
    monkeypatch.setattr(loader, "POLL_S", 0.5)
    monkeypatch.setattr(loader, "TIMEOUT_S", 2.0)
    whole = arrays()
    source = Stuck(whole.pixels, prefix="x", classes=whole.classes, labels=whole.labels)
    with pytest.raises(InputError, match="no batch in 2 s"):
        batches(source, num_workers=1)


def test_workers_leave_ctrl_c_to_the_main_process():
    found = training_batches(arrays(), VIEW, batch_size=2, seed=0, first_step=0, steps=50, num_workers=1)
    first = next(found)
    (worker,) = multiprocessing.active_children()
    os.kill(worker.pid, signal.SIGINT)
    assert len([first, *found]) == 50


def test_sources_are_small_when_pickled_and_come_back_equal(tmp_path):
    source = open_data(str(class_folders(tmp_path))).train.select([7, 2])
    back = pickle.loads(pickle.dumps(source))
    assert [back.name(i) for i in (0, 1)] == ["dog/2.png", "cat/2.png"] == [source.name(i) for i in (0, 1)]
    assert back.read(0) == source.read(0)
    archive = packed(
        {"a/1.bmp": encoded(noise(1), "BMP"), "b/1.bmp": b"x" * 100_000}, tmp_path / "x.tar.gz", mode="w:gz"
    )
    tar = open_data(str(archive)).train
    assert len(pickle.dumps(tar)) < 3000
    assert pickle.loads(pickle.dumps(tar)).select([1]).read(0) == b"x" * 100_000


def test_a_bug_in_a_reader_is_no_dead_reader():
    class Broken:
        def __iter__(self):
            raise RuntimeError("Caught RuntimeError in DataLoader worker process 0.\nshape is invalid")
            yield

    with pytest.raises(RuntimeError, match="shape is invalid"):
        next(loader._patient(Broken()))

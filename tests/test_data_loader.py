import itertools
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from pictures import class_folders, encoded, noise, packed, write
from vitreous.data.layouts import open_data
from vitreous.data.loader import evaluation_batches, step_size, steps_per_epoch, training_batches
from vitreous.data.order import positions
from vitreous.data.source import ArraySource
from vitreous.data.views import EvalView, TrainView
from vitreous.errors import InputError

VIEW = TrainView(image_size=16, shift_ratio=0.1, erase=0.5)


def arrays(n: int = 10, *, labels=None) -> ArraySource:
    pixels = np.random.default_rng(0).integers(0, 256, (n, 20, 20, 3), dtype=np.uint8)
    labels = np.arange(n) % 3 if labels is None else labels
    return ArraySource(pixels, prefix="train", classes=("a", "b", "c"), labels=labels)


def batches(source, *, batch_size=4, seed=0, first_step=0, steps=9, view=VIEW, num_workers=0, **parts):
    options = {"batch_size": batch_size, "seed": seed, "first_step": first_step, "steps": steps}
    return list(training_batches(source, view, **options, num_workers=num_workers, **parts))


def assert_same(ours, theirs):
    assert len(ours) == len(theirs) > 0
    for a, b in zip(ours, theirs):
        assert torch.equal(a.index, b.index)
        assert torch.equal(a.labels, b.labels)
        assert torch.equal(a.images, b.images)


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


def test_the_first_batch_of_any_step_comes_at_once():
    start = time.monotonic()
    (found,) = batches(arrays(), first_step=10**12, steps=10**12 + 1)
    assert time.monotonic() - start < 1
    assert len(found.index) == 4


def test_a_step_is_cut_into_equal_parts():
    assert step_size(100, 32) == 32
    assert step_size(100, 32, num_micro_batches=5) == 30
    assert step_size(20, 32, num_micro_batches=8) == 16
    assert steps_per_epoch(100, 32, num_micro_batches=5) == 3
    source = arrays(20)
    whole = batches(source, batch_size=9, num_micro_batches=4, mine=range(4), steps=5)
    assert [len(b.index) for b in whole] == [2] * 20
    plain = batches(source, batch_size=8, steps=5)
    assert torch.equal(torch.cat([b.index for b in whole]), torch.cat([b.index for b in plain]))
    assert torch.equal(torch.cat([b.images[0] for b in whole]), torch.cat([b.images[0] for b in plain]))


@pytest.mark.parametrize(
    ("n", "batch_size", "message"),
    [
        (3, 8, "3 training images cannot be cut into 4 micro-batches; give more images"),
        (9, 2, "a batch of 2 images cannot be cut into 4 micro-batches; give a larger batch"),
    ],
)
def test_a_part_without_an_image_is_refused(n, batch_size, message):
    with pytest.raises(InputError, match=message):
        batches(arrays(n), batch_size=batch_size, num_micro_batches=4)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("num_processes", [1, 2, 4])
def test_processes_workers_and_restarts_change_no_bit(num_processes, num_workers):
    """22 images in steps of 8: two steps an epoch, and 6 images left out of each."""
    source, steps, options = arrays(22), 12, {"batch_size": 9, "num_micro_batches": 4, "num_workers": num_workers}
    whole = batches(source, steps=steps, batch_size=9, num_micro_batches=4, mine=range(4))
    random = np.random.default_rng(num_processes)
    share = 4 // num_processes
    cuts = [0, *sorted(random.choice(np.arange(1, steps), 2, replace=False).tolist()), steps]
    seen = Counter()
    for first, last in itertools.pairwise(cuts):  # all processes stop at the same step and start again
        for rank in range(num_processes):
            mine = range(rank * share, (rank + 1) * share)
            found = batches(source, first_step=first, steps=last, mine=mine, **options)
            assert_same(found, [whole[4 * step + part] for step in range(first, last) for part in mine])
            epochs = [step // 2 for step in range(first, last) for _ in mine]
            seen.update((epoch, i) for epoch, batch in zip(epochs, found) for i in batch.index.tolist())
    orders = [positions(22, seed=0, epoch=epoch, start=0, stop=16) for epoch in range(6)]
    assert seen == Counter((epoch, i) for epoch, order in enumerate(orders) for i in order.tolist())
    assert set(seen.values()) == {1}


def test_no_image_is_lost_or_repeated_when_the_number_of_processes_changes_at_each_restart():
    source, steps, random = arrays(203), 60, np.random.default_rng(0)
    cuts = [0, *sorted(random.choice(np.arange(1, steps), 30, replace=False).tolist()), steps]
    seen = Counter()
    for first, last in itertools.pairwise(cuts):
        num_processes = int(random.choice([1, 2, 4, 8]))
        for rank in range(num_processes):
            mine = range(rank * 8 // num_processes, (rank + 1) * 8 // num_processes)
            found = batches(source, first_step=first, steps=last, batch_size=20, num_micro_batches=8, mine=mine)
            epochs = [step // 12 for step in range(first, last) for _ in mine]
            seen.update((epoch, i) for epoch, batch in zip(epochs, found) for i in batch.index.tolist())
    orders = [positions(203, seed=0, epoch=epoch, start=0, stop=192) for epoch in range(5)]
    assert seen == Counter((epoch, i) for epoch, order in enumerate(orders) for i in order.tolist())


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


@pytest.mark.parametrize("num_workers", [0, 2])
def test_evaluation_is_dealt_out_in_turn_and_evenly(num_workers):
    source = arrays(10)
    view = EvalView(image_size=20, crop_ratio=1)
    options = {"batch_size": 4, "num_workers": num_workers}
    alone = list(evaluation_batches(source, view, **options))
    for size, dealt in {1: [[0, 1, 2]], 2: [[0, 2], [1, 2]], 3: [[0], [1], [2]], 4: [[0], [1], [2], [2]]}.items():
        for rank, wanted in enumerate(dealt):
            found = list(evaluation_batches(source, view, **options, rank=rank, size=size))
            assert_same(found, [alone[k] for k in wanted])


def test_evaluation_of_nothing_gives_nothing():
    for rank in range(2):
        assert list(evaluation_batches(arrays(0), EvalView(image_size=8), batch_size=4, rank=rank, size=2)) == []


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


@pytest.mark.parametrize("num_workers", [0, 2])
def test_repeated_images_come_in_other_views_after_all_others_of_their_part(num_workers):
    once = batches(arrays(), batch_size=4, steps=5, num_micro_batches=2, mine=range(2))
    thrice = batches(
        arrays(), batch_size=4, steps=5, num_micro_batches=2, mine=range(2), num_repeats=3, num_workers=num_workers
    )
    assert len(once) == len(thrice) == 10
    for one, three in zip(once, thrice):
        assert three.index.tolist() == one.index.tolist() * 3
        assert torch.equal(three.images[0, :2], one.images[0])
        views = three.images[0].unflatten(0, (3, 2))
        assert not any(torch.equal(views[a], views[b]) for a, b in ((0, 1), (0, 2), (1, 2)))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_views_have_the_shape_of_their_step(num_workers):
    def shape_at(step: int) -> tuple[int, int]:
        return 4 + 2 * step, 6

    found = batches(arrays(), batch_size=4, steps=3, shape_at=shape_at, num_workers=num_workers)
    assert [batch.images.shape for batch in found] == [(1, 4, 3, 4, 6), (1, 4, 3, 6, 6), (1, 4, 3, 8, 6)]


def test_workers_leave_ctrl_c_to_the_main_process():
    others = set(multiprocessing.active_children())  # hung readers of other tests end with this process
    found = training_batches(arrays(), VIEW, batch_size=2, seed=0, first_step=0, steps=50, num_workers=1)
    first = next(found)
    (worker,) = set(multiprocessing.active_children()) - others
    os.kill(worker.pid, signal.SIGINT)
    assert len([first, *found]) == 50


GROUP = """
import signal, subprocess, sys
from test_data_loader import VIEW, arrays
from vitreous.data.loader import training_batches

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: print("heard"))
    found = training_batches(arrays(), VIEW, batch_size=2, seed=0, first_step=0, steps=50, num_workers=2)
    launcher = "import os, time; time.sleep(0.5); os.killpg(os.getpgrp(), 15)"
    if "starting" in sys.argv:  # their fork server imports torch
        subprocess.Popen([sys.executable, "-c", launcher])
        next(found)
    else:
        next(found)
        subprocess.run([sys.executable, "-c", launcher])
    print(1 + sum(1 for _ in found))
"""


@pytest.mark.parametrize("when", ["starting", "reading"])
def test_workers_outlive_a_launchers_signal_to_the_whole_group(when, tmp_path):
    (tmp_path / "group.py").write_text(GROUP)
    done = subprocess.run(
        [sys.executable, tmp_path / "group.py", when],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        process_group=0,
    )
    assert done.stdout.split() == ["heard", "50"], done.stderr


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

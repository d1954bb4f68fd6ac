import itertools
import json
import tracemalloc
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest

from pictures import class_folders
from vitreous import seeding
from vitreous.data.data_config import DataConfig
from vitreous.data.joined import JoinedSource
from vitreous.data.loader import training_batches
from vitreous.data.order import PERIOD, Mixture, positions
from vitreous.data.prepare import prepare, recall, reopen
from vitreous.data.source import ArraySource
from vitreous.data.views import TrainView
from vitreous.errors import InputError

SIZES, SHARES = (701, 60_000, 4_100), (2.0, 5.0, 1.5)


def mixture(**changes) -> Mixture:
    return Mixture.of(**{"sizes": SIZES, "shares": SHARES, "batch_size": 1000, "seed": 0, **changes})


def shown(order: Mixture, steps: range) -> tuple[np.ndarray, np.ndarray]:
    parts = [order.at(step, 0, order.batch_size) for step in steps]
    return tuple(np.concatenate(found) for found in zip(*parts))


def sets_of(found: np.ndarray) -> np.ndarray:
    return np.searchsorted(np.cumsum(SIZES), found, side="right")


def by_hand(k: int) -> tuple[int, int]:
    """Epoch and position of what is shown as number `k`, one rule after another."""
    period, place = divmod(k, PERIOD)
    ends = [round(PERIOD * total / sum(SHARES)) for total in itertools.accumulate(SHARES)]
    turn = int(positions(PERIOD, seed=seeding.key(0, "mixture"), epoch=period, start=place, stop=place + 1)[0])
    number = next(i for i, end in enumerate(ends) if turn < end)
    before = ([0, *ends])[number]
    epoch, within = divmod(period * (ends[number] - before) + turn - before, SIZES[number])
    seed = seeding.key(0, "mixture", number)
    image = int(positions(SIZES[number], seed=seed, epoch=epoch, start=within, stop=within + 1)[0])
    return epoch, sum(SIZES[:number]) + image


def test_what_is_shown_is_the_definition():
    order = mixture()
    for k in (0, 1, 999, 1000, PERIOD - 1, PERIOD, 7 * PERIOD + 12_345, 10**12 + 3):
        epochs, found = order.at(k // 1000, k % 1000, k % 1000 + 1)
        assert (epochs[0], found[0]) == by_hand(k)


def test_every_period_has_exactly_its_shares_and_any_stretch_nearly():
    order = mixture()
    _, found = shown(order, range(3 * PERIOD // 1000))
    wanted = np.array(SHARES) / sum(SHARES)
    for period in found.reshape(3, PERIOD):
        counts = np.bincount(sets_of(period), minlength=3)
        assert tuple(counts) == order.counts
        assert (abs(counts - wanted * PERIOD) <= 1).all()
    for batch in found.reshape(-1, 1000):  # as when drawn by chance: within five deviations
        counts = np.bincount(sets_of(batch), minlength=3)
        assert (abs(counts - wanted * 1000) < 5 * np.sqrt(wanted * (1 - wanted) * 1000)).all()


def test_each_set_shows_every_image_once_before_any_comes_again():
    epochs, found = shown(mixture(), range(3 * PERIOD // 1000))
    seen = defaultdict(Counter)
    for number, epoch, image in zip(sets_of(found).tolist(), epochs.tolist(), found.tolist()):
        seen[number, epoch][image] += 1
    assert all(max(counts.values()) == 1 for counts in seen.values())
    for number, size in enumerate(SIZES):
        sizes = [len(counts) for (which, _), counts in sorted(seen.items()) if which == number]
        assert sizes[:-1] == [size] * (len(sizes) - 1)


def test_any_part_of_any_step_is_had_alone_and_in_no_memory():
    order = mixture(batch_size=4096, sizes=(10**10, 701, 10**9))
    whole = order.at(10**7, 0, 4096)
    parts = [order.at(10**7, a, b) for a, b in itertools.pairwise((0, 1, 1000, 1000, 4096))]
    assert all(np.array_equal(np.concatenate(found), one) for found, one in zip(zip(*parts), whole))
    tracemalloc.start()
    order.at(10**7 + 1, 0, 4096)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000


def arrays(n: int, value: int) -> ArraySource:
    return ArraySource(
        np.full((n, 16, 16), value, dtype=np.uint8), prefix=str(value), classes=("a", "b"), labels=np.arange(n) % 2
    )


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_are_mixed_as_said_and_the_same_however_they_are_divided(num_workers):
    source = JoinedSource(arrays(500, 10), arrays(6, 200))
    view = TrainView(image_size=16, min_area_ratio=1)
    options = {"batch_size": 8, "seed": 0, "steps": 40, "shares": (1.0, 3.0)}
    whole = [batch.index for batch in training_batches(source, view, first_step=0, **options)]
    few = sum(int((index >= 500).sum()) for index in whole) / (8 * 40)
    assert 0.65 < few < 0.85  # of 320 drawn, the deviation is 0.024
    later = training_batches(source, view, first_step=17, num_workers=num_workers, **options)
    assert [batch.index.tolist() for batch in later] == [index.tolist() for index in whole[17:]]
    alone = [{"first_step": 0, "num_micro_batches": 2, "mine": range(k, k + 1)} for k in (0, 1)]
    halves = [[batch.index for batch in training_batches(source, view, **part, **options)] for part in alone]
    for index, first, second in zip(whole, *halves):
        assert index.tolist() == [*first.tolist(), *second.tolist()]


def config_of(tmp_path: Path, **changes) -> DataConfig:
    class_folders(tmp_path / "photos", classes=("cat", "dog"), each=6)
    class_folders(tmp_path / "drawings", classes=("dog", "emu"), each=5, first_seed=100)
    return DataConfig(path=str(tmp_path / "photos"), more=(str(tmp_path / "drawings"),), **changes)


def names(source) -> list[str]:
    return [source.name(i) for i in range(len(source))]


def test_further_data_are_trained_on_and_their_classes_go_by_name(tmp_path):
    config = config_of(tmp_path)
    data = prepare(config)
    assert data.classes == ("cat", "dog", "emu")
    everything = sorted(names(data.train) + names(data.test))
    assert everything == sorted(
        [f"{name}/{i}.png" for name in ("cat", "dog") for i in range(6)]
        + [f"2:{name}/{i}.png" for name in ("dog", "emu") for i in range(5)]
    )
    for source in (data.train, data.test):
        for i, name in enumerate(names(source)):
            assert data.classes[source.labels[i]] == name.removeprefix("2:").split("/")[0]
            root = tmp_path / ("drawings" if name.startswith("2:") else "photos")
            assert source.read(i) == (root / name.removeprefix("2:")).read_bytes()
    assert data.train.part_sizes == tuple(
        sum(name.startswith("2:") == further for name in names(data.train)) for further in (False, True)
    )


def test_what_is_measured_stays_that_of_the_first_and_copies_of_it_are_not_trained_on(tmp_path):
    class_folders(tmp_path / "photos" / "train", each=4)
    class_folders(tmp_path / "photos" / "test", each=3, first_seed=50)
    class_folders(tmp_path / "more" / "train", each=3, first_seed=54)  # three of them are held out above
    class_folders(tmp_path / "more" / "val", each=3, first_seed=80)
    data = prepare(DataConfig(path=str(tmp_path / "photos"), more=(str(tmp_path / "more"),)))
    assert len(data.test) == 6
    assert not any(name.startswith("2:") for name in names(data.test))
    assert data.train.part_sizes == (8, 4)
    assert any("6 val images of" in note and "are not used" in note for note in data.summary["notes"])
    assert data.summary["duplicates"]["across_splits"]["count"] == 2


def test_different_kinds_are_joined_opened_again_and_recalled_where_they_were_moved(tmp_path):
    class_folders(tmp_path / "photos", classes=("0", "1"), each=5)
    config = DataConfig(path="digits", more=(str(tmp_path / "photos"),), shares=(1, 1))
    data = prepare(config)
    assert isinstance(data.train, JoinedSource)
    again = reopen(config, data.split_csv())
    assert names(again["train"]) == names(data.train)
    assert np.array_equal(again["train"].labels, data.train.labels)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "photos").rename(tmp_path / "elsewhere" / "photos")
    moved = DataConfig(path="digits", more=(str(tmp_path / "elsewhere" / "photos"),), shares=(1, 1))
    record = {"data": data.summary, "data_fingerprint": data.fingerprint, "data_stamp": data.stamp}
    recalled = recall(moved, split_csv=data.split_csv(), record=record)
    assert recalled is not None
    assert names(recalled.train) == names(data.train)
    (tmp_path / "elsewhere" / "photos" / "0" / "0.png").write_bytes(b"changed")
    assert recall(moved, split_csv=data.split_csv(), record=record) is None


def test_images_of_one_class_and_of_several_are_joined(tmp_path):
    class_folders(tmp_path / "photos", classes=("cat", "dog"), each=6)
    class_folders(tmp_path / "all", classes=("x",), each=6, first_seed=50)
    listed = {"0": "dog|emu", "1": "emu", "2": "", "3": "cat|emu", "4": "dog|emu", "5": "cat"}
    lines = [f"all/x/{i}.png,{label}" for i, label in listed.items()]
    (tmp_path / "list.csv").write_text("\n".join(["image,label", *lines]))
    data = prepare(DataConfig(path=str(tmp_path / "photos"), more=(str(tmp_path / "list.csv"),)))
    assert data.train.multi_label
    assert data.classes == ("cat", "dog", "emu")
    for source in (data.train, data.test):
        shown = source.targets(source.labels)
        for i, name in enumerate(names(source)):
            stem = Path(name).stem
            wanted = listed[stem].split("|") if name.startswith("2:") else [name.split("/")[0]]
            assert [c for c, one in zip(data.classes, shown[i]) if one] == [c for c in data.classes if c in wanted]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"shares": (1.0,)}, "shares has 1 numbers for 1 data sets; give one for path and one for each of more"),
        ({"more": ("x",), "shares": (1.0, 2.0, 3.0)}, "shares has 3 numbers for 2 data sets"),
        ({"more": ("x",), "shares": (1.0, 0.0)}, "a share of 0 is none of 100,000 images"),
        ({"more": ("x",), "shares": (1.0, -1.0)}, "shares is -1.0; it must be 0 or more"),
        ({"more": ("x",), "shares": (1.0, float("nan"))}, "shares is nan"),
    ],
)
def test_shares_that_are_none_are_refused(options, said):
    with pytest.raises(InputError, match=said):
        DataConfig(**options)


def test_a_mixture_is_trained_on_from_the_command_line(tmp_path, vitreous):
    class_folders(tmp_path / "photos", classes=("0", "1"), each=5)
    more = ("--data.more", str(tmp_path / "photos"), "--data.shares", "3,1")
    answer = vitreous("train", "smoke", *more, "--dry-run")
    assert f"digits and {tmp_path / 'photos'}, mixed 3:1: " in answer.out
    answer = vitreous("train", "smoke", *more, "--steps", "3", "--out", str(tmp_path / "run"), "--json")
    assert json.loads(answer.out)["num_images"] > 0
    for slip, said in (
        (("--data.shares", "3"), "shares has 1 numbers for 1 data sets"),
        (("--data.more", "/no/such"), "no such file or folder: /no/such"),
    ):
        answer = vitreous("train", "smoke", *slip, "--out", str(tmp_path / "other"))
        assert answer.code == 2
        assert said in answer.err

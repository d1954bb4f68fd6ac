import shutil

import pytest

from pictures import class_folders, write
from vitreous.console import Console
from vitreous.data.layouts import open_held_out
from vitreous.errors import InputError
from vitreous.evaluation.held_out import held_out_images, learning_images

QUIET = Console(quiet=True)


def test_of_several_splits_test_counts_else_val_else_all(tmp_path):
    for i, split in enumerate(("train", "val", "test")):
        class_folders(tmp_path / "three" / split, each=i + 1, first_seed=10 * i)
    class_folders(tmp_path / "one" / "val", each=2)
    class_folders(tmp_path / "flat", ("cat",))
    split, source, _ = open_held_out(str(tmp_path / "three"))
    assert (split, len(source)) == ("test", 6)
    split, source, _ = open_held_out(str(tmp_path / "one"))
    assert (split, len(source)) == ("val", 4)
    split, source, _ = open_held_out(str(tmp_path / "flat"))
    assert (split, len(source), source.classes) == ("all", 5, ("cat",))
    assert open_held_out("digits")[0] == "all"


def test_a_run_is_measured_on_what_it_held_out(trained, photos):
    found = held_out_images(str(photos), model=str(trained), console=QUIET)
    held_out = {line.split(",")[1] for line in (trained / "split.csv").read_text().splitlines() if line[:4] == "test"}
    assert {found.source.name(i) for i in range(len(found.source))} == held_out
    assert found.split == "test"


@pytest.mark.parametrize("model", ["{run}", "{run}/model", "{run}/model/model.safetensors"])
@pytest.mark.parametrize("data", ["{photos}", "{photos}/", "{photos}/../photos", "photos"])
def test_its_images_are_known_under_every_name(model, data, trained, photos, monkeypatch):
    monkeypatch.chdir(photos.parent)
    data, model = data.format(photos=photos), model.format(run=trained)
    assert len(held_out_images(data, model=model, console=QUIET).source) == 15


def test_a_copy_of_a_model_knows_no_held_out_images(trained, photos, tmp_path):
    shutil.copytree(trained / "model", tmp_path / "model")
    assert len(held_out_images(str(photos), model=str(tmp_path / "model"), console=QUIET).source) == 72


def test_unreadable_images_are_left_out_and_said(tmp_path, capsys):
    write({"cat/broken.png": b""}, class_folders(tmp_path))
    found = held_out_images(str(tmp_path), model="none", console=Console())
    assert len(found.source) == 10
    assert [file.reason for file in found.bad] == ["empty file"]
    assert "broken.png: empty file" in capsys.readouterr().err


def test_nothing_readable_is_an_error(tmp_path):
    write({"cat/broken.png": b""}, tmp_path)
    with pytest.raises(InputError, match="no image of"):
        held_out_images(str(tmp_path), model="none", console=QUIET)


def test_val_chooses_where_there_is_a_test_split_too(tmp_path, capsys):
    for i, split in enumerate(("train", "val", "test")):
        class_folders(tmp_path / "three" / split, each=i + 2, first_seed=10 * i)
    found, bad = learning_images(str(tmp_path / "three"), val=None, model="m", console=Console())
    assert found.dev is not None
    assert (len(found.train), len(found.dev), len(found.test), found.split) == (4, 6, 8, "test")
    assert bad == []
    assert "settings chosen on 6 of val, measuring on 8 of test" in capsys.readouterr().err


def test_other_data_are_measured_on_where_they_are_named(tmp_path):
    class_folders(tmp_path / "mine", each=3)
    class_folders(tmp_path / "other", each=2, first_seed=50)
    found, _ = learning_images(str(tmp_path / "mine"), val=str(tmp_path / "other"), model="m", console=QUIET)
    assert (len(found.train), len(found.test), found.split, found.dev) == (6, 4, "val", None)


def test_a_runs_own_splits_are_kept(trained, photos):
    found, _ = learning_images(str(photos), val=None, model=str(trained), console=QUIET)
    measured = held_out_images(str(photos), model=str(trained), console=QUIET).source
    assert [found.test.name(i) for i in range(15)] == [measured.name(i) for i in range(15)]
    assert found.classes == found.train.classes

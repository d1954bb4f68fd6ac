import json

import numpy as np
import pytest

from vitreous.data.source import FileSource
from vitreous.errors import InputError
from vitreous.evaluation.real import read_real, real_figures


def source(tmp_path, *numbers):
    names = [f"n01440764/ILSVRC2012_val_{number:08d}.JPEG" for number in numbers]
    return FileSource(tmp_path, names, classes=["tench"], labels=np.zeros(len(names)))


def predicting(*classes):
    return np.eye(1000)[list(classes)]


def test_the_published_share_of_original_labels_is_found(shared, tmp_path):
    """90.02 % of the validation labels are among ReaL's: a shift by one image would give about 0.1 %."""
    folder = shared / "data/imagenet_meta"
    labels = np.loadtxt(folder / "imagenet_val_labels.txt", dtype=int)
    everything = source(tmp_path, *range(1, 50_001))
    figures = real_figures(predicting(*labels), everything, read_real(folder / "real.json"))
    assert figures["num_images"] == 50_000 - 3_163
    assert figures["without_label"] == 3_163
    assert round(100 * figures["top1"]["value"], 2) == 90.02


def test_files_are_known_by_their_numbers_in_any_order(tmp_path):
    real = [frozenset() for _ in range(50_000)]
    real[0], real[1], real[49_999] = frozenset([7]), frozenset([1, 2]), frozenset([5])
    figures = real_figures(predicting(5, 2, 9, 3), source(tmp_path, 50_000, 2, 1, 4), real)
    assert (figures["top1"]["value"], figures["num_images"], figures["without_label"]) == (2 / 3, 3, 1)


@pytest.mark.parametrize("name", ["cat1.jpg", "ILSVRC2012_val_00050001.JPEG", "ILSVRC2012_val_00000000.JPEG"])
def test_other_files_are_refused_by_name(name, tmp_path):
    images = FileSource(tmp_path, [name], classes=["x"], labels=np.zeros(1))
    with pytest.raises(InputError, match=r"ILSVRC2012_val_00000001 to 00050000, got"):
        real_figures(predicting(0), images, [frozenset()] * 50_000)


def test_other_models_are_refused(tmp_path):
    with pytest.raises(InputError, match="this one has 10"):
        real_figures(np.eye(10)[[0]], source(tmp_path, 1), [frozenset()] * 50_000)


@pytest.mark.parametrize(
    "content", ['"real.json"', "[[1], [2]]", "{", json.dumps([[1000]] * 50_000), json.dumps([3] * 50_000)]
)
def test_a_file_that_is_not_reals_is_refused(content, tmp_path):
    (tmp_path / "real.json").write_text(content)
    with pytest.raises(InputError, match=r"real.json"):
        read_real(tmp_path / "real.json")


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="cannot read"):
        read_real(tmp_path / "real.json")

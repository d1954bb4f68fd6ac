"""The check of a data set, its command and its page."""

import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from vitreous.data.check import check
from vitreous.inspection.data_page import data_page


def scene(seed: int, side: int = 96) -> Image.Image:
    """A smooth picture unlike that of any other seed."""
    coarse = np.random.default_rng(seed).integers(256, size=(7, 7, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.fixture
def clean(tmp_path):
    """Twelve images of each of two classes to train on, four of each held out."""
    for split, number in (("train", 12), ("val", 4)):
        for label, name in enumerate(("cat", "dog")):
            folder = tmp_path / "data" / split / name
            folder.mkdir(parents=True)
            for i in range(number):
                seed = 1000 * (split == "val") + 100 * label + i
                (folder / f"{i}.png").write_bytes(encoded(scene(seed)))
    return tmp_path / "data"


@pytest.fixture
def dirty(clean):
    """The same with one of each thing that can be wrong."""
    turn = Image.Exif()
    turn[0x0112] = 6
    grey = scene(905).convert("L").convert("RGB")
    files = {
        "train/cat/empty.png": b"",
        "train/cat/text.jpg": b"<html>404",
        "train/cat/typed.png": encoded(scene(901), "JPEG"),
        "train/cat/copy.png": (clean / "train/cat/0.png").read_bytes(),
        "train/cat/again.webp": encoded(scene(1), "WEBP"),
        "train/cat/turned.jpg": encoded(scene(902), "JPEG", exif=turn),
        "train/cat/grey.png": encoded(grey),
        "val/cat/leak.png": (clean / "train/cat/2.png").read_bytes(),
        "val/cat/leak.jpg": encoded(scene(3).resize((80, 80)), "JPEG", quality=70),
        "train/dog/clash.png": (clean / "train/cat/4.png").read_bytes(),
        "train/dog/clash.jpg": encoded(scene(5).resize((90, 90)), "JPEG", quality=80),
    }
    for name, data in files.items():
        (clean / name).write_bytes(data)
    return clean


def named(found, what: str) -> list[list[str]]:
    (finding,) = [finding for finding in found.findings if finding.what == what]
    return [[found.sources[split].name(i) for split, i in group] for group in finding.groups]


def test_clean_data_give_no_finding(clean):
    found = check(str(clean))
    assert [finding.what for finding in found.findings if finding.groups] == []
    assert found.severe == []
    assert found.num_images == 32


def test_each_kind_of_fault_is_found_and_nothing_else(dirty):
    found = check(str(dirty))
    assert {finding.what: named(found, finding.what) for finding in found.findings} == {
        "unreadable files": [["train/cat/empty.png"], ["train/cat/text.jpg"]],
        "suffix and content differ": [["train/cat/typed.png"]],
        "equal images across splits (leakage)": [["train/cat/2.png", "val/cat/leak.png"]],
        "near-equal images across splits (leakage)": [["train/cat/3.png", "val/cat/leak.jpg"]],
        "equal images with two labels": [["train/cat/4.png", "train/dog/clash.png"]],
        "near-equal images with two labels": [["train/cat/5.png", "train/dog/clash.jpg"]],
        "equal images within a split": [["train/cat/0.png", "train/cat/copy.png"]],
        "near-equal images within a split": [["train/cat/1.png", "train/cat/again.webp"]],
    }
    train = found.summary()["splits"]["train"]
    assert train["rotated"] == 1
    assert train["grey"] == 1
    assert train["classes"] == {"cat": 19, "dog": 14}
    assert train["imbalance"] == 19 / 14
    assert train["formats"] == {"PNG": 27, "JPEG": 3, "WEBP": 1}
    assert len(found.severe) == 7  # two copies of 43 are over 1 %, a wrong suffix does no harm


def test_a_near_copy_of_an_image_that_is_there_twice_is_seen_across_splits(clean):
    (clean / "train/cat/copy.png").write_bytes((clean / "train/cat/0.png").read_bytes())
    (clean / "val/cat/copy.png").write_bytes((clean / "train/cat/0.png").read_bytes())
    (clean / "train/cat/again.jpg").write_bytes(encoded(scene(0), "JPEG"))
    found = check(str(clean))
    assert named(found, "equal images across splits (leakage)") == [
        ["train/cat/0.png", "train/cat/copy.png", "val/cat/copy.png"]
    ]
    assert named(found, "near-equal images across splits (leakage)") == [["train/cat/again.jpg", "val/cat/copy.png"]]


def test_copies_up_to_one_in_a_hundred_are_no_reason_to_stop(clean):
    for i in range(80):
        (clean / f"train/dog/more{i}.png").write_bytes(encoded(scene(5000 + i)))
    (clean / "train/dog/copy.png").write_bytes((clean / "train/dog/0.png").read_bytes())
    assert check(str(clean)).severe == []
    (clean / "train/dog/copy2.png").write_bytes((clean / "train/dog/1.png").read_bytes())
    assert [finding.what for finding in check(str(clean)).severe] == ["equal images within a split"]


def test_data_without_one_readable_image_are_described(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_bytes(b"")
    found = check(str(tmp_path))
    assert [(finding.what, len(finding.groups)) for finding in found.severe] == [("unreadable files", 2)]
    assert data_page(found, name="x")


def test_small_jpegs_are_seen_at_full_size(tmp_path):
    for name, seeds in (("cat", (1, 2)), ("dog", (3, 4))):
        (tmp_path / name).mkdir()
        for seed in seeds:
            (tmp_path / name / f"{seed}.jpg").write_bytes(encoded(scene(seed, side=32), "JPEG", quality=95))
    (tmp_path / "cat" / "again.png").write_bytes(encoded(scene(1, side=32)))
    assert named(check(str(tmp_path)), "near-equal images within a split") == [["cat/1.jpg", "cat/again.png"]]


def test_known_sets_of_grey_pixels_are_checked_too(vitreous):
    answer = vitreous("data", "check", "digits")
    assert answer.code == 0
    assert re.search(r"without colour +1,797", answer.out)


def test_strict_leaves_with_three_where_a_trainer_must_know(clean, dirty, vitreous):
    assert vitreous("data", "check", dirty).code == 0
    answer = vitreous("data", "check", dirty, "--strict")
    assert answer.code == 3
    assert re.search(r"unreadable files +2  !", answer.out)
    assert "  train/cat/2.png (train) = val/cat/leak.png (val)\n" in answer.out
    assert "  train/cat/5.png (cat) = train/dog/clash.jpg (dog)\n" in answer.out


def test_strict_lets_clean_data_pass(clean, vitreous):
    assert vitreous("data", "check", clean, "--strict").code == 0


def test_held_out_images_may_come_from_elsewhere(clean, tmp_path, vitreous):
    for name in ("cat", "dog"):
        (tmp_path / "other" / name).mkdir(parents=True)
        (tmp_path / "other" / name / "1.png").write_bytes((clean / "train" / name / "1.png").read_bytes())
    answer = vitreous("data", "check", clean, "--val", tmp_path / "other", "--json")
    findings = json.loads(answer.out)["findings"]
    assert findings["equal images across splits (leakage)"]["count"] == 2


def test_json_names_every_finding(dirty, vitreous):
    record = json.loads(vitreous("data", "check", dirty, "--json").out)
    assert record["num_images"] == 43
    unreadable = record["findings"]["unreadable files"]
    assert unreadable["groups"][0] == [{"split": "train", "file": "train/cat/empty.png", "label": "cat"}]
    assert unreadable["reasons"] == ["empty file", "not an image (HTML document)"]
    assert "suffix and content differ" not in record["severe"]


def test_the_page_shows_pairs_escapes_names_and_asks_nobody(dirty, tmp_path, vitreous):
    (dirty / "train/cat/<b>x&y.png").write_bytes(b"")
    page = tmp_path / "check.html"
    answer = vitreous("data", "check", dirty, "--page", page)
    assert f"page: {page}" in answer.out
    text = page.read_text()
    assert text.count('<img src="data:image/') == 13  # one mistyped, and six pairs
    assert "&lt;b&gt;x&amp;y.png" in text
    assert "<b>x&y.png" not in text
    assert "default-src 'none'" in text
    assert "<script" not in text
    assert "//" not in re.sub(r'"data:[^"]*"', "", text)


def test_a_page_that_cannot_be_written_is_refused_before_the_work(clean, tmp_path, vitreous):
    answer = vitreous("data", "check", clean, "--page", tmp_path)
    assert answer.code == 2
    assert "--page takes the name of a page" in answer.err
    (tmp_path / "folder.html").mkdir()
    assert "it is a folder" in vitreous("data", "check", clean, "--page", tmp_path / "folder.html").err


def test_names_cannot_steer_the_terminal(clean, vitreous):
    (clean / "train/cat/\x1b[31mred.png").write_bytes(b"")
    out = vitreous("data", "check", clean).out
    assert "\x1b" not in out
    assert "\\x1b[31mred.png: empty file" in out

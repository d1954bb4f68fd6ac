"""What users give that cannot work, or looks as if it could not: `vitreous fit` on each."""

import errno
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from pictures import bomb, class_folders, encoded, noise, packed, write
from vitreous import planning
from vitreous.errors import InputError

SOUND = encoded(noise(1000))


@pytest.fixture
def fit(vitreous, monkeypatch):
    """`vitreous fit` with a model that takes no time."""
    monkeypatch.setattr(planning, "PROBE_S", 0.05)
    monkeypatch.setattr(planning, "MIN_STEPS", 2)

    def run(*arguments):
        return vitreous("fit", *arguments, "--model", "32x1/4", "--minutes", "0.0001")

    return run


def many(root: Path, **files: bytes) -> Path:
    """Two classes of 60 sound pictures each, and `files` among those of the first."""
    class_folders(root, each=60)
    return write({f"cat/{name}": data for name, data in files.items()}, root)


def complaint(answer) -> str:
    """The one line on which a command that was refused ends."""
    assert answer.code == 2
    assert answer.out == ""
    line = answer.err.splitlines()[-1]
    assert line.startswith("vitreous: ")
    assert sum(row.startswith("vitreous: ") for row in answer.err.splitlines()) == 1
    return line


# ---- folders and lists


def test_a_folder_that_is_missing(fit, tmp_path):
    class_folders(tmp_path / "photos")
    assert "did you mean" in complaint(fit(tmp_path / "fotos"))
    assert "no such file or folder" in complaint(fit("gone"))
    assert list(Path().glob("runs/*")) == []


def test_a_folder_that_is_empty(fit, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "holds no images" in complaint(fit(tmp_path / "empty"))


def test_images_without_class_folders(fit, tmp_path):
    write({"a.png": SOUND}, tmp_path / "flat")
    said = complaint(fit(tmp_path / "flat"))
    assert "needs labels, which 1 images lack; there are no class folders" in said
    assert "put each class into a folder of its own (cat/1.jpg, dog/2.jpg), or give a list with the columns" in said


def test_one_class_only(fit, tmp_path):
    assert "one class only (cat)" in complaint(fit(class_folders(tmp_path / "x", ("cat",))))


def test_held_out_classes_that_training_lacks(fit, tmp_path):
    class_folders(tmp_path / "x" / "train")
    class_folders(tmp_path / "x" / "val", ("cat", "cow"), first_seed=50)
    assert "cow" in complaint(fit(tmp_path / "x"))
    assert "cow" in complaint(fit(tmp_path / "x" / "train", "--val", tmp_path / "x" / "val"))


def test_a_class_that_is_empty_is_said(fit, tmp_path):
    class_folders(tmp_path / "x")
    (tmp_path / "x" / "cow").mkdir()
    answer = fit(tmp_path / "x")
    assert answer.code == 0
    assert "cow" in answer.err


def test_a_class_without_a_readable_image(fit, tmp_path):
    class_folders(tmp_path / "x", each=60)
    write({"cow/1.png": b""}, tmp_path / "x")
    assert "class cow" in complaint(fit(tmp_path / "x"))


def test_what_systems_leave_behind_is_no_class_and_no_image(fit, tmp_path):
    class_folders(tmp_path / "x")
    strays = (".ipynb_checkpoints/1.png", "__MACOSX/cat/._1.png", "cat/Thumbs.db", "cat/.DS_Store", "dog/desktop.ini")
    write(dict.fromkeys(strays, b"junk"), tmp_path / "x")
    answer = fit(tmp_path / "x")
    assert answer.code == 0
    assert "2 classes" in answer.err
    assert not (Path("runs") / "x" / "bad_images.txt").exists()


def test_the_users_folder_is_never_written_to(fit, tmp_path):
    folder = class_folders(tmp_path / "x")
    before = {path: path.stat().st_mtime_ns for path in [folder, *folder.rglob("*")]}
    assert fit(folder).code == 0
    assert {path: path.stat().st_mtime_ns for path in [folder, *folder.rglob("*")]} == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,label\na.png,cat\n", "image"),
        ("image,label\na.png,cat\nb.png,dog\ngone.png,dog\n", "gone.png"),
        ("image,label\na.png,cat\nb.png\n", "line 3"),
        ("image,label\na.png,cat\nb.png,\n", "line 3"),
        ("image,label\na.png,cat\nb.png,dog, black\n", "3 cells for 2 columns"),
        ("\ufeffimage,label\na.png,cat\nb.png,caf\udce9\nc.png,dog\nd.png,dog", "d.png"),
        ("image,label,split\na.png,cat,train\nb.png,dog,train\nc.png,cow,val\n", "cow"),
        ("", "empty"),
    ],
)
def test_lists_with_a_gap(text, message, fit, tmp_path):
    write({name: encoded(noise(i)) for i, name in enumerate(("a.png", "b.png", "c.png"))}, tmp_path)
    (tmp_path / "list.csv").write_text(text, "utf-8", "surrogateescape")
    assert message in complaint(fit(tmp_path / "list.csv"))


def test_a_tar_that_is_cut_short(fit, tmp_path):
    seeds = iter(range(16))
    members = {f"{name}/{i}.png": encoded(noise(next(seeds))) for i in range(8) for name in ("cat", "dog")}
    path = packed(members, tmp_path / "x.tar")
    os.truncate(path, 10 * 1024)  # ten members and nothing of the next
    answer = fit(path)
    assert answer.code == 0
    assert "x.tar lacks the mark that ends a tar" in answer.err
    os.truncate(path, 10 * 1024 - 200)
    assert "x.tar is no whole tar" in complaint(fit(path, "--out", "again"))


def test_a_file_that_is_no_data(fit, tmp_path):
    (tmp_path / "notes.docx").write_bytes(b"PK")
    assert "is no data set" in complaint(fit(tmp_path / "notes.docx"))


# ---- images


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("notes.jpg", b"hello there", "not an image (text)"),
        ("empty.png", b"", "empty file"),
        ("cut.png", SOUND[: len(SOUND) // 2], "truncated"),
        ("bomb.png", bomb(), "over the limit of 50 MP"),
        ("photo.heic", b"\0\0\0\x18ftypheic" + bytes(100), "HEIC"),
    ],
)
def test_an_image_that_cannot_be_read_is_left_out_and_named(name, data, reason, fit, tmp_path):
    answer = fit(many(tmp_path / "x", **{name: data}), "--out", tmp_path / "run")
    assert answer.code == 0
    listed = (tmp_path / "run" / "bad_images.txt").read_text()
    assert listed.count("\n") == 1
    for text in (answer.err, listed):
        assert name in text
        assert reason in text


def test_many_unreadable_images_stop_before_training_unless_allowed(fit, tmp_path):
    folder = many(tmp_path / "x", **{"1.gif": b"", "2.gif": b"GIF", "3.gif": b"-"})
    line = complaint(fit(folder, "--out", tmp_path / "run"))
    assert "3 of 123" in line
    assert "--allow-bad" in line
    assert (tmp_path / "run" / "bad_images.txt").read_text().count("\n") == 3
    assert fit(folder, "--out", tmp_path / "run", "--allow-bad").code == 0


def odd_images() -> dict[str, bytes]:
    """Images that are unusual and sound, by file name."""
    grey, colour = Image.new("L", (9, 7), 77), noise(1)
    turned = Image.Exif()
    turned[0x0112] = 6
    deep = Image.fromarray(np.full((7, 9), 40_000, np.uint16))
    frames = [noise(i) for i in (2, 3)]
    return {
        "cmyk.jpg": encoded(noise(4).convert("CMYK"), "JPEG"),
        "deep.png": encoded(deep),
        "palette.gif": encoded(noise(5).convert("P"), "GIF"),
        "alpha.png": encoded(noise(6).convert("RGBA")),
        "grey.jpg": encoded(grey, "JPEG"),
        "animated.gif": encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "turned.jpg": encoded(noise(7, width=20, height=10), "JPEG", exif=turned),
        "one.png": encoded(noise(8, width=1, height=1)),
        "thin.png": encoded(noise(9, width=200, height=1)),
        "png in truth.jpg": encoded(colour),
        "żółw 猫 é.png": encoded(noise(10)),
        "n" * 240 + ".png": encoded(noise(11)),
        "new\nline.png": encoded(noise(12)),
        os.fsdecode(b"latin\xe9.png"): encoded(noise(13)),
    }


def test_odd_images_are_images(fit, vitreous, tmp_path):
    images = odd_images()
    write({f"odd/{name}": data for name, data in images.items()}, class_folders(tmp_path / "x", ("plain",), each=20))
    answer = fit(tmp_path / "x", "--out", tmp_path / "run")
    assert answer.code == 0
    assert not (tmp_path / "run" / "bad_images.txt").exists()
    split = (tmp_path / "run" / "split.csv").read_bytes()
    assert all(name in split for name in ("żółw 猫 é.png".encode(), b"latin\xe9.png", b"n" * 240))
    answer = vitreous("predict", tmp_path / "run", tmp_path / "x" / "odd", "--out", tmp_path / "all.csv")
    assert answer.code == 0
    assert f"{len(images)} predictions" in answer.out
    assert vitreous("evaluate", tmp_path / "run" / "model", tmp_path / "x").code == 0
    assert "latin\\udce9.png" in vitreous("predict", tmp_path / "run", tmp_path / "x" / "odd").out
    for name in ("all.jsonl", "all.parquet"):
        assert vitreous("predict", tmp_path / "run", tmp_path / "x" / "odd", "--out", tmp_path / name).code == 0


def test_a_file_that_may_not_be_read(fit, forbid, tmp_path):
    many(tmp_path / "x", **{"secret.png": SOUND})
    forbid(tmp_path / "x" / "cat" / "secret.png")
    answer = fit(tmp_path / "x")
    assert answer.code == 0
    assert "secret.png: no permission" in answer.err


def test_the_same_image_in_train_and_val_stays_on_one_side(fit, tmp_path):
    class_folders(tmp_path / "x" / "train", each=6)
    class_folders(tmp_path / "x" / "val", each=3, first_seed=50)
    shutil.copy(tmp_path / "x" / "val" / "cat" / "0.png", tmp_path / "x" / "train" / "cat" / "copy.png")
    answer = fit(tmp_path / "x", "--out", tmp_path / "run")
    assert answer.code == 0
    assert "1 in two splits" in answer.err
    rows = (tmp_path / "run" / "split.csv").read_text().splitlines()
    assert [row for row in rows if row.startswith("excluded") and "copy.png" in row]
    assert [row for row in rows if row.startswith("val") and "val/cat/0.png" in row]


# ---- models, sizes, weights


def test_a_size_that_does_not_divide_into_patches(fit, tmp_path):
    folder = class_folders(tmp_path / "x")
    assert "patches of 4; take 8" in complaint(fit(folder, "--image-size", "9"))
    assert "patches of 4; take 4" in complaint(fit(folder, "--image-size", "2"))
    assert "at least 1" in complaint(fit(folder, "--image-size", "0"))


def test_images_smaller_than_a_patch_are_enlarged(vitreous, tmp_path, monkeypatch):
    monkeypatch.setattr(planning, "PROBE_S", 0.05)
    monkeypatch.setattr(planning, "MIN_STEPS", 2)
    folder = class_folders(tmp_path / "x")
    assert vitreous("fit", folder, "--model", "32x1/16", "--minutes", "0.0001").code == 0


def test_weights_that_do_not_fit_name_the_tensors(vitreous, trained, photos, tmp_path):
    tensors = load_file(trained / "model" / "model.safetensors")
    del tensors["blocks.1.mlp.fc1.weight"]
    save_file(tensors, tmp_path / "cut.safetensors")
    assert "blocks.1.mlp.up.weight" in complaint(vitreous("predict", tmp_path / "cut.safetensors", photos))
    save_file({"layer.weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    assert "layer.weight" in complaint(vitreous("fit", photos, "--weights", tmp_path / "other.safetensors"))
    answer = vitreous("fit", photos, "--weights", trained, "--model", "B/16")
    assert "holds a ViT 32x2/4, not B/16" in complaint(answer)


def test_weights_that_could_run_code_are_refused(vitreous, photos, tmp_path):
    class Harmful:
        def __reduce__(self):
            return Path.touch, (tmp_path / "it ran",)

    torch.save({"weight": Harmful()}, tmp_path / "model.pth")
    assert "a pickle that would run code" in complaint(vitreous("fit", photos, "--weights", tmp_path / "model.pth"))
    assert not (tmp_path / "it ran").exists()


def test_a_hub_without_a_network_is_asked_once(vitreous, photos, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    done = subprocess.run(
        [sys.executable, "-m", "vitreous", "fit", str(photos), "--weights", "hub:someone/model"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 2
    assert "put config.json and model.safetensors in" in done.stderr.splitlines()[-1]
    assert done.stderr.count("127.0.0.1") == 1


# ---- run folders and disks


def test_a_run_folder_of_another_config(fit, vitreous, trained, photos, tmp_path):
    folder = class_folders(tmp_path / "x")
    before = {path: path.read_bytes() for path in trained.rglob("*") if path.is_file() and path.name != "claim.json"}
    assert "of another command" in complaint(fit(folder, "--out", trained))
    assert "holds another run" in complaint(vitreous("train", "smoke", "--data.path", photos, "--out", trained))
    assert {path: path.read_bytes() for path in before} == before


def test_a_run_folder_whose_images_have_changed(vitreous, photos, tmp_path):
    folder = Path(shutil.copytree(photos, tmp_path / "x"))
    words = ("train", "smoke", "--data.path", folder, "--steps", "4", "--out", tmp_path / "run", "--minutes", "0")
    assert vitreous(*words).code == 75
    (folder / "sea" / "sea1.png").write_bytes(encoded(noise(99)))
    assert "images have changed" in complaint(vitreous(*words))


def test_an_out_that_holds_something_else(fit, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    folder = class_folders(tmp_path / "x")
    assert "no run of ours" in complaint(fit(folder, "--out", tmp_path / "mine"))
    assert "is a file" in complaint(fit(folder, "--out", tmp_path / "mine" / "thesis.txt"))
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_a_disk_that_is_full_when_training_wants_to_save(vitreous, photos, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    words = ("train", "smoke", "--data.path", photos, "--steps", "4", "--out", tmp_path / "run", "--minutes", "0")
    assert vitreous(*words).code == 75
    with monkeypatch.context() as patch:
        patch.setattr("vitreous.checkpoint.save_file", full)
        assert "the disk is full" in complaint(vitreous(*words))
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000001"]
    answer = vitreous(*words)
    assert answer.code == 75
    assert "going on from step 1" in answer.err


def in_namespace(script: str) -> subprocess.CompletedProcess:
    """`script` run where it may mount file systems of its own; skips where that is forbidden."""
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("this system lets no user mount a small disk")
    return subprocess.run(["unshare", "-rm", "sh", "-c", script], capture_output=True, text=True, check=False)


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs Linux's unshare")
@pytest.mark.parametrize(
    ("disk", "message"), [("-o size=160k", "the disk is full"), ("-o ro", "the file system is read-only")]
)
def test_a_real_disk_that_is_full_or_read_only(disk, message, photos, tmp_path):
    (tmp_path / "disk").mkdir()
    words = (
        "-m",
        "vitreous",
        "train",
        "smoke",
        "--data.path",
        photos,
        "--steps",
        4,
        "--out",
        tmp_path / "disk" / "run",
    )
    train = shlex.join(map(str, [sys.executable, *words]))
    done = in_namespace(f"mount -t tmpfs {disk} tmpfs {shlex.quote(str(tmp_path / 'disk'))} && exec {train}")
    assert done.returncode == 2, done.stderr
    assert message in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", [b"caf\xe9", "café".encode(), "cafe\u0301".encode()])
def test_a_class_in_any_spelling_is_that_class(name, fit, vitreous, tmp_path):
    folder = class_folders(tmp_path / "x", ("tea",), each=8)
    class_folders(tmp_path / "y", ("coffee",), each=8, first_seed=50)
    (tmp_path / "y" / "coffee").rename(os.fsdecode(bytes(folder) + b"/" + name))
    assert fit(folder, "--out", tmp_path / "run").code == 0
    assert "café" in vitreous("evaluate", tmp_path / "run", folder).out


def test_notes_on_the_data_are_said_by_every_command(vitreous, trained, photos, tmp_path):
    members = {f"{p.parent.name}/{p.name}": p.read_bytes() for p in photos.rglob("*.png")}
    path = packed(members, tmp_path / "x.tar")
    os.truncate(path, path.stat().st_size // 1024 * 1024 - 10240)
    words = ("--steps", "2", "--out", tmp_path / "run")
    for answer in (vitreous("train", "smoke", "--data.path", path, *words), vitreous("evaluate", trained, path)):
        assert "may be cut short" in answer.err or "is no whole tar" in answer.err


def test_runs_are_kept_out_of_the_data(vitreous, photos, monkeypatch, tmp_path):
    folder = Path(shutil.copytree(photos, tmp_path / "x"))
    monkeypatch.chdir(folder)
    assert "never written to" in complaint(vitreous("fit", "."))
    assert "never written to" in complaint(vitreous("train", "smoke", "--data.path", ".", "--out", "run"))
    assert sorted(path.name for path in folder.iterdir()) == ["sea", "sky", "wall"]


def test_a_split_beside_classes_is_no_class(fit, tmp_path):
    class_folders(tmp_path / "x")
    class_folders(tmp_path / "x" / "test", first_seed=50)
    assert "a test split test with that class in it" in complaint(fit(tmp_path / "x"))


def test_a_disk_that_is_full_when_training_wants_to_log(vitreous, photos, tmp_path, monkeypatch):
    from vitreous.run_folder import RunFolder

    def full(*_):
        raise InputError("cannot write metrics.jsonl: the disk is full")

    monkeypatch.setattr(RunFolder, "append", full)
    answer = vitreous("train", "smoke", "--data.path", photos, "--steps", "4", "--out", tmp_path / "run")
    assert answer.code == 0
    assert "warning: no measurements at step 4" in answer.err


def test_names_with_a_carriage_return_come_back(vitreous, tmp_path):
    folder = class_folders(tmp_path / "x", each=6)
    write({f"cat/cr{i}\rname.png": encoded(noise(70 + i)) for i in range(9)} | {"cat/bad\r\n.png": b""}, folder)
    words = ("--data.path", folder, "--data.allow_bad", "true", "--steps", "2", "--out", tmp_path / "run")
    assert vitreous("train", "smoke", *words).code == 0
    assert vitreous("evaluate", tmp_path / "run", folder).code == 0
    assert len((tmp_path / "run" / "bad_images.txt").read_text().splitlines()) == 1


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("run.json", '{"config": {}, "threads": "many"}', "threads is 'many'"),
        ("run.json", '{"config": {}, "directory": 5}', "directory is 5"),
        ("run.json", '{"config": {}, "data": "x"}', "data is 'x'"),
        ("run.json", "{}", "no config"),
        ("split.csv", "a,b\n1,2\n", "split.csv of the run is damaged"),
        ("split.csv", "", "split.csv of the run is damaged"),
        ("evaluation.json", "{}", "lacks figures"),
        ("evaluation.json", "[]", "lacks figures"),
        ("model/config.json", '{"vitreous": {"format": 1, "classifier": 3, "view": 3, "classes": null}}', "no config"),
    ],
)
def test_files_of_a_run_that_were_edited(file, text, message, vitreous, trained, photos, tmp_path):
    folder = Path(shutil.copytree(trained, tmp_path / "run"))
    (folder / file).write_text(text)
    answers = [vitreous("report", folder), vitreous("evaluate", folder, photos)]
    assert all(answer.code in (0, 2) for answer in answers)
    assert message in "".join(answer.err for answer in answers)


def test_a_run_that_could_not_begin_leaves_its_folder_free(vitreous):
    words = ("train", "smoke", "--steps", "1", "--model.class_token", "false", "--out", "run")
    answer = vitreous(*words)
    assert answer.code == 2
    assert "pool with Mean()" in answer.err
    assert not Path("run").exists()
    assert vitreous(*words, "--objective.pooling", "Mean").code == 0


@pytest.mark.parametrize("head", ["--model.class_token false", "--objective.pooling ClassAndDistillation"])
def test_parts_that_do_not_go_together_are_said_by_a_dry_run(head, vitreous):
    answer = vitreous("train", "smoke", *head.split(), "--dry-run")
    assert answer.code == 2
    assert answer.err.count("\n") == 1


def test_a_year_is_enough(vitreous):
    answer = vitreous("fit", "digits", "--minutes", "1e308")
    assert "--minutes must be above 0 and at most 527,040 (a year), got 1e+308" in answer.err


def test_a_loss_that_leaves_the_numbers_keeps_the_run_that_the_advice_is_about(vitreous):
    answer = vitreous("train", "smoke", "--learning_rate.peak", "1e30", "--out", "run")
    assert answer.code == 2
    assert "vitreous train run/run.json" in answer.err
    assert Path("run/run.json").is_file()

import argparse
import json
import pickle
import subprocess

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import google_reference as reference
from vitreous.errors import InputError
from vitreous.weights.read import read_config, read_tensors

TENSORS = {"cls_token": torch.arange(6.0).view(1, 1, 6), "norm.weight": torch.ones(6)}


def same(found):
    return found.keys() == TENSORS.keys() and all(torch.equal(found[name], TENSORS[name]) for name in TENSORS)


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "timm_model.", "module._orig_mod."])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth", ".bin"])
def test_a_prefix_before_every_name_is_taken_off(prefix, suffix, tmp_path):
    prefixed = {prefix + name: tensor for name, tensor in TENSORS.items()}
    path = tmp_path / f"weights{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(prefixed, path)
    assert same(read_tensors(path))


@pytest.mark.parametrize("wrap", [lambda t: {"model": t, "epoch": 3}, lambda t: {"state_dict": {"model": t}}])
def test_a_training_checkpoint_is_unwrapped(wrap, tmp_path):
    torch.save(wrap(TENSORS), tmp_path / "x.pth")
    assert same(read_tensors(tmp_path / "x.pth"))


def test_the_options_of_a_training_do_no_harm(tmp_path):
    options = argparse.Namespace(lr=0.1, name="dino")
    torch.save({"teacher": TENSORS, "student": TENSORS, "args": options, "epoch": 3}, tmp_path / "c.pth")
    assert read_tensors(tmp_path / "c.pth").keys() == TENSORS.keys()


def test_averaged_weights_are_preferred(tmp_path):
    torch.save({"state_dict": {"a": torch.zeros(1)}, "state_dict_ema": TENSORS}, tmp_path / "x.pth")
    assert same(read_tensors(tmp_path / "x.pth"))


def test_half_precision_becomes_float32(tmp_path):
    save_file({name: tensor.half() for name, tensor in TENSORS.items()}, tmp_path / "x.safetensors")
    assert same(read_tensors(tmp_path / "x.safetensors"))


def test_the_tensors_outlive_their_file(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file(TENSORS, path)
    found = read_tensors(path)
    path.write_bytes(b"\0" * path.stat().st_size)
    assert same(found)


def test_arrays_of_numpy_are_read_as_what_they_are(tmp_path):
    numbers = np.array([[1.0, -0.5], [3.140625, 2.0**-100]])
    np.savez(
        tmp_path / "x.npz",
        double=numbers,
        half=numbers[0].astype(np.float16),
        brain=reference.as_bfloat16(numbers),
        step=np.array(7),
        words=np.array(["not", "numbers"]),
    )
    found = read_tensors(tmp_path / "x.npz")
    assert found.keys() == {"double", "half", "brain", "step"}
    assert {name for name, tensor in found.items() if tensor.dtype != torch.float32} == {"step"}  # no weight
    assert found["brain"].tolist() == found["double"].tolist() == numbers.tolist()
    assert (found["half"].tolist(), found["step"].item()) == ([1.0, -0.5], 7)


@pytest.mark.parametrize(
    "write",
    [
        lambda file: np.save(file, np.zeros(3)),
        lambda file: pickle.dump({"a": 1}, file),
        lambda file: file.write(b"<html>" * 99),
        lambda file: np.savez(file, records=np.zeros(2, [("a", "f4"), ("b", "f4")])),
    ],
)
def test_a_file_that_is_no_archive_of_arrays_is_said_to_be_damaged(write, tmp_path):
    with open(tmp_path / "x.npz", "wb") as file:
        write(file)
    with pytest.raises(InputError, match=r"x\.npz is damaged or incomplete \(.*\); fetch it again") as error:
        read_tensors(tmp_path / "x.npz")
    assert "\n" not in str(error.value)


class Harmful:
    def __reduce__(self):
        return subprocess.check_call, (["touch", "harm"],)


@pytest.mark.parametrize("thing", [Harmful(), {"model": TENSORS, "args": argparse.Namespace(lr=Harmful())}])
def test_a_pickle_that_needs_code_is_refused_unread(thing, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(thing, "x.pth")
    with pytest.raises(InputError, match="would run code") as error:
        read_tensors(tmp_path / "x.pth")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"<html>" * 99])
def test_a_damaged_file_is_said_to_be_damaged(suffix, damage, tmp_path):
    path = tmp_path / f"weights{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(TENSORS, path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match="weights") as error:
        read_tensors(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [("absent.npz", "No such file"), ("a.txt", "no weights file"), ("absent.safetensors", "No such file")],
)
def test_files_that_are_no_weights_are_refused(name, message, tmp_path):
    with pytest.raises(InputError, match=message):
        read_tensors(tmp_path / name)


def test_a_checkpoint_without_tensors_is_refused(tmp_path):
    torch.save({"epoch": 3}, tmp_path / "x.pt")
    with pytest.raises(InputError, match="no tensors"):
        read_tensors(tmp_path / "x.pt")


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (torch.Tensor.to_sparse, "sparse or complex"),
        (lambda x: x.to(torch.complex64), "sparse or complex"),
        (lambda x: x.to("meta"), "without values"),
        (lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8), "quantised"),
    ],
    ids=["sparse", "complex", "meta", "quantised"],
)
def test_tensors_that_are_no_plain_numbers_are_named(change, kind, tmp_path):
    torch.save({"a.weight": change(torch.ones(2, 2))}, tmp_path / "x.pth")
    with pytest.raises(InputError, match=rf"x\.pth: a\.weight is {kind}; save it as plain floating-point numbers"):
        read_tensors(tmp_path / "x.pth")


def test_a_checkpoint_inside_itself_is_left_at_some_point(tmp_path):
    found: dict = dict(TENSORS)
    found["state_dict"] = found
    torch.save(found, tmp_path / "x.pth")
    assert read_tensors(tmp_path / "x.pth").keys() == TENSORS.keys()


def test_an_index_of_itself_is_no_index(tmp_path):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": index.name}}))
    with pytest.raises(InputError, match="names no files beside it"):
        read_tensors(index)


def test_a_plain_pickle_is_refused_without_a_warning(tmp_path, recwarn):
    (tmp_path / "x.pth").write_bytes(pickle.dumps(Harmful(), protocol=4))
    with pytest.raises(InputError, match="would run code"):
        read_tensors(tmp_path / "x.pth")
    assert not recwarn


def test_a_config_that_is_a_list_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(InputError, match="not an object"):
        read_config(tmp_path / "config.json")


def test_no_config_is_an_empty_one(tmp_path):
    assert read_config(tmp_path / "config.json") == {}

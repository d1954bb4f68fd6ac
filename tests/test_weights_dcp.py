import multiprocessing
import os
import pickle
import subprocess
import sys
import warnings
import zipfile
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.state_dict import get_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from conftest import REPOSITORY
from references import tiny
from vitreous.budget import plain_classifier
from vitreous.errors import InputError
from vitreous.weights.dcp import METADATA, read_dcp

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
KINDS = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool)


def save(state: dict, folder: Path, **options) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(state, storage_writer=FileSystemWriter(folder, **options))
    return folder


def torchs(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors as torch's own reader gives them."""
    said = dcp.FileSystemReader(folder).read_metadata().state_dict_metadata
    state = {
        name: torch.zeros(what.size, dtype=what.properties.dtype)
        for name, what in said.items()
        if hasattr(what, "size")
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.load(state, checkpoint_id=folder)
    return state


def the_same(folder: Path) -> bool:
    ours, theirs = read_dcp(folder), torchs(folder)
    same = [ours[name].dtype == theirs[name].dtype and torch.equal(ours[name], theirs[name]) for name in theirs]
    return list(ours) == list(theirs) and all(same)


def trained(module: nn.Module) -> torch.optim.Optimizer:
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.01)
    module(torch.ones(2, 6)).square().mean().backward()
    optimizer.step()
    return optimizer


def layers() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 7), nn.GELU(), nn.Linear(7, 3))


def shard(rank: int, folder: Path) -> None:
    """What one of two processes does."""
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo", init_method=f"file://{folder}.rendezvous", rank=rank, world_size=2)
    module = layers()
    for part in (module[0], module[2], module):
        fully_shard(part, mesh=init_device_mesh("cpu", (2,)))
    model, optimizer = get_state_dict(module, trained(module))
    dcp.save({"model": model, "optimizer": optimizer, "step": 3}, checkpoint_id=folder)
    dist.destroy_process_group()


def write_in_two_processes(folder: Path) -> None:
    """Run by a Python that has done nothing before: what autograd has started in this one does not survive a fork."""
    processes = [multiprocessing.get_context("fork").Process(target=shard, args=(rank, folder)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        process.kill()
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]


@pytest.fixture(scope="module")
def sharded(tmp_path_factory) -> Path:
    """Written by two processes, which hold 7 rows as 4 and 3."""
    folder = tmp_path_factory.mktemp("dcp") / "sharded"
    code = f"from pathlib import Path; import test_weights_dcp as t; t.write_in_two_processes(Path({str(folder)!r}))"
    known = {**os.environ, "PYTHONPATH": str(REPOSITORY / "tests")}
    subprocess.run([sys.executable, "-c", code], env=known, capture_output=True, check=True)
    return folder


@pytest.fixture
def small(tmp_path) -> Path:
    return save({"model": {"w": torch.arange(12.0).view(3, 4)}, "step": 3}, tmp_path / "small")


@pytest.mark.parametrize("options", [{}, {"single_file_per_rank": False}, {"thread_count": 2}])
def test_tensors_are_those_that_torch_reads(options, tmp_path):
    module = layers()
    state = {"model": module.state_dict(), "optimizer": trained(module).state_dict(), "step": 3}
    state["kinds"] = {str(kind): torch.arange(5).to(kind) for kind in KINDS}
    state["odd"] = [torch.tensor(2.5), torch.empty(0, 4), torch.arange(24.0).view(2, 3, 4).transpose(0, 2)]
    folder = save(state, tmp_path / "plain", **options)
    assert the_same(folder)
    found = read_dcp(folder)
    assert {"optimizer.state.0.exp_avg", "odd.0", "kinds.torch.bool"} < set(found)
    assert {"step", "optimizer.param_groups.0.lr"} < set(found.left)


def test_parts_of_two_processes_are_put_together(sharded):
    assert the_same(sharded)
    found, alone = read_dcp(sharded), layers()
    optimizer = trained(alone)
    assert torch.equal(found["model.0.weight"], alone[0].weight.detach())
    assert torch.equal(found["optimizer.state.2.weight.exp_avg"], optimizer.state[alone[2].weight]["exp_avg"])
    assert "step" in found.left


def test_only_what_is_asked_for_is_read(sharded, tmp_path):
    folder = save({"a": torch.ones(2), "b": torch.ones(3)}, tmp_path / "two", single_file_per_rank=False)
    found = read_dcp(folder)
    for file in folder.glob("*.distcp"):
        file.write_bytes(bytes(file.stat().st_size))
    assert ("a" in found, "c" in found, len(found)) == (True, False, 2)
    with pytest.raises(KeyError):
        found["c"]


class Harmful:
    def __init__(self, function=subprocess.check_call, arguments=(["touch", "harm"],)) -> None:
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


NESTED = b"\x80\x04\x8c\x05torch\x8c\x12serialization.os.x\x93."
HOSTILE = {
    "a command": pickle.dumps(Harmful()),
    "a command, as of old": pickle.dumps(Harmful(), protocol=0),
    "os.system": pickle.dumps(Harmful(os.system, ("touch harm",))),
    "eval": pickle.dumps(Harmful(eval, ("open('harm', 'w')",))),
    "getattr": b"cbuiltins\ngetattr\n(ctorch\nSize\nS'__init__'\ntR.",
    "a dotted name": NESTED,
    "a dotted name of a class that is known": NESTED.replace(
        b"\x05torch\x8c\x12serialization.os.x", b"\x05torch\x8c\x0dSize.__init__"
    ),
    "another name of a module that is known": b"\x80\x04\x8c\x13torch.serialization\x8c\x04load\x93.",
    "a registered number": b"\x80\x04\x82\x01.",
    "an object from outside": b"\x80\x04\x8c\x01xQ.",
}


@pytest.mark.parametrize("index", HOSTILE.values(), ids=HOSTILE)
def test_an_index_that_names_anything_else_is_refused_unread(index, small, monkeypatch):
    monkeypatch.chdir(small)
    (small / METADATA).write_bytes(index)
    with pytest.raises(InputError, match=r"could run code|damaged") as error:
        read_dcp(small)
    assert "\n" not in str(error.value)
    assert not (small / "harm").exists()


def test_a_harmful_object_among_true_ones_is_refused_unread(small, monkeypatch):
    monkeypatch.chdir(small)
    index = dcp.FileSystemReader(small).read_metadata()
    index.planner_data = {"x": Harmful()}
    (small / METADATA).write_bytes(pickle.dumps(index))
    with pytest.raises(InputError, match=r"names subprocess\.check_call, which .* could run code"):
        read_dcp(small)
    assert not (small / "harm").exists()


def test_an_object_that_is_no_tensor_is_named_and_never_opened(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = save({"w": torch.ones(5), "object": Harmful()}, tmp_path / "x")
    assert torch.equal(read_dcp(folder)["w"], torch.ones(5))
    assert read_dcp(folder).left == ("object",)
    assert not (tmp_path / "harm").exists()


def test_an_object_that_the_index_calls_a_tensor_is_refused_unread(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = save({"w": torch.ones(5), "object": Harmful()}, tmp_path / "x")
    index = dcp.FileSystemReader(folder).read_metadata()
    places = {key.fqn: key for key in index.storage_data}
    index.storage_data[places["w"]] = index.storage_data[places["object"]]
    (folder / METADATA).write_bytes(pickle.dumps(index))
    with pytest.raises(InputError, match="w is a pickle that would run code, so it is not opened"):
        read_dcp(folder)["w"]
    assert not (tmp_path / "harm").exists()


@contextmanager
def one_line_at_most():
    """Lets an `InputError` through, and keeps its one line."""
    said: list[str] = []
    try:
        yield said
    except InputError as error:
        said.append(str(error))
    assert "\n" not in "".join(said)


def test_a_damaged_index_is_one_line_or_an_index(small, monkeypatch):
    """A changed letter of a name cannot be noticed; whatever happens, it is an index or one line."""
    monkeypatch.chdir(small)
    whole, refused = (small / METADATA).read_bytes(), 0
    for cut in range(0, len(whole) - 1, 7):
        (small / METADATA).write_bytes(whole[:cut])
        with pytest.raises(InputError, match=r"\.metadata is damaged") as error:
            read_dcp(small)
        assert "\n" not in str(error.value)
    for bit in range(0, 8 * len(whole), 5):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        (small / METADATA).write_bytes(flipped)
        with one_line_at_most() as said:
            found = read_dcp(small)
            assert all(torch.equal(found[name].flatten(), torch.arange(12.0)) for name in found)
        refused += bool(said)
    assert refused > 500
    assert {file.name for file in small.iterdir()} == {METADATA, "__0_0.distcp"}


def test_every_flipped_bit_of_a_tensor_is_noticed_or_harmless(small):
    path, told = small / "__0_0.distcp", 0
    place = next(
        p for key, p in dcp.FileSystemReader(small).read_metadata().storage_data.items() if key.fqn == "model.w"
    )
    whole = path.read_bytes()
    for byte in range(place.offset, place.offset + place.length, 3):
        flipped = bytearray(whole)
        flipped[byte] ^= 1 << byte % 8
        path.write_bytes(flipped)
        with one_line_at_most() as said:
            assert torch.equal(read_dcp(small)["model.w"], torch.arange(12.0).view(3, 4))
        told += bool(said)
    assert told > place.length / 9


def test_files_that_are_missing_or_too_short_are_named(sharded, tmp_path):
    folder = tmp_path / "copied"
    folder.mkdir()
    for file in sharded.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    part = folder / "__1_0.distcp"
    part.write_bytes(part.read_bytes()[:-900])
    with pytest.raises(InputError, match=r"is damaged \(__1_0\.distcp is too short\)"):
        read_dcp(folder)
    part.unlink()
    with pytest.raises(InputError, match=r"lacks '__1_0\.distcp', which its \.metadata names"):
        read_dcp(folder)
    (folder / METADATA).unlink()
    with pytest.raises(InputError, match=r"has no \.metadata, so it was not written to the end"):
        read_dcp(folder)


def altered(folder: Path, change) -> Path:
    index = dcp.FileSystemReader(folder).read_metadata()
    key = next(key for key in index.storage_data if key.fqn == "model.w")
    change(index.storage_data, key, index.state_dict_metadata["model.w"])
    (folder / METADATA).write_bytes(pickle.dumps(index))
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda stored, key, tensor: setattr(stored[key], "relative_path", "../x"), r"lacks '\.\./x'"),
        (lambda stored, key, tensor: setattr(stored[key], "relative_path", "/etc/passwd"), r"lacks '/etc/passwd'"),
        (lambda stored, key, tensor: setattr(stored[key], "offset", -1), "too short"),
        (lambda stored, key, tensor: setattr(stored[key], "transform_descriptors", ["zstd"]), "through an extension"),
        (
            lambda stored, key, tensor: setattr(tensor, "size", torch.Size([10**9, 10**9])),
            r"parts of model\.w are missing",
        ),
        (lambda stored, key, tensor: setattr(tensor, "size", torch.Size([2, 4])), "outside the whole"),
        (lambda stored, key, tensor: setattr(tensor.chunks[0], "sizes", torch.Size([3000, 4])), "outside the whole"),
        (lambda stored, key, tensor: setattr(tensor.properties, "dtype", torch.float64), "not what .metadata says"),
        (lambda stored, key, tensor: setattr(stored[key], "length", 20), "larger than its place"),
    ],
)
def test_an_index_that_does_not_fit_its_files_is_refused(change, message, small):
    with pytest.raises(InputError, match=message) as error:
        read_dcp(altered(small, change))["model.w"]
    assert "\n" not in str(error.value)


def test_a_compressed_part_is_refused_before_it_grows(small):
    with zipfile.ZipFile(small / "bomb", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(1 << 20))

    def lead_there(stored, key, tensor) -> None:
        stored[key].relative_path, stored[key].offset, stored[key].length = "bomb", 0, (small / "bomb").stat().st_size

    with pytest.raises(InputError, match="it is compressed"):
        read_dcp(altered(small, lead_there))["model.w"]


def test_a_model_in_such_a_folder_is_converted(vitreous, tmp_path):
    classifier = plain_classifier(tiny(), num_classes=3).build().eval()
    state = {"model": classifier.state_dict(), "optimizer": {"exp_avg": torch.ones(2)}, "step": 7}
    answer = vitreous("convert", save(state, tmp_path / "step-7"), "out")
    assert answer.code == 0, answer.err
    assert "3 classes" in answer.out

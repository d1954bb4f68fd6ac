import copy
import json
import os

import pytest
import torch

from vitreous.checkpoint import Checkpoints, Restored
from vitreous.errors import InputError
from vitreous.optim import SGD, AdamW

ADAMW = AdamW()


def stepped(config=ADAMW, seed=0):
    torch.manual_seed(seed)
    module = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2))
    optimizer = config.build(module)
    step(module, optimizer)
    return module, optimizer


def step(module, optimizer):
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    module(torch.ones(3, 4)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("config", [AdamW(), SGD()], ids=["adamw", "sgd"])
def test_training_goes_on_with_the_same_bits_after_a_restore(tmp_path, config):
    module, optimizer = stepped(config)
    Checkpoints(tmp_path).save(Restored(1, 2.5), module, optimizer)
    other, other_optimizer = stepped(config, seed=1)
    assert Checkpoints(tmp_path).restore(other, other_optimizer) == Restored(1, 2.5)
    step(module, optimizer)
    step(other, other_optimizer)
    for ours, theirs in zip(module.parameters(), other.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_only_the_newest_are_kept(tmp_path):
    module, optimizer = stepped()
    checkpoints = Checkpoints(tmp_path, keep=2)
    for number in range(1, 5):
        checkpoints.save(Restored(number, 0.0), module, optimizer)
    assert [path.name for path in checkpoints.saved()] == ["step-00000003", "step-00000004"]
    assert len(list(tmp_path.iterdir())) == 2


def test_a_flipped_bit_is_noticed_and_the_one_before_is_taken(tmp_path):
    module, optimizer = stepped()
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(Restored(1, 0.0), module, optimizer)
    first = copy.deepcopy(module.state_dict())
    step(module, optimizer)
    newest = checkpoints.save(Restored(2, 0.0), module, optimizer)
    data = bytearray((newest / "weights.safetensors").read_bytes())
    data[-3] ^= 4
    (newest / "weights.safetensors").write_bytes(data)
    assert checkpoints.restore(module, optimizer) == Restored(1, 0.0)
    assert all(torch.equal(module.state_dict()[name], first[name]) for name in first)
    assert newest.with_suffix(".damaged").exists()
    assert checkpoints.damaged == [newest]
    checkpoints.save(Restored(2, 0.0), module, optimizer)
    assert Checkpoints(tmp_path).restore(module, optimizer) == Restored(2, 0.0)


def test_a_damaged_only_checkpoint_is_one_clear_error(tmp_path):
    module, optimizer = stepped()
    path = Checkpoints(tmp_path).save(Restored(1, 0.0), module, optimizer)
    os.truncate(path / "optimizer.safetensors", 100)
    for _ in range(2):  # a second try must not start from nothing
        with pytest.raises(InputError, match=r"no checkpoint in .* is whole"):
            Checkpoints(tmp_path).restore(module, optimizer)


@pytest.mark.parametrize("name", ["step-00000002.damaged", "step-00000002"])
def test_damage_that_was_found_before_is_no_fresh_start(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(InputError, match=r"no checkpoint in .* is whole"):
        Checkpoints(tmp_path).restore(*stepped())


def test_a_checkpoint_that_may_not_be_read_is_not_called_damaged(tmp_path, monkeypatch):
    module, optimizer = stepped()
    path = Checkpoints(tmp_path).save(Restored(1, 0.0), module, optimizer)

    def forbidden(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("vitreous.checkpoint._crc32", forbidden)
    with pytest.raises(InputError, match=r"cannot read .*Permission denied"):
        Checkpoints(tmp_path).restore(module, optimizer)
    assert path.is_dir()


def test_an_unfinished_one_does_not_count(tmp_path):
    module, optimizer = stepped()
    (tmp_path / "step-00000009.123.tmp").mkdir()
    assert Checkpoints(tmp_path).restore(module, optimizer) is None


def test_a_full_disk_leaves_the_one_before_whole(tmp_path, monkeypatch):
    module, optimizer = stepped()
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(Restored(1, 0.0), module, optimizer)
    calls = []

    def full(descriptor):
        calls.append(descriptor)
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(InputError, match="the disk is full"):
            checkpoints.save(Restored(2, 0.0), module, optimizer)
    assert calls
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    assert checkpoints.restore(module, optimizer) == Restored(1, 0.0)


@pytest.mark.parametrize("change", [{"step": 7}, {"crc32": {}}, {"seconds": None}])
def test_a_changed_manifest_is_noticed(tmp_path, change):
    module, optimizer = stepped()
    path = Checkpoints(tmp_path).save(Restored(1, 0.0), module, optimizer) / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(InputError, match=r"no checkpoint in .* is whole"):
        Checkpoints(tmp_path).restore(module, optimizer)

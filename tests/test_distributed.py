import os
import subprocess
import sys
import time

import pytest
import torch

from vitreous import cores, distributed
from vitreous.errors import InputError


@pytest.mark.parametrize(("load", "ours", "threads"), [(0.1, 2, 2), (1.2, 2, 1), (7.0, 2, 1), (1.6, 8, 6), (0.0, 1, 1)])
def test_threads_are_the_cores_that_are_free(load, ours, threads, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(cores, "busy_cores", lambda: load)
    monkeypatch.setattr(cores, "cores", lambda: ours)
    assert cores.free_cores() == threads


def test_busy_cores_are_seen_at_once(monkeypatch):
    """One process spins; nothing of the sort was running a second ago."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as spinning:
        time.sleep(0.5)
        busy = cores.busy_cores()
        spinning.kill()
    spinning.wait()
    assert busy > 0.7
    monkeypatch.setattr(cores, "_ticks", dict.fromkeys(range(cores.cores()), (0, 0)).copy)
    assert cores.busy_cores(during_s=0) == cores.cores()  # no tick was idle
    idle = iter([{0: (100, 200)}, {0: (190, 300)}])
    monkeypatch.setattr(cores, "_ticks", lambda: next(idle))
    assert cores.busy_cores(during_s=0) == pytest.approx(0.1)


def test_without_proc_the_load_average_counts(monkeypatch):
    monkeypatch.setattr(cores, "_ticks", dict)
    monkeypatch.setattr(os, "getloadavg", lambda: (1.5, 0.0, 0.0))
    assert cores.busy_cores() == 1.5


def test_the_users_number_of_threads_is_taken(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert cores.free_cores() == 3


def test_a_cpu_computes_in_float32():
    world = distributed.start(device="cpu", threads=1)
    assert (world.device.type, world.dtype, world.is_main) == ("cpu", torch.float32, True)
    with world.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_gpu_computes_in_bfloat16():
    world = distributed.start()
    assert world.dtype == torch.bfloat16
    with world.autocast():
        assert (torch.ones(2, 2, device="cuda") @ torch.ones(2, 2, device="cuda")).dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "meta2", ""])
def test_a_device_that_is_absent_is_said(name):
    with pytest.raises(InputError, match="--device auto"):
        distributed.start(device=name)


def test_several_processes_are_refused_until_they_are_served(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="one process"):
        distributed.start()


def test_a_device_that_is_none_is_refused():
    for name in ("meta", "cuda:99", "abacus"):
        with pytest.raises(InputError, match="cannot compute on device"):
            distributed.start(device=name)


@pytest.mark.parametrize(("text", "number"), [("200000 100000", 2), ("150000 100000", 2), ("max 100000", 8), ("", 8)])
def test_the_share_of_a_container_counts(text, number, monkeypatch, tmp_path):
    (tmp_path / "cpu.max").write_text(text)
    monkeypatch.setattr(cores, "CGROUP_LIMIT", tmp_path / "cpu.max")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert cores.cores() == number

import os
import subprocess
import sys
import time

import pytest
import torch

from vitreous import distributed
from vitreous.errors import InputError


@pytest.mark.parametrize(
    ("load", "cores", "threads"), [(0.1, 2, 2), (1.2, 2, 1), (7.0, 2, 1), (1.6, 8, 6), (0.0, 1, 1)]
)
def test_threads_are_the_cores_that_are_free(load, cores, threads, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(distributed, "busy_cores", lambda: load)
    monkeypatch.setattr(distributed, "cores", lambda: cores)
    assert distributed.free_cores() == threads


def test_busy_cores_are_seen_at_once():
    """One process spins; nothing of the sort was running a second ago."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as spinning:
        time.sleep(0.5)
        busy = distributed.busy_cores()
        spinning.kill()
    assert busy > 0.7


def test_without_proc_the_load_average_counts(monkeypatch):
    monkeypatch.setattr(distributed, "_ticks", dict)
    monkeypatch.setattr(os, "getloadavg", lambda: (1.5, 0.0, 0.0))
    assert distributed.busy_cores() == 1.5


def test_the_users_number_of_threads_is_taken(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert distributed.free_cores() == 3


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

import ctypes
import os
import subprocess
import sys

import pytest

from vitreous import allocator

SETTINGS = ("LD_PRELOAD", "GLIBC_TUNABLES", *allocator.CHOICES)

needs_glibc = pytest.mark.skipif(allocator._glibc() is None, reason="needs glibc")

MEASURE = """
import resource
from vitreous.allocator import keep_freed_memory, return_freed_memory

def usage(work, times=5):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        work()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
"""

BLOCKS = """
def work():  # four blocks of 8 MiB at once, every page of them written
    return [b"x" * (8 << 20) for _ in range(4)]
"""

MODEL = """
import torch
from vitreous.classifier import ClassifierConfig
from vitreous.variants import vit

torch.set_num_threads(1)
model, images = ClassifierConfig(encoder=vit("192x2/16")).build().eval(), torch.randn(8, 3, 224, 224)

@torch.inference_mode()
def work():
    model(images)
"""


@pytest.fixture(autouse=True)
def _unset(monkeypatch):
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)


def run(*code: str, **variables: str) -> list[str]:
    """What a fresh process prints."""
    environment = {**os.environ, **variables}
    command = [sys.executable, "-c", "\n".join(code)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split("\n")


@needs_glibc
def test_repeated_forwards_ask_the_system_for_no_memory():
    compare = "work(); before = usage(work); keep_freed_memory(); work(); work(); print(before, usage(work))"
    before, after = map(int, run(MEASURE, MODEL, compare)[0].split())
    assert before > 1000
    assert after < before / 10


@needs_glibc
def test_freed_memory_is_kept_until_it_is_returned():
    resident = """
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() >> 20

print(keep_freed_memory())
start = resident(); work(); print(resident() - start)
print(return_freed_memory()); print(resident() - start)
"""
    said, kept, returned, left, _ = run(MEASURE, BLOCKS, resident)
    assert said == "freed blocks of up to 1,024 MiB are kept for the next step" or "32 MiB" in said
    assert int(kept) >= 31
    assert returned == "True"
    assert int(left) <= 1


@needs_glibc
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MALLOC_TRIM_THRESHOLD_", "131072"),
        ("MALLOC_MMAP_THRESHOLD_", "131072"),
        ("GLIBC_TUNABLES", "glibc.malloc.trim_threshold=131072"),
    ],
)
def test_what_the_user_set_stays(name, value):
    said, faults, _ = run(MEASURE, BLOCKS, "print(keep_freed_memory())", "print(usage(work))", **{name: value})
    assert said == f"the user's choice ({name} is set)"
    assert int(faults) > 5 * 4 * 1024  # pages of 4 KiB, half of all that are written at least


@needs_glibc
def test_a_preloaded_allocator_is_left_alone(monkeypatch):
    monkeypatch.setenv("LD_PRELOAD", "/lib/libother.so:/usr/lib/x86_64-linux-gnu/libjemalloc.so.2")
    assert allocator.keep_freed_memory() == "the user's choice (LD_PRELOAD is set)"


@needs_glibc
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LD_PRELOAD", "/opt/malloc-free/libother.so"),
        ("GLIBC_TUNABLES", "glibc.rtld.nns=4"),
        (allocator.CHOICES[0], ""),
    ],
)
def test_other_settings_are_no_choice_of_an_allocator(name, value, monkeypatch):
    monkeypatch.setenv(name, value)
    assert not allocator._users_choice()


class Library:
    """A C library that accepts thresholds up to a limit, and tells what it was asked."""

    def __init__(self, largest: int):
        self.largest, self.asked = largest, []

    def mallopt(self, parameter: int, value: int) -> int:
        self.asked.append((parameter, value))
        return int(parameter != allocator.M_MMAP_THRESHOLD or value <= self.largest)


@pytest.mark.parametrize(
    ("largest", "said"), [(1 << 40, "1,024 MiB"), (1 << 25, "32 MiB"), (0, "the system's choice (glibc refused")]
)
def test_an_older_glibc_gets_what_it_accepts(largest, said, monkeypatch):
    library = Library(largest)
    monkeypatch.setattr(allocator, "_glibc", lambda: library)
    assert said in allocator.keep_freed_memory()
    assert (allocator.M_TRIM_THRESHOLD, (1 << 31) - 1) in library.asked or not largest


def refusal(error: Exception):
    def refuse(*_):
        raise error

    return refuse


@pytest.mark.parametrize(
    "confstr",
    [refusal(ValueError("unrecognized configuration name")), refusal(OSError()), lambda _: None, lambda _: "musl 1.2"],
)
def test_another_c_library_is_left_alone(confstr, monkeypatch):
    monkeypatch.setattr(os, "confstr", confstr)
    monkeypatch.setattr(ctypes, "CDLL", refusal(AssertionError("opened a library")))
    assert allocator.keep_freed_memory() == "the system's choice (not glibc)"
    assert not allocator.return_freed_memory()


def test_windows_is_left_alone(monkeypatch):
    monkeypatch.delattr(os, "confstr", raising=False)
    assert allocator.keep_freed_memory() == "the system's choice (not glibc)"


def test_a_glibc_that_cannot_be_opened_is_left_alone(monkeypatch):
    monkeypatch.setattr(os, "confstr", lambda _: "glibc 2.36")
    monkeypatch.setattr(ctypes, "CDLL", refusal(OSError("libc.so.6: cannot open shared object file")))
    assert allocator.keep_freed_memory() == "the system's choice (not glibc)"

"""This process among all of them: device, threads, precision, and what they tell each other.

One process is a world of one. Several are started by torchrun, which says in the environment who is who.
"""

import ctypes
import itertools
import os
import signal
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Shaped
from torch import Tensor
from torch.distributed import PrefixStore, Store, TCPStore  # pyright: ignore[reportPrivateImportUsage]

from vitreous.allocator import keep_freed_memory
from vitreous.cores import free_cores
from vitreous.errors import InputError, SaidElsewhere

Precision = Literal["auto", "float32", "bfloat16", "float64"]
Result = TypeVar("Result")

TIMEOUT_S = 300.0
"""How long a process waits for the others before it gives up."""
MEETING_S = 300.0
"""How long it waits for them at the start at least: machines are not equally fast at importing torch."""
MAIN_POLL_S = 0.05
"""How often a process looks whether the main one has done its work."""

_turns = itertools.count()


@dataclass(frozen=True)
class World:
    """This process among all of them."""

    rank: int
    """Its number, from 0."""
    size: int
    """How many there are."""
    device: torch.device
    """Where it computes."""
    dtype: torch.dtype
    """What it computes in; weights, losses and sums are float32, unless this is float64."""
    threads: int
    """CPU threads it computes with."""
    timeout_s: float = TIMEOUT_S
    """How long it waits for another process before it gives the run up."""

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    @property
    def precision(self) -> str:
        """The name of `dtype`, such as bfloat16."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def processes(self) -> str:
        """How many there are, in words before what each does; nothing of one alone."""
        return f"{self.size} processes, each " if self.size > 1 else ""

    @property
    def restarted(self) -> bool:
        """Whether a launcher starts processes anew here when some have died."""
        return "TORCHELASTIC_RUN_ID" in os.environ

    def autocast(self) -> AbstractContextManager:
        """A context in which matrix products run in `dtype`."""
        if self.dtype in (torch.float32, torch.float64):
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    def with_threads(self, threads: int) -> "World":
        """The same process, computing with that many CPU threads."""
        torch.set_num_threads(threads)
        return replace(self, threads=threads)

    def with_precision(self, precision: Precision) -> "World":
        """The same process, computing in `precision`; "auto" is what it does anyway."""
        return self if precision == "auto" else replace(self, dtype=getattr(torch, precision))

    def circumstances(self, *, exact: bool) -> dict[str, Any]:
        """What equal bits depend on; on the number of processes only where gradients are not added in a fixed tree."""
        device = self.device.type
        return {
            "torch": torch.__version__,
            "instructions": torch.backends.cpu.get_cpu_capability(),
            "device": torch.cuda.get_device_name(self.device) if device == "cuda" else device,
            "precision": self.precision,
            "threads": self.threads,
            **({} if exact else {"processes": self.size}),
        }

    def on_main(self, work: Callable[[], Result]) -> Result:
        """What `work` gives in the main process, in every process; however long it takes.

        Raises:
            SaidElsewhere: in the other processes, when `work` raised in the main one, where that error goes on.
        """
        if self.size == 1:
            return work()
        key, store = f"on_main/{next(_turns)}", _store()
        if self.is_main:
            try:
                result, error = work(), None
            except Exception as raised:
                result, error = None, raised
            outcome: list = [(result, error is not None)]
            store.set(key, "done")
        else:
            while not store.check([key]):  # a broadcast alone would give up after the timeout
                time.sleep(MAIN_POLL_S)
            outcome, error = [None], None
        dist.broadcast_object_list(outcome, src=0)
        if error is not None:
            raise error
        result, failed = outcome[0]
        if failed:
            raise SaidElsewhere("process 0 says why")
        return result

    def each(self, work: Callable[[], object]) -> None:
        """Go on when every process has done `work`; however long it takes.

        Raises:
            SaidElsewhere: when `work` raised in another process, where that error goes on.
        """
        if self.size == 1:
            work()
            return
        key, store, error = f"each/{next(_turns)}", _store(), None
        try:
            work()
        except Exception as raised:
            error = raised
        keys = [f"{key}/{rank}" for rank in range(self.size)]
        store.set(keys[self.rank], "done")
        while not store.check(keys):  # to share alone would give up after the timeout
            time.sleep(MAIN_POLL_S)
        failed = [rank for rank, did in enumerate(self.share(error is not None)) if did]
        if error is not None:
            raise error
        if failed:
            raise SaidElsewhere(f"process {failed[0]} says why")

    def gather(self, tensor: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "process *shape"]:
        """That CPU tensor of every process, in the order of their ranks; all have the same shape."""
        if self.size == 1:
            return tensor[None]
        gathered = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(gathered, tensor.contiguous())
        return torch.stack(gathered)

    def share(self, value: Result) -> list[Result]:
        """That value of every process, in the order of their ranks; for now and then, not for every step."""
        values: list = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(values, value)
        return values

    def highest(self, values: Callable[[], Sequence[int]]) -> "Agreement":
        """The largest of each of `values` over all processes, to be read later: meanwhile nobody waits.

        A world of one asks when it is read.
        """
        return Agreement(self, values)

    def sum(self, numbers: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
        """The sum of `numbers` over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(numbers)
        return numbers

    def leave(self) -> None:
        """End the talk with the other processes, without waiting for them."""
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()


class Agreement:
    """What all processes say about a few small numbers, under way."""

    def __init__(self, world: World, values: Callable[[], Sequence[int]]) -> None:
        self._values, self._work = values, None
        self.waited_s = 0.0
        """How long after this process the last one spoke."""
        if world.size > 1:
            self._said = torch.tensor(values(), dtype=torch.int64)
            self._spoke = spoke = time.monotonic()
            self._work = dist.all_reduce(self._said, dist.ReduceOp.MAX, async_op=True)
            assert self._work is not None
            self._work.get_future().add_done_callback(lambda _: self._heard(spoke))

    def _heard(self, spoke: float) -> None:
        self.waited_s = time.monotonic() - spoke

    def read(self) -> list[int]:
        """The largest values."""
        if self._work is None:
            return list(self._values())
        self._work.wait()
        self.waited_s = self.waited_s or time.monotonic() - self._spoke
        return self._said.tolist()


def launcher() -> str:
    """What stands before the command where torchrun carries it out in several processes of this machine, else ""."""
    size = os.environ.get("WORLD_SIZE", "1")
    alone = size == "1" or "TORCHELASTIC_RUN_ID" not in os.environ or size != os.environ.get("LOCAL_WORLD_SIZE")
    return "" if alone else f"torchrun --nproc-per-node {size} -m"


def lost(error: Exception) -> bool:
    """Whether `error` says that another process is gone."""
    signs = ("gloo", "pair closure")  # gloo has no errors of its own; the second has no file name in its text
    gone = isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)
    return gone or isinstance(error, dist.DistError)


def start(
    *,
    device: str = "auto",
    threads: int | None = None,
    precision: Precision = "auto",
    timeout_s: float = TIMEOUT_S,
) -> World:
    """Choose the device (the accelerator if there is one), its precision and the CPU threads; meet the others.

    `precision` "auto" is bfloat16 on GPUs that have it and float32 elsewhere. `timeout_s` is how long a process
    waits for an answer of another before it gives the run up.

    Raises:
        InputError: if the device is absent, or the other processes do not come.
    """
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if "TORCHELASTIC_RUN_ID" in os.environ:
        end_with_parent()
    chosen = _chosen_device(device, int(os.environ.get("LOCAL_RANK", "0")) if size > 1 else None)
    threads = threads or (free_cores() if chosen.type == "cpu" else torch.get_num_threads())
    torch.set_num_threads(threads)
    if chosen.type == "cpu":
        keep_freed_memory()
    if size > 1 and not dist.is_initialized():
        _meet(rank, size, chosen, timeout_s)
    world = World(rank, size, device=chosen, dtype=_dtype(chosen), threads=threads, timeout_s=timeout_s)
    return world.with_precision(precision)


@contextmanager
def said_once() -> Iterator[None]:
    """What is wrong before the processes have met is wrong for all of a machine: the first of them says it."""
    try:
        yield
    except InputError:
        if os.environ.get("LOCAL_RANK", "0") != "0":
            raise SaidElsewhere("the first process of this machine says why") from None
        raise


def end_with_parent() -> None:
    """Have the system kill this process when its launcher dies, so that no orphan trains on (Linux)."""
    if sys.platform != "linux":
        return
    parent = os.getppid()
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:  # it died meanwhile; process 1 may well be the launcher, in a container
        os.kill(os.getpid(), signal.SIGKILL)


def _meet(rank: int, size: int, device: torch.device, timeout_s: float) -> None:
    backend = "gloo" if device.type == "cpu" else f"cpu:gloo,{device.type}:{_accelerator_backend(device)}"
    patience_s, timeout = max(timeout_s, MEETING_S), timedelta(seconds=timeout_s)
    try:
        store = agreed_store(rank, size, timedelta(seconds=patience_s))
        store.set_timeout(timeout)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
        if device.type == "cuda":  # NCCL's watchdog kills the process; what gloo notices first can be said
            group = dist.distributed_c10d._get_default_group()
            group._get_backend(device)._set_default_timeout(2 * timeout)
    except (RuntimeError, ValueError) as error:
        said = str(error).partition("\n")[0]
        raise InputError(
            f"process {rank} of {size} did not meet the others within {patience_s:.0f} s ({said}); "
            "look whether all were started and their machines reach each other"
        ) from error


def agreed_store(rank: int, size: int, timeout: timedelta) -> Store:
    """The store in which processes find each other, below a prefix that only this attempt uses.

    torchrun keeps one store over all restarts, and a process that reads an address left there by a dead one waits
    for it in vain. So process 0 draws a name, and each other asks until process 0 has answered its own question.
    """
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    ours = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != str(True)  # or the launcher keeps it
    store = TCPStore(host, port, is_master=ours, timeout=timeout, wait_for_workers=False, multi_tenant=True)
    if rank == 0:
        name = uuid.uuid4().hex
        store.set("vitreous/name", name)
        waiting = set(range(1, size))
        _until(lambda: _answer(store, name, waiting), timeout)
    else:
        question, names = uuid.uuid4().hex, [""]
        _until(lambda: _ask(store, rank, question, names), timeout)
        name = names[0]
    return PrefixStore(f"vitreous/{name}", store)


def _answer(store: Store, name: str, waiting: set[int]) -> bool:
    for rank in list(waiting):
        if store.check([key := f"vitreous/{name}/{rank}"]):
            store.set(f"{key}/answer", store.get(key).decode())
            waiting.discard(rank)
    return not waiting


def _ask(store: Store, rank: int, question: str, names: list[str]) -> bool:
    if not store.check(["vitreous/name"]):
        return False
    names[0] = store.get("vitreous/name").decode()
    key = f"vitreous/{names[0]}/{rank}"
    store.set(key, question)
    return store.check([f"{key}/answer"]) and store.get(f"{key}/answer").decode() == question


def _until(done: Callable[[], bool], timeout: timedelta) -> None:
    end = time.monotonic() + timeout.total_seconds()
    while not done():
        if time.monotonic() > end:
            raise RuntimeError("not all processes came")
        time.sleep(0.01)


def _store() -> Store:
    return dist.distributed_c10d._get_default_store()


def _accelerator_backend(device: torch.device) -> str:
    return dist.get_default_backend_for_device(device)


def _chosen_device(name: str, local_rank: int | None) -> torch.device:
    """The device of that name; of several processes of a machine, each gets an accelerator of its own."""
    if name != "auto" and (local_rank is None or ":" in name or name == "cpu"):
        return _named_device(name)
    found = torch.accelerator.current_accelerator(check_available=True) if name == "auto" else _named_device(name)
    if found is None:
        return torch.device("cpu")
    if local_rank is None or found.type == "cpu":
        return found
    count = torch.accelerator.device_count()
    if local_rank >= count:
        raise InputError(
            f"process {local_rank} of this machine has no {found.type} device of its own, there are {count}; "
            f"start --nproc-per-node {count}, or compute with --device cpu"
        )
    return _named_device(f"{found.type}:{local_rank}")


def _named_device(name: str) -> torch.device:
    try:
        chosen = torch.device(name)
        float(torch.zeros(1, device=chosen))
        if chosen.index is not None and chosen.type != "cpu":
            torch.accelerator.set_device_index(chosen.index)
        return chosen
    except (RuntimeError, AssertionError, NotImplementedError):
        raise InputError(f"cannot compute on device {name!r} here; use --device auto, or cpu") from None


def _dtype(device: torch.device) -> torch.dtype:
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16
    return torch.float32

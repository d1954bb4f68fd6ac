"""Several processes of one world, forked from this one: torch is imported once."""

import os
import pickle
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

LIMIT_S = 120.0


def in_processes(size: int, work: Callable[[], Any], *, limit_s: float = LIMIT_S, **environment: str) -> list[Any]:
    """What `work` gives in each of `size` processes that know of each other as torchrun would tell them.

    `work` calls `distributed.start` itself. What raises in one is raised here, after all have ended.
    """
    with tempfile.TemporaryDirectory() as folder:
        with socket_free() as port:
            pass
        children = [_fork(rank, size, port, work, Path(folder), environment) for rank in range(size)]
        deadline = time.monotonic() + limit_s
        waiting = set(children)
        while waiting and time.monotonic() < deadline:
            for child in list(waiting):
                if os.waitpid(child, os.WNOHANG)[0]:
                    waiting.discard(child)
            time.sleep(0.01)
        for child in waiting:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        assert not waiting, f"{len(waiting)} of {size} processes did not end in {limit_s} s"
        results = []
        for rank in range(size):
            path = Path(folder) / str(rank)
            assert path.exists(), f"process {rank} died without a word"
            result, error = pickle.loads(path.read_bytes())
            if error:
                raise AssertionError(f"process {rank}:\n{error}")
            results.append(result)
        return results


class socket_free:
    """A port nobody listens on."""

    def __enter__(self) -> int:
        import socket

        self.socket = socket.socket()
        self.socket.bind(("127.0.0.1", 0))
        return self.socket.getsockname()[1]

    def __exit__(self, *exception: object) -> None:
        self.socket.close()


def _fork(rank: int, size: int, port: int, work: Callable[[], Any], folder: Path, environment: dict[str, str]) -> int:
    sys.stdout.flush()
    sys.stderr.flush()
    if child := os.fork():
        return child
    code = 1
    try:
        os.environ.update(
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            WORLD_SIZE=str(size),
            LOCAL_WORLD_SIZE=str(size),
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(port),
            **environment,
        )
        torch.set_num_threads(1)
        try:
            outcome = (work(), "")
        except BaseException:
            outcome = (None, traceback.format_exc())
        temporary = folder / f"{rank}.part"
        temporary.write_bytes(pickle.dumps(outcome))
        temporary.rename(folder / str(rank))
        code = 0
    finally:
        os._exit(code)

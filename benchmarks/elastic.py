"""Faults of processes, machines and networks under the real torchrun: who notices when, and are the bits right.

    python benchmarks/elastic.py [--faults killed_rank asked_to_end] [--rounds 3] [--out benchmarks/results/elastic]

Every fault hits `torchrun -m vitreous train smoke` on the CPU, from outside: a signal, or a network that is cut. "same
bits" means that weights, moments of the optimizer, their average, all measurements but times, and predictions.csv are
those of one process that nobody disturbed. A second table is of what a user reads when a command under torchrun cannot
be carried out. Linux only; the network is cut where this may make network namespaces (as root).
"""

import argparse
import csv
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from vitreous.data.order import positions
from vitreous.doctor import examine
from vitreous.files import write_text
from vitreous.run_folder import RunFolder
from vitreous.tables import table

MARK = "VITREOUS_BENCHMARK_JOB"
TIMES = ("seconds", "images_per_s", "data_wait", "peak_mb", "mfu", "slowest", "behind_s")
STEPS = 300
TIMEOUT_S = 5.0
"""What the processes are told to wait for each other."""
LIMIT_S = 240.0
"""What anything here may take."""
WORDS = [
    *("smoke", "--exact", "true", "--num_micro_batches", "4", "--batch_size", "32", "--ema_decay", "0.9"),
    *("--model.dropout", "0.1", "--model.drop_path", "0.1", "--num_evaluations", "2", "--checkpoint.every_s", "0.5"),
]


@dataclass(frozen=True)
class Process:
    """A process of a job, found by its environment."""

    pid: int
    role: str
    """launcher, worker or reader."""
    rank: int | None


def processes(mark: str) -> list[Process]:
    """All living processes that were started, by whomever, for the job `mark`."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        with suppress(OSError):
            environment = dict(
                item.split("=", 1)
                for item in (entry / "environ").read_text(errors="replace").split("\0")
                if "=" in item
            )
            if environment.get(MARK) != mark:
                continue
            command = (entry / "cmdline").read_text(errors="replace")
            inner = any(word in command for word in ("multiprocessing", "\0-c\0"))
            rank = environment.get("RANK")
            role = "reader" if inner else "worker" if rank is not None else "launcher"
            found.append(Process(int(entry.name), role, None if rank is None else int(rank)))
    return found


class Job:
    """One launcher under way, with all it has started; its output is kept line by line."""

    def __init__(
        self,
        out: Path,
        *,
        words: Sequence[str] = WORDS,
        launcher: Sequence[str] | None = None,
        num_processes: int = 2,
        restarts: int = 0,
        steps: int = STEPS,
        within: Sequence[str] = (),
        **environment: str,
    ) -> None:
        self.folder, self.mark = RunFolder(out), uuid.uuid4().hex
        start = ["--standalone", "--nproc-per-node", str(num_processes)] if launcher is None else launcher
        train = ["train", *words, "--steps", str(steps), "--out", str(out), "--timeout-s", str(TIMEOUT_S)]
        torchrun = [str(Path(sys.executable).with_name("torchrun")), *start, "--max-restarts", str(restarts)]
        command = [*within, *torchrun, "--monitor-interval", "0.2", "-m", "vitreous", *train]
        clean = {name: value for name, value in os.environ.items() if name != "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"}
        self.lines: list[tuple[float, str]] = []
        self.began = time.monotonic()
        self.popen = subprocess.Popen(
            command,
            env={**clean, "OMP_NUM_THREADS": "1", MARK: self.mark, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        assert self.popen.stdout is not None
        for line in self.popen.stdout:
            self.lines.append((time.monotonic(), line.rstrip("\n")))

    @property
    def text(self) -> str:
        """All it has said."""
        return "\n".join(line for _, line in self.lines)

    @property
    def said(self) -> list[str]:
        """The lines that end a command of ours."""
        lines = [line.partition("vitreous: ")[2] for _, line in self.lines if "vitreous: " in line]
        return [line.replace(f"{self.folder.path.parent}/", "runs/") for line in lines]

    def alive(self, *roles: str) -> list[Process]:
        """Its processes of these roles."""
        return [process for process in processes(self.mark) if process.role in roles]

    def worker(self, rank: int) -> int:
        """The pid of the process of that rank."""
        return next(process.pid for process in self.alive("worker") if process.rank == rank)

    def until(self, done: Callable[[], object], what: str, *, limit_s: float = LIMIT_S) -> float:
        """Wait until `done`; the moment.

        Raises:
            TimeoutError: if the launcher ends before, or that takes longer than `limit_s`.
        """
        deadline = time.monotonic() + limit_s
        while not done():
            if time.monotonic() > deadline or (self.popen.poll() is not None and not done()):
                raise TimeoutError(f"{what} did not come:\n{self.text[-6000:]}")
            time.sleep(0.02)
        return time.monotonic()

    def until_step(self, step: int) -> float:
        """Wait until `step` is logged and there is a checkpoint to go on from; the moment."""

        def reached() -> bool:
            saved = any(path.suffix == "" for path in self.folder.checkpoints.glob("step-*"))
            return saved and step_of(self.folder) >= step

        return self.until(reached, f"step {step}")

    def until_trained(self, *, attempt: int) -> tuple[float, int]:
        """Wait until an attempt later than `attempt` has taken a step; the moment, and the step it began at."""
        where = len(self.lines)
        self.until(lambda: attempt_of(self.folder) > attempt, "a new attempt")
        before, reached = self.folder.metrics.stat().st_ino, step_of(self.folder)

        def begins() -> list[str]:
            return [line for _, line in self.lines[where:] if "going on from step" in line]

        def goes_on() -> bool:  # once what was logged after the checkpoint is forgotten: in a new file
            forgotten = reached <= first or self.folder.metrics.stat().st_ino != before
            return forgotten and step_of(self.folder) > first

        self.until(begins, "going on")
        first = int(begins()[-1].split("going on from step ")[1].split(" ")[0].replace(",", ""))
        return self.until(goes_on, "a step"), first

    def noticed(self, since: float) -> float:
        """Seconds from `since` until anything was said by our processes or the launcher about the fault."""
        words = ("lost the others", "asked to end", "failed (exitcode", "Received", "vitreous: ")
        return next((at - since for at, line in list(self.lines) if at > since and any(w in line for w in words)), -1.0)

    def end(self, *, limit_s: float = LIMIT_S) -> int:
        """Wait until the launcher has ended; its exit code."""
        try:
            code = self.popen.wait(limit_s)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"the end did not come:\n{self.text[-6000:]}") from None
        self.reader.join(5)
        return code

    def gone_s(self, since: float, *, limit_s: float = 10.0) -> tuple[float, int]:
        """Seconds from `since` until none of its processes lived, and how many did after `limit_s`."""
        while (left := processes(self.mark)) and time.monotonic() - since < limit_s:
            time.sleep(0.05)
        return time.monotonic() - since, len(left)

    def clear(self) -> None:
        """End all that is left of it."""
        for process in processes(self.mark):
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        self.popen.wait()
        self.reader.join(5)
        assert self.popen.stdout is not None
        self.popen.stdout.close()


def attempt_of(folder: RunFolder) -> int:
    """How often the run has been claimed."""
    with suppress(OSError, ValueError):
        return json.loads((folder.path / "claim.json").read_text())["attempt"]
    return 0


def step_of(folder: RunFolder) -> int:
    """The last step that was logged."""
    with suppress(OSError):
        return max((line["step"] for line in folder.measurements()), default=0)
    return 0


def digest(folder: RunFolder) -> str:
    """Of all that must not depend on what happened on the way."""
    from safetensors import safe_open

    rows: dict[str, dict[int, bytes]] = {}
    last = max(path for path in folder.checkpoints.glob("step-*") if path.suffix == "")
    manifest = json.loads((last / "manifest.json").read_text())["manifest"]
    for file, entry in manifest["files"].items():
        with safe_open(last / file, framework="np") as opened:
            for name, start in entry["starts"].items():
                rows.setdefault(name, {})[start] = opened.get_tensor(name).tobytes()
    found = hashlib.sha256()
    for name in sorted(rows):
        found.update(name.encode() + b"".join(part for _, part in sorted(rows[name].items())))
    for line in folder.measurements():
        found.update(json.dumps({key: value for key, value in line.items() if key not in TIMES}).encode())
    found.update(folder.predictions.read_bytes())
    return f"step {manifest['state']['step']} {found.hexdigest()[:16]}"


@dataclass
class Outcome:
    """What came of one fault."""

    fault: str
    injected: str
    recovered: str
    noticed_s: float
    recovered_s: float
    orphans: int
    same_bits: bool
    exit_codes: list[int] = field(default_factory=list)
    notes: str = ""


@dataclass(frozen=True)
class Bench:
    """Where runs go, and what they must come to."""

    folder: Path
    steps: int
    reference: str

    def out(self, name: str) -> Path:
        """A folder for a run."""
        return self.folder / f"{name}-{uuid.uuid4().hex[:6]}"

    def same(self, folder: RunFolder) -> bool:
        """Whether a finished run has the bits of the undisturbed one."""
        return digest(folder) == self.reference


def undisturbed(folder: Path, *, steps: int) -> Bench:
    """Carry out the run in one process without a launcher."""
    command = [sys.executable, "-m", "vitreous", "train", *WORDS, "--steps", str(steps), "--out", str(folder / "whole")]
    subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True, capture_output=True)
    return Bench(folder, steps, digest(RunFolder(folder / "whole")))


@contextmanager
def job(out: Path, **how: Any) -> Iterator[Job]:
    """A job of which nothing is left afterwards."""
    started = Job(out, **how)
    try:
        yield started
    finally:
        started.clear()


def killed_rank(bench: Bench, *, own_store: bool = False) -> Outcome:
    """SIGKILL to one process; torchrun starts all anew."""
    environment = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"} if own_store else {}
    with job(bench.out("killed"), restarts=2, steps=bench.steps, **environment) as run:
        run.until_step(40)
        attempt, before = attempt_of(run.folder), step_of(run.folder)
        os.kill(run.worker(1), signal.SIGKILL)
        at = time.monotonic()
        again, first = run.until_trained(attempt=attempt)
        code = run.end()
        _, orphans = run.gone_s(time.monotonic())
        name = "killed rank 1" + (", TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1" if own_store else "")
        return Outcome(
            name,
            f"SIGKILL at step {before}",
            f"torchrun restarts, from step {first}",
            run.noticed(at),
            again - at,
            orphans,
            code == 0 and bench.same(run.folder),
            [code],
        )


def killed_ten_times(bench: Bench) -> Outcome:
    """Ten restarts on the one store that torchrun keeps."""
    times, noticed = 10, []
    with job(bench.out("ten"), restarts=times, steps=bench.steps) as run:
        run.until_step(10)
        began = time.monotonic()
        for number in range(times):
            attempt = attempt_of(run.folder)
            os.kill(run.worker(number % 2), signal.SIGKILL)
            at = time.monotonic()
            run.until_trained(attempt=attempt)
            noticed.append(run.noticed(at))
        recovered = (time.monotonic() - began) / times
        code = run.end()
        _, orphans = run.gone_s(time.monotonic())
        return Outcome(
            "killed ranks 0 and 1 in turn",
            f"{times} x SIGKILL, the store shared",
            f"torchrun restarts, {attempt_of(run.folder) - 1} of {times} times",
            max(noticed),
            recovered,
            orphans,
            code == 0 and bench.same(run.folder),
            [code],
        )


def killed_rank_with_own_store(bench: Bench) -> Outcome:
    """The restart that torch's workaround makes safe."""
    return killed_rank(bench, own_store=True)


def stopped_rank(bench: Bench) -> Outcome:
    """SIGSTOP to one process: it hangs."""
    with job(bench.out("stopped"), restarts=2, steps=bench.steps) as run:
        run.until_step(40)
        attempt, before = attempt_of(run.folder), step_of(run.folder)
        pid, path = run.worker(1), run.folder.stacks(0)
        os.kill(pid, signal.SIGSTOP)
        at = time.monotonic()
        shown = run.until(lambda: path.exists() and path.stat().st_size, "stacks", limit_s=30) - at
        stacks = path.read_text()
        again, first = run.until_trained(attempt=attempt)
        code = run.end()
        _, orphans = run.gone_s(time.monotonic())
        where = "in " + ", ".join(w for w in ("_scatter_in_order", "_clipped_norm", "read", "gather") if w in stacks)
        return Outcome(
            "stopped rank 1",
            f"SIGSTOP at step {before}, --timeout-s {TIMEOUT_S:g}",
            f"torchrun kills it after 30 s more and restarts, from step {first}",
            run.noticed(at),
            again - at,
            orphans,
            code == 0 and bench.same(run.folder),
            [code],
            f"stacks of rank 0 after {shown:.1f} s ({where})",
        )


def killed_launcher(bench: Bench) -> Outcome:
    """SIGKILL to torchrun, with processes that read images; the same command again."""
    out = bench.out("launcher")
    words = [*WORDS, "--num_workers", "1"]
    with job(out, words=words, steps=bench.steps) as run:
        run.until_step(40)
        before, readers = step_of(run.folder), len(run.alive("reader"))
        run.popen.kill()
        at = time.monotonic()
        while run.alive("worker") and time.monotonic() - at < 30:
            time.sleep(0.02)
        gone = time.monotonic() - at
        all_gone, orphans = run.gone_s(at)
        step = step_of(run.folder)
    with job(out, words=words, steps=bench.steps) as again:
        resumed, first = again.until_trained(attempt=attempt_of(again.folder))
        code = again.end()
        return Outcome(
            "killed launcher",
            f"SIGKILL to torchrun at step {before}",
            f"the same command again, from step {first}",
            gone,
            resumed - again.began,
            orphans,
            code == 0 and bench.same(again.folder),
            [run.popen.returncode, code],
            f"workers gone after {gone:.2f} s, all with {readers} readers after {all_gone:.1f} s, last step {step}",
        )


def asked_to_end(bench: Bench) -> Outcome:
    """SIGTERM to torchrun; the same command again."""
    out = bench.out("term")
    with job(out, steps=bench.steps) as run:
        run.until_step(40)
        run.popen.terminate()
        at = time.monotonic()
        code = run.end()
        left = time.monotonic() - at
        _, orphans = run.gone_s(time.monotonic())
        reached, said = step_of(run.folder), run.noticed(at)
    with job(out, steps=bench.steps) as again:
        resumed, first = again.until_trained(attempt=attempt_of(again.folder))
        codes = [code, again.end()]
        return Outcome(
            "asked to end",
            f"SIGTERM to torchrun at step {reached}",
            f"saved, and the same command goes on from step {first}",
            said,
            resumed - again.began,
            orphans,
            codes[1] == 0 and first == reached and bench.same(again.folder),
            codes,
            f"left after {left:.1f} s; said: {run.said[:1]}",
        )


def sizes(bench: Bench) -> Outcome:
    """1 -> 2 -> 1 -> 4 processes, SIGTERM in between."""
    out, codes, steps, took = bench.out("sizes"), [], [], 0.0
    for number, target in ((1, 40), (2, 90), (1, 140), (4, None)):
        with job(out, num_processes=number, steps=bench.steps) as run:
            took, first = run.until_trained(attempt=attempt_of(run.folder)) if steps else (run.until_step(1), 0)
            took -= run.began
            if target is not None:
                run.until_step(target)
                run.popen.terminate()
            codes.append(run.end())
            steps.append(first)
    return Outcome(
        "1, 2, 1, 4 processes",
        f"SIGTERM, each goes on from steps {steps}",
        "the same command with another --nproc-per-node",
        -1.0,
        took,
        0,
        codes[-1] == 0 and bench.same(RunFolder(out)),
        codes,
    )


def port_free() -> int:
    """A port nobody listens on."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


SCALES_UP = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
"""Without it, a launcher of torch 2.15 never hears where to meet when it joins others that are already at work."""


def node(endpoint: str, *, host: bool, address: str) -> list[str]:
    """torchrun's options for one of one or two nodes."""
    conf = f"last_call_timeout=3,keep_alive_interval=1,keep_alive_max_attempt=3,read_timeout=15,is_host={host}".lower()
    meeting = ["--rdzv-backend", "c10d", "--rdzv-endpoint", endpoint, "--rdzv-id", "job", "--rdzv-conf", conf]
    return ["--nnodes", "1:2", "--nproc-per-node", "1", "--local-addr", address, *meeting]


def lost_node(bench: Bench) -> Outcome:
    """One of two nodes dies with all its processes; later another joins."""
    out, endpoint = bench.out("node"), f"127.0.0.1:{port_free()}"
    how: dict[str, Any] = {"restarts": 5, "steps": bench.steps, **SCALES_UP}
    first, second = (node(endpoint, host=host, address="127.0.0.1") for host in (True, False))
    with job(out, launcher=first, **how) as stays:
        time.sleep(1.0)
        with job(out, launcher=second, **how) as goes:
            stays.until_step(40)
            attempt, before = attempt_of(stays.folder), step_of(stays.folder)
            both = bool(goes.alive("worker"))
            for process in sorted(processes(goes.mark), key=lambda p: p.role):  # the launcher first
                os.kill(process.pid, signal.SIGKILL)
            at = time.monotonic()
        again, resumed = stays.until_trained(attempt=attempt)
        noticed, alone = stays.noticed(at), attempt_of(stays.folder)
        with job(out, launcher=second, **how) as joins:
            asked = time.monotonic()
            joined, joined_step = stays.until_trained(attempt=alone)
            two = bool(joins.alive("worker"))
            codes = [stays.end(), joins.end()]
            orphans = sum(run.gone_s(time.monotonic())[1] for run in (stays, joins))
            return Outcome(
                "lost node, and a new one",
                f"SIGKILL to launcher and worker at step {before}" + ("" if both else " (had not joined)"),
                f"the other goes on alone from step {resumed}, with a second from {joined_step}",
                noticed,
                again - at,
                orphans,
                both and two and not any(codes) and bench.same(stays.folder),
                codes,
                f"two again {joined - asked:.1f} s after the second was started",
            )


class NoNamespaces(Exception):
    """Network namespaces cannot be made here."""


@contextmanager
def two_networks() -> Iterator[tuple[str, str]]:
    """Two network namespaces with a cable between them: interface `cable`, 10.99.0.1 and 10.99.0.2."""
    names = (f"vitreous-a-{os.getpid()}", f"vitreous-b-{os.getpid()}")

    def ip(*words: str) -> None:
        done = subprocess.run(["ip", *words], capture_output=True, text=True)
        if done.returncode:
            raise NoNamespaces(f"ip {' '.join(words)}: {done.stderr.strip()}")

    if shutil.which("ip") is None:
        raise NoNamespaces("there is no ip command")
    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", "cable", "netns", names[0], "type", "veth", "peer", "name", "cable", "netns", names[1])
        for number, name in enumerate(names, 1):
            ip("-n", name, "addr", "add", f"10.99.0.{number}/24", "dev", "cable")
            for device in ("lo", "cable"):
                ip("-n", name, "link", "set", device, "up")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


def cut_network(bench: Bench) -> Outcome:
    """The cable between two nodes is cut; process 0, which writes, is on the side without the meeting point."""
    out = bench.out("network")
    with two_networks() as (writer, meeting):
        endpoint = f"10.99.0.2:{port_free()}"

        def start(name: str, *, host: bool, address: str) -> dict[str, Any]:
            launcher = node(endpoint, host=host, address=address)
            within = ("ip", "netns", "exec", name)
            how = {"launcher": launcher, "within": within, "restarts": 5, "steps": bench.steps, **SCALES_UP}
            return {**how, "GLOO_SOCKET_IFNAME": "cable"}

        second = start(writer, host=False, address="10.99.0.1")
        with job(out, **start(meeting, host=True, address="10.99.0.2")) as stays:
            time.sleep(1.0)
            with job(out, **second) as cut:
                cut.until_step(40)
                wrote = cut.worker(0)
                attempt, before = attempt_of(stays.folder), step_of(stays.folder)
                subprocess.run(["ip", "-n", meeting, "link", "set", "cable", "down"], check=True)
                at = time.monotonic()
                again, resumed = stays.until_trained(attempt=attempt)
                noticed = (stays.noticed(at), cut.noticed(at))
                claim = json.loads((stays.folder.path / "claim.json").read_text())
                holds = claim["pid"] == stays.worker(0) != wrote
                stays.popen.terminate()  # the side that lost the claim has long to write into what nobody holds now
                codes = [stays.end()]
                alone, reached = cut.alive("worker"), step_of(stays.folder)
                with suppress(TimeoutError):
                    cut.end(limit_s=90)
                silent = step_of(stays.folder) == reached and not alone and not cut.alive("worker")
                ended = cut.popen.poll() is not None
        subprocess.run(["ip", "-n", meeting, "link", "set", "cable", "up"], check=True)
        with job(out, **start(meeting, host=True, address="10.99.0.2")) as again_there:
            time.sleep(1.0)
            with job(out, **second) as again_here:
                _, joined = again_here.until_trained(attempt=attempt_of(again_there.folder))
                codes += [again_there.end(), again_here.end()]
                orphans = sum(run.gone_s(time.monotonic())[1] for run in (again_there, again_here))
                return Outcome(
                    "cut network",
                    f"link down at step {before}, --timeout-s {TIMEOUT_S:g}",
                    f"one side goes on from step {resumed}; link up, same commands again: both from {joined}",
                    max(noticed),
                    again - at,
                    orphans,
                    holds and silent and not any(codes[1:]) and bench.same(again_there.folder),
                    codes,
                    f"noticed after {noticed[0]:.1f} and {noticed[1]:.1f} s; the cut off launcher "
                    + ("ended by itself" if ended else "had to be killed after 90 s"),
                )


FAULTS: dict[str, Callable[[Bench], Outcome]] = {
    function.__name__: function
    for function in (
        killed_rank,
        killed_ten_times,
        killed_rank_with_own_store,
        stopped_rank,
        killed_launcher,
        asked_to_end,
        sizes,
        lost_node,
        cut_network,
    )
}


@dataclass
class Said:
    """What a command that cannot be carried out says under torchrun."""

    mistake: str
    said: list[str]
    """Lines of ours, over all processes."""
    worker_codes: list[str]
    seconds: float
    tracebacks: int
    """Of ours; torchrun shows one of its own whenever a process fails."""


def digits_as_files(folder: Path) -> Path:
    """scikit-learn's digits as a folder of class folders of PNG files."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    for i, (image, label) in enumerate(zip(pixels.reshape(-1, 8, 8), labels)):
        (folder / str(label)).mkdir(parents=True, exist_ok=True)
        Image.fromarray((image * 15.9).astype(np.uint8)).save(folder / str(label) / f"{i:04}.png")
    return folder


def mistake(name: str, run: Job, *, since: float | None = None) -> Said:
    """What came out of a job that is to fail."""
    run.end()
    own = [line for _, line in run.lines if "Traceback" in line]
    codes = [line.split("exitcode")[1].strip(" :").split()[0] for _, line in run.lines if "exitcode  :" in line]
    ours = [line for line in own if not line.startswith("Traceback")]  # torchrun's begin a line of their own
    return Said(name, run.said, codes, time.monotonic() - (since or run.began), len(ours))


def unknown_recipe(bench: Bench) -> Said:
    with job(bench.out("unknown"), words=["smok"], steps=bench.steps) as run:
        return mistake("an unknown recipe", run)


def held_folder(bench: Bench) -> Said:
    out = bench.out("held")
    with job(out, steps=bench.steps) as run:
        run.until_step(2)
        with job(out, steps=bench.steps) as second:
            return mistake("a run folder that another job holds", second)


def unreadable_data(bench: Bench) -> Said:
    data = digits_as_files(bench.out("broken"))
    for path in sorted(data.rglob("*.png"))[::10]:
        path.write_bytes(b"no image")
    words = [*WORDS, "--data.path", str(data)]
    with job(bench.out("unreadable"), words=words, steps=bench.steps) as run:
        return mistake("a tenth of the files are no images", run)


def vanished_image(bench: Bench) -> Said:
    """An image that only process 1 reads, at step 40 of the first epoch."""
    data, out = digits_as_files(bench.out("vanishing")), bench.out("vanished")
    with job(out, words=[*WORDS, "--data.path", str(data)], steps=bench.steps) as run:
        run.until_step(2)
        rows = list(csv.DictReader(run.folder.split.read_text().splitlines()))
        names = [row["file"] for row in rows if row["split"] == "train"]
        start = 40 * 32 + 8  # micro-batch 1 of 4
        (i,) = positions(len(names), seed=0, epoch=0, start=start, stop=start + 1).tolist()
        (data / names[i]).unlink()
        run.until_step(40)
        return mistake(f"an image that only process 1 reads is gone ({names[i]})", run, since=time.monotonic())


def restarts_that_meet(rounds: int = 10) -> dict[str, int]:
    """Of `rounds` restarts on a store that dead processes have left, with one process late, how many meet.

    "plain" is torch's init_process_group, as every program under torchrun calls it; "ours" is `distributed.start`.
    """
    import torch.distributed as dist

    from vitreous import distributed

    store = dist.TCPStore(  # pyright: ignore[reportPrivateImportUsage]
        "127.0.0.1", 0, is_master=True, wait_for_workers=False, multi_tenant=True
    )
    distributed.MEETING_S = TIMEOUT_S

    def meet(way: str, rank: int, late: bool) -> None:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        os.environ.update(RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(store.port))
        os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"
        time.sleep(0.1 * late)
        if way == "plain":
            dist.init_process_group("gloo", timeout=timedelta(seconds=TIMEOUT_S))
        else:
            distributed.start(device="cpu", threads=1, timeout_s=TIMEOUT_S)
        dist.barrier()

    met = {}
    for way in ("plain", "ours"):
        good = []
        for number in range(1 + rounds):
            children = []
            for rank in range(2):
                child = os.fork()
                if not child:
                    try:
                        signal.alarm(20)  # it would hang for ever
                        meet(way, rank, late=rank == number % 2)
                        os._exit(0)
                    finally:
                        os._exit(1)
                children.append(child)
            good.append(not any([os.waitpid(child, 0)[1] for child in children]))
        met[way] = sum(good[1:])  # the first found a clean store
    return {**met, "of": rounds}


MISTAKES = (unknown_recipe, held_folder, unreadable_data, vanished_image)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [*FAULTS, *(function.__name__ for function in MISTAKES)]
    parser.add_argument("--faults", nargs="+", choices=names, default=names)
    parser.add_argument("--rounds", type=int, default=1, help="how often each")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--out", type=Path, help="JSON file for everything measured")
    given = parser.parse_args()
    outcomes: list[Outcome] = []
    mistakes: list[Said] = []
    loads = [os.getloadavg()[0]]
    with tempfile.TemporaryDirectory() as folder:
        bench = undisturbed(Path(folder), steps=given.steps)
        for _ in range(given.rounds):
            for name in given.faults:
                try:
                    if name in FAULTS:
                        outcomes.append(FAULTS[name](bench))
                        print(outcomes[-1], file=sys.stderr, flush=True)
                    else:
                        function = next(function for function in MISTAKES if function.__name__ == name)
                        mistakes.append(function(bench))
                        print(mistakes[-1], file=sys.stderr, flush=True)
                    loads.append(os.getloadavg()[0])
                except NoNamespaces as error:
                    print(f"{name} is left out: {error}", file=sys.stderr)
                except TimeoutError as error:
                    print(f"{name}: {error}", file=sys.stderr)
                    outcomes.append(Outcome(name, "", f"no: {str(error).splitlines()[0]}", -1, -1, -1, False))
    met = restarts_that_meet()
    rows = [HEADS, *map(_row, outcomes)]
    print(table(rows))
    print(f"\nrestarts that meet on a store left by dead processes: {met}")
    for found in mistakes:
        print(f"\n{found.mistake}: {found.seconds:.1f} s, exit codes {found.worker_codes}")
        print("\n".join(f"    {line}" for line in found.said))
    if given.out:
        facts = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "machine": _machine(), "load": loads}
        measured = {"faults": [asdict(o) for o in outcomes], "mistakes": [asdict(m) for m in mistakes], "meet": met}
        write_text(given.out.with_suffix(".json"), json.dumps({**facts, **measured}, indent=1) + "\n")
        write_text(given.out.with_suffix(".md"), page(outcomes, mistakes, met, loads=loads))


def page(outcomes: Sequence[Outcome], mistakes: Sequence[Said], met: dict[str, int], *, loads: Sequence[float]) -> str:
    """The tables, in Markdown."""
    rows = [HEADS, ("---",) * len(HEADS), *map(_row, outcomes)]
    lines = [
        "# Faults under torchrun",
        "",
        f"`python benchmarks/elastic.py`, {datetime.now(UTC):%Y-%m-%d}, on {os.cpu_count()} cores, load average "
        f"{min(loads):.1f} to {max(loads):.1f}. Two gloo processes unless said otherwise, `--timeout-s {TIMEOUT_S:g}`.",
        "A run is recovered when the next step is logged, imports of torch included.",
        "",
        *(f"| {' | '.join(row)} |" for row in rows),
        "",
        f"Of {met['of']} restarts on a store that dead processes have left, {met['plain']} meet with torch's "
        f"`init_process_group` and {met['ours']} with ours.",
        "",
        "## What a user reads",
        "",
    ]
    for found in mistakes:
        lines += [f"{found.mistake[0].upper()}{found.mistake[1:]}, after {found.seconds:.1f} s:", "", "```text"]
        lines += [*found.said, "```", ""]
    return "\n".join(lines)


def _machine() -> dict[str, str]:
    """What it is, without folders of its owner."""
    return {name: fact for name, fact in examine().items() if "/" not in fact}


HEADS = ("fault", "injected", "recovered", "noticed, s", "recovered, s", "orphans", "same bits", "exit codes", "notes")


def _row(outcome: Outcome) -> tuple[str, ...]:
    def seconds(number: float) -> str:
        return "-" if number < 0 else f"{number:.1f}"

    return (
        outcome.fault,
        outcome.injected,
        outcome.recovered,
        seconds(outcome.noticed_s),
        seconds(outcome.recovered_s),
        str(outcome.orphans),
        "yes" if outcome.same_bits else "NO",
        ", ".join(map(str, outcome.exit_codes)),
        outcome.notes,
    )


if __name__ == "__main__":
    main()

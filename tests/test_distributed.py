import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from processes import in_processes
from vitreous import cores, distributed
from vitreous.errors import InputError, SaidElsewhere

ALONE = distributed.World(rank=0, size=1, device=torch.device("cpu"), dtype=torch.float32, threads=1)
WAITS_S = 60.0


def met(**how) -> distributed.World:
    return distributed.start(device="cpu", threads=1, **how)


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
    world = met()
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


def test_what_processes_tell_each_other_comes_in_the_order_of_their_ranks():
    def work():
        world = met()
        rank = world.rank
        texts = world.share("x" * rank)
        gathered = world.gather(torch.full((2,), rank)).tolist()
        summed = world.sum(torch.tensor([1.0, rank])).tolist()
        highest = world.highest(lambda: [rank, -rank, 7]).read()
        return world.size, texts, gathered, summed, highest

    expected = (3, ["", "x", "xx"], [[0, 0], [1, 1], [2, 2]], [3.0, 3.0], [2, 0, 7])
    assert in_processes(3, work) == [expected] * 3


def test_one_process_alone_asks_itself():
    asked = []
    agreement = ALONE.highest(lambda: asked.append(1) or [len(asked)])
    assert not asked
    assert agreement.read() == [1]
    assert ALONE.share("x") == ["x"]
    assert ALONE.gather(torch.ones(2)).tolist() == [[1.0, 1.0]]
    assert ALONE.sum(torch.ones(2)).tolist() == [1.0, 1.0]
    assert ALONE.on_main(lambda: 5) == 5
    ALONE.leave()


def test_an_agreement_keeps_nobody_and_knows_how_long_the_others_took():
    def work():
        world = met()
        world.share("ready")
        time.sleep(2.0 * world.rank)
        began = time.monotonic()
        agreement = world.highest(lambda: [world.rank])
        spoke_s = time.monotonic() - began
        highest = agreement.read()
        world.share("done")  # meanwhile the other thread has noted the time
        return spoke_s, highest, agreement.waited_s

    first, last = in_processes(2, work)
    assert first[0] < 1
    assert first[1] == last[1] == [1]
    assert first[2] > 1 > last[2]


def test_what_the_main_process_does_may_take_longer_than_the_timeout():
    def work():
        world = met(timeout_s=1.0)
        return world.on_main(lambda: (time.sleep(2.5), os.getpid())[1])

    first, second = in_processes(2, work)
    assert first == second


def test_what_fails_in_the_main_process_is_said_there_alone():
    def fail():
        raise InputError("no such data")

    def work():
        world = met()
        try:
            world.on_main(fail)
        except InputError as error:
            heard = type(error), str(error)
        return heard, world.on_main(lambda: "and they go on together")

    first, second = in_processes(2, work)
    assert first[0] == (InputError, "no such data")
    assert second[0][0] is SaidElsewhere
    assert first[1] == second[1] == "and they go on together"


def test_all_go_on_when_each_is_done_however_long_that_takes():
    def work():
        world = met(timeout_s=1.0)
        done = []
        world.each(lambda: (time.sleep(2.5 * world.rank), done.append(time.monotonic())))
        return done[0], time.monotonic()

    first, second = in_processes(2, work)
    assert first[0] < second[0] <= first[1]


def test_what_fails_in_one_process_is_said_there_and_ends_the_others():
    def fail():
        raise InputError("no such shard")

    def work():
        world = met()
        try:
            world.each(fail if world.rank == 1 else lambda: None)
        except InputError as error:
            return type(error), str(error)

    assert in_processes(3, work) == [
        (SaidElsewhere, "process 1 says why"),
        (InputError, "no such shard"),
        (SaidElsewhere, "process 1 says why"),
    ]


def test_a_mistake_before_the_processes_have_met_is_said_once_a_machine(monkeypatch):
    for rank, kind in (("0", InputError), ("1", SaidElsewhere)):
        monkeypatch.setenv("LOCAL_RANK", rank)
        with pytest.raises(InputError) as raised, distributed.said_once():
            raise InputError("no recipe smok")
        assert raised.type is kind


@pytest.mark.parametrize(("number", "within_s"), [(signal.SIGKILL, 1.0), (signal.SIGSTOP, 2.0 + 5.0)])
def test_a_process_that_dies_or_hangs_is_noticed(number, within_s, tmp_path):
    def work():
        world = met(timeout_s=2.0)
        (tmp_path / str(world.rank)).write_text(str(os.getpid()))
        world.share("both are there")
        if world.rank == 1:
            time.sleep(WAITS_S)
        os.kill(int((tmp_path / "1").read_text()), number)
        began = time.monotonic()
        try:
            world.gather(torch.ones(1))
        except Exception as error:
            noticed = distributed.lost(error), time.monotonic() - began
        with suppress(ProcessLookupError):
            os.kill(int((tmp_path / "1").read_text()), signal.SIGKILL)
        (tmp_path / "noticed").write_text(repr(noticed))
        return noticed

    with pytest.raises(AssertionError, match="process 1 died"):
        in_processes(2, work)
    recognised, after_s = eval((tmp_path / "noticed").read_text())
    assert recognised
    assert after_s < within_s
    assert number == signal.SIGKILL or after_s > 1.9


@pytest.mark.parametrize("error", [InputError("gloomy"), RuntimeError("shapes differ"), OSError("gone"), ValueError()])
def test_other_errors_are_no_lost_processes(error):
    assert not distributed.lost(error)


def test_who_does_not_come_is_waited_for_and_then_said(monkeypatch):
    monkeypatch.setattr(distributed, "MEETING_S", 1.0)

    def work():
        os.environ["WORLD_SIZE"] = "2"
        began = time.monotonic()
        with pytest.raises(InputError, match="process 0 of 2 did not meet the others within 1 s") as raised:
            met(timeout_s=0.2)
        return time.monotonic() - began, str(raised.value)

    ((waited_s, line),) = in_processes(1, work)
    assert 1.0 <= waited_s < 3.0
    assert "\n" not in line


def test_processes_meet_although_some_are_slow_to_start():
    def work():
        if os.environ["RANK"] == "1":
            time.sleep(2.0)  # far longer than they will wait for each other
        return met(timeout_s=0.5).share(os.environ["RANK"])

    assert in_processes(2, work) == [["0", "1"]] * 2


def test_a_restart_meets_on_the_store_that_the_dead_have_left():
    """Twenty attempts on one store, each after processes that died in theirs; process 0 comes first or late."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, multi_tenant=True)

    def attempt(number: int):
        def work():
            os.environ.update(MASTER_PORT=str(store.port), TORCHELASTIC_USE_AGENT_STORE="True")
            if int(os.environ["RANK"]) == number % 2:
                time.sleep(0.1)
            world = met(timeout_s=5.0)
            return world.gather(torch.tensor([number, world.rank])).tolist()

        return work

    distributed_before = distributed.MEETING_S
    try:
        distributed.MEETING_S = 5.0
        good = sum(in_processes(2, attempt(i)) == [[[i, 0], [i, 1]]] * 2 for i in range(20))
    finally:
        distributed.MEETING_S = distributed_before
    assert good == 20


def _forked(work) -> int:
    if child := os.fork():
        return child
    try:
        work()
    finally:
        os._exit(0)


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="the system does it on Linux alone")
def test_no_process_outlives_its_launcher(tmp_path):
    """A launcher starts a process and is killed: the process goes with it."""

    def launched():
        distributed.end_with_parent()
        (tmp_path / "pid.part").write_text(str(os.getpid()))
        (tmp_path / "pid.part").rename(tmp_path / "pid")
        time.sleep(WAITS_S)

    def launcher():
        os.waitpid(_forked(launched), 0)

    parent = _forked(launcher)
    while not (tmp_path / "pid").exists():
        time.sleep(0.01)
    pid = int((tmp_path / "pid").read_text())
    assert _lives(pid)
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    began = time.monotonic()
    while _lives(pid) and time.monotonic() - began < 5:
        time.sleep(0.01)
    assert not _lives(pid)


def test_a_device_of_its_own_for_each_process(monkeypatch):
    def two_gpus(**_):
        return torch.device("cuda")

    monkeypatch.setattr(torch.accelerator, "current_accelerator", two_gpus)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    with pytest.raises(InputError, match="process 2 of this machine has no cuda device of its own, there are 2"):
        distributed._chosen_device("auto", 2)


def test_circumstances_name_the_number_of_processes_where_it_changes_bits():
    assert "processes" in ALONE.circumstances(exact=False)
    assert "processes" not in ALONE.circumstances(exact=True)


def test_the_launcher_of_several_processes_is_named(monkeypatch):
    assert distributed.launcher() == ""
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert distributed.launcher() == ""  # something else has started them
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert distributed.launcher() == "torchrun --nproc-per-node 4 -m"
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert distributed.launcher() == ""  # the others are on another machine

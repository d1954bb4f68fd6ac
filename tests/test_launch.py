"""The scripts of launch/, with programs in place of Slurm's; nothing here is a cluster."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from conftest import REPOSITORY
from vitreous.stopping import EXIT_TRY_AGAIN

SLURM = REPOSITORY / "launch" / "slurm.sh"
TASKS = 4

# Starts the command once a task and leaves with their highest code; kills them on SIGTERM, as srun does.
SRUN = """
echo "$@" > srun.arguments
while [ "${1#--}" != "$1" ]; do shift; done
trap 'kill -KILL $(cat tasks) 2> /dev/null' TERM
for rank in $(seq 0 $((SLURM_NTASKS - 1))); do
    SLURM_PROCID=$rank SLURM_LOCALID=$((rank % 2)) "$@" &
    echo $! >> tasks
done
highest=0
for task in $(cat tasks); do
    wait "$task"
    code=$?
    while [ "$code" -gt 128 ] && kill -0 "$task" 2> /dev/null; do wait "$task"; code=$?; done
    [ "$code" -gt "$highest" ] && highest=$code
done
exit "$highest"
"""
SCONTROL = 'if [ "$1" = show ]; then printf "node3\\nnode4\\n"; else echo "$@" >> requeued; fi\n'
SCANCEL = 'echo "$@" >> asked; kill -TERM $(cat tasks)\n'
# In place of Python with vitreous: notes who it is, then does as $BEHAVIOUR says.
PYTHON = """
echo "$RANK $LOCAL_RANK $WORLD_SIZE $LOCAL_WORLD_SIZE $MASTER_ADDR $MASTER_PORT $*" > process.$RANK
trap 'sleep 0.$((RANK * 3)); exit 75' TERM
case $BEHAVIOUR in
    wait) touch up.$RANK; while true; do sleep 0.05; done ;;
    *) exit $BEHAVIOUR ;;
esac
"""


@pytest.fixture
def slurm(tmp_path):
    """Starts launch/slurm.sh with words, as job 20007 on two nodes of two GPUs."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for name, text in {"srun": SRUN, "scontrol": SCONTROL, "scancel": SCANCEL, "python": PYTHON}.items():
        (programs / name).write_text(f"#!/bin/bash\n{text}")
        (programs / name).chmod(0o755)
    started = []

    def start(*words: str, behaviour: str, **environment: str) -> subprocess.Popen:
        known = {"SLURM_JOB_ID": "20007", "SLURM_JOB_NODELIST": "node[3-4]", "SLURM_NNODES": "2", **environment}
        known |= {"SLURM_NTASKS": str(TASKS), "BEHAVIOUR": behaviour, "PATH": f"{programs}:{os.environ['PATH']}"}
        started.append(subprocess.Popen(["bash", SLURM, *words], cwd=tmp_path, env=known, start_new_session=True))
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def test_every_process_is_told_who_it_is(slurm, tmp_path):
    assert slurm("my recipe.py:big", "--out", "runs/a b", behaviour="0").wait(30) == 0
    told = [(tmp_path / f"process.{rank}").read_text().strip() for rank in range(TASKS)]
    command = "-m vitreous train my recipe.py:big --out runs/a b"
    assert told == [f"{rank} {rank % 2} 4 2 node3 20007 {command}" for rank in range(TASKS)]
    assert "--kill-on-bad-exit=0" in (tmp_path / "srun.arguments").read_text()
    assert lines(tmp_path / "requeued") == []


def test_sigterm_reaches_the_processes_and_the_job_queues_again_once(slurm, tmp_path):
    """A process that saves faster than the others does not end them, and nobody is killed."""
    job = slurm("smoke", behaviour="wait")
    deadline = time.monotonic() + 30
    while len(list(tmp_path.glob("up.*"))) < TASKS or len(lines(tmp_path / "tasks")) < TASKS:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    job.send_signal(signal.SIGTERM)
    assert job.wait(30) == EXIT_TRY_AGAIN
    assert lines(tmp_path / "asked") == ["--signal=TERM 20007"]
    assert lines(tmp_path / "requeued") == ["requeue 20007"]


@pytest.mark.parametrize("code", [1, 2, 130, 137])
def test_another_code_is_kept_and_the_job_does_not_queue_again(code, slurm, tmp_path):
    assert slurm("smoke", behaviour=str(code)).wait(30) == code
    assert lines(tmp_path / "requeued") == []


@pytest.mark.parametrize(("restarts", "again"), [("99", ["requeue 20007"]), ("100", [])])
def test_a_job_that_never_gets_on_ends_after_a_hundred_restarts(restarts, again, slurm, tmp_path):
    assert slurm("smoke", behaviour="75", SLURM_RESTART_COUNT=restarts).wait(30) == EXIT_TRY_AGAIN
    assert lines(tmp_path / "requeued") == again


def test_slurm_is_asked_for_what_the_script_relies_on():
    subprocess.run(["bash", "-n", SLURM], check=True)
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)=?(.*)$", SLURM.read_text("utf-8"), re.MULTILINE))
    assert (options["signal"], options["requeue"], options["open-mode"]) == ("B:TERM@120", "", "append")
    assert options["ntasks-per-node"] == options["gpus-per-node"]


WORKER = """
import signal, sys, time
from pathlib import Path
if sys.argv[1:]:
    sys.exit(int(sys.argv[1]))
asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
Path("up").touch()
while not asked:
    time.sleep(0.02)
sys.exit(75)
"""


@pytest.mark.slow
@pytest.mark.parametrize("words", [["75"], ["2"], []])
def test_torchrun_turns_every_code_to_1(words, tmp_path):
    """Why slurm.sh starts the processes itself; once this fails, it need not."""
    (tmp_path / "worker.py").write_text(WORKER)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"]
    job = subprocess.Popen([*launcher, "worker.py", *words], cwd=tmp_path, stderr=subprocess.DEVNULL)
    while not words and not (tmp_path / "up").exists():
        assert job.poll() is None
        time.sleep(0.05)
    if not words:
        job.send_signal(signal.SIGTERM)
    assert job.wait(60) == 1


def test_the_train_job_says_what_kubernetes_needs():
    job = yaml.safe_load((REPOSITORY / "launch" / "trainjob.yaml").read_text("utf-8"))
    assert (job["apiVersion"], job["kind"]) == ("trainer.kubeflow.org/v1alpha1", "TrainJob")
    runtime, trainer = job["spec"]["runtimeRef"], job["spec"]["trainer"]
    assert (runtime["kind"], runtime["name"]) == ("ClusterTrainingRuntime", "torch-distributed")
    assert type(trainer["numNodes"]) is int
    assert trainer["command"] == ["torchrun"]
    module = trainer["args"].index("-m")
    assert trainer["args"][module + 1 : module + 3] == ["vitreous", "train"]
    assert all(isinstance(word, str) for word in trainer["args"])
    asked, limit = trainer["resourcesPerNode"]["requests"], trainer["resourcesPerNode"]["limits"]
    assert asked["nvidia.com/gpu"] == limit["nvidia.com/gpu"]
    (patch,) = job["spec"]["runtimePatches"]
    (node,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    pod = node["template"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert node["name"] == container["name"] == "node"
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts.keys() == {volume["name"] for volume in pod["volumes"]}
    assert trainer["args"][-1].startswith(f"{mounts['runs']}/")
    saving = next(int(entry["value"]) for entry in trainer["env"] if entry["name"] == "TORCH_ELASTIC_SHUTDOWN_TIMEOUT")
    assert saving < pod["terminationGracePeriodSeconds"]

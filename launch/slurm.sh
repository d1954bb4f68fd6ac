#!/bin/bash
#SBATCH --job-name=vitreous
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --time=04:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
#
# sbatch launch/slurm.sh RECIPE --out RUN [OPTIONS]
#
# One process a GPU. Before the time is up, or when something more urgent needs the nodes, Slurm signals this script,
# vitreous saves and leaves with code 75, and the job queues again: the same command goes on from the checkpoint.
# Any other code is the job's. Everything lies in docs/launch.md.

set -u
most_restarts=${MOST_RESTARTS:-100}

interrupted=
ask() { # the processes, not srun: that would kill them when it is sent SIGTERM
    interrupted=yes
    scancel --signal=TERM "$SLURM_JOB_ID"
}
trap ask TERM

MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
export MASTER_ADDR MASTER_PORT PYTHON="${PYTHON:-python}"

# Who has saved first must not have the others killed, and every process must see all GPUs of its node.
# shellcheck disable=SC2016 # expanded in the tasks
srun --kill-on-bad-exit=0 --gpu-bind=none --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" bash -c '
    export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID
    export WORLD_SIZE=$SLURM_NTASKS LOCAL_WORLD_SIZE=$((SLURM_NTASKS / SLURM_NNODES))
    exec "$PYTHON" -m vitreous train "$@"
' vitreous "$@" &
step=$!

wait "$step"
code=$?
while [ -n "$interrupted" ]; do # then that was the code of the signal, and the step goes on
    interrupted=
    wait "$step"
    code=$?
done

# 75: saved; 134: NCCL's watchdog has ended a process that waited on its GPU
if { [ "$code" -eq 75 ] || [ "$code" -eq 134 ]; } && [ "${SLURM_RESTART_COUNT:-0}" -lt "$most_restarts" ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"

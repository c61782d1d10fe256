#!/usr/bin/env bash
# Pretrain on two nodes with eight GPUs each: sbatch examples/slurm_pretrain.sh configs/esm2-650m.toml [--set a.b=c]...
# Before it: protembed prepare (see the configuration), and a look at: protembed pretrain --dry-run --config ...
# Two minutes before the time is up SLURM sends USR1: the run saves itself and exits with 130, the job goes back into
# the queue and on from where it was. Any other failure ends the job; sbatch again goes on from the last checkpoint.
# To cancel for good: scancel --signal=KILL --full JOB, since a plain scancel is a request to save and be requeued.
#SBATCH --job-name=pretrain
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -uo pipefail

config=$1
shift
trap : TERM USR1  # a signal to the whole job must not end this script before srun has told how the run ended

# One process a GPU, found by its local rank: every process sees all GPUs of its node (no --gpus-per-task).
# --wait: when a process dies, the others get a minute. Not --kill-on-bad-exit: it would cut into saving.
status=0
srun --cpus-per-task="$SLURM_CPUS_PER_TASK" --wait=60 protembed pretrain --config "$config" "$@" || status=$?
if [ "$status" -eq 130 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"

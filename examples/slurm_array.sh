#!/usr/bin/env bash
# Embed one large FASTA with eight jobs: sbatch --array=1-8 examples/slurm_array.sh big.fasta 8
# Preempted or out of time? Submit again, all tasks or some (--array=3,6): every job goes on where it stopped.
# Afterwards: protembed merge big.h5 big.shard-*.h5 && protembed check big.h5 --input big.fasta
#SBATCH --job-name=protembed
#SBATCH --time=04:00:00
#SBATCH --cpus-per-task=4
#SBATCH --requeue
set -euo pipefail

fasta=$1
shards=${2:-8}
exec protembed embed "$fasta" -o "$(basename "${fasta%%.*}").h5" --shard "slurm/$shards" --resume --threads "$SLURM_CPUS_PER_TASK"

#!/bin/bash
# Train on the GPUs of one node, or of several, for longer than a job may take.
#
#     sbatch docs/slurm/train.sh config.toml --out runs/both
#     sbatch --nodes=4 docs/slurm/train.sh config.toml --out runs/both
#
# Five minutes before its time limit Slurm signals this script. The training then writes a checkpoint and ends, the job
# goes back into the queue, and resumes when its turn comes. A training that is finished, or fails, is not repeated.
#SBATCH --job-name=physseg-train
#SBATCH --nodes=1 --ntasks-per-node=1 --gpus-per-node=4 --cpus-per-task=32 --mem=128G
#SBATCH --time=24:00:00 --signal=B:USR1@300
#SBATCH --requeue --open-mode=append --output=%x-%j.txt

# `scancel --signal` reaches the step that srun starts, and not this script. torchrun passes SIGTERM on to its ranks, waits
# for them, and ends with a traceback of its SignalException: that is how it always ends then.
trap 'scancel --signal=TERM "$SLURM_JOB_ID"; wait "$training"; scontrol requeue "$SLURM_JOB_ID"' USR1
# scancel alone and preemption signal the step by themselves. This script stays until the step has written its checkpoint.
trap 'wait "$training"' TERM
# Seconds that torchrun waits for a step and a checkpoint. Before PyTorch 2.12 it is always 30.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=240

# Ranks meet on the first node. Set MASTER_ADDR where a node's name is not the address of its fast network.
address=${MASTER_ADDR:-$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)}
srun torchrun --nnodes="$SLURM_NNODES" --nproc-per-node="$SLURM_GPUS_ON_NODE" --rdzv-id="$SLURM_JOB_ID" \
    --rdzv-backend=c10d --rdzv-endpoint="$address:$((20000 + SLURM_JOB_ID % 10000))" -m physseg train "$@" &
training=$!
wait "$training"

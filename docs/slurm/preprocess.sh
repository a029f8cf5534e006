#!/bin/bash
# Preprocess in 64 parts, one array task each. Parts need no network and may be killed, requeued or run again.
#
#     job=$(sbatch --parsable docs/slurm/preprocess.sh train.parquet train.zarr)
#     sbatch --dependency=afterany:$job --output=verify.txt --wrap 'physseg verify train.zarr'
#
# `verify` names what is missing. Submit the same line again to compute exactly that.
#SBATCH --job-name=physseg-preprocess
#SBATCH --array=1-64
#SBATCH --nodes=1 --cpus-per-task=8 --mem=8G --time=4:00:00
#SBATCH --requeue --open-mode=append --output=%x-%A_%a.txt

PARTS=${PARTS:-64} # as in --array, which may be less when some are submitted again: --array=3,17

exec physseg preprocess "$@" --part "$SLURM_ARRAY_TASK_ID/$PARTS"

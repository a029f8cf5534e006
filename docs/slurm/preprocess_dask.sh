#!/bin/bash
# Preprocess with a Dask cluster of Slurm jobs. This job is its client; it submits the workers and replaces those that end.
#
#     sbatch docs/slurm/preprocess_dask.sh train.parquet train.zarr --workers 64
#
# Parts (preprocess.sh) need less of a cluster. This wants a network between nodes, and nodes that may submit jobs, and
# gives shards to whichever worker is free.
#SBATCH --job-name=physseg-client
#SBATCH --nodes=1 --cpus-per-task=1 --mem=4G --time=8:00:00
#SBATCH --requeue --open-mode=append --output=%x-%j.txt

# A worker's job. These and other options may stand in ~/.config/dask/jobqueue.yaml instead.
export DASK_JOBQUEUE__SLURM__CORES=${CORES:-1}
export DASK_JOBQUEUE__SLURM__MEMORY=${MEMORY:-2GiB}
export DASK_JOBQUEUE__SLURM__WALLTIME=${WALLTIME:-4:00:00}
export DASK_JOBQUEUE__SLURM__INTERFACE=${INTERFACE:-ib0} # of the network between nodes; `ip address` lists them

exec physseg preprocess "$@" --cluster slurm

#!/bin/bash
# Evaluate in 8 parts, one array task with a GPU each, and add them up.
#
#     job=$(sbatch --parsable docs/slurm/evaluate.sh runs/both ade150.parquet --checkpoint best)
#     sbatch --dependency=afterok:$job --output=merge.txt --wrap \
#         'physseg evaluate --merge runs/both/evaluations/ade150-step_*.part-*-of-8.json'
#
# Parts of different checkpoints are not added: name one while the run is still training, or the step's number in *.
#SBATCH --job-name=physseg-evaluate
#SBATCH --array=1-8
#SBATCH --nodes=1 --gpus-per-node=1 --cpus-per-task=8 --mem=32G --time=4:00:00
#SBATCH --requeue --open-mode=append --output=%x-%A_%a.txt

PARTS=${PARTS:-8} # as in --array, which may be less when some are submitted again: --array=3,7

exec physseg evaluate "$@" --part "$SLURM_ARRAY_TASK_ID/$PARTS"

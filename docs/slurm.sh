#!/bin/bash
# Two machines of a Slurm cluster as two workers, each with all of its GPUs: sbatch docs/slurm.sh
#SBATCH --job-name=kapps
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=16
#SBATCH --time=12:00:00
#SBATCH --output=kapps-%j.log
#SBATCH --open-mode=append
# Two minutes before its time is up each worker is asked to save: no B:, which would ask this script.
#SBATCH --signal=TERM@120
#SBATCH --requeue

# A task that fails ends the others at once, and does not leave them to their timeouts.
srun --kill-on-bad-exit=1 kapps-train \
  --model=ResNet50 --dataset=folder:/data/images --recipe=imagenet \
  --strategy=multi_worker --workdir=/shared/runs/resnet50
code=$?

# 143: time is up, and all is saved. 75: a worker failed; then srun ends the others, and tells of
# them by codes above 128. The same job goes on from there, but not for ever.
if ((code == 75 || code > 128)) && ((${SLURM_RESTART_COUNT:-0} < 20)); then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"

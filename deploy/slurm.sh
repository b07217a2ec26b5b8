#!/bin/bash
# Train on several nodes under Slurm, from the folder of run.py, on a file system that all nodes share:
#
#     sbatch deploy/slurm.sh NAME --exp denoise --data /shared/images.npy
#
# One process a node, all its devices. JAX finds the others from Slurm's variables. The same command again goes on with
# the run; so does Slurm, by itself, when the time is up, a node is lost or the job is preempted.
#SBATCH --job-name=flaxae
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
# Add --gpus-per-node=4 or the like; on its command line, sbatch takes it before the name of this script.

set -euo pipefail
if [[ $# -lt 1 || $1 == -* ]]; then
    echo "error: expected the run's name first: sbatch deploy/slurm.sh NAME --exp denoise ..." >&2
    exit 2
fi
name=$1
shift
resume=()
if compgen -G "runs/*/$name/checkpoints/latest" > /dev/null; then
    resume=(--resume)
elif compgen -G "runs/*/$name/config.json" > /dev/null; then
    echo "error: the run $name exists, without a checkpoint to go on from. Remove it or choose another name." >&2
    exit 2
fi

status=0
srun --kill-on-bad-exit=1 python run.py "$@" --name "$name" "${resume[@]}" || status=$?
case $status in
    75 | 130 | 137 | 143) # a process lost another, saved and stopped, or was killed
        if [[ ${SLURM_RESTART_COUNT:-0} -lt 20 ]]; then
            scontrol requeue "$SLURM_JOB_ID"
        fi
        ;;
esac
exit "$status"

#!/usr/bin/env bash
# One training on GPUs of one or several machines of a SLURM cluster, which survives time limits, pre-emption and lost
# machines: it resumes from its last checkpoint, in a folder that is named after the job.
#
#   sbatch --nodes=2 --ntasks-per-node=8 --gpus-per-node=8 scripts/slurm_train.sh data=coco data.root=/data/coco \
#     detector=detr_r50
#
# Options of sbatch before the script's name replace those below; settings of anydepth-train follow it. Start it in the
# folder of the clone, on a disk that all machines see; elsewhere, give PYTHON=/path/to/python.
#SBATCH --job-name=anydepth
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=9
#SBATCH --time=24:00:00
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
# After pre-emption, or the loss of a machine, SLURM queues the job again by itself.
#SBATCH --requeue
# Three minutes before the time limit, a signal to this script alone.
#SBATCH --signal=B:USR1@180
set -euo pipefail

: "${SLURM_JOB_ID:?start this script with sbatch}"
python=${PYTHON:-.venv/bin/python}
nodes=${SLURM_JOB_NUM_NODES:-1}
devices=${SLURM_NTASKS_PER_NODE:-$((${SLURM_NTASKS:-1} / nodes))}

srun --kill-on-bad-exit=0 --wait=120 "$python" -m anydepth.train \
    trainer=multi_node trainer.num_nodes="$nodes" trainer.devices="$devices" \
    hydra.run.dir="outputs/slurm/$SLURM_JOB_ID" ckpt_path=auto "$@" &
step=$!

time_is_up=""
# SIGTERM for the processes of training: they finish their step, save it and exit with 143.
trap 'time_is_up=yes; scancel --signal=TERM "$SLURM_JOB_ID"' USR1
# On pre-emption and scancel they end as well; this script waits for them.
trap : TERM

# A signal interrupts `wait`, but not the process it waits for.
code=0
wait "$step" || code=$?
while kill -0 "$step" 2>/dev/null; do
    code=0
    wait "$step" || code=$?
done
late=0
wait "$step" 2>/dev/null || late=$?
if [[ $late -ne 127 ]]; then code=$late; fi

if [[ $time_is_up && $code -eq 143 ]]; then
    echo "the time of job $SLURM_JOB_ID is up: it is queued again"
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"

#!/usr/bin/env bash
# One task of a job's step, in its container if it has one:
#   srun … bash scripts/slurm/task.sh alone|process|part COMMAND…
# process: one of a process group, told so in the variables that PyTorch and Composer read. part: of a sweep's runs.
set -euo pipefail
set +x

kind=$1
shift
if [[ $kind != process ]]; then unset MASTER_ADDR MASTER_PORT; fi # launchers in it choose their own
per_node=$((SLURM_NTASKS / SLURM_STEP_NUM_NODES))
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}} PYTHONUNBUFFERED=1
case $kind in
    alone) ;;
    process)
        export RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS NODE_RANK=$SLURM_NODEID
        export LOCAL_RANK=$SLURM_LOCALID LOCAL_WORLD_SIZE=$per_node
        ;;
    part)
        parts=$((${SLURM_ARRAY_TASK_COUNT:-1} * SLURM_NTASKS))
        index=$(((${SLURM_ARRAY_TASK_ID:-0} - ${SLURM_ARRAY_TASK_MIN:-0}) * SLURM_NTASKS + SLURM_PROCID))
        set -- "$@" "part=$((index + 1))/$parts"
        IFS=, read -ra gpus <<<"${CUDA_VISIBLE_DEVICES:-}"
        if ((per_node > 1 && ${#gpus[@]} > 1)); then
            export CUDA_VISIBLE_DEVICES=${gpus[SLURM_LOCALID % ${#gpus[@]}]}
        fi
        ;;
    *)
        echo "error: task.sh $kind: alone, process or part" >&2
        exit 2
        ;;
esac
exec "$@"

# shellcheck shell=bash
# What the jobs in this folder share; each sources it. docs/clusters.md explains the variables, all of them optional:
#   PYTHON            of the environment (default: .venv/bin/python where there is one, else python3; python in a container)
#   CONTAINER         image.sqsh or docker://… for pyxis; CONTAINER_MOUNTS: folders besides this checkout, /data:/data,…
#   MASTER_ADDR, MASTER_PORT   where the processes meet (default: this node, a port that follows from the job's number)
#   MAX_RESTARTS      how often a job is begun again at most (20)
#   WAIT_FOR_OTHERS   seconds that the other tasks have to end by themselves after the first (30); 0: any time
set -euo pipefail
set +x # even under `bash -x`: keys in the environment must not reach a log

readonly STOPPED=75 # exit code of a command that was stopped and goes on when it is given again: bertchen/errors.py
readonly BY_USR1=138
step=
asked= # the job was asked to stop
ended= # Slurm has ended the job

fail() {
    printf 'error: %s\n' "$1" >&2
    exit 2
}

# USR1: the time limit is near, which Slurm tells this script alone (--signal=B:USR1@…); the step hears it from here.
# TERM: the job is cancelled, preempted or out of time. Slurm has told the step too, and decides what becomes of the job.
hear() {
    if [[ $1 == TERM ]]; then ended=1; else asked=1; fi
    pass_on
}
pass_on() { # not TERM, of which srun kills the step
    if [[ -n $asked && -n $step ]]; then kill -s USR1 "$step" 2>/dev/null || true; fi
}
trap 'hear USR1' USR1
trap 'hear TERM' TERM

[[ -n ${SLURM_JOB_ID:-} ]] || fail "this is a job of Slurm: give it to sbatch"
[[ -f main.py && -f scripts/slurm/task.sh ]] || fail "$PWD is no checkout of BERTchen: call sbatch there, or add --chdir"

if [[ -z ${PYTHON:-} ]]; then
    PYTHON=python3
    if [[ -n ${CONTAINER:-} ]]; then PYTHON=python; elif [[ -x .venv/bin/python ]]; then PYTHON=.venv/bin/python; fi
fi
# The job's script runs on the first of its nodes, which has the first of its processes.
export MASTER_ADDR=${MASTER_ADDR:-$(hostname)} MASTER_PORT=${MASTER_PORT:-$((10000 + SLURM_JOB_ID % 20000))}

# Tasks are told apart by their place on a node, so all nodes need the same number; a process takes one GPU.
check_tasks() {
    local per_node=$((SLURM_NTASKS / SLURM_JOB_NUM_NODES)) gpus=${SLURM_GPUS_ON_NODE:-0}
    ((per_node * SLURM_JOB_NUM_NODES == SLURM_NTASKS)) ||
        fail "$SLURM_NTASKS tasks can't be divided over $SLURM_JOB_NUM_NODES nodes: give --ntasks-per-node, not --ntasks"
    ((gpus == 0 || gpus == per_node)) ||
        fail "$gpus GPUs on a node and $per_node tasks: a task takes one GPU, give --ntasks-per-node=$gpus"
}

# run_step KIND COMMAND…: runs it as many times as the job has tasks, and ends the job as the command ended.
run_step() {
    local wait_for_others=${WAIT_FOR_OTHERS:-30} options code
    options=(--cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" --kill-on-bad-exit=0 --wait="$wait_for_others")
    if ((SLURM_NTASKS > 1)); then options+=(--label); fi
    if [[ -n ${CONTAINER:-} ]]; then
        options+=(--container-image="$CONTAINER" --container-workdir="$PWD")
        options+=(--container-mounts="$PWD:$PWD${CONTAINER_MOUNTS:+,$CONTAINER_MOUNTS}")
    fi
    # A process beside this one waits for srun, and reports its number and its exit code: bash may forget the code of a
    # process (5.2 does) that ends just as a signal interrupts `wait`, and this one is here to hear signals.
    exec {out}>&1
    exec {report}< <(
        trap ':' USR1 TERM
        code=0
        bash -c 'echo $$; exec srun "${@:2}" >&"$1"' bash "$out" "${options[@]}" bash scripts/slurm/task.sh "$@" || code=$?
        echo "$code"
    )
    read -r step <&"$report"
    pass_on # what came before
    read -r code <&"$report" || code=1
    step=
    # Ended by the question itself, which it could not hear yet or never does: whatever runs here can go on later.
    if [[ -n $asked ]] && ((code == BY_USR1)); then code=$STOPPED; fi
    end_job "$code"
}

# end_job CODE: ends this script, and has Slurm begin the job again where its command was stopped and can go on.
end_job() {
    local code=$1 restarts=${SLURM_RESTART_COUNT:-0} most=${MAX_RESTARTS:-20}
    if ((code != STOPPED)); then exit "$code"; fi
    if [[ -n $ended ]]; then
        echo "stopped: Slurm has ended job $SLURM_JOB_ID, and begins it again by itself if it was preempted" >&2
    elif ((restarts >= most)); then
        echo "stopped: begun again $restarts times, which is MAX_RESTARTS; the same sbatch command goes on" >&2
    else
        echo "stopped: job $SLURM_JOB_ID goes back into the queue, restart $((restarts + 1)) of $most at most" >&2
        trap '' USR1 TERM # Slurm ends this script as it takes the job back
        scontrol requeue "$SLURM_JOB_ID" || echo "it does not; the same sbatch command goes on" >&2
    fi
    exit "$code"
}

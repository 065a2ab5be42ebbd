#!/usr/bin/env bash
# Runs a command in BERTchen's container, on chosen GPUs, as the calling user, with this checkout mounted.
set -euo pipefail
set +x # even under `bash -x`: the keys below must not reach a log

usage() {
    cat <<'END'
usage: scripts/docker_run.sh [options] [--] [COMMAND ...]

  -g GPUS     GPUs by number or UUID (0 or 0,2), all (the default) or none
  -d DATA     folder that the container sees as /data
  -i IMAGE    image (default: bertchen, made by: docker build -t bertchen .)
  -s SIZE     size limit of shared memory (default: 16g)
  --dry-run   print the docker command and run nothing
  -h, --help  this text

COMMAND (default: bash) runs in /bertchen, which is this checkout. Caches are kept in BERTCHEN_CACHE (default:
~/.cache/bertchen) and HF_HOME (default: ~/.cache/huggingface). WANDB_API_KEY is taken from the environment, else
from the entry for api.wandb.ai in ~/.netrc (or NETRC); these are passed too where they are set: HF_TOKEN,
HF_HUB_OFFLINE, WANDB_MODE, WANDB_PROJECT, WANDB_ENTITY, WANDB_BASE_URL.
END
}

fail() {
    printf 'error: %s\n' "$1" >&2
    exit 2
}

wandb_key_from_netrc() {
    awk '
        { for (i = 1; i <= NF; i++) word[++n] = $i }
        END {
            # Each word but "default" has a value after it, which may itself read like one of these words.
            for (i = 1; i < n; i++) {
                if (word[i] == "default") { ours = 0; continue }
                value = word[++i]
                if (word[i - 1] == "machine") ours = (value == "api.wandb.ai")
                else if (ours && word[i - 1] == "password") { print value; exit }
            }
        }' "$1"
}

bind() { # SOURCE TARGET: adds a mount
    case $1 in *,*) fail "$1: a folder with a comma in its path can't be mounted by docker" ;; esac
    docker_args+=(--mount "type=bind,source=$1,target=$2")
}

gpus=all
data=
image=bertchen
shm_size=16g
dry_run=
while [[ $# -gt 0 ]]; do
    case $1 in
        -g | -d | -i | -s)
            [[ $# -ge 2 && -n $2 ]] || fail "$1 needs a value (see -h)"
            case $1 in
                -g) gpus=$2 ;;
                -d) data=$2 ;;
                -i) image=$2 ;;
                -s) shm_size=$2 ;;
            esac
            shift 2
            ;;
        --dry-run) dry_run=1 && shift ;;
        -h | --help) usage && exit 0 ;;
        --) shift && break ;;
        -*) fail "unknown option $1 (see -h)" ;;
        *) break ;;
    esac
done
[[ $# -gt 0 ]] || set -- bash

one_gpu='([0-9]+|(GPU|MIG)-[0-9A-Fa-f-]+)'
[[ $gpus =~ ^(all|none|$one_gpu(,$one_gpu)*)$ ]] || fail "-g $gpus: expected numbers (0 or 0,2), UUIDs, all or none"
[[ $shm_size =~ ^[1-9][0-9]*[bkmgBKMG]?$ ]] || fail "-s $shm_size: expected a size such as 16g"
[[ -z $data || -d $data ]] || fail "-d $data: no such folder"
[[ $image != -* ]] || fail "-i $image: expected the name of an image"
[[ -n $dry_run ]] || command -v docker >/dev/null ||
    fail "docker not found: install Docker Engine and the NVIDIA Container Toolkit, or use --dry-run"

checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=${BERTCHEN_CACHE:-$HOME/.cache/bertchen}
hf_cache=${HF_HOME:-$HOME/.cache/huggingface}

docker_args=(run --rm --init)
if [[ -t 0 && -t 1 ]]; then docker_args+=(--interactive --tty); fi
case $gpus in
    none) ;;
    all) docker_args+=(--gpus all) ;;
    *) docker_args+=(--gpus "\"device=$gpus\"") ;; # docker reads a CSV field: quoted, or its comma would divide it
esac
# Shared memory of its own, not the host's (--ipc=host): Streaming keeps its state there under fixed names, and a run
# that cleans up after itself would take another container's away.
docker_args+=(--shm-size "$shm_size" --ulimit memlock=-1 --ulimit stack=67108864)
docker_args+=(--user "$(id -u):$(id -g)")

# A folder that docker has to create would belong to root.
[[ -n $dry_run ]] || mkdir -p "$cache/huggingface" "$hf_cache"
bind "$checkout" /bertchen
bind "$cache" /cache
bind "$hf_cache" /cache/huggingface
if [[ -n $data ]]; then bind "$(cd "$data" && pwd)" /data; fi
docker_args+=(--workdir /bertchen)

# By name alone: docker reads the values from its environment, so that no process list or log shows them.
netrc=${NETRC:-$HOME/.netrc}
if [[ -z ${WANDB_API_KEY:-} && -r $netrc ]]; then
    WANDB_API_KEY=$(wandb_key_from_netrc "$netrc")
fi
export WANDB_API_KEY
for name in WANDB_API_KEY WANDB_MODE WANDB_PROJECT WANDB_ENTITY WANDB_BASE_URL HF_TOKEN HF_HUB_OFFLINE; do
    if [[ -n ${!name:-} ]]; then docker_args+=(--env "$name"); fi
done

if [[ -n $dry_run ]]; then
    printf '%q ' docker "${docker_args[@]}" "$image" "$@"
    echo
else
    exec docker "${docker_args[@]}" "$image" "$@"
fi

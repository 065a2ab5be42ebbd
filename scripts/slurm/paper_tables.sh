#!/usr/bin/env bash
# Submits what tables of the paper need, each job after those whose output it reads: the tokenizer, a conversion a corpus,
# a pretraining a row, its fine-tunings, and the report with the paper's figures beside ours. Call it on a login node:
#   scripts/slurm/paper_tables.sh 1 3               # or: all
#   scripts/slurm/paper_tables.sh all stop_after=1h key.sub=value …     # for each pretraining
# What is there already isn't made again, and a run goes on where it was: the same command mends what failed.
# Environment, with the defaults:
#   DATA=mds TOKENIZER=tokenizer OUT=runs/paper     folders of converted data, of the tokenizer and of runs and results
#   TOKENIZER_TEXT=   what the tokenizer is trained on, where TOKENIZER isn't there: files, as input of yamls/tokenizer.yaml
#   BOOKS=books       the folder of text files that table 2 needs
#   TASKS=germanquad,germeval17,germeval24 SEEDS=5
#   TRAIN_OPTIONS=--gpus-per-node=1 CPU_OPTIONS=    of sbatch, as --account=… --partition=…
#   SWEEP_ARGUMENTS=  of scripts/evaluate.py, as set.data.folder=data/tasks
#   DRY_RUN=          1: print the commands, submit nothing
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

data=${DATA:-mds} tokenizer=${TOKENIZER:-tokenizer} out=${OUT:-runs/paper}
english=google-bert/bert-base-uncased
stages='stages={64: 0.15, 128: 0.15, 256: 0.15, 512: 0.55}'
read -ra train_options <<<"${TRAIN_OPTIONS---gpus-per-node=1}"
read -ra cpu_options <<<"${CPU_OPTIONS:-}"
read -ra sweep_arguments <<<"${SWEEP_ARGUMENTS:-}"

# A row is a YAML of yamls/paper/; length_512 is the baseline in each table.
declare -A rows=(
    [1]="length_64 length_128 length_256 length_512"
    [2]="data_wiki data_books data_wiki_books data_c4 data_oscar length_512"
    [3]="length_512 hybrid hybrid_sorted hybrid_mask hybrid_mask_double"
    [4]="length_512 bert_tokenizer"
    [5]="length_512"
)
others=(mosaicml/mosaic-bert-base deepset/gbert-base uklfr/gottbert-base) # of table 5

# Folder of DATA by row; CulturaX as it is for those that aren't named.
declare -A corpus=(
    [data_wiki]=wikipedia [data_books]=books [data_wiki_books]=wiki_books [data_c4]=c4 [data_oscar]=oscar
    [hybrid]=culturax_stages [hybrid_mask]=culturax_stages [hybrid_mask_double]=culturax_stages
    [hybrid_sorted]=culturax_sorted [bert_tokenizer]=culturax_english
)
declare -A jobs=() # number of the job that makes it, by what it makes
sweeps=

fail() {
    printf 'error: %s\n' "$1" >&2
    exit 2
}

# submit NAME CONDITION MADE_BY SBATCH_ARGUMENT…: a job that begins when those of the names in MADE_BY, as far as there
# are any, have ended: afterok well, afterany somehow.
submit() {
    local name=$1 condition=$2 wanted after='' submitted
    local command=(sbatch --parsable --job-name="$name" --output="$out/logs/%x-%j.log")
    for wanted in $3; do
        if [[ -n ${jobs[$wanted]:-} ]]; then after+=":${jobs[$wanted]}"; fi
    done
    if [[ -n $after ]]; then command+=(--dependency="$condition$after" --kill-on-invalid-dep=yes); fi
    command+=("${@:4}")
    if [[ -n ${DRY_RUN:-} ]]; then
        printf '%q ' "${command[@]}"
        echo
        jobs[$name]=$name
        return
    fi
    submitted=$("${command[@]}")
    jobs[$name]=${submitted%%;*} # the cluster's name may follow
    echo "${jobs[$name]}: $name"
}

make_tokenizer() {
    if [[ -n ${jobs[tokenizer]:-} || -d $tokenizer ]]; then return; fi
    [[ -n ${TOKENIZER_TEXT:-} ]] || fail "$tokenizer isn't there: set TOKENIZER, or TOKENIZER_TEXT to train it on"
    submit tokenizer afterok "" "${cpu_options[@]}" scripts/slurm/command.sbatch train_tokenizer yamls/tokenizer.yaml \
        "input=$TOKENIZER_TEXT" "out=$tokenizer"
}

convert() { # FOLDER
    local name=$1 yaml=$1 words=$tokenizer needs=tokenizer more=()
    if [[ -n ${jobs[$name]:-} || -f $data/$name/manifest.json ]]; then return; fi
    case $name in
        books) more=("source.path=${BOOKS:-books}") ;;
        wiki_books) more=("sources.books.path=${BOOKS:-books}") ;;
        culturax_stages) yaml=culturax more=("$stages") ;;
        culturax_sorted) yaml=culturax more=("$stages" strategy=sorted) ;;
        culturax_english) yaml=culturax words=$english needs= ;;
    esac
    if [[ -n $needs ]]; then make_tokenizer; fi
    submit "$name" afterok "$needs" "${cpu_options[@]}" scripts/slurm/convert.sbatch "yamls/data/$yaml.yaml" \
        "tokenizer=$words" "out=$data/$name" "${more[@]}"
}

finetune() { # NAME AFTER MODEL
    submit "$1" afterok "$2" "${train_options[@]}" scripts/slurm/finetune_sweep.sbatch yamls/evaluate.yaml "models=[$3]" \
        "tasks=[${TASKS:-germanquad,germeval17,germeval24}]" "seeds=${SEEDS:-5}" "results=$out/results.jsonl" \
        "save_folder=$out/finetune" "${sweep_arguments[@]}"
    sweeps+=" $1"
}

row() { # NAME KEY=VALUE…
    local name=$1 folder=${corpus[$1]:-culturax} words=("tokenizer=$tokenizer")
    shift
    if [[ -n ${jobs[$name]:-} ]]; then return; fi
    if [[ $name == bert_tokenizer ]]; then words=(); fi # its YAML names it
    convert "$folder"
    submit "$name" afterok "$folder" "${train_options[@]}" scripts/slurm/pretrain.sbatch yamls/pretrain.yaml \
        "yamls/paper/$name.yaml" "data.local=$data/$folder" "${words[@]}" "save_folder=$out/$name" "$@"
    finetune "$name-tasks" "$name" "$out/$name"
}

tables=()
while [[ $# -gt 0 && $1 != *=* ]]; do
    case $1 in
        [1-5]) tables+=("$1") ;;
        all) tables=(1 2 3 4 5) ;;
        *) fail "$1: give tables, 1 to 5 or all, and then key=value for their pretraining" ;;
    esac
    shift
done
[[ ${#tables[@]} -gt 0 ]] || fail "give tables: 1 to 5, or all"
[[ -n ${DRY_RUN:-} ]] || mkdir -p "$out/logs"
for table in "${tables[@]}"; do
    for name in ${rows[$table]}; do row "$name" "$@"; done
    if [[ $table == 5 ]]; then
        for model in "${others[@]}"; do finetune "${model##*/}" "" "$model"; done
    fi
done
submit report afterany "$sweeps" "${cpu_options[@]}" scripts/slurm/command.sbatch report "$out/results.jsonl" "out=$out/report"

#!/usr/bin/env bash
# Does pretraining help? A model against the same architecture with random weights: three tasks, three seeds each.
#   scripts/compare_pretraining.sh MODEL TASKS OUT [key=value …]
# MODEL is a checkpoint, a run folder or an exported one. TASKS has germeval24/germeval-competition-traindev.jsonl,
# germeval17/dev.tsv and test.tsv, mlqa_de/dev.json (plain or .gz): published files, divided where test sets aren't there.
# Further arguments are set for all runs, as `optimizer.lr=5e-4`. Results and a report go to OUT; a command that was
# stopped goes on. Environment: SEEDS (3), PYTHON, PART (1/4: the first of four parts of the runs, for several GPUs, each
# with an OUT of its own; no report then).
set -euo pipefail
cd "$(dirname "$0")/.."
model=$1 tasks=$2 out=$3
shift 3
python=${PYTHON:-python3}

sweep() {
  local task=$1
  shift
  "$python" scripts/evaluate.py yamls/evaluate.yaml "models=[$model,{model: $model, random_weights: true}]" \
    "tasks=[$task]" "seeds=${SEEDS:-3}" "part=${PART:-null}" \
    "results=$out/results.jsonl" "save_folder=$out/runs" \
    "set.data.folder=$tasks/$task" set.progress_bar=false set.export=false "$@"
}

common=()
for item in "$@"; do common+=("set.$item"); done
sweep germeval24 set.data.splits.test=null set.data.test_size=1000 "${common[@]}"
sweep germeval17 "set.data.splits={train: dev.tsv, dev: null, test_synchronic: test.tsv, test_diachronic: null}" "${common[@]}"
sweep mlqa_de "${common[@]}"
[ -n "${PART:-}" ] || "$python" scripts/report.py "$out/results.jsonl" "out=$out/report"

#!/usr/bin/env bash
# Trains the same model on the same number of tokens under each curriculum, several seeds each; metrics go to OUT.
#   scripts/compare_curricula.sh DATA TOKENIZER OUT [key=value …]
# Environment: SEEDS ("42 43 44"), NAMES (of the settings below), STEPS (600), PARALLEL (1 run at a time), PYTHON.
set -euo pipefail
cd "$(dirname "$0")/.."
data=$1 tokenizer=$2 out=$3
shift 3
python=${PYTHON:-python3} steps=${STEPS:-600}
quarter=$((steps / 4))
lengths='[64,128,256,512]'
declare -A settings=(
  [length_512]='sequence_length=512'
  [length_128]='sequence_length=128'
  [static]="curriculum.static={lengths: $lengths, begins: [0ba, ${quarter}ba, $((2 * quarter))ba, $((3 * quarter))ba]}"
  [hybrid]="curriculum.hybrid={lengths: $lengths, patience: 2, delta: 1.0}"
  [hybrid_mask]="curriculum.hybrid={lengths: $lengths, patience: 2, delta: 1.0};masking.stage_rates=[0.30,0.25,0.20,0.15]"
  [dynamic]='curriculum.dynamic={lengths: [64, 512]}'
  [bert]='model.architecture=bert;model.intermediate_size=null'
  [bert_static]="model.architecture=bert;model.intermediate_size=null;curriculum.static={lengths: $lengths, begins: [0ba, ${quarter}ba, $((2 * quarter))ba, $((3 * quarter))ba]}"
  [bert_hybrid]="model.architecture=bert;model.intermediate_size=null;curriculum.hybrid={lengths: $lengths, patience: 2, delta: 1.0}"
)
mkdir -p "$out"

run() {
  local name=$1 seed=$2
  shift 2
  local -a chosen
  IFS=';' read -ra chosen <<<"${settings[$name]}"
  local folder="runs/compare/$name-$seed"
  if "$python" main.py yamls/pretrain.yaml "data.local=$data" "tokenizer=$tokenizer" "save_folder=$folder" \
    "seed=$seed" "max_duration=${steps}ba" stop_after=null "save_interval=${steps}ba" export=false overwrite=true \
    progress_bar=false console_log_interval=1000ba "$@" "${chosen[@]}" >"$out/$name-$seed.log" 2>&1; then
    cp "$folder/metrics.jsonl" "$out/$name-$seed.jsonl"
    echo "$name seed $seed: $(grep 'eval_512' "$out/$name-$seed.log" | tail -1)"
  else
    echo "$name seed $seed failed: $(tail -1 "$out/$name-$seed.log")"
  fi
}

for seed in ${SEEDS:-42 43 44}; do
  for name in ${NAMES:-length_512 length_128 static hybrid hybrid_mask dynamic bert bert_static bert_hybrid}; do
    while [ "$(jobs -rp | wc -l)" -ge "${PARALLEL:-1}" ]; do wait -n; done
    run "$name" "$seed" "$@" &
  done
done
wait

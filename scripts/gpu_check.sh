#!/usr/bin/env bash
# Checks and measures on a GPU, in parts that can be run one by one:
#   scripts/gpu_check.sh test                        the tests that need a GPU
#   scripts/gpu_check.sh step OUT                    the bare step by backend and length, JSON lines to OUT/step.jsonl
#   scripts/gpu_check.sh data CORPUS TOKENIZER MDS   convert a corpus
#   scripts/gpu_check.sh train MDS TOKENIZER OUT NAME [key=value …]   a run through main.py; its metrics go to OUT
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
part=${1:?test, step, data or train}
shift
case $part in
test)
  "$python" -m pytest -q -m gpu tests "$@"
  ;;
step)
  out=$1
  shift
  mkdir -p "$out"
  "$python" scripts/benchmark_pretrain.py "$@" | tee -a "$out/step.jsonl"
  ;;
data)
  "$python" scripts/convert_dataset.py yamls/data/local.yaml "source.path=$1" "tokenizer=$2" "out=$3"
  ;;
train)
  mds=$1 tokenizer=$2 out=$3 name=$4
  shift 4
  mkdir -p "$out"
  status=0
  "$python" main.py yamls/pretrain.yaml "data.local=$mds" "tokenizer=$tokenizer" "save_folder=runs/$name" \
    progress_bar=false "$@" >"$out/$name.log" 2>&1 || status=$?
  cp "runs/$name/metrics.jsonl" "$out/$name.jsonl" || true
  grep -E "^(ended|validation|error)|Error|auto: using" "$out/$name.log" | tail -20 || tail -30 "$out/$name.log"
  "$python" - "$out/$name.jsonl" <<'PY'
import json, statistics, sys

rows = [json.loads(line) for line in open(sys.argv[1])]
rates = [row["throughput/tokens_per_sec"] for row in rows if "throughput/tokens_per_sec" in row]
print(json.dumps({
    "steps": len(rates),
    "tokens_per_second_median_last_half": round(statistics.median(rates[len(rates) // 2:])) if rates else None,
    "best": round(max(rates)) if rates else None,
    "mfu": next((row["throughput/mfu"] for row in reversed(rows) if "throughput/mfu" in row), None),
    "memory": {key: value for row in rows[-3:] for key, value in row.items() if "peak" in key and "memory" in key},
    "eval": {key: value for row in rows for key, value in row.items() if key.endswith("MaskedCrossEntropy")},
}))
PY
  exit "$status"
  ;;
*)
  echo "unknown part $part: test, step, data or train" >&2
  exit 2
  ;;
esac

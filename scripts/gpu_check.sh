#!/usr/bin/env bash
# Checks and measures on a GPU, in parts that can be run one by one:
#   scripts/gpu_check.sh test                        the tests that need a GPU
#   scripts/gpu_check.sh step OUT                    the bare step by backend and length, JSON lines to OUT/step.jsonl
#   scripts/gpu_check.sh speed MDS TOKENIZER OUT     kernels against torch.compile and other models: each alone, step,
#                                                    evaluation, whole runs, 24 GB, 8 bits where they can serve, JSON
#                                                    lines to OUT/speed.jsonl
#   scripts/gpu_check.sh parity MDS TOKENIZER OUT [key=value …]    five minutes each: three seeds of torch.compile, then the
#                                                    kernels and 8 bits; what they reached to OUT/parity.jsonl. RUNS in
#                                                    the environment chooses: RUNS="torch_1 triton_1", seed last
#   scripts/gpu_check.sh scaling MDS TOKENIZER OUT [key=value …]   tokens/s by one GPU and by all, to OUT/scaling.jsonl
#   scripts/gpu_check.sh fsdp MDS TOKENIZER OUT [key=value …]      DDP, FSDP, FSDP gone on with: their losses side by side
#   scripts/gpu_check.sh finetune MODEL TASKS OUT [key=value …]    scripts/compare_pretraining.sh with its runs shared out among
#                                                    the GPUs, PARTS (2) at a time on each; what came of them to OUT/report
#   scripts/gpu_check.sh data CORPUS TOKENIZER MDS   convert a corpus
#   scripts/gpu_check.sh train MDS TOKENIZER OUT NAME [key=value …]   a run through main.py; its metrics go to OUT
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
part=${1:?test, step, speed, parity, scaling, fsdp, finetune, data or train}
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
speed)
  mds=$1 tokenizer=$2 out=$3
  mkdir -p "$out"
  bench() {
    "$python" scripts/benchmark_pretrain.py "$@" | tee -a "$out/speed.jsonl"
  }
  whole="parts=[trainer] trainer.data.local=$mds trainer.tokenizer=$tokenizer trainer.eval.lengths=[512] warmup=5 steps=20"
  "$python" scripts/benchmark_kernels.py | tee -a "$out/speed.jsonl"
  bench "kernels=[triton]" "microbatch_tokens=[131072]" "parts=[step,evaluate]" profile=true
  # shellcheck disable=SC2086 # several arguments
  bench "kernels=[triton]" "microbatch_tokens=[131072]" $whole "folder=$out/runs"
  bench "kernels=[triton]" "microbatch_tokens=[131072]" "sequence_lengths=[64,128,256]"
  bench "kernels=[triton]" "microbatch_tokens=[16384,32768,65536]"
  if "$python" -m pytest -q tests/model/test_float8.py; then
    bench "kernels=[float8]" "microbatch_tokens=[131072]" profile=true
    # shellcheck disable=SC2086
    bench "kernels=[float8]" "microbatch_tokens=[131072]" $whole "folder=$out/runs"
  fi
  bench "kernels=[torch]" "backends=[flex,flash]" profile=true "references=[bert,modernbert]"
  ;;
parity)
  mds=$1 tokenizer=$2 out=$3
  shift 3
  mkdir -p "$out"
  for name in ${RUNS:-torch_1 torch_2 torch_3 triton_1 float8_1}; do
    case $name in
    torch_*) how=(model.kernels=torch model.attention_backend=flex) ;;
    triton_*) how=(model.kernels=triton microbatch_tokens=131072) ;;
    float8_*) how=(model.float8=true microbatch_tokens=131072) ;;
    *)
      echo "unknown run $name: torch_SEED, triton_SEED or float8_SEED" >&2
      exit 2
      ;;
    esac
    "$python" main.py yamls/pretrain.yaml "data.local=$mds" "tokenizer=$tokenizer" "save_folder=$out/$name" \
      progress_bar=false export=false save_interval=1000000ba save_num_checkpoints_to_keep=1 eval.interval=80ba \
      max_duration=240ba stop_after=null scheduler.t_warmup=80ba "eval.lengths=[512]" "seed=${name#*_}" "${how[@]}" "$@" \
      >"$out/$name.log" 2>&1 || true
    "$python" - "$out" "$name" <<'PY' | tee -a "$out/parity.jsonl"
import json, statistics, sys

out, name = sys.argv[1:]
rows = [json.loads(line) for line in open(f"{out}/{name}/metrics.jsonl")]
losses = [row["loss/train/total"] for row in rows if "loss/train/total" in row]
validation = [row[key] for row in rows for key in row if key.endswith("eval_512/MaskedCrossEntropy")]
rates = [row["throughput/tokens_per_sec"] for row in rows if "throughput/tokens_per_sec" in row]
print(json.dumps({
    "run": name, "steps": len(losses), "validation": validation, "training": losses[9::10],
    "tokens_per_second_median": round(statistics.median(rates)) if rates else None,
    "seconds": max((row["throughput/seconds"] for row in rows if "throughput/seconds" in row), default=None),
    "checkpoint_seconds": next((row[key] for row in rows[::-1] for key in row if "checkpoint_seconds" in key), None),
}))
PY
  done
  ;;
scaling)
  out=$3
  all=$("$python" -c 'import torch; print(torch.cuda.device_count())')
  mkdir -p "$out"
  "$python" scripts/benchmark_scaling.py "processes=[1,$all]" "train.data.local=$1" "train.tokenizer=$2" \
    "folder=$out/runs" "${@:4}" | tee -a "$out/scaling.jsonl"
  ;;
fsdp)
  mds=$1 tokenizer=$2 out=$3
  shift 3
  mkdir -p "$out"
  train() {
    name=$1
    shift
    "$python" -m composer.cli.launcher main.py yamls/pretrain.yaml "data.local=$mds" "tokenizer=$tokenizer" \
      "save_folder=$out/$name" max_duration=20ba stop_after=null eval.interval=20ba save_interval=10ba \
      save_num_checkpoints_to_keep=10 progress_bar=false callbacks.sample_ids={} "$@" >"$out/$name.log" 2>&1
  }
  train ddp "$@"
  train fsdp parallelism.fsdp={} "$@"
  mkdir -p "$out/resumed"
  cp "$out"/fsdp/{ep0-ba10-rank0.pt,config.yaml,metrics.jsonl,samples.jsonl} "$out/resumed"
  train resumed parallelism.fsdp={} autoresume=true "$@"
  cmp "$out/ddp/samples.jsonl" "$out/fsdp/samples.jsonl"
  "$python" - "$out" <<'PY'
import json, sys

def losses(name):
    rows = map(json.loads, open(f"{sys.argv[1]}/{name}/metrics.jsonl"))
    return [row["loss/train/total"] for row in rows if "loss/train/total" in row]

ddp, fsdp, resumed = map(losses, ("ddp", "fsdp", "resumed"))
print(json.dumps({
    "steps": len(ddp),
    "fsdp_to_ddp": max(abs(a / b - 1) for a, b in zip(fsdp, ddp, strict=True)),
    "resumed_is_the_same": resumed == fsdp,
}))
PY
  ;;
finetune)
  model=$1 tasks=$2 out=$3
  shift 3
  gpus=$("$python" -c 'import torch; print(max(torch.cuda.device_count(), 1))')
  parts=$((gpus * ${PARTS:-2}))
  mkdir -p "$out"
  processes=() status=0
  for part in $(seq "$parts"); do
    CUDA_VISIBLE_DEVICES=$((part % gpus)) PART=$part/$parts \
      scripts/compare_pretraining.sh "$model" "$tasks" "$out/part$part" "$@" >"$out/part$part.log" 2>&1 &
    processes+=($!)
  done
  for process in "${processes[@]}"; do wait "$process" || status=$?; done
  "$python" scripts/report.py "$out"/part*/results.jsonl "out=$out/report"
  exit "$status"
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
  echo "unknown part $part: test, step, speed, parity, scaling, fsdp, finetune, data or train" >&2
  exit 2
  ;;
esac

"""Times pretraining, the bare step, evaluation or whole runs, and prints one JSON object a setting.

python scripts/benchmark_pretrain.py kernels=[triton,torch] sequence_lengths=[64,512] microbatch_tokens=[65536]
python scripts/benchmark_pretrain.py references=[bert,modernbert] profile=true
python scripts/benchmark_pretrain.py parts=[step,trainer] trainer.data.local=mds trainer.tokenizer=tokenizer

All models have the same vocabulary, width, depth, masked tokens, optimizer and clipping. Ours computes the logits of
the masked tokens, as its loss does; the references those of all, as their users' code does.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch
from benchmark_scaling import rates, run
from torch import Tensor, nn
from transformers import BertConfig, BertForMaskedLM, ModernBertConfig, ModernBertForMaskedLM

from bertchen.callbacks.peak_memory import peak_memory
from bertchen.callbacks.throughput import model_flops_utilization
from bertchen.config import Config, load_config
from bertchen.config.load import nearest
from bertchen.config.schema_benchmark import BenchmarkConfig
from bertchen.config.schema_benchmark_scaling import BenchmarkScalingConfig
from bertchen.data.masking import MaskingVocabulary, mask_tokens, max_masked_per_row
from bertchen.errors import user_errors
from bertchen.model import BackendUnavailable, MosaicBertConfig, MosaicBertForMaskedLM
from bertchen.report.metrics import read_metrics
from bertchen.train.builders import parameter_groups
from bertchen.train.checks import check_not_negative, check_positive
from bertchen.train.devices import compute_dtype, device_name, peak_flops, resolve_precision
from bertchen.train.parallelism import compiled_parts
from bertchen.train.run_folder import METRICS_FILE

USAGE = "python scripts/benchmark_pretrain.py [file.yaml …] key.sub=value …"
PARTS = ("step", "evaluate", "trainer")
KERNELS = ("auto", "triton", "torch", "float8")
# By what kernels' names contain, in this order.
KINDS = {
    "attention": ("flash", "fmha", "flex", "attention", "_forward", "_of_queries", "_of_keys"),
    "matrix products": ("nvjet", "gemm", "cutlass", "splitk", "gemv"),
    "loss": ("cross_entropy", "softmax", "nll"),
    "gated feed-forward": ("glu", "gelu"),
    "embeddings": ("embed", "radixsort"),
    "LayerNorm": ("norm",),
    "8-bit": ("quantize",),
}


def build(cfg: BenchmarkConfig, name: str, kernels: str, backend: str) -> nn.Module:
    """Ours, or the named reference of the same size."""
    ours = MosaicBertConfig(**cfg.model)
    shape = {
        "vocab_size": ours.vocab_size,
        "hidden_size": ours.hidden_size,
        "num_hidden_layers": ours.num_hidden_layers,
        "num_attention_heads": ours.num_attention_heads,
    }
    longest = max(cfg.sequence_lengths)
    if name == "bert":
        width = 4 * ours.hidden_size
        return BertForMaskedLM(
            BertConfig(
                **shape, intermediate_size=width, attention_probs_dropout_prob=0.0, attn_implementation="sdpa",
                max_position_embeddings=longest,
            )
        )  # fmt: skip
    if name == "modernbert":
        # Its feed-forward is one and a half times as wide as the residual stream, and it has no dropout.
        return ModernBertForMaskedLM(
            ModernBertConfig(
                **shape, intermediate_size=3 * ours.hidden_size // 2, attn_implementation="sdpa",
                max_position_embeddings=longest, reference_compile=False, pad_token_id=0, bos_token_id=1,
                eos_token_id=2, cls_token_id=1, sep_token_id=2,
            )
        )  # fmt: skip
    ours.attention_backend = backend
    for name, value in kernel_keys(kernels).items():
        setattr(ours, name, value)
    return MosaicBertForMaskedLM(ours)


def kernel_keys(kernels: str) -> dict[str, Any]:
    """What the configuration has for one of `KERNELS`."""
    in_8_bits = kernels == "float8"
    return {"kernels": "triton" if in_8_bits else kernels, "float8": in_8_bits}


def loss_of(model: nn.Module, batch: dict[str, Any]) -> Tensor:
    """Mean cross entropy of the masked tokens."""
    if isinstance(model, MosaicBertForMaskedLM):
        return model(**batch, output_logits=False).loss
    return model(input_ids=batch["input_ids"], labels=batch["labels"]).loss


class Bench:
    """A model on its device, compiled where that is asked for, and a microbatch of random tokens."""

    def __init__(
        self, cfg: BenchmarkConfig, name: str, kernels: str, backend: str, seq_len: int, microbatch_tokens: int
    ) -> None:
        self.cuda = torch.cuda.is_available()
        self.device = torch.device("cuda" if self.cuda else "cpu")
        self.cfg = cfg
        torch.manual_seed(cfg.seed)
        torch._dynamo.reset()
        self.model = build(cfg, name, kernels, backend).to(self.device).train()
        precision = resolve_precision(cfg.precision)
        if self.cuda if cfg.compile is None else cfg.compile:
            for part in compiled_parts(self.model, self.device, compute_dtype(precision)):
                part.compile(dynamic=False)
        self.autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=precision == "amp_bf16")
        self.rows = max(1, microbatch_tokens // seq_len)
        vocab_size = self.model.config.vocab_size
        input_ids, labels = mask_tokens(
            torch.randint(4, vocab_size, (self.rows, seq_len), device=self.device),
            torch.arange(self.rows, device=self.device),
            MaskingVocabulary.build(vocab_size, range(4), 3).to(self.device),
            cfg.mlm_probability,
            cfg.seed,
            0,
        )
        self.batch = {
            "input_ids": input_ids,
            "labels": labels,
            "max_masked": max_masked_per_row(cfg.mlm_probability, seq_len) * self.rows,
        }
        self.microbatch = self.rows * seq_len
        self.accumulate = max(1, cfg.tokens_per_step // self.microbatch)
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()

    def micro_step(self) -> None:
        with self.autocast:
            loss = loss_of(self.model, self.batch)
        (loss / self.accumulate).backward()

    def training_step(self) -> Callable[[], None]:
        """A step of the optimizer, gradients clipped."""
        optimizer = torch.optim.AdamW(
            parameter_groups(self.model, 1e-5), lr=5e-4, betas=(0.9, 0.98), eps=1e-6, fused=self.cuda
        )

        def step() -> None:
            for _ in range(self.accumulate):
                self.micro_step()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return step

    def evaluation(self) -> Callable[[], None]:
        """The loss of as many tokens as a step has."""
        self.model.eval()

        def evaluate() -> None:
            with torch.no_grad(), self.autocast:
                for _ in range(self.accumulate):
                    loss_of(self.model, self.batch)

        return evaluate

    def rates(self, work: Callable[[], None]) -> list[float]:
        """Tokens a second of each timed turn."""
        each = []
        for turn in range(self.cfg.warmup + self.cfg.steps):
            started = time.perf_counter()
            work()
            if self.cuda:
                torch.cuda.synchronize()
            if turn >= self.cfg.warmup:
                each.append(self.accumulate * self.microbatch / (time.perf_counter() - started))
        return each

    def by_kind(self) -> dict[str, Any]:
        """Nanoseconds a token: of a microbatch by the clock, and of its kernels by kind and the longest by name.

        Profiled in the midst of others, as a GPU that comes from a pause may be faster than one that goes on.
        """
        before, profiled = 8, 4
        schedule = torch.profiler.schedule(wait=0, warmup=before, active=profiled, repeat=1)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA], schedule=schedule) as profile:
            started = []
            for _ in range(before + profiled):
                started.append(time.perf_counter())
                self.micro_step()
                torch.cuda.synchronize()
                ended = time.perf_counter()
                profile.step()
        self.model.zero_grad(set_to_none=True)
        kinds: dict[str, float] = defaultdict(float)
        tokens = profiled * self.microbatch
        events = [event for event in profile.key_averages() if not event.key.startswith("ProfilerStep")]
        kernels = {event.key: 1e3 * event.self_device_time_total / tokens for event in events}
        for name, spent in kernels.items():
            kinds[kind_of(name)] += spent
        longest = sorted(kernels.items(), key=lambda pair: -pair[1])[:24]
        return {
            "ns_a_token": round(1e9 * (ended - started[before]) / tokens, 1),
            "ns_a_token_by_kind": {kind: round(spent, 1) for kind, spent in sorted(kinds.items(), key=lambda p: -p[1])},
            "longest_kernels": [[name[:70], round(spent, 1)] for name, spent in longest],
        }


def kind_of(kernel: str) -> str:
    """The kind of a kernel by its name."""
    lower = kernel.lower()
    return next((kind for kind, parts in KINDS.items() if any(part in lower for part in parts)), "other")


def measure(
    cfg: BenchmarkConfig, part: str, name: str, kernels: str, backend: str, seq_len: int, microbatch_tokens: int
) -> dict[str, Any]:
    """Tokens a second of one setting: median and spread over the timed steps, MFU, peak memory."""
    bench = Bench(cfg, name, kernels, backend, seq_len, microbatch_tokens)
    each = bench.rates(bench.training_step() if part == "step" else bench.evaluation())
    parameters = sum(parameter.numel() for parameter in bench.model.parameters())
    line = {
        "parameters": parameters,
        "microbatch_tokens": bench.microbatch,
        "tokens_per_step": bench.accumulate * bench.microbatch,
        **summary(cfg, each, parameters, training=part == "step"),
        "peak_memory_gb": round(peak_memory() / 1e9, 2),
    }
    if cfg.profile and bench.cuda and part == "step":
        line |= bench.by_kind()
    return line


def summary(cfg: BenchmarkConfig, each: list[float], parameters: int, training: bool = True) -> dict[str, Any]:
    """Of the rates of all steps."""
    median = statistics.median(each)
    peak = cfg.peak_flops or peak_flops(device_name())
    share = model_flops_utilization(median, parameters, 1, peak) if peak and training else None
    return {
        "tokens_per_second": round(median),
        "slowest_fastest": [round(min(each)), round(max(each))],
        "mfu": None if share is None else round(share, 4),
    }


def train(cfg: BenchmarkConfig, kernels: str, backend: str, seq_len: int, microbatch_tokens: int) -> dict[str, Any]:
    """The rate of a whole run through `main.py`: loading, masking, training, clipping, logging."""
    own = {
        "model": {
            **cfg.model,
            **kernel_keys(kernels),
            "attention_backend": backend,
        },
        "sequence_length": seq_len,
        "microbatch_tokens": microbatch_tokens,
        "masking": {"mlm_probability": cfg.mlm_probability},
        "precision": cfg.precision,
        "compile": cfg.compile,
        "seed": cfg.seed,
    }
    once = BenchmarkScalingConfig(processes=[1], train={**own, **cfg.trainer}, steps=cfg.steps, warmup=cfg.warmup)
    folder = Path(cfg.folder).resolve() / f"{kernels}_{backend}_{seq_len}_{microbatch_tokens}"
    run(once, 1, folder)
    rows = read_metrics(folder / METRICS_FILE)
    with torch.device("meta"):
        parameters = sum(p.numel() for p in MosaicBertForMaskedLM(MosaicBertConfig(**cfg.model)).parameters())
    return {
        "microbatch_tokens": microbatch_tokens,
        "tokens_per_step": rows[1]["time/token"],
        **summary(cfg, rates(rows, cfg.warmup), parameters),
    }


def check(config: Config[BenchmarkConfig]) -> None:
    """Raises a UserError for values that can't be."""
    check_positive(config, ("steps", "tokens_per_step"))
    check_not_negative(config, ("warmup",))
    cfg = config.value
    for key, known in (("parts", PARTS), ("kernels", KERNELS), ("references", ("bert", "modernbert"))):
        for value in getattr(cfg, key):
            if value not in known:
                config.fail(key, f"{value!r} is unknown; {nearest(value, known)}")
    if "trainer" in cfg.parts and not cfg.trainer:
        config.fail("trainer", "parts=[trainer] needs trainer.data.local=mds trainer.tokenizer=tokenizer")


def main(argv: list[str]) -> None:
    """Runs every setting and prints a line for each; one that can't run says why."""
    config = load_config(BenchmarkConfig, argv, USAGE)
    check(config)
    cfg = config.value
    ours = [("mosaicbert", kernels, backend) for kernels in cfg.kernels for backend in cfg.backends]
    for part in cfg.parts:
        others = [] if part == "trainer" else [(name, "torch", "sdpa") for name in cfg.references]
        for name, kernels, backend in [*ours, *others]:
            for seq_len in cfg.sequence_lengths:
                for tokens in cfg.microbatch_tokens:
                    line = {"what": part, "model": name, "kernels": kernels, "backend": backend, "length": seq_len}
                    try:
                        if part == "trainer":
                            line |= train(cfg, kernels, backend, seq_len, tokens)
                        else:
                            line |= measure(cfg, part, name, kernels, backend, seq_len, tokens)
                    except (BackendUnavailable, torch.cuda.OutOfMemoryError) as error:
                        line["error"] = str(error).splitlines()[0]
                    print(json.dumps({**line, **facts(cfg)}), flush=True)
                    if torch.cuda.is_available():
                        torch.cuda.empty_cache()


def facts(cfg: BenchmarkConfig) -> dict[str, Any]:
    """Where and with what it was measured."""
    return {
        "precision": resolve_precision(cfg.precision),
        "device": device_name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


if __name__ == "__main__":
    torch.set_float32_matmul_precision("high")
    with user_errors():
        main(sys.argv[1:])

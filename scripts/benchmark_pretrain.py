"""Times the bare pretraining step and prints one JSON object a setting.

python scripts/benchmark_pretrain.py [yaml …] backends=[flex,flash] sequence_lengths=[64,512] microbatch_tokens=[65536]
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import nn
from transformers import BertConfig, BertForMaskedLM

from bertchen.callbacks.peak_memory import peak_memory
from bertchen.callbacks.throughput import model_flops_utilization
from bertchen.config import load_config
from bertchen.config.schema_benchmark import BenchmarkConfig
from bertchen.data.masking import MaskingVocabulary, mask_tokens, max_masked_per_row
from bertchen.errors import user_errors
from bertchen.model import BackendUnavailable, MosaicBertConfig, MosaicBertForMaskedLM
from bertchen.train.builders import parameter_groups
from bertchen.train.devices import device_name, peak_flops, resolve_precision

USAGE = "python scripts/benchmark_pretrain.py [file.yaml …] key.sub=value …"


def build(cfg: BenchmarkConfig, name: str) -> nn.Module:
    """Ours with the named backend, or the named reference of the same size."""
    ours = MosaicBertConfig(**cfg.model)
    if name != "bert":
        ours.attention_backend = name
        return MosaicBertForMaskedLM(ours)
    return BertForMaskedLM(
        BertConfig(
            vocab_size=ours.vocab_size, hidden_size=ours.hidden_size, num_hidden_layers=ours.num_hidden_layers,
            num_attention_heads=ours.num_attention_heads, intermediate_size=4 * ours.hidden_size,
            attention_probs_dropout_prob=0.0, attn_implementation="sdpa",
        )
    )  # fmt: skip


def loss_of(model: nn.Module, name: str, batch: dict[str, Any]) -> torch.Tensor:
    """Mean cross entropy of the masked tokens; the reference predicts every position, as its users' code does."""
    if name == "bert":
        return model(input_ids=batch["input_ids"], labels=batch["labels"]).loss
    return model(**batch).loss


def measure(cfg: BenchmarkConfig, name: str, seq_len: int, microbatch_tokens: int) -> dict[str, Any]:
    """Tokens a second of one setting: median and spread over the timed steps, MFU, peak memory."""
    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    torch.manual_seed(cfg.seed)
    torch._dynamo.reset()
    model = build(cfg, name).to(device).train()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if cuda if cfg.compile is None else cfg.compile:
        model.compile(dynamic=False)
    optimizer = torch.optim.AdamW(parameter_groups(model, 1e-5), lr=5e-4, betas=(0.9, 0.98), eps=1e-6, fused=cuda)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=resolve_precision(cfg.precision) == "amp_bf16")
    rows = microbatch_tokens // seq_len
    accumulate = max(1, cfg.tokens_per_step // (rows * seq_len))
    vocab_size = model.config.vocab_size
    vocabulary = MaskingVocabulary.build(vocab_size, range(4), 3).to(device)
    masked = max_masked_per_row(cfg.mlm_probability, seq_len) * rows
    input_ids, labels = mask_tokens(
        torch.randint(4, vocab_size, (rows, seq_len), device=device), torch.arange(rows, device=device), vocabulary,
        cfg.mlm_probability, cfg.seed, 0,
    )  # fmt: skip
    batch = {"input_ids": input_ids, "labels": labels, "max_masked": masked}
    if cuda:
        torch.cuda.reset_peak_memory_stats()

    def step() -> float:
        started = time.perf_counter()
        for _ in range(accumulate):
            with autocast:
                loss = loss_of(model, name, batch)
            (loss / accumulate).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - started

    for _ in range(cfg.warmup):
        step()
    tokens = accumulate * rows * seq_len
    rates = [tokens / step() for _ in range(cfg.steps)]
    median = statistics.median(rates)
    peak = cfg.peak_flops or peak_flops(device_name())
    return {
        "what": "bare step",
        "model": "bert" if name == "bert" else "mosaicbert",
        "backend": "sdpa" if name == "bert" else name,
        "parameters": parameters,
        "sequence_length": seq_len,
        "microbatch_tokens": rows * seq_len,
        "tokens_per_step": tokens,
        "tokens_per_second": round(median),
        "slowest_fastest": [round(min(rates)), round(max(rates))],
        "mfu": round(model_flops_utilization(median, parameters, 1, peak), 4) if peak else None,
        "peak_memory_gb": round(peak_memory() / 1e9, 2),
    }


def main(argv: list[str]) -> None:
    """Runs every setting and prints a line for each; one that can't run says why."""
    cfg = load_config(BenchmarkConfig, argv, USAGE).value
    facts = {"device": device_name(), "torch": torch.__version__, "precision": resolve_precision(cfg.precision)}
    for name in [*cfg.backends, *cfg.references]:
        for seq_len in cfg.sequence_lengths:
            for tokens in cfg.microbatch_tokens:
                try:
                    result = measure(cfg, name, seq_len, tokens)
                except (BackendUnavailable, torch.cuda.OutOfMemoryError) as error:
                    result = {"backend": name, "sequence_length": seq_len, "error": str(error).splitlines()[0]}
                print(json.dumps({**facts, **result}), flush=True)
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()


if __name__ == "__main__":
    torch.set_float32_matmul_precision("high")
    with user_errors():
        main(sys.argv[1:])

"""Times hidden states of the exported model beside those of Hugging Face's BERT and prints one JSON object a setting.

python scripts/benchmark_inference.py batch_sizes=[1,32] lengths=[16,512] threads=1

The model is exported to a folder and loaded from it with `AutoModel.from_pretrained(…, trust_remote_code=True)`, as its
users do. The models take turns, so that what else the machine does meets them alike; a ratio is the median of the
turns' ratios.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor, nn
from transformers import AutoModel, BertConfig, BertModel

from bertchen.config import Config, load_config
from bertchen.config.load import nearest
from bertchen.config.schema_benchmark_inference import BenchmarkInferenceConfig
from bertchen.errors import user_errors
from bertchen.export.hf import add_code
from bertchen.model import MosaicBertConfig, MosaicBertForMaskedLM
from bertchen.train.checks import check_not_negative, check_positive
from bertchen.train.devices import device_name

USAGE = "python scripts/benchmark_inference.py [file.yaml …] key.sub=value …"
REFERENCES = ("width", "parameters")
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def exported_model(cfg: BenchmarkInferenceConfig) -> nn.Module:
    """The encoder from an exported folder; one with random weights is exported first, if none is named."""
    if cfg.exported:
        return AutoModel.from_pretrained(cfg.exported, trust_remote_code=True)
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(cfg.seed)
        model = MosaicBertForMaskedLM(MosaicBertConfig(**cfg.model))
        add_code(Path(folder), model.config)
        model.save_pretrained(folder)
        return AutoModel.from_pretrained(folder, trust_remote_code=True)


def reference(name: str, ours: Any, longest: int) -> nn.Module:
    """A BERT of the same width and depth, and of the same feed-forward or the same parameters a layer."""
    # The gate makes three matrices of two, and has no bias.
    wide = 3 * ours.intermediate_size // 2 if name == "parameters" else ours.intermediate_size
    return BertModel(
        BertConfig(
            vocab_size=ours.vocab_size, hidden_size=ours.hidden_size, num_hidden_layers=ours.num_hidden_layers,
            num_attention_heads=ours.num_attention_heads, intermediate_size=wide, max_position_embeddings=longest,
            attn_implementation="sdpa",
        ),
        add_pooling_layer=False,
    )  # fmt: skip


def batch_of(rows: int, length: int, vocab_size: int, padded: bool, seed: int) -> dict[str, Tensor]:
    """Random tokens; padded rows have 1 to `length` of them, the first row all."""
    generator = torch.Generator().manual_seed(seed)
    batch = {"input_ids": torch.randint(4, vocab_size, (rows, length), generator=generator)}
    if padded:
        lengths = torch.randint(1, length + 1, (rows,), generator=generator)
        lengths[0] = length
        batch["attention_mask"] = (torch.arange(length)[None, :] < lengths[:, None]).long()
    return batch


def seconds(models: dict[str, Callable[..., Any]], batch: dict[str, Tensor], cfg: BenchmarkInferenceConfig) -> Any:
    """Of each turn, by model."""
    taken: dict[str, list[float]] = {name: [] for name in models}
    for turn in range(cfg.warmup + cfg.repetitions):
        for name, model in models.items():
            started = time.perf_counter()
            with torch.inference_mode():
                model(**batch)
            if batch["input_ids"].is_cuda:
                torch.cuda.synchronize()
            if turn >= cfg.warmup:
                taken[name].append(time.perf_counter() - started)
    return taken


def check(config: Config[BenchmarkInferenceConfig]) -> None:
    """Raises a UserError for values that can't be."""
    check_positive(config, ("repetitions",))
    check_not_negative(config, ("warmup",))
    cfg = config.value
    for value in cfg.references:
        if value not in REFERENCES:
            config.fail("references", f"{value!r} is unknown; {nearest(value, REFERENCES)}")
    if cfg.precision not in PRECISIONS:
        config.fail("precision", f"unknown; {nearest(cfg.precision, PRECISIONS)}")
    if min([*cfg.batch_sizes, *cfg.lengths], default=0) < 1:
        config.fail("batch_sizes and lengths", "should name numbers from 1 on")


def main(argv: list[str]) -> None:
    """Times every shape and prints a line for each model."""
    config = load_config(BenchmarkInferenceConfig, argv, USAGE)
    check(config)
    cfg = config.value
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    modules = {"exported": exported_model(cfg)}
    ours = modules["exported"].config
    modules |= {f"bert, same {name}": reference(name, ours, max(cfg.lengths)) for name in cfg.references}
    models = {name: module.eval().to(device, PRECISIONS[cfg.precision]) for name, module in modules.items()}
    for model in models.values():
        if cfg.compile:
            model.compile()
    for length in cfg.lengths:
        for rows in cfg.batch_sizes:
            batch = batch_of(rows, length, ours.vocab_size, cfg.padded, cfg.seed)
            taken = seconds(models, {name: part.to(device) for name, part in batch.items()}, cfg)
            for name, model in models.items():
                ratios = [base / mine for base, mine in zip(taken[name], taken["exported"], strict=True)]
                line = {
                    "what": "inference",
                    "model": name,
                    "parameters": sum(parameter.numel() for parameter in model.parameters()),
                    "rows": rows,
                    "length": length,
                    "padded": cfg.padded,
                    "seconds": round(statistics.median(taken[name]), 5),
                    "fastest_slowest": [round(min(taken[name]), 5), round(max(taken[name]), 5)],
                    "exported_is_times_as_fast": round(statistics.median(ratios), 3),
                    "precision": cfg.precision,
                    "compile": cfg.compile,
                    "device": device_name(),
                    "threads": torch.get_num_threads(),
                    "torch": torch.__version__,
                    "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
                }
                print(json.dumps(line), flush=True)


if __name__ == "__main__":
    with user_errors():
        main(sys.argv[1:])

"""Times fine-tuning on short texts, unpadded against padded, and reading and collating alone; prints JSON lines.

python scripts/benchmark_finetune.py texts=germeval-competition-traindev.jsonl.gz tokenizer=tokenizer
python scripts/benchmark_finetune.py padded_to=[longest,512] batch_size=16

All ways train the same model, of our class, on the same inputs in the same order. Padded rows are as long as the
longest of their batch, the longest of all, or 512, and every token of them passes every layer, as in models that don't
drop padding. That attention there needn't mask anything favours them a little.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from bertchen.config import Config, load_config
from bertchen.config.schema_benchmark_finetune import BenchmarkFinetuneConfig
from bertchen.config.schema_finetune import EncodingConfig
from bertchen.errors import UserError, user_errors
from bertchen.model import MosaicBertConfig, MosaicBertModel
from bertchen.tasks.batches import train_loader
from bertchen.tasks.data import TaskData
from bertchen.tasks.encoder import Encoder
from bertchen.tasks.encoding import Features, encode
from bertchen.tasks.examples import Origin, TextExample
from bertchen.tasks.heads import TaskModel
from bertchen.text.files import resolve_paths
from bertchen.text.readers import read_documents
from bertchen.text.sample import generate_documents
from bertchen.tokenizer import load_tokenizer, train_tokenizer
from bertchen.train.builders import parameter_groups
from bertchen.train.devices import device_name, resolve_precision

USAGE = "python scripts/benchmark_finetune.py [file.yaml …] key=value …"
BATCH, LONGEST = "batch", "longest"
# Words of a generated post: half of them are shorter than 25, some ten times as long, as in GermEval 2024.
_MEDIAN_WORDS, _SPREAD, _MOST_WORDS = 25, 0.8, 300

Batch = dict[str, Tensor]
Result = dict[str, Any]


def read_texts(cfg: BenchmarkFinetuneConfig) -> list[str]:
    """The texts of the files, or as many generated posts."""
    if cfg.texts is None:
        return list(islice(posts(cfg.seed), cfg.examples))
    documents = read_documents(resolve_paths(cfg.texts), cfg.text_column)
    texts = [document.text for document in islice(documents, cfg.examples)]
    if not texts:
        raise UserError(f"texts={cfg.texts}: no text in it")
    return texts


def posts(seed: int) -> Iterator[str]:
    """German of the lengths that posts have, without end: pieces of generated documents."""
    numbers = Random(seed)
    words: list[str] = []
    for document in generate_documents(seed, sys.maxsize):
        words += document.split()
        if len(words) >= _MOST_WORDS:
            length = min(_MOST_WORDS, max(1, round(numbers.lognormvariate(0, _SPREAD) * _MEDIAN_WORDS)))
            yield " ".join(words[:length])
            words = words[length:]


def make_examples(texts: Sequence[str], cfg: BenchmarkFinetuneConfig) -> list[TextExample]:
    numbers = Random(cfg.seed)
    return [
        TextExample(str(number), text, str(numbers.randrange(cfg.labels)), Origin(str(cfg.texts), number))
        for number, text in enumerate(texts, 1)
    ]


def make_encoder(cfg: BenchmarkFinetuneConfig, tokenizer: PreTrainedTokenizerBase) -> Encoder:
    torch.manual_seed(cfg.seed)
    rows = -(-len(tokenizer) // 64) * 64
    model = MosaicBertModel(
        MosaicBertConfig(**{"vocab_size": rows, "pad_token_id": tokenizer.pad_token_id or 0, **cfg.model})
    )
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Encoder("benchmark", model, tokenizer, None, parameters, "")


@dataclass(frozen=True)
class Way:
    """Rows as long as the longest of their batch, or all `width` long; padding left out, or computed with the rest."""

    what: str
    width: int | None = None
    padded: bool = True


UNPADDED = Way("training, unpadded", padded=False)


class Steps:
    """Training steps of one model, in whatever way; what they cost doesn't depend on its weights."""

    def __init__(self, cfg: BenchmarkFinetuneConfig, encoder: Encoder, features: list[Features]) -> None:
        self.cfg, self.features, self.pad_id = cfg, features, encoder.pad_id
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = TaskModel(encoder.model, "classification", cfg.labels).to(self.device).train()
        fused = self.device.type == "cuda"
        self.optimizer = torch.optim.AdamW(parameter_groups(self.model, 3e-6), lr=3e-5, betas=(0.9, 0.98), fused=fused)
        mixed = resolve_precision(cfg.precision) == "amp_bf16"
        self.autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=mixed)

    def run(self, way: Way, steps: int) -> tuple[float, float]:
        """Samples a second, collating in it, and tokens a sample that passed the model."""
        size = self.cfg.batch_size
        loader = train_loader(self.features, self.pad_id, size, self.cfg.seed, drop_last=True, width=way.width)
        tokens = 0
        self._wait()
        began = time.perf_counter()
        for batch in islice(endless(loader), steps):
            tokens += self._step(batch, way)
        self._wait()
        return steps * size / (time.perf_counter() - began), tokens / (steps * size)

    def _step(self, batch: Batch, way: Way) -> int:
        if way.padded:
            batch["attention_mask"] = torch.ones_like(batch["attention_mask"])
        tokens = int(batch["attention_mask"].sum())
        batch = {name: tensor.to(self.device, non_blocking=True) for name, tensor in batch.items()}
        with self.autocast:
            loss = self.model(batch)["loss"]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return tokens

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def endless(loader: Any) -> Iterator[Batch]:
    epoch = 0
    while True:
        loader.sampler.set_epoch(epoch)
        yield from loader
        epoch += 1


def rate_of(work: Callable[[], Any], samples: int) -> float:
    """Samples a second of some work."""
    began = time.perf_counter()
    work()
    return samples / (time.perf_counter() - began)


def spread(values: list[float], digits: int = 1) -> Result:
    """Median, smallest and largest."""
    return {
        "median": round(statistics.median(values), digits),
        "smallest": round(min(values), digits),
        "largest": round(max(values), digits),
    }


def run(config: Config[BenchmarkFinetuneConfig]) -> Iterator[Result]:
    """Each figure: reading, encoding and collating without a model, then training without and with padding."""
    cfg = config.value
    check(config)
    texts = read_texts(cfg)
    tokenizer = load_tokenizer(cfg.tokenizer) if cfg.tokenizer else train_tokenizer(texts, cfg.vocab_size)
    examples, encoder = make_examples(texts, cfg), make_encoder(cfg, tokenizer)
    data = TaskData("classification", [str(label) for label in range(cfg.labels)], 1, {"train": examples})
    settings = EncodingConfig(max_length=cfg.max_length, long_inputs="truncate", stride=0)
    features = encode(examples, encoder, data, settings, training=True)
    if len(features) < cfg.batch_size:
        config.fail("batch_size", f"there are only {len(features)} texts")
    loader = train_loader(features, encoder.pad_id, cfg.batch_size, cfg.seed)
    alone: dict[str, Callable[[], Any]] = {
        "reading": lambda: read_texts(cfg),
        "encoding": lambda: encode(examples, encoder, data, settings, training=True),
        "collating": lambda: sum(1 for _ in loader),
    }
    for what, work in alone.items():
        rates = [rate_of(work, len(features)) for _ in range(cfg.repetitions)]
        yield {"what": f"{what} alone", "samples_per_second": spread(rates)}
    yield from training(cfg, encoder, features)


def check(config: Config[BenchmarkFinetuneConfig]) -> None:
    cfg = config.value
    for key in ("examples", "max_length", "labels", "batch_size", "steps", "repetitions"):
        if getattr(cfg, key) < 1:
            config.fail(key, "should be at least 1")
    for name in cfg.padded_to:
        if name not in (BATCH, LONGEST) and not (name.isdecimal() and int(name) >= cfg.max_length):
            config.fail("padded_to", f"{name}: should be {BATCH}, {LONGEST} or at least max_length={cfg.max_length}")
    try:
        resolve_precision(cfg.precision)
    except ValueError as error:
        config.fail("precision", str(error))


def training(cfg: BenchmarkFinetuneConfig, encoder: Encoder, features: list[Features]) -> Iterator[Result]:
    """In turns, so that what slows the machine down slows all ways."""
    longest = max(map(len, features))
    lengths = {BATCH: None, LONGEST: longest}
    padded = [
        Way(f"training, padded to {name}", lengths[name] if name in lengths else int(name)) for name in cfg.padded_to
    ]
    ways = [UNPADDED, *padded]
    steps = Steps(cfg, encoder, features)
    for way in ways:
        steps.run(way, cfg.warmup)
    runs: dict[Way, list[tuple[float, float]]] = {way: [] for way in ways}
    for _ in range(cfg.repetitions):
        for way in ways:
            runs[way].append(steps.run(way, cfg.steps))
    unpadded = [rate for rate, _ in runs[UNPADDED]]
    for way, measured in runs.items():
        rates, [per_sample, *_] = [rate for rate, _ in measured], [tokens for _, tokens in measured]
        ratios = [ours / theirs for ours, theirs in zip(unpadded, rates, strict=True)]
        yield {
            "what": way.what,
            "parameters": encoder.parameters,
            "batch_size": cfg.batch_size,
            "longest_input": longest,
            "tokens_per_sample": round(per_sample, 1),
            "samples_per_second": spread(rates),
            "tokens_per_second": spread([rate * per_sample for rate in rates], 0),
            **({"unpadded_to_this": spread(ratios, 3)} if way.padded else {}),
        }


def main(argv: list[str]) -> None:
    """Prints a line for each figure."""
    config = load_config(BenchmarkFinetuneConfig, argv, USAGE)
    for result in run(config):
        facts = {
            "examples": config.value.examples, "repetitions": config.value.repetitions, "device": device_name(),
            "precision": resolve_precision(config.value.precision), "torch": torch.__version__,
        }  # fmt: skip
        print(json.dumps({**result, **facts}), flush=True)


if __name__ == "__main__":
    torch.set_float32_matmul_precision("high")
    with user_errors():
        main(sys.argv[1:])

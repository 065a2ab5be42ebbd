"""Times reading and converting against bare libraries, in turns, and prints one JSON object a measurement.

python scripts/benchmark_data.py parts=[read] read.data=mds read.workers=[0,2]
python scripts/benchmark_data.py parts=[convert] convert.files=corpus convert.tokenizer=tokenizer convert.cores=2
"""

from __future__ import annotations

import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bertchen.config import Config, load_config
from bertchen.config.schema_benchmark_data import BenchmarkDataConfig
from bertchen.errors import UserError, user_errors
from bertchen.processes import available_cores

# What takes memory to import is imported where it is used: this file is also two of the ways of converting.

ROOT = Path(__file__).resolve().parents[1]
USAGE = "python scripts/benchmark_data.py [file.yaml …] key.sub=value …"
LIBRARIES = ("mosaicml-streaming", "torch", "tokenizers", "datasets", "transformers", "numpy")
# What would set the number of threads of a way.
THREADS = ("TOKENIZERS_PARALLELISM", "RAYON_NUM_THREADS", "OMP_NUM_THREADS")
ENCODE_CHARACTERS = 1 << 20
BUILDERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}

Result = dict[str, Any]


def facts() -> Result:
    """What a figure depends on besides the settings; the load is that of the last minute."""
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": {
            "cpu": _cpu_name(),
            "cores": available_cores(),
            "load": round(os.getloadavg()[0], 2),
            "platform": platform.platform(),
        },
        "versions": {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}},
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def spread(values: list[float], digits: int | None = None) -> dict[str, Any]:
    """Median, smallest and largest."""
    return {
        "median": round(statistics.median(values), digits),
        "smallest": round(min(values), digits),
        "largest": round(max(values), digits),
    }


def ratios(ours: list[float], theirs: list[float]) -> dict[str, Any]:
    """Of the figures of one turn each, so that what slows the machine down slows both."""
    return spread([a / b for a, b in zip(ours, theirs, strict=True)], 3)


def read(config: Config[BenchmarkDataConfig]) -> Iterator[Result]:
    """Tokens a second of a bare loader, of ours, and of ours with masking as in training, by workers and length."""
    from bertchen.data.manifest import read_manifest

    cfg = config.value.read
    if cfg.data is None:
        config.fail("read.data", "name the folder of a converted data set")
    manifest = read_manifest(cfg.data)
    if cfg.split not in manifest["splits"]:
        config.fail("read.split", f"the data has: {', '.join(manifest['splits'])}")
    for length in cfg.sequence_lengths:
        if length < 1 or manifest["block_size"] % length:
            config.fail("read.sequence_lengths", f"each must divide the data's block size {manifest['block_size']}")
    blocks = manifest["splits"][cfg.split]["blocks"]
    if min(blocks, cfg.blocks or blocks) // cfg.blocks_per_batch // max([1, *cfg.workers]) < 2:
        config.fail("read.blocks_per_batch", f"{blocks} blocks should give each worker two batches or more")
    for workers in cfg.workers:
        passes = _passes(config.value, manifest, workers)
        measured: dict[tuple[str, int], list[float]] = {name: [] for name in passes}
        for _ in range(config.value.repetitions):
            for name, run in passes.items():
                measured[name].append(run())
        bare = measured["bare", manifest["block_size"]]
        for (what, length), rates in measured.items():
            yield {
                "part": "read",
                "what": what,
                "workers": workers,
                "sequence_length": length,
                "blocks_per_batch": cfg.blocks_per_batch,
                "blocks": cfg.blocks or blocks,
                "repetitions": len(rates),
                "tokens_per_second": spread(rates),
                "to_bare": ratios(rates, bare),
            }


def _passes(
    settings: BenchmarkDataConfig, manifest: dict[str, Any], workers: int
) -> dict[tuple[str, int], Callable[[], float]]:
    """Functions that read one epoch and give its tokens a second."""
    import torch
    from streaming import StreamingDataLoader, StreamingDataset

    from bertchen.data.blocks import BlockDataset, train_loader
    from bertchen.data.masking import MaskingVocabulary, mask_tokens

    cfg = settings.read
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    options = {
        "local": cfg.data, "split": cfg.split, "shuffle": True, "shuffle_seed": settings.seed, "num_canonical_nodes": 1,
        "batch_size": cfg.blocks_per_batch, "epoch_size": cfg.blocks,
    }  # fmt: skip
    special = manifest["tokenizer"]["special_ids"]
    vocabulary = MaskingVocabulary.build(
        manifest["tokenizer"]["vocab_size"], list(special.values()), special.get("mask", 0)
    ).to(device)

    def mask(batch: dict[str, torch.Tensor], step: int) -> None:
        input_ids, row_ids = batch["input_ids"].to(device), batch["row_ids"].to(device)
        mask_tokens(input_ids, row_ids, vocabulary, cfg.mlm_probability, settings.seed, step)

    def epoch(loader: Any, use: Callable[[dict[str, torch.Tensor], int], None]) -> float:
        """Timed from the first batch on, without the start of an epoch."""
        batches = iter(loader)
        next(batches)
        tokens, began = 0, time.perf_counter()
        for step, batch in enumerate(batches):
            use(batch, step)
            tokens += batch["input_ids"].numel()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return tokens / (time.perf_counter() - began)

    def nothing(batch: dict[str, torch.Tensor], step: int) -> None: ...

    bare = StreamingDataLoader(
        StreamingDataset(**options), batch_size=cfg.blocks_per_batch, num_workers=workers, drop_last=True,
        persistent_workers=workers > 0, prefetch_factor=2 if workers else None,
    )  # fmt: skip
    passes = {("bare", manifest["block_size"]): partial(epoch, bare, nothing)}
    for length in cfg.sequence_lengths:
        for what, use in (("ours, unmasked", nothing), ("ours", mask)):
            loader = train_loader(BlockDataset(**options), cfg.blocks_per_batch, length, workers)
            passes[what, length] = partial(epoch, loader, use)
    return passes


def convert(config: Config[BenchmarkDataConfig]) -> Iterator[Result]:
    """Tokens a second and memory of each way from text to tokens, from the start of its process to its end."""
    from bertchen.text.files import resolve_paths

    settings = config.value
    cfg = settings.convert
    for key, value in (("files", cfg.files), ("tokenizer", cfg.tokenizer)):
        if value is None:
            config.fail(f"convert.{key}", "should be given")
    for way in cfg.ways:
        if way not in WAYS:
            config.fail("convert.ways", f"{way} is unknown, should be some of: {', '.join(WAYS)}")
    cores = available_cores()
    if not 0 <= cfg.cores <= cores:
        config.fail("convert.cores", f"should be 0 to {cores}")
    cfg.cores = cfg.cores or cores
    cfg.files = resolve_paths(cfg.files)
    stored = sum(_read_through(path) for path in cfg.files)
    runs: dict[str, list[Result]] = {way: [] for way in cfg.ways}
    for _ in range(settings.repetitions):
        for way in cfg.ways:
            with tempfile.TemporaryDirectory(dir=cfg.scratch, prefix="benchmark-") as folder:
                runs[way].append(_run(way, WAYS[way](settings, Path(folder)), settings))
    rates = {way: [run["tokens"] / run["seconds"] for run in each] for way, each in runs.items()}
    for way, each in runs.items():
        yield {
            "part": "convert",
            "what": way,
            "cores": cfg.cores,
            "files": len(cfg.files),
            "stored_bytes": stored,
            "options": cfg.options,
            "repetitions": len(each),
            "tokens": each[0]["tokens"],
            "seconds": spread([run["seconds"] for run in each], 2),
            "tokens_per_second": spread(rates[way]),
            "peak_memory_gb": spread([run["peak_memory"] / 1e9 for run in each], 3),
            **{f"to_{other}": ratios(rates[way], rates[other]) for other in cfg.ways if other != way},
        }


def _read_through(path: str) -> int:
    """Reads a file, so that no way is the first to read it from the disk; its bytes."""
    with open(path, "rb") as file:
        return sum(len(chunk) for chunk in iter(partial(file.read, 1 << 20), b""))


@dataclass(frozen=True)
class Way:
    """A process to time.

    Attributes:
        command: its command line.
        tokens: from what it printed to the number of tokens that it made, without separators.
        environment: beside this process's.
    """

    command: list[str]
    tokens: Callable[[str], int]
    environment: dict[str, str] = field(default_factory=dict)


def _encode_way(settings: BenchmarkDataConfig, folder: Path) -> Way:
    threads = {"TOKENIZERS_PARALLELISM": "true", "RAYON_NUM_THREADS": str(settings.convert.cores)}
    return Way(_this_command("encode", settings, folder), _last_line, threads)


def _datasets_way(settings: BenchmarkDataConfig, folder: Path) -> Way:
    own_cache = {"HF_DATASETS_CACHE": str(folder / "cache"), "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    return Way(_this_command("datasets", settings, folder), _last_line, own_cache)


def _convert_way(settings: BenchmarkDataConfig, folder: Path) -> Way:
    cfg = settings.convert
    out = folder / "mds"
    command = [
        sys.executable, str(ROOT / "scripts" / "convert_dataset.py"), f"source.path={json.dumps(cfg.files)}",
        f"source.text_column={cfg.text_column}", f"tokenizer={cfg.tokenizer}", f"block_size={cfg.block_size}",
        f"workers={cfg.cores}", f"out={out}", *cfg.options,
    ]  # fmt: skip

    def tokens(_: str) -> int:
        """All that were made; the manifest counts each document's separator too."""
        manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
        dropped = manifest["dropped_tokens"]
        documents = sum(manifest["dropped_documents"].get(reason, 0) for reason in dropped)
        return manifest["tokens"] + sum(dropped.values()) - manifest["documents"]["kept"] - documents

    return Way(command, tokens)


WAYS: dict[str, Callable[[BenchmarkDataConfig, Path], Way]] = {
    "encode": _encode_way,
    "datasets": _datasets_way,
    "convert": _convert_way,
}


def _this_command(way: str, settings: BenchmarkDataConfig, folder: Path) -> list[str]:
    cfg = settings.convert
    return [
        sys.executable, __file__, f"way={way}", f"convert.files={json.dumps(cfg.files)}",
        f"convert.text_column={cfg.text_column}", f"convert.tokenizer={cfg.tokenizer}",
        f"convert.block_size={cfg.block_size}", f"convert.cores={cfg.cores}",
    ]  # fmt: skip


def _last_line(output: str) -> int:
    return int(output.split()[-1])


def _run(name: str, way: Way, settings: BenchmarkDataConfig) -> Result:
    """Runs a way to its end, on as many cores as it may use."""
    cores = sorted(os.sched_getaffinity(0))[: settings.convert.cores]
    environment = {name: value for name, value in os.environ.items() if name not in THREADS}
    began = time.perf_counter()
    process = subprocess.Popen(
        way.command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**environment, **way.environment},
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
    )  # fmt: skip
    memory = _PeakMemory(process.pid, settings.convert.sample_seconds)
    memory.start()
    output, errors = process.communicate()
    seconds = time.perf_counter() - began
    memory.stop()
    if process.returncode:
        raise UserError(f"convert.ways: {name} ended with code {process.returncode}: {errors.strip()[-2000:]}")
    return {"seconds": seconds, "tokens": way.tokens(output), "peak_memory": memory.peak}


class _PeakMemory(threading.Thread):
    """The most memory [bytes] of a process and all below it, each page shared by several counted once, sampled."""

    def __init__(self, pid: int, every: float) -> None:
        super().__init__(daemon=True)
        self.peak = 0
        self._pid, self._every = pid, every
        self._ended = threading.Event()

    def run(self) -> None:
        import psutil

        with suppress(psutil.NoSuchProcess):
            root = psutil.Process(self._pid)
            while not self._ended.wait(self._every):
                memory = 0
                for process in (root, *root.children(recursive=True)):
                    with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                        info = process.memory_full_info()
                        memory += getattr(info, "pss", info.uss)
                self.peak = max(self.peak, memory)

    def stop(self) -> None:
        self._ended.set()
        self.join()


def encode(settings: BenchmarkDataConfig) -> int:
    """Reads the files and encodes their texts in batches, with all threads of the library; drops the ids."""
    from tokenizers import Tokenizer

    from bertchen.text.readers import read_documents

    cfg = settings.convert
    backend = Tokenizer.from_file(os.path.join(cfg.tokenizer or "", "tokenizer.json"))
    backend.no_truncation()
    backend.no_padding()
    tokens, batch, characters = 0, [], 0
    for document in itertools.chain(read_documents(cfg.files, cfg.text_column), [None]):
        if document is not None:
            batch.append(document.text)
            characters += len(document.text)
        if document is None or characters >= ENCODE_CHARACTERS:
            tokens += sum(len(each.ids) for each in backend.encode_batch_fast(batch, add_special_tokens=False))
            batch, characters = [], 0
    return tokens


def datasets_map(settings: BenchmarkDataConfig) -> int:
    """Tokenizes by a batched map, then joins and cuts into blocks by another, as the scripts of Transformers do."""
    import pyarrow.compute as pc
    from datasets import load_dataset

    from bertchen.text.files import kind_of
    from bertchen.tokenizer import load_tokenizer, separator_id

    cfg = settings.convert
    tokenizer = load_tokenizer(cfg.tokenizer or "")
    separator = separator_id(tokenizer)

    def tokenize(batch: dict[str, list[str]]) -> dict[str, Any]:
        return {"input_ids": tokenizer(batch[cfg.text_column], add_special_tokens=False, verbose=False)["input_ids"]}

    def group(batch: dict[str, list[list[int]]]) -> dict[str, Any]:
        joined = [token for ids in batch["input_ids"] for token in (*ids, separator)]
        starts = range(0, len(joined) - cfg.block_size + 1, cfg.block_size)
        return {"input_ids": [joined[start : start + cfg.block_size] for start in starts]}

    [builder] = {BUILDERS[kind_of(path)[0]] for path in cfg.files}
    rows = load_dataset(builder, data_files=cfg.files, split="train")
    encoded = rows.map(tokenize, batched=True, num_proc=cfg.cores, remove_columns=rows.column_names)
    encoded.map(group, batched=True, num_proc=cfg.cores)
    return pc.sum(pc.list_value_length(encoded.data.column("input_ids"))).as_py()


HERE = {"encode": encode, "datasets": datasets_map}
PARTS = {"read": read, "convert": convert}


def main(argv: list[str]) -> None:
    """Measures each part and prints a line for each figure."""
    config = load_config(BenchmarkDataConfig, argv, USAGE)
    if config.value.way is not None:
        print(HERE[config.value.way](config.value))
        return
    for part in config.value.parts:
        if part not in PARTS:
            config.fail("parts", f"{part} is unknown, should be some of: {', '.join(PARTS)}")
    if config.value.repetitions < 1:
        config.fail("repetitions", "should be at least 1")
    for part in config.value.parts:
        for result in PARTS[part](config):
            print(json.dumps({**result, **facts()}), flush=True)


if __name__ == "__main__":
    with user_errors():
        main(sys.argv[1:])

"""Times training data from a store against the same data on the disk, in turns; prints one JSON object a measurement.

python scripts/benchmark_streaming.py parts=[read] data=mds
python scripts/benchmark_streaming.py parts=[train] data=mds train.tokenizer=tokenizer train.options=[yamls/demo.yaml]
python scripts/benchmark_streaming.py parts=[resume] resume.shards=100000
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmark_data import facts, ratios, spread

from bertchen.config import Config, load_config
from bertchen.config.schema_benchmark_streaming import BenchmarkStreamingConfig
from bertchen.errors import UserError, user_errors

ROOT = Path(__file__).resolve().parents[1]
USAGE = "python scripts/benchmark_streaming.py [file.yaml …] key.sub=value …"
BUCKET = "benchmark"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "any", "AWS_DEFAULT_REGION": "us-east-1"}
PATIENCE = 120.0  # seconds for a server to start
LINKS_PER_FILE = 30_000  # file systems allow 65,000 or so

Result = dict[str, Any]


@contextmanager
def store_with(data: Path) -> Iterator[str]:
    """A server that speaks S3, as a process, which holds the data; their URL. The environment leads there."""
    import boto3

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        os.environ.update(CREDENTIALS, S3_ENDPOINT_URL=f"http://127.0.0.1:{port}")
        _wait_for(port, server)
        client = boto3.client("s3", endpoint_url=os.environ["S3_ENDPOINT_URL"])
        client.create_bucket(Bucket=BUCKET)
        for path in sorted(data.rglob("*")):
            if path.is_file():
                client.upload_file(str(path), BUCKET, f"data/{path.relative_to(data)}")
        yield f"s3://{BUCKET}/data"
    finally:
        server.terminate()
        server.wait()


def _wait_for(port: int, server: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and server.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.05)
    raise UserError("moto's server doesn't start: pip install -r requirements-dev.txt, or name remote=s3://…")


def read(config: Config[BenchmarkStreamingConfig], remote: str, scratch: Path) -> Iterator[Result]:
    """Tokens a second of reading and masking, once running, and seconds to the first batch."""
    settings = config.value
    measured: dict[str, list[tuple[float, float]]] = {"local": [], "store": []}
    for _ in range(settings.repetitions):
        measured["local"].append(_read_once(settings, Path(settings.data or ""), None))
        with tempfile.TemporaryDirectory(dir=scratch) as cache:
            measured["store"].append(_read_once(settings, Path(cache), remote))
    yield from _compared("read", "seconds_to_first_batch", measured)


def _read_once(settings: BenchmarkStreamingConfig, local: Path, remote: str | None) -> tuple[float, float]:
    """(tokens a second, seconds to the first batch) of one pass."""
    import torch

    from bertchen.data.blocks import BlockDataset, train_loader
    from bertchen.data.manifest import read_manifest
    from bertchen.data.masking import MaskingVocabulary, mask_tokens

    cfg = settings.read
    manifest = read_manifest(settings.data or "")
    special = manifest["tokenizer"]["special_ids"]
    vocabulary = MaskingVocabulary.build(
        manifest["tokenizer"]["vocab_size"], list(special.values()), special.get("mask", 0)
    )
    began = time.perf_counter()
    dataset = BlockDataset(
        local=str(local), remote=remote, split=settings.split, shuffle=True, shuffle_seed=settings.seed,
        num_canonical_nodes=1, batch_size=cfg.blocks_per_batch, epoch_size=cfg.blocks,
    )  # fmt: skip
    tokens, first, warm = 0, 0.0, began
    for step, batch in enumerate(train_loader(dataset, cfg.blocks_per_batch, manifest["block_size"], cfg.workers)):
        ids, rows = torch.as_tensor(batch["input_ids"]), torch.as_tensor(batch["row_ids"])
        mask_tokens(ids, rows, vocabulary, cfg.mlm_probability, settings.seed, step)
        now = time.perf_counter()
        first = first or now - began
        if step < settings.warm_up:
            warm = now
        else:
            tokens += ids.numel()
    if not tokens:
        raise UserError(
            f"read.blocks_per_batch={cfg.blocks_per_batch}: there are not more than {settings.warm_up} batches"
        )
    return tokens / (now - warm), first


def train(config: Config[BenchmarkStreamingConfig], remote: str, scratch: Path) -> Iterator[Result]:
    """Tokens a second of main.py, once running, and seconds from its start to the end of its first step."""
    settings = config.value
    if settings.train.tokenizer is None:
        config.fail("train.tokenizer", "name the tokenizer that the data were made with")
    measured: dict[str, list[tuple[float, float]]] = {"local": [], "store": []}
    for _ in range(settings.repetitions):
        for where in measured:
            with tempfile.TemporaryDirectory(dir=scratch) as folder:
                source = [f"data.local={settings.data}"]
                if where == "store":
                    source = [f"data.local={folder}/cache", f"data.remote={remote}"]
                measured[where].append(_train_once(settings, Path(folder) / "run", source))
    yield from _compared("train", "seconds_to_first_step", measured)


def _train_once(settings: BenchmarkStreamingConfig, folder: Path, source: list[str]) -> tuple[float, float]:
    """(tokens a second, seconds to the first step) of one run."""
    from bertchen.report.metrics import read_metrics
    from bertchen.train.run_folder import METRICS_FILE

    command = [
        sys.executable, "main.py", "yamls/pretrain.yaml", *source, f"tokenizer={settings.train.tokenizer}",
        f"save_folder={folder}", f"seed={settings.seed}", f"max_duration={settings.train.steps}ba", "stop_after=null",
        "eval.interval=1000000ba", "eval.blocks=1", "save_interval=1000000ba", "export=false", "progress_bar=false",
        "console_log_interval=1000000ba", *settings.train.options,
    ]  # fmt: skip
    began = time.perf_counter()
    with tempfile.TemporaryFile("w+") as errors:
        run = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors)
        path, first = folder / METRICS_FILE, 0.0
        while run.poll() is None:
            if not first and path.exists() and "throughput/seconds" in path.read_text():
                first = time.perf_counter() - began
            time.sleep(0.02)
        if run.returncode:
            errors.seek(0)
            raise UserError(f"main.py has failed with code {run.returncode}: {errors.read()[-2000:].strip()}")
    steps = [line for line in read_metrics(path) if "throughput/seconds" in line]
    begin, end = steps[min(settings.warm_up, len(steps) - 2)], steps[-1]
    tokens = end["time/token"] - begin["time/token"]
    return tokens / (end["throughput/seconds"] - begin["throughput/seconds"]), first


def resume(config: Config[BenchmarkStreamingConfig], scratch: Path) -> Iterator[Result]:
    """Seconds from the first look at a large data set to the first batch in mid-epoch, and what they go to."""
    cfg = config.value.resume
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        remote = Path(folder) / "remote"
        _make_large(config.value, remote)
        laps = [
            _resume_once(config.value, remote, Path(folder) / f"cache{number}")
            for number in range(config.value.repetitions)
        ]
        yield {
            "part": "resume",
            "shards": cfg.shards,
            "blocks": cfg.shards * cfg.blocks_per_shard,
            "index_bytes": (remote / config.value.split / "index.json").stat().st_size,
            "repetitions": len(laps),
            **{name: spread([lap[name] for lap in laps], 2) for name in laps[0]},
        }


def _make_large(settings: BenchmarkStreamingConfig, remote: Path) -> None:
    """A split of many shards, which are a few files under many names."""
    import numpy as np
    from streaming import MDSWriter

    cfg = settings.resume
    columns = {"input_ids": f"ndarray:uint16:{cfg.block_size}"}
    with MDSWriter(out=str(remote / "one"), columns=columns, hashes=["xxh64"], size_limit=1 << 31) as writer:
        for number in range(cfg.blocks_per_shard):
            writer.write({"input_ids": np.full(cfg.block_size, number % 60_000, dtype=np.uint16)})
    (entry,) = json.loads((remote / "one" / "index.json").read_text())["shards"]
    entries = []
    for number in range(cfg.shards):
        entry = copy.deepcopy(entry)
        entry["raw_data"]["basename"] = name = f"{number // 1000:05d}/shard.{number % 1000:05d}.mds"
        entries.append(entry)
        target = remote / settings.split / name
        target.parent.mkdir(parents=True, exist_ok=True)
        original = remote / "one" / f"{number // LINKS_PER_FILE}"
        if not original.exists():
            shutil.copy(remote / "one" / "shard.00000.mds", original)
        os.link(original, target)
    (remote / settings.split / "index.json").write_text(json.dumps({"version": 2, "shards": entries}))


def _resume_once(settings: BenchmarkStreamingConfig, remote: Path, cache: Path) -> dict[str, float]:
    """Seconds of each thing that main.py does with the data before the first step."""
    from bertchen.data.blocks import BlockDataset, train_loader
    from bertchen.data.streams import prepare_cache

    cfg = settings.resume
    began = time.perf_counter()
    prepare_cache(str(remote), str(cache), [settings.split], None, 60, 60)
    prepared = time.perf_counter()
    dataset = BlockDataset(
        local=str(cache), remote=str(remote), split=settings.split, shuffle=True, shuffle_seed=settings.seed,
        num_canonical_nodes=1, batch_size=cfg.blocks_per_batch,
    )  # fmt: skip
    made = time.perf_counter()
    half = cfg.shards * cfg.blocks_per_shard // 2 // cfg.blocks_per_batch * cfg.blocks_per_batch
    dataset.load_state_dict(
        {"epoch": 0, "sample_in_epoch": half, "num_canonical_nodes": 1, "shuffle_seed": settings.seed,
         "initial_physical_nodes": 1}
    )  # fmt: skip
    batches = iter(train_loader(dataset, cfg.blocks_per_batch, cfg.block_size, cfg.workers))
    next(batches)
    now = time.perf_counter()
    del batches
    if hasattr(dataset, "_iterator"):  # threads of this process, which would fetch on into a folder that is removed
        dataset._iterator.exit()
    return {
        "seconds": now - began,
        "seconds_for_index_and_cache": prepared - began,
        "seconds_for_dataset": made - prepared,
        "seconds_for_order_and_first_batch": now - made,
    }


def _compared(part: str, first: str, measured: dict[str, list[tuple[float, float]]]) -> Iterator[Result]:
    """A line each for the disk and the store."""
    local = [rate for rate, _ in measured["local"]]
    for where, pairs in measured.items():
        rates = [rate for rate, _ in pairs]
        yield {
            "part": part,
            "from": where,
            "repetitions": len(pairs),
            "tokens_per_second": spread(rates),
            "to_local": ratios(rates, local),
            first: spread([seconds for _, seconds in pairs], 2),
        }


PARTS = ("read", "train", "resume")


def main(argv: list[str]) -> None:
    """Measures the parts and prints a line for each figure."""
    config = load_config(BenchmarkStreamingConfig, argv, USAGE)
    settings = config.value
    for part in settings.parts:
        if part not in PARTS:
            config.fail("parts", f"{part} is unknown, should be some of: {', '.join(PARTS)}")
    needs_data = [part for part in settings.parts if part != "resume"]
    if needs_data and (settings.data is None or not (Path(settings.data) / "manifest.json").exists()):
        config.fail("data", "name the folder of a converted data set")
    scratch = Path(settings.scratch or tempfile.gettempdir())
    for result in _measure(config, needs_data, scratch):
        print(json.dumps({**result, **facts()}), flush=True)


def _measure(config: Config[BenchmarkStreamingConfig], needs_data: list[str], scratch: Path) -> Iterator[Result]:
    settings = config.value
    if needs_data:
        given = settings.remote
        with _given(given) if given else store_with(Path(settings.data or "")) as remote:
            for part in needs_data:
                yield from {"read": read, "train": train}[part](config, remote, scratch)
    if "resume" in settings.parts:
        yield from resume(config, scratch)


@contextmanager
def _given(remote: str) -> Iterator[str]:
    yield remote


if __name__ == "__main__":
    with user_errors():
        main(sys.argv[1:])

"""Tiny tokenizers, converted data and training configurations for the tests of several packages."""

from __future__ import annotations

import importlib
import json
import logging
import os
import random
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from shared_memory import given_back

# Without a GPU Triton's kernels run in its interpreter, which it chooses when it is imported.
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Imported where they are used, so that the tests of the model alone need PyTorch and Transformers and no more.
if TYPE_CHECKING:
    from faulty_store import FaultyStore
    from transformers import PreTrainedTokenizerBase

    from bertchen.config import Config
    from bertchen.config.schema_train import TrainConfig

WORDS = re.findall(
    r"\w+",
    """der die das und in den von zu mit sich auf für ist im nicht ein eine als auch es an werden aus er hat dass sie
    nach wird bei einer um am sind noch wie einem über einen so zum war haben nur oder aber vor zur bis mehr durch""",
)
BLOCK_SIZE = 32
VAL_BLOCKS = 7
TRIES = "TRIES"  # environment: how often each test of a fault is made; 1 without it
TINY_MODEL = (
    "model.hidden_size=32",
    "model.num_hidden_layers=2",
    "model.num_attention_heads=2",
    "model.intermediate_size=48",
)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test marked `fault` is made `TRIES` times; its argument `attempt`, if it has one, counts them."""
    if metafunc.definition.get_closest_marker("fault"):
        if "attempt" not in metafunc.fixturenames:
            metafunc.fixturenames.append("attempt")
        metafunc.parametrize("attempt", range(int(os.environ.get(TRIES, "1"))))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Notes in the report of a test which fault it is about, for the table at the end."""
    outcome = yield
    if marker := item.get_closest_marker("fault"):
        outcome.get_result().user_properties.append(("fault", marker.args[0]))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Of each fault how often it was made and survived: what `docs/reliability.md` shows."""
    tries: dict[str, list[int]] = {}
    for outcome in ("passed", "failed"):
        for report in terminalreporter.getreports(outcome):
            fault = dict(report.user_properties).get("fault")
            if fault and (report.when == "call" or outcome == "failed"):
                counts = tries.setdefault(fault, [0, 0])
                counts[0] += 1
                counts[1] += outcome == "passed"
    if tries:
        terminalreporter.section("faults")
        for fault, (made, survived) in sorted(tries.items()):
            terminalreporter.write_line(f"{fault}: {made} tries, {survived} survived, {made - survived} lost")


def documents(count: int, seed: int) -> list[str]:
    """Texts of 20 to 60 frequent words each."""
    numbers = random.Random(seed)
    return [" ".join(numbers.choices(WORDS, k=numbers.randint(20, 60))) for _ in range(count)]


def save_tokenizer(texts: Iterable[str], folder: Path, vocab_size: int) -> str:
    """Trains a tokenizer; the folder's name, for a configuration."""
    from bertchen.tokenizer import train_tokenizer

    train_tokenizer(list(texts), vocab_size, min_frequency=1).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def tiny_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a BPE tokenizer of 330 entries: 4 special ones, 256 bytes, letters and frequent syllables."""
    return save_tokenizer(documents(50, 0), tmp_path_factory.mktemp("tiny") / "tokenizer", 330)


@pytest.fixture(scope="session")
def loaded_tokenizer(tiny_tokenizer: str) -> PreTrainedTokenizerBase:
    from bertchen.tokenizer import load_tokenizer

    return load_tokenizer(tiny_tokenizer)


@pytest.fixture(scope="session")
def other_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A second tokenizer, of another vocabulary."""
    return save_tokenizer(documents(50, 1), tmp_path_factory.mktemp("other") / "tokenizer", 320)


@pytest.fixture(scope="session")
def tiny_data(tiny_tokenizer: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A converted data set: 7 validation blocks and 100 or more training blocks, of 32 tokens. Don't change it."""
    from bertchen.config import load_config
    from bertchen.config.schema_convert import ConvertConfig
    from bertchen.conversion.convert import convert

    folder = tmp_path_factory.mktemp("data")
    lines = [json.dumps({"text": text}) + "\n" for text in documents(100, 2)]
    (folder / "text.jsonl").write_text("".join(lines), encoding="utf-8")
    arguments = [
        f"source.path={folder / 'text.jsonl'}",
        f"tokenizer={tiny_tokenizer}",
        f"out={folder / 'mds'}",
        f"block_size={BLOCK_SIZE}",
        f"val_blocks={VAL_BLOCKS}",
        "split_by=block",
        "shard_size=4096",
        "workers=1",
    ]
    convert(load_config(ConvertConfig, arguments, "usage"))
    return folder / "mds"


@pytest.fixture
def remote_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A cache of this test's own for code that Transformers loads from a model's folder.

    All such code is imported below one package, which otherwise stays that of the process's first cache.
    """
    from transformers import dynamic_module_utils

    def forget() -> None:
        for name in [name for name in sys.modules if name.partition(".")[0] == "transformers_modules"]:
            del sys.modules[name]
        importlib.invalidate_caches()

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [str(tmp_path / "modules"), *sys.path])
    forget()
    yield
    forget()


@pytest.fixture
def shared_memory_given_back() -> Iterator[None]:
    """For tests that make StreamingDatasets, see `given_back`."""
    with given_back():
        yield


@pytest.fixture
def train_config(
    tiny_tokenizer: str, tiny_data: Path, tmp_path: Path, shared_memory_given_back: None
) -> Callable[..., Config[TrainConfig]]:
    """Makes the configuration of a tiny run in `tmp_path`/run that passes all checks; overrides come last."""
    from bertchen.config import load_config
    from bertchen.config.schema_train import TrainConfig

    def make(*overrides: str) -> Config[TrainConfig]:
        arguments = [
            f"data.local={tiny_data}",
            f"tokenizer={tiny_tokenizer}",
            f"save_folder={tmp_path / 'run'}",
            *TINY_MODEL,
            f"sequence_length={BLOCK_SIZE}",
            "eval.lengths=[8,32]",
            "global_train_batch_size=8",
            "microbatch_tokens=128",
            "max_duration=10ba",
            "data.num_workers=0",
        ]
        return load_config(TrainConfig, [*arguments, *overrides], "usage")

    return make


@pytest.fixture(scope="session")
def moto_server() -> Iterator[str]:
    """The address of a server that speaks S3."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def faulty_store(moto_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyStore]:
    """An S3 endpoint whose faults can be set, with an empty bucket; the environment leads there, and nowhere else."""
    import urllib.request

    from faulty_store import FaultyStore, use

    urllib.request.urlopen(urllib.request.Request(f"{moto_server}/moto-api/reset", method="POST")).close()
    store = FaultyStore(moto_server)
    use(store.url, monkeypatch, tmp_path)
    yield store
    store.leave()

"""Training from a store that is broken on purpose: the same losses and blocks as from local shards, or a clear end."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from faulty_store import KEY_ID, SECRET
from running import COMPOSER, LATEST, environment, exact, run
from shared_memory import given_back
from streaming import MDSWriter, StreamingDataset

from bertchen import stores
from bertchen.errors import AGAIN_EXIT_CODE, EXIT_CODE

if TYPE_CHECKING:
    from faulty_store import FaultyStore

STEPS, BATCH, BLOCK = 12, 8, 32
AHEAD = 8  # blocks: shards are fetched all through the run
NUMBER_OF_SHARDS = 8  # at least
SHARD = "train/shard.00004.mds"


@pytest.fixture(scope="module")
def data(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny data set in shards of about 10 blocks."""
    folder = tmp_path_factory.mktemp("small_shards") / "mds"
    folder.mkdir()
    shutil.copy(tiny_data / "manifest.json", folder)
    for split in ("train", "val"):
        with given_back():
            blocks = [sample["input_ids"] for sample in StreamingDataset(local=str(tiny_data / split), batch_size=1)]
        columns = {"input_ids": f"ndarray:{blocks[0].dtype}:{BLOCK}"}
        with MDSWriter(out=str(folder / split), columns=columns, size_limit=1000, hashes=["xxh64"]) as writer:
            for block in blocks:
                writer.write({"input_ids": np.asarray(block)})
    assert len(list((folder / "train").glob("*.mds"))) >= NUMBER_OF_SHARDS
    return folder


def arguments(local: Path, tokenizer: str, folder: Path, remote: str | None, *more: str) -> list[str]:
    return [
        "yamls/pretrain.yaml",
        f"data.local={local}",
        *([f"data.remote={remote}"] if remote else []),
        f"tokenizer={tokenizer}",
        f"save_folder={folder}",
        "model.hidden_size=32",
        "model.num_hidden_layers=1",
        "model.num_attention_heads=2",
        "model.intermediate_size=48",
        f"sequence_length={BLOCK}",
        f"eval.lengths=[{BLOCK}]",
        "eval.interval=6ba",
        f"max_duration={STEPS}ba",
        "stop_after=null",
        f"global_train_batch_size={BATCH}",
        f"microbatch_tokens={BATCH * BLOCK}",
        "save_interval=100ba",
        "callbacks.sample_ids={}",
        "data.num_workers=0",
        f"data.predownload={AHEAD}",
        "data.shuffle=false",  # else the first batches need all shards
        "data.download_timeout=20",
        "progress_bar=false",
        "console_log_interval=100ba",
        "export=false",
        *more,
    ]


class Runs:
    """Runs of main.py on the data in the store."""

    def __init__(self, store: FaultyStore, data: Path, tokenizer: str, folder: Path, in_process: Callable) -> None:
        self.store, self.data, self.tokenizer, self.folder, self.in_process = store, data, tokenizer, folder, in_process
        self.remote = store.upload(data, "data")
        self.cache = folder / "cache"

    def arguments(self, *more: str) -> list[str]:
        return arguments(self.cache, self.tokenizer, self.folder / "run", self.remote, *more)

    def train(self, *more: str) -> None:
        self.in_process(*self.arguments(*more))

    def end(self, *more: str) -> int:
        """Trains until the run ends with an error; its code."""
        with pytest.raises(SystemExit) as ending:
            self.train(*more)
        return int(ending.value.code)

    def after(self, requests: int, action: Callable[[], Any]) -> threading.Thread:
        """Does something as soon as the store was asked so often."""

        def wait() -> None:
            while len(self.store.asked) < requests:
                time.sleep(0.005)
            action()

        thread = threading.Thread(target=wait, daemon=True)
        thread.start()
        return thread

    def shards_fetched(self) -> list[str]:
        return [name for method, name, answer in self.store.asked if (method, answer) == ("GET", 200) and "mds" in name]


@pytest.fixture
def runs(
    faulty_store: FaultyStore, data: Path, tiny_tokenizer: str, tmp_path: Path, in_process: Callable,
    monkeypatch: pytest.MonkeyPatch, attempt: int,
) -> Runs:  # fmt: skip
    monkeypatch.setattr(stores, "FIRST_DELAY", 0.05)
    faulty_store.random.seed(attempt)
    return Runs(faulty_store, data, tiny_tokenizer, tmp_path, in_process)


@pytest.fixture(scope="module")
def undisturbed(
    data: Path, tiny_tokenizer: str, tmp_path_factory: pytest.TempPathFactory, in_process: Callable
) -> Path:
    """A run on local shards."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    in_process(*arguments(data, tiny_tokenizer, folder, None))
    assert len((folder / "samples.jsonl").read_text().splitlines()) == STEPS
    return folder


def assert_same(folder: Path, undisturbed: Path) -> None:
    """Losses bit by bit, and the blocks of each step."""
    assert exact(folder) == exact(undisturbed)
    assert (folder / "samples.jsonl").read_text() == (undisturbed / "samples.jsonl").read_text()


@pytest.mark.fault("the store answers 500 or 503, one request in five")
def test_errors_of_the_store(runs: Runs, undisturbed: Path) -> None:
    runs.store.one_in = 5
    runs.train()
    assert_same(runs.folder / "run", undisturbed)
    assert len(runs.shards_fetched()) == len(set(runs.shards_fetched())) >= NUMBER_OF_SHARDS


@pytest.mark.fault("the store is slow")
def test_slow_store(runs: Runs, undisturbed: Path) -> None:
    runs.store.delay = 0.05
    runs.train()
    assert_same(runs.folder / "run", undisturbed)


@pytest.mark.fault("the store closes in mid-body, one request in five")
def test_bodies_cut_short(runs: Runs, undisturbed: Path) -> None:
    runs.store.one_in, runs.store.fault = 5, "cut"
    runs.train()
    assert_same(runs.folder / "run", undisturbed)
    assert len(runs.shards_fetched()) == len(set(runs.shards_fetched())) >= NUMBER_OF_SHARDS


@pytest.mark.fault("the store is gone for a while, then back")
def test_gone_and_back(runs: Runs, undisturbed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def go_away() -> None:
        with runs.store.gone():
            time.sleep(1.5)

    fault = runs.after(7, go_away)
    runs.train()
    fault.join()
    assert_same(runs.folder / "run", undisturbed)


@pytest.mark.fault("the store is gone past the limit")
def test_gone_for_too_long(runs: Runs, undisturbed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fault = runs.after(7, runs.store.leave)
    assert runs.end("data.download_patience=0.5") == AGAIN_EXIT_CODE
    fault.join()
    error = capsys.readouterr().err
    assert "downloading s3://bucket/data/train/shard." in error
    assert "Traceback" not in error
    assert 0 < len(exact(runs.folder / "run")) < len(exact(undisturbed))
    assert (runs.folder / "run" / LATEST).exists()
    runs.store.listen()
    runs.train("autoresume=true")
    assert_same(runs.folder / "run", undisturbed)


@pytest.mark.fault("the store is gone past the limit, two processes")
@pytest.mark.slow
def test_gone_for_too_long_for_two_processes(runs: Runs, undisturbed: Path) -> None:
    more = (f"microbatch_tokens={BATCH * BLOCK // 2}", "data.download_patience=0.5")
    fault = runs.after(7, runs.store.leave)
    done = run(COMPOSER, "-n", "2", "main.py", *runs.arguments(*more), env=environment())
    fault.join()
    assert done.returncode == AGAIN_EXIT_CODE, done.stderr[-3000:]
    assert "downloading s3://bucket/data/train/shard." in done.stderr
    assert (runs.folder / "run" / LATEST).exists()
    runs.store.listen()
    done = run(COMPOSER, "-n", "2", "main.py", *runs.arguments(more[0], "autoresume=true"), env=environment())
    assert done.returncode == 0, done.stderr[-3000:]
    samples = "samples.jsonl"
    assert (runs.folder / "run" / samples).read_text() == (undisturbed / samples).read_text()


def cut(raw: bytes) -> bytes:
    return raw[:-1]


def flip(raw: bytes) -> bytes:
    return raw[:-1] + bytes([raw[-1] ^ 1])


@pytest.mark.fault("a shard is damaged in the store")
@pytest.mark.parametrize("damage", [cut, flip])
def test_damaged_in_the_store(
    runs: Runs, undisturbed: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[bytes], bytes]
) -> None:
    runs.store.change(f"data/{SHARD}", damage)
    assert runs.end() == EXIT_CODE
    assert f"s3://bucket/data/{SHARD} " in (error := capsys.readouterr().err)
    assert "Traceback" not in error
    assert not list(runs.cache.rglob("shard.00004.mds*"))
    runs.store.upload(runs.data, "data")
    runs.train("autoresume=true")
    assert_same(runs.folder / "run", undisturbed)


@pytest.mark.fault("a shard is damaged in the cache")
def test_damaged_in_the_cache(runs: Runs, undisturbed: Path) -> None:
    shutil.copytree(runs.data, runs.cache)
    for name, damage in (("train/shard.00002.mds", flip), (SHARD, cut), ("val/shard.00000.mds", cut)):
        path = runs.cache / name
        path.write_bytes(damage(path.read_bytes()))
    runs.train()
    assert_same(runs.folder / "run", undisturbed)
    assert sorted(runs.shards_fetched()) == ["data/train/shard.00002.mds", f"data/{SHARD}", "data/val/shard.00000.mds"]


CREDENTIALS = {
    "missing": ({"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None}, "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACC"),
    "of another key": ({"AWS_ACCESS_KEY_ID": "AN-INVENTED-WRONG-KEY"}, "doesn't know the key in AWS_ACCESS_KEY_ID"),
    "wrong": ({"AWS_SECRET_ACCESS_KEY": "an-invented-wrong-secret"}, "the secret in AWS_SECRET_ACCESS_KEY isn't"),
    "expired": ({"AWS_SESSION_TOKEN": "an-invented-session-token"}, "have expired: set AWS_SESSION_TOKEN"),
}


@pytest.mark.fault("credentials missing, wrong or expired")
@pytest.mark.parametrize("case", [*CREDENTIALS, "expired in mid-run"])
def test_credentials(
    runs: Runs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, case: str
) -> None:
    variables, message = CREDENTIALS[case.removesuffix(" in mid-run")]
    for name, value in variables.items():
        monkeypatch.delenv(name) if value is None else monkeypatch.setenv(name, value)
    runs.store.secrets = {KEY_ID: SECRET}
    if case == "expired in mid-run":
        fault = runs.after(7, lambda: setattr(runs.store, "expired", True))
    else:
        fault = None
        runs.store.expired = case == "expired"
    assert runs.end() == EXIT_CODE
    if fault:
        fault.join()
        assert (runs.folder / "run" / LATEST).exists()
    output = capsys.readouterr()
    assert message in output.err
    assert "Traceback" not in output.err
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and "store" not in path.parts]
    for secret in (SECRET, KEY_ID, *filter(None, variables.values())):
        assert secret not in output.out + output.err
        assert not any(secret.encode() in content for content in written)


@pytest.mark.fault("the disk of the cache is full")
def test_full_disk_of_the_cache(runs: Runs, undisturbed: Path, mounted: Callable[[int], Path]) -> None:
    """Room for the indexes and some shards, of 4 KiB each on such a disk."""
    runs.cache = mounted(48) / "cache"
    runs.train()
    assert_same(runs.folder / "run", undisturbed)
    assert len(list(runs.cache.rglob("*.mds"))) < len(list(runs.data.rglob("*.mds")))


@pytest.mark.fault("the disk of the cache is full of other things")
def test_no_room_for_the_cache(
    runs: Runs, mounted: Callable[[int], Path], capsys: pytest.CaptureFixture[str], undisturbed: Path
) -> None:
    disk = mounted(48)
    runs.cache = disk / "cache"
    with open(disk / "other", "wb", buffering=0) as other, suppress(OSError):
        while True:
            other.write(b"x" * 1024)
    assert runs.end() == EXIT_CODE
    error = capsys.readouterr().err
    assert "no space left" in error
    assert str(runs.cache) in error
    (disk / "other").unlink()
    runs.train("autoresume=true")
    assert_same(runs.folder / "run", undisturbed)

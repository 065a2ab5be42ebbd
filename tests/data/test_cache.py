"""Blocks from a store that fails: each block once and in order, or an error that says what to do, and nobody waits."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from streaming import MDSWriter
from streaming.base.dataset import _ShardState

from bertchen import stores
from bertchen.data import shards as shards_module
from bertchen.data.blocks import BlockDataset, train_loader
from bertchen.data.cache import FAILED, _is_alive
from bertchen.data.shards import PART
from bertchen.data.streams import on_each_node, prepare_cache
from bertchen.data.together import LoaderFailed
from bertchen.errors import AGAIN_EXIT_CODE, EXIT_CODE, UserError
from bertchen.stores import Downloader, StoreError, StoreGone

if TYPE_CHECKING:
    from faulty_store import FaultyStore

BLOCK, BLOCKS, PER_DEVICE = 8, 61, 4
ALL = [((np.arange(BLOCK) + number * BLOCK) % 60_000).tolist() for number in range(BLOCKS)]
SHARD = "shard.00003.mds"

pytestmark = pytest.mark.usefixtures("shared_memory_given_back", "short_pauses")


@pytest.fixture
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "FIRST_DELAY", 0.02)


def write(folder: Path, **options: Any) -> Path:
    columns = {"input_ids": f"ndarray:uint16:{BLOCK}"}
    with MDSWriter(out=str(folder / "train"), columns=columns, size_limit=400, hashes=["xxh64"], **options) as writer:
        for block in ALL:
            writer.write({"input_ids": np.array(block, dtype=np.uint16)})
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("plain"))


@pytest.fixture
def remote(faulty_store: FaultyStore, plain: Path) -> str:
    return faulty_store.upload(plain, "data")


def shard_names(folder: Path) -> list[str]:
    return [shard["raw_data"]["basename"] for shard in json.loads((folder / "train/index.json").read_text())["shards"]]


def dataset(local: Path, remote: str | None = None, **options: Any) -> BlockDataset:
    common = {"split": "train", "shuffle": True, "shuffle_seed": 3, "num_canonical_nodes": 2, "batch_size": PER_DEVICE}
    return BlockDataset(local=str(local), remote=remote, download_timeout=60, **{**common, **options})


def batches(data: BlockDataset, workers: int = 0) -> list[list[list[int]]]:
    return [batch["input_ids"].tolist() for batch in train_loader(data, PER_DEVICE, BLOCK, workers)]


def fetched(store: FaultyStore) -> Counter[str]:
    """How often each shard came whole."""
    return Counter(name for method, name, answer in store.asked if (method, answer) == ("GET", 200) and "mds" in name)


@pytest.mark.parametrize(("fault", "workers"), [((500, 503), 0), ("cut", 2), ("flip", 0)])
def test_one_request_in_three_fails(
    faulty_store: FaultyStore, remote: str, plain: Path, tmp_path: Path, fault: Any, workers: int
) -> None:
    expected = batches(dataset(plain), workers)
    faulty_store.fault, faulty_store.one_in = fault, 3
    assert batches(dataset(tmp_path / "cache", remote), workers) == expected
    answers = faulty_store.answers()
    assert sum(count for answer, count in answers.items() if answer != 200) >= 1
    assert set(fetched(faulty_store).values()) == {1}, "and no shard is fetched again that came whole"
    assert not list(tmp_path.rglob(f"*{PART}"))


def test_compressed_shards_from_a_store(faulty_store: FaultyStore, plain: Path, tmp_path: Path) -> None:
    remote = faulty_store.upload(write(tmp_path / "zipped", compression="zstd"), "zipped")
    faulty_store.fault, faulty_store.one_in = "flip", 3
    data = dataset(tmp_path / "cache", remote)
    assert batches(data) == batches(dataset(plain))
    assert not list((tmp_path / "cache").rglob("*.zstd"))
    on_disk = sum(path.stat().st_size for path in (tmp_path / "cache").rglob("*") if path.is_file())
    assert data.cache_usage == on_disk


@pytest.mark.parametrize("workers", [0, 2])
def test_gone_and_back(
    faulty_store: FaultyStore, remote: str, plain: Path, tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = batches(dataset(plain), workers)
    data = dataset(tmp_path / "cache", remote)
    faulty_store.leave()
    threading.Timer(1.0, faulty_store.listen).start()
    assert batches(data, workers) == expected


@pytest.mark.parametrize("workers", [0, 2])
def test_gone_for_longer_than_the_patience(
    faulty_store: FaultyStore, remote: str, tmp_path: Path, workers: int
) -> None:
    data = dataset(tmp_path / "cache", remote, download_patience=0.3)
    faulty_store.leave()
    with pytest.raises(
        LoaderFailed, match=r"s3://bucket/data/train/shard\.\d+\.mds (has failed|was given up)"
    ) as caught:
        batches(data, workers)
    assert caught.value.exit_code == AGAIN_EXIT_CODE
    assert "\n" not in str(caught.value)


def test_reading_by_number_fails_too(faulty_store: FaultyStore, remote: str, tmp_path: Path) -> None:
    """As evaluation reads, in the main thread."""
    data = dataset(tmp_path / "cache", remote, download_patience=0)
    faulty_store.leave()
    with pytest.raises(StoreGone, match=r"downloading s3://bucket/data/train/shard\.00000\.mds has failed"):
        data.read([0])
    with pytest.raises(StoreGone, match=r"downloading s3://bucket/data/train/shard\.00000\.mds has failed"):
        data.read([0])
    assert json.loads((tmp_path / "cache/train/failure.part").read_text())[0] == "StoreGone"
    data._failure = None  # as another process sees it
    with pytest.raises(StoreGone, match=r"downloading s3://bucket/data/train/shard\.00000\.mds has failed"):
        data.read([0])


def test_who_waits_for_a_fetch_that_fails_is_told(faulty_store: FaultyStore, remote: str, tmp_path: Path) -> None:
    data = dataset(tmp_path / "cache", remote, download_patience=1)
    faulty_store.leave()
    errors: list[BaseException] = []

    def read() -> None:
        try:
            data.read([0])
        except StoreGone as error:
            errors.append(error)

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(errors) == 3
    assert len({str(error) for error in errors}) == 1


def test_no_new_waiting_when_another_process_has_given_up(
    faulty_store: FaultyStore, remote: str, tmp_path: Path
) -> None:
    data = dataset(tmp_path / "cache", remote, download_patience=300)
    faulty_store.leave()
    data._shard_states[5] = FAILED
    with pytest.raises(StoreGone, match="was given up"):
        data.read([0])


def test_a_process_that_dies_while_it_fetches_keeps_nobody_waiting(
    remote: str, plain: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = dataset(tmp_path / "cache", remote)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for shard in (0, 3):
        data._shard_states[shard] = _ShardState.PREPARING
        data._shard_access_times[shard] = dead.pid
    with caplog.at_level(logging.WARNING, "bertchen"):
        assert data.read([0]).tolist() == ALL[:1]
        assert batches(data) == batches(dataset(plain))
    assert f"process {dead.pid} has died while fetching s3://bucket/data/train/{SHARD}" in caplog.text


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("damage", [lambda raw: raw[:-1], lambda raw: raw[:-1] + bytes([raw[-1] ^ 1])])
def test_a_remote_that_is_damaged_is_named(
    faulty_store: FaultyStore, remote: str, tmp_path: Path, damage: Callable[[bytes], bytes], workers: int
) -> None:
    faulty_store.change(f"data/train/{SHARD}", damage)
    with pytest.raises(LoaderFailed) as caught:
        batches(dataset(tmp_path / "cache", remote), workers)
    assert f"s3://bucket/data/train/{SHARD} " in str(caught.value)
    assert f"3 times: upload {SHARD} again" in str(caught.value)
    assert caught.value.exit_code == EXIT_CODE
    assert fetched(faulty_store)[f"data/train/{SHARD}"] == 3
    assert not list((tmp_path / "cache").rglob(f"{SHARD}*"))


def test_a_shard_that_the_store_has_not(faulty_store: FaultyStore, remote: str, tmp_path: Path) -> None:
    faulty_store.client.delete_object(Bucket="bucket", Key=f"data/train/{SHARD}")
    with pytest.raises(LoaderFailed, match=rf"downloading s3://bucket/data/train/{SHARD} failed: NoSuchKey"):
        batches(dataset(tmp_path / "cache", remote))


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def prepare(remote: str, cache: Path, check_hashes: bool | None) -> None:
    prepare_cache(remote, str(cache), ["train"], check_hashes, 60, 0)


@pytest.mark.parametrize(
    ("damage", "check_hashes", "most", "is_found"),
    [
        (cut, False, 1 << 30, True),
        (cut, None, 0, True),
        (flip, None, 1 << 30, True),
        (flip, True, 0, True),
        (flip, None, 0, False),
        (flip, False, 1 << 30, False),
    ],
)
def test_a_cache_of_an_earlier_run_is_mended(
    faulty_store: FaultyStore, remote: str, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture, damage: Callable[[Path], None], check_hashes: bool | None, most: int,
    is_found: bool,
) -> None:  # fmt: skip
    monkeypatch.setattr(shards_module, "AUTO_HASH_BYTES", most)
    cache = tmp_path / "cache"
    shutil.copytree(plain, cache)
    damage(cache / "train" / SHARD)
    (cache / "train" / f"{SHARD}{PART}").write_bytes(b"x")
    with caplog.at_level(logging.WARNING, "bertchen"):
        prepare(remote, cache, check_hashes)
    assert ("1 damaged files removed from the cache, to be fetched again: shard.00003.mds" in caplog.text) is is_found
    assert (cache / "train" / SHARD).exists() is not is_found
    assert not (cache / "train" / f"{SHARD}{PART}").exists()
    if is_found:
        assert batches(dataset(cache, remote)) == batches(dataset(plain))
        assert list(fetched(faulty_store)) == [f"data/train/{SHARD}"]


def test_an_empty_cache_is_prepared(faulty_store: FaultyStore, remote: str, tmp_path: Path) -> None:
    prepare(remote, tmp_path / "cache", None)
    assert [path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()] == ["index.json"]
    faulty_store.leave()
    with pytest.raises(StoreGone, match=r"downloading s3://bucket/data/train/index\.json has failed"):
        prepare(remote, tmp_path / "other", None)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("damage", [cut, lambda path: path.write_bytes(b"")])
def test_a_shard_that_is_found_damaged_while_reading_is_fetched_again(
    remote: str, plain: Path, tmp_path: Path, damage: Callable[[Path], None], workers: int
) -> None:
    cache = tmp_path / "cache"
    shutil.copytree(plain, cache)
    data = dataset(cache, remote)
    damage(cache / "train" / SHARD)
    assert batches(data, workers) == batches(dataset(plain), workers)
    assert (cache / "train" / SHARD).read_bytes() == (plain / "train" / SHARD).read_bytes()


def test_a_shard_that_is_damaged_again_is_named(remote: str, plain: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    shutil.copytree(plain, cache)
    data = dataset(cache, remote)
    first = list(range(BLOCKS))
    for attempt in range(2):
        data._files._open.clear()
        cut(cache / "train" / SHARD)
        if attempt:
            with pytest.raises(UserError, match=rf"{SHARD} is damaged"):
                data.read(first)
        else:
            assert data.read(first).tolist() == ALL


def full(path: str) -> OSError:
    return OSError(errno.ENOSPC, "No space left on device", path)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_full_disk_makes_room(
    remote: str, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    """Room for four shards: the others are removed, and every block comes."""
    monkeypatch.setattr("bertchen.data.cache.ROOM_PATIENCE", 0.0)
    download = Downloader.download

    def with_room(self: Downloader, url: str, target: str) -> None:
        if len(list((tmp_path / "cache/train").glob("*.mds"))) >= 4:
            raise full(target)
        download(self, url, target)

    monkeypatch.setattr(Downloader, "download", with_room)
    expected = batches(dataset(plain), workers)
    assert batches(dataset(tmp_path / "cache", remote, predownload=PER_DEVICE), workers) == expected


def test_room_is_made_in_the_caches_of_other_splits(
    remote: str, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bertchen.data.cache.ROOM_PATIENCE", 0.0)
    shutil.copytree(plain, tmp_path / "train")
    others = dataset(tmp_path / "train", str(plain))
    assert others.read([0, BLOCKS - 1]).tolist() == [ALL[0], ALL[-1]]
    download = Downloader.download

    def with_room(self: Downloader, url: str, target: str) -> None:
        if len(list((tmp_path / "train/train").glob("*.mds"))) > len(shard_names(plain)) - 2:
            raise full(target)
        download(self, url, target)

    data = dataset(tmp_path / "val", remote)
    monkeypatch.setattr(Downloader, "download", with_room)
    assert data.read([0]).tolist() == ALL[:1]
    left = {path.name for path in (tmp_path / "train/train").glob("*.mds")}
    assert len(left) == len(shard_names(plain)) - 2
    assert {"shard.00000.mds", shard_names(plain)[-1]} <= left, "what was read last stays"


def test_a_disk_that_is_full_of_other_things(remote: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def without_room(self: Downloader, url: str, target: str) -> None:
        raise full(target)

    data = dataset(tmp_path / "cache", remote)
    monkeypatch.setattr(Downloader, "download", without_room)
    with pytest.raises(StoreError, match=rf"data\.local={tmp_path}/cache: no space left.*data\.cache_limit"):
        data.read([0])


def test_local_data_is_never_removed(plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compressed shards of local data, which find no room to be decompressed."""
    folder = write(tmp_path / "zipped", compression="zstd")
    before = {path.name for path in (folder / "train").iterdir()}

    def without_room(self: Any, zip_info: Any, zip_filename: str, raw_filename: str, compression: Any) -> None:
        raise full(raw_filename)

    monkeypatch.setattr("streaming.Stream._decompress_shard_part", without_room)
    for remote in (None, str(folder)):
        with pytest.raises(OSError, match="No space left"):
            dataset(folder, remote).read([0])
    assert {path.name for path in (folder / "train").iterdir()} == before


def test_a_limit_of_the_cache_that_nothing_can_keep(remote: str, tmp_path: Path) -> None:
    data = dataset(tmp_path / "cache", remote, cache_limit=1_000_000)
    data.cache_usage = 10**7
    with pytest.raises(UserError, match=r"data\.cache_limit=1000000 bytes is too low"):
        data.read([0])
    data.cache_usage = 0
    assert data.read([0]).tolist() == ALL[:1], "the lock was given back"


def test_what_fails_on_one_node_fails_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other node has failed."""
    monkeypatch.setattr(
        "bertchen.data.streams.dist.all_gather_object", lambda mine: [mine, StoreGone("no store over there")]
    )
    with pytest.raises(StoreGone, match="no store over there"):
        on_each_node(lambda: None)


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (StoreGone("gone"), StoreGone, "gone"),
        (full("/cache/x"), UserError, "no space left on the device while writing /cache/x"),
        (ValueError("a bug"), RuntimeError, "ValueError: a bug"),
    ],
)
def test_what_fails_here_is_told_to_all(error: Exception, kind: type[Exception], text: str) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(kind, match=text):
        on_each_node(fail)


def test_the_process_is_alive() -> None:
    assert _is_alive(os.getpid())
    zombie = subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE)
    zombie.stdout.read()  # it has ended, and nobody has asked how
    os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)
    assert not _is_alive(zombie.pid)
    zombie.wait()
    assert not _is_alive(zombie.pid)

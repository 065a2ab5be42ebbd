"""Reading blocks from open files: against StreamingDataset's own reading, over real shards of several kinds."""

from __future__ import annotations

import json
import logging
import pickle
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import streaming.base.dataset
import torch
from streaming import MDSWriter, StreamingDataset
from torch import Tensor
from torch.utils.data import DataLoader

from bertchen.data.blocks import BlockDataset, train_loader
from bertchen.data.open_shards import BlockType, OpenShards, block_type
from bertchen.data.together import LoaderFailed
from bertchen.errors import UserError

BLOCK = 8
BLOCKS = 61
PER_DEVICE = 4
ENCODING = f"ndarray:uint16:{BLOCK}"
Batches = list[tuple[list[int], list[list[int]]]]

pytestmark = pytest.mark.usefixtures("shared_memory_given_back")


def tokens(number: int) -> np.ndarray:
    return (np.arange(BLOCK) + number * BLOCK).astype(np.uint16)


def value(number: int, encoding: str) -> int | np.ndarray:
    """A block in the form that an encoding wants, or its number."""
    kind, *form = encoding.split(":")
    if kind != "ndarray":
        return number
    block = tokens(number).astype(form[0])
    return block.reshape([int(size) for size in form[1].split(",")]) if form[1:] else block


def write(folder: Path, columns: dict[str, str] | None = None, size_limit: int = 400, **options: Any) -> Path:
    """61 blocks in about ten shards; further columns hold the block's number."""
    columns = columns or {"input_ids": ENCODING}
    with MDSWriter(out=str(folder / "train"), columns=columns, size_limit=size_limit, **options) as writer:
        for number in range(BLOCKS):
            writer.write({name: value(number, encoding) for name, encoding in columns.items()})
    assert len(shards_of(folder)) > 4
    return folder


def shards_of(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "train/index.json").read_text())["shards"]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("plain"))


def options(local: Path, **others: Any) -> dict[str, Any]:
    common = {"split": "train", "shuffle": True, "shuffle_seed": 3, "num_canonical_nodes": 2}
    return {"local": str(local), "batch_size": PER_DEVICE, **common, **others}


class Reference(StreamingDataset):
    """What Streaming alone reads, and in which order."""

    def __getitem__(self, at: int) -> dict[str, Any]:
        return {"number": int(at), "input_ids": super().__getitem__(at)["input_ids"].astype(np.int64)}


def reference_loader(dataset: StreamingDataset, workers: int) -> DataLoader:
    return DataLoader(
        dataset, PER_DEVICE, num_workers=workers, drop_last=True, persistent_workers=workers > 0,
        prefetch_factor=2 if workers else None,
    )  # fmt: skip


def batches(loader: DataLoader) -> Batches:
    """Each with its rows by their numbers: within a batch we have an order of our own."""
    return [in_order(batch.get("number", batch.get("row_ids")), batch["input_ids"]) for batch in loader]


def in_order(numbers: Tensor, input_ids: Tensor) -> tuple[list[int], list[list[int]]]:
    order = numbers.argsort()
    return numbers[order].tolist(), input_ids[order].tolist()


def rows(some: Batches) -> dict[int, list[int]]:
    return {number: row for numbers, block in some for number, row in zip(numbers, block, strict=True)}


ALL = {number: tokens(number).tolist() for number in range(BLOCKS)}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("shuffle", [True, False])
def test_batches_are_streamings_own_in_each_epoch(plain: Path, workers: int, shuffle: bool) -> None:
    reference = reference_loader(Reference(**options(plain, shuffle=shuffle)), workers)
    loader = train_loader(BlockDataset(**options(plain, shuffle=shuffle)), PER_DEVICE, BLOCK, workers)
    for _ in range(2):
        expected = batches(reference)
        assert batches(loader) == expected
        assert rows(expected).items() <= ALL.items()


def test_batches_of_two_nodes_together_are_streamings_own(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming.base.dataset, "maybe_init_dist", lambda: False)
    expected, read = [], []
    for node in (0, 1):
        with monkeypatch.context() as patch:
            for name, value in {"WORLD_SIZE": 2, "RANK": node, "LOCAL_WORLD_SIZE": 1, "LOCAL_RANK": 0}.items():
                patch.setenv(name, str(value))
            reference, ours = Reference(**options(plain)), BlockDataset(**options(plain))
        expected.append(batches(reference_loader(reference, 0)))
        read.append(batches(train_loader(ours, PER_DEVICE, BLOCK, 0)))
    assert len(read[0]) == len(read[1]) == BLOCKS // 2 // PER_DEVICE
    assert list(map(rows, zip(*read, strict=True))) == list(map(rows, zip(*expected, strict=True)))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_state_of_streamings_own_resumes_at_the_same_batch(plain: Path, workers: int) -> None:
    """In both directions, in the second epoch."""
    kinds = {
        "reference": lambda: reference_loader(Reference(**options(plain)), workers),
        "ours": lambda: train_loader(BlockDataset(**options(plain)), PER_DEVICE, BLOCK, workers),
    }
    loaders = {name: make() for name, make in kinds.items()}
    epochs = {name: [batches(loader), batches(loader)] for name, loader in loaders.items()}
    assert epochs["ours"] == epochs["reference"]
    done = 2 * max(workers, 1)  # as many of each worker, so that the rest comes in the same turns
    states = {name: loader.dataset.state_dict(done * PER_DEVICE, True) for name, loader in loaders.items()}
    assert states["ours"] == states["reference"]
    for name, make in kinds.items():
        resumed = make()
        resumed.dataset.load_state_dict(states["ours"])
        assert rows(batches(resumed)) == rows(epochs["ours"][1][done:]), name


def test_a_reader_left_in_mid_epoch_begins_the_next(plain: Path) -> None:
    reference, loader = (
        reference_loader(Reference(**options(plain)), 0),
        train_loader(BlockDataset(**options(plain)), PER_DEVICE, BLOCK, 0),
    )
    for each in (reference, loader):
        running = iter(each)
        next(running)
        next(running)
    assert batches(loader) == batches(reference)


def test_looking_for_shards_is_done_once_a_shard_not_once_a_block(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes a lock each time. Fails, too, if another version of Streaming no longer calls our threads."""
    looked: list[int] = []
    prepare = BlockDataset.prepare_shard
    monkeypatch.setattr(
        BlockDataset, "prepare_shard", lambda self, at, *others: (looked.append(at), prepare(self, at, *others))
    )
    batches(train_loader(BlockDataset(**options(plain)), PER_DEVICE, BLOCK, 0))
    assert sorted(looked) == list(range(len(shards_of(plain))))


def compressed(folder: Path) -> Path:
    return write(folder, compression="zstd")


def of_32_bits(folder: Path) -> Path:
    return write(folder, {"input_ids": f"ndarray:uint32:{BLOCK}"})


@pytest.mark.parametrize("keep_zip", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_compressed_shards(tmp_path: Path, workers: int, keep_zip: bool) -> None:
    expected = batches(reference_loader(Reference(**options(compressed(tmp_path / "one"))), workers))
    folder = compressed(tmp_path / "two")
    assert not list(folder.rglob("*.mds"))
    data = BlockDataset(**options(folder, keep_zip=keep_zip))
    assert batches(train_loader(data, PER_DEVICE, BLOCK, workers)) == expected
    assert list(folder.rglob("*.mds"))


def test_compressed_shards_are_read_by_number_too(tmp_path: Path) -> None:
    data = BlockDataset(**options(compressed(tmp_path)))
    assert data.read([60, 0, 33]).tolist() == [ALL[60], ALL[0], ALL[33]]


OTHERS = {
    "several columns": {"input_ids": ENCODING, "length": "int"},
    "a free length": {"input_ids": "ndarray:uint16"},
    "two dimensions": {"input_ids": f"ndarray:uint16:1,{BLOCK}"},
}


@pytest.mark.parametrize("columns", OTHERS.values(), ids=OTHERS)
def test_other_forms_are_read_by_streaming_which_is_said_once(
    tmp_path: Path, columns: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    folder = write(tmp_path, columns)
    with caplog.at_level(logging.WARNING, "bertchen"):
        data = BlockDataset(**options(folder))
        blocks = data.read([9, 2])
        batches_read = [data.read(range(start, start + 5)) for start in range(0, 50, 5)]
    assert blocks.reshape(2, BLOCK).tolist() == [ALL[9], ALL[2]]
    assert np.concatenate(batches_read).reshape(50, BLOCK).tolist() == [ALL[number] for number in range(50)]
    assert [str(folder) in record.getMessage() for record in caplog.records] == [True]


def test_other_forms_train_too(tmp_path: Path) -> None:
    folder = write(tmp_path, OTHERS["several columns"])
    expected = batches(reference_loader(Reference(**options(folder)), 0))
    assert batches(train_loader(BlockDataset(**options(folder)), PER_DEVICE, BLOCK, 0)) == expected


def test_blocks_of_32_bits(tmp_path: Path) -> None:
    blocks = BlockDataset(**options(of_32_bits(tmp_path))).read([60, 1])
    assert blocks.dtype == np.uint32
    assert blocks.tolist() == [ALL[60], ALL[1]]


@pytest.fixture
def remote(plain: Path, tmp_path: Path) -> Path:
    shutil.copytree(plain, tmp_path / "remote")
    return tmp_path / "remote"


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("predownload", [PER_DEVICE, None])
def test_a_cache_too_small_for_all_shards_gives_every_block(
    remote: Path, tmp_path: Path, workers: int, predownload: int | None
) -> None:
    """Shards are evicted while they are open, and some are fetched more than once."""
    expected = batches(reference_loader(Reference(**options(remote)), workers))
    sizes = [shard["raw_data"]["bytes"] for shard in shards_of(remote)]
    limit = sum(sizes) // 2 + (remote / "train/index.json").stat().st_size
    cache = tmp_path / "cache"
    data = BlockDataset(**options(cache, remote=str(remote), cache_limit=limit, predownload=predownload))
    loader = train_loader(data, PER_DEVICE, BLOCK, workers)
    assert batches(loader) == expected
    assert len(batches(loader)) == len(expected)
    assert sum(path.stat().st_size for path in cache.rglob("*.mds")) <= limit


def test_an_evicted_shard_is_closed_and_fetched_anew(remote: Path, tmp_path: Path) -> None:
    data = BlockDataset(**options(tmp_path / "cache", remote=str(remote), cache_limit="1mb"))
    everything = range(BLOCKS)
    assert data.read(everything).tolist() == list(ALL.values())
    data.read(everything)
    assert len(data._files) == len(shards_of(remote))
    data.evict_shard(1)
    first_of_shard_0 = [0]
    data.read(first_of_shard_0)
    assert len(data._files) == len(shards_of(remote)) - 1
    assert data.read(everything).tolist() == list(ALL.values())


def test_without_a_limit_of_the_cache_no_more_is_fetched_ahead_than_asked_for(remote: Path, tmp_path: Path) -> None:
    data = BlockDataset(
        **options(tmp_path / "cache", remote=str(remote), predownload=PER_DEVICE, shuffle=False, num_canonical_nodes=1)
    )
    running = iter(train_loader(data, PER_DEVICE, BLOCK, 0))
    next(running)
    per_shard = shards_of(remote)[0]["samples"]
    ahead = -(-(2 * PER_DEVICE + 1) // per_shard)
    assert len(list((tmp_path / "cache").rglob("*.mds"))) <= ahead < len(shards_of(remote))


def test_a_shard_that_cannot_be_fetched_ends_reading_with_an_error(remote: Path, tmp_path: Path) -> None:
    """And not the epoch, some batches too early."""
    last = shards_of(remote)[-2]["raw_data"]["basename"]  # the very last block is one too many for a batch
    (remote / "train" / last).unlink()
    data = BlockDataset(**options(tmp_path / "cache", remote=str(remote), shuffle=False))
    with pytest.raises(LoaderFailed, match=last):
        batches(train_loader(data, PER_DEVICE, BLOCK, 0))


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def of_other_blocks(path: Path) -> None:
    """As if another conversion had written it."""
    content = bytearray(path.read_bytes())
    content[:4] = np.uint32(3).tobytes()
    path.write_bytes(content)


def emptied(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [cut_short, of_other_blocks, emptied])
def test_a_damaged_shard_is_named(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    folder = write(tmp_path)
    damage(folder / "train/shard.00002.mds")
    data = BlockDataset(**options(folder))
    with pytest.raises(UserError, match=r"shard\.00002\.mds is damaged"):
        data.read(range(BLOCKS))


def buffers(count: int) -> tuple[np.ndarray, Sequence[memoryview]]:
    blocks = np.empty((count, BLOCK), dtype=np.uint16)
    return blocks, [memoryview(block).cast("B") for block in blocks]


def test_no_more_files_are_open_than_allowed(plain: Path) -> None:
    shards = BlockDataset(**options(plain)).shards
    files = OpenShards(BlockType(np.dtype(np.uint16), BLOCK), at_most=2)
    kept: list[Any] = []
    for at in (0, 1, 0, 2, 0, 3):
        blocks, into = buffers(2)
        files.read(shards[at], [1, 0], into)
        first = sum(shard.samples for shard in shards[:at])
        assert blocks.tolist() == [ALL[first + 1], ALL[first]]
        kept += [file for file, _ in files._open.values() if file not in kept]
        assert len(files) <= 2
        assert sum(not file.closed for file in kept) == len(files)
    assert len(kept) == 4, "a file that is used again stays open"


def test_open_files_do_not_go_to_other_processes_in_a_pickle(plain: Path) -> None:
    shards = BlockDataset(**options(plain)).shards
    files = OpenShards(BlockType(np.dtype(np.uint16), BLOCK), at_most=7)
    files.read(shards[0], [0], buffers(1)[1])
    copy = pickle.loads(pickle.dumps(files))
    assert (len(files), len(copy), copy.at_most, copy.block) == (1, 0, 7, files.block)
    blocks, into = buffers(1)
    copy.read(shards[0], [1], into)
    assert blocks[0].tolist() == ALL[1]


def test_shards_that_are_not_alike_have_no_block_type(plain: Path, tmp_path: Path) -> None:
    shards = BlockDataset(**options(plain)).shards
    others = BlockDataset(**options(of_32_bits(tmp_path))).shards
    assert block_type(shards, "input_ids") == BlockType(np.dtype(np.uint16), BLOCK)
    assert block_type(others, "input_ids") == BlockType(np.dtype(np.uint32), BLOCK)
    assert block_type([*shards, *others], "input_ids") is None
    assert block_type(shards, "tokens") is None
    assert block_type([SimpleNamespace()], "input_ids") is None


def test_workers_that_are_spawned_read_the_same(plain: Path) -> None:
    """Spawned ones get the data set in a pickle, also after the first process has read from it."""
    expected = batches(reference_loader(Reference(**options(plain)), 1))
    data = BlockDataset(**options(plain))
    data.read([0])
    loader = train_loader(data, PER_DEVICE, BLOCK, 1)
    loader.multiprocessing_context = torch.multiprocessing.get_context("spawn")
    assert batches(loader) == expected

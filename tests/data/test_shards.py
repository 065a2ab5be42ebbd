"""Shards: what is written, Streaming reads; what is missing or damaged is named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from streaming import StreamingDataset
from streaming.base.util import clean_stale_shared_memory

from bertchen.data import shards
from bertchen.data.shards import check_shards, write_shards
from bertchen.errors import UserError

BLOCKS = np.random.default_rng(0).integers(0, 1 << 16, (500, 32)).astype(np.uint16)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Several shards of BLOCKS."""
    write_shards(tmp_path / "train", [BLOCKS[:200], BLOCKS[200:]], "ndarray:uint16:32", 8000, None)
    assert len(list((tmp_path / "train").glob("shard.*.mds"))) > 3
    return tmp_path / "train"


@pytest.mark.parametrize("compression", [None, "zstd"])
def test_streaming_reads_what_was_written(tmp_path: Path, compression: str | None) -> None:
    seen: list[int] = []
    batches = [BLOCKS[:200], BLOCKS[200:]]
    write_shards(tmp_path / "train", batches, "ndarray:uint16:32", 8000, compression, seen.append)
    assert seen == [200, 300]
    clean_stale_shared_memory()
    dataset = StreamingDataset(local=str(tmp_path / "train"), shuffle=False, batch_size=7)
    read = np.stack([sample["input_ids"] for sample in dataset])
    assert read.dtype == np.uint16
    assert (read == BLOCKS).all()
    check_shards(tmp_path / "train")


def test_index_names_the_hashes(folder: Path) -> None:
    index = json.loads((folder / "index.json").read_text())
    assert {tuple(shard["hashes"]) for shard in index["shards"]} == {("xxh64",)}
    assert {tuple(shard["column_encodings"]) for shard in index["shards"]} == {("ndarray:uint16:32",)}


@pytest.mark.parametrize("hashes", ["auto", True, False])
def test_whole_shards_pass(folder: Path, hashes: bool) -> None:
    check_shards(folder, hashes)


def test_missing_shard(folder: Path) -> None:
    (folder / "shard.00002.mds").unlink()
    with pytest.raises(UserError, match=r"shard\.00002\.mds is missing.*convert the data again"):
        check_shards(folder)


def test_shard_of_wrong_size(folder: Path) -> None:
    path = folder / "shard.00001.mds"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"shard\.00001\.mds has \d+ bytes, should have \d+.*remove this file"):
        check_shards(folder, hashes=False)


def test_damaged_shard(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / "shard.00001.mds"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    for hashes in ("auto", True):
        with pytest.raises(UserError, match=r"shard\.00001\.mds is damaged.*convert the data again"):
            check_shards(folder, hashes)  # type: ignore[arg-type]
    check_shards(folder, hashes=False)
    monkeypatch.setattr(shards, "AUTO_HASH_BYTES", 1000)
    check_shards(folder, "auto")


def test_compressed_shards_may_stand_beside_or_behind_the_uncompressed(tmp_path: Path) -> None:
    write_shards(tmp_path / "train", [BLOCKS], "ndarray:uint16:32", 8000, "zstd")
    check_shards(tmp_path / "train", True)
    clean_stale_shared_memory()
    dataset = StreamingDataset(local=str(tmp_path / "train"), shuffle=False, batch_size=1)
    assert (dataset[0]["input_ids"] == BLOCKS[0]).all()  # unpacks the first shard
    assert (tmp_path / "train/shard.00000.mds").exists()
    check_shards(tmp_path / "train", True)
    (tmp_path / "train/shard.00000.mds.zstd").unlink(missing_ok=True)
    check_shards(tmp_path / "train", True)
    (tmp_path / "train/shard.00000.mds").write_bytes(b"")
    with pytest.raises(UserError, match=r"shard\.00000\.mds has 0 bytes"):
        check_shards(tmp_path / "train")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"shards": [{}]}', '{"shards": [{"raw_data": 1}]}'])
def test_unreadable_index(folder: Path, content: str) -> None:
    (folder / "index.json").write_text(content)
    with pytest.raises(UserError, match=r"index\.json is not a readable index"):
        check_shards(folder)


def test_missing_index(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"index\.json is missing"):
        check_shards(tmp_path)
    with pytest.raises(UserError, match=r"index\.json is missing"):
        check_shards(tmp_path / "nowhere")

"""Shards: what is written, Streaming reads; what was interrupted ends the same; what is missing or damaged is named."""

from __future__ import annotations

import errno
import json
import logging
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import streaming.base.util
from streaming import StreamingDataset

from bertchen.config.schema_convert import ConvertConfig
from bertchen.conversion import block_writer, groups
from bertchen.conversion.groups import (
    GROUP_SHARDS,
    Figures,
    WriteJob,
    finish_split,
    group_count,
    write_group,
    write_groups,
)
from bertchen.conversion.pack import Split
from bertchen.conversion.segments import SegmentInfo, Segments, document_type, write_segment
from bertchen.data import shards
from bertchen.data.shards import check_shards
from bertchen.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
BLOCK = 32
SETTINGS = ConvertConfig(block_size=BLOCK, shard_size=2000)
SIZES, SOURCES = [3000, 5000, 4000, 6000, 1000], [0, 0, 1, 1, 3]

pytestmark = pytest.mark.usefixtures("shared_memory_given_back")


def split(name: str, first: int, blocks: int) -> Split:
    """A part of the 515 blocks of the stream that `make_job` makes."""
    return Split(name, "documents", 16_500, 515, True, 0, first, blocks)


SPLIT = split("train", 0, 450)


def make_job(folder: Path, dtype: Any = np.uint16, remote: str | None = None, **settings: Any) -> WriteJob:
    """19,000 random tokens in five segments, and a stream of 16,500 of them in runs that are out of order."""
    work = folder / "work"
    for name in ("segments", "arrangement", "groups", "data"):
        (work / name).mkdir(parents=True, exist_ok=True)
    numbers = np.random.default_rng(0)
    for unit, (size, source) in enumerate(zip(SIZES, SOURCES, strict=True)):
        info = SegmentInfo(unit, 0, source, 0, 0, True, size, 1, 1, size, size)
        tokens = numbers.integers(0, 70_000 if dtype == np.uint32 else 60_000, size).astype(dtype)
        write_segment(work / "segments", info, tokens, np.zeros(1, document_type(0)))
    starts = numbers.permutation(190)[:165] * 100
    np.save(work / "arrangement/documents.npy", np.stack([starts, (np.arange(165) + 1) * 100], axis=1))
    segments = Segments.load(work / "segments", np.dtype(dtype), len(SIZES))
    return WriteJob(segments, work, replace(SETTINGS, **settings), remote)


def expected_blocks(job: WriteJob, split: Split = SPLIT, of_tokens: np.ndarray | None = None) -> np.ndarray:
    """By joining everything."""
    if of_tokens is None:
        parts = [np.fromfile(job.segments.token_path(at), job.segments.dtype) for at in range(len(SIZES))]
        of_tokens = np.concatenate(parts)
    runs = np.load(job.work / f"arrangement/{split.stream}.npy")
    stream = np.concatenate([of_tokens[start : start + 100] for start in runs[:, 0]])
    blocks = stream[: len(stream) // BLOCK * BLOCK].reshape(-1, BLOCK)
    return blocks[split.block_numbers(0, split.blocks, job.settings.seed)]


def tasks_of(job: WriteJob, split: Split = SPLIT) -> list[tuple[Split, int]]:
    return [(split, group) for group in range(group_count(split, job.segments.dtype, job.settings))]


def write_all(job: WriteJob, workers: int = 1, split: Split = SPLIT) -> Figures:
    write_groups(job, tasks_of(job, split), workers)
    return finish_split(job, split)


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def read_back(local: Path, remote: str | None = None) -> np.ndarray:
    dataset = StreamingDataset(local=str(local), remote=remote, shuffle=False, batch_size=7)
    return np.stack([sample["input_ids"] for sample in dataset])


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a conversion that nothing went wrong in."""
    job = make_job(tmp_path_factory.mktemp("written"))
    write_all(job)
    return files_in(job.data)


@pytest.mark.parametrize("compression", [None, "zstd"])
@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_streaming_reads_the_blocks_in_their_order(tmp_path: Path, compression: str | None, dtype: Any) -> None:
    job = make_job(tmp_path, dtype, compression=compression)
    write_all(job)
    check_shards(job.data / "train", hashes=True)
    names = {path.suffix for path in (job.data / "train/00000").glob("shard.*")}
    assert names == {".zstd" if compression else ".mds"}
    read = read_back(job.data / "train")
    assert read.dtype == dtype
    assert (read == expected_blocks(job)).all()


def test_every_shard_but_the_last_is_full(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    write_all(job)
    index = json.loads((job.data / "train/index.json").read_text())["shards"]
    sizes = [shard["samples"] for shard in index]
    assert sum(sizes) == 450
    assert set(sizes[:-1]) == {max(sizes)}
    # Another block wouldn't fit.
    assert max(shard["raw_data"]["bytes"] for shard in index) <= 2000
    assert index[0]["raw_data"]["bytes"] + 2 * BLOCK + 4 > 2000
    groups = [shard["raw_data"]["basename"].partition("/")[0] for shard in index]
    assert groups == sorted(groups)
    assert set(Counter(groups[: len(groups) // GROUP_SHARDS * GROUP_SHARDS]).values()) == {GROUP_SHARDS}
    assert [shard["raw_data"]["basename"] for shard in index[:2]] == ["00000/shard.00000.mds", "00000/shard.00001.mds"]


def test_index_names_the_hashes_and_the_encoding(written: dict[str, bytes]) -> None:
    index = json.loads(written["train/index.json"])["shards"]
    assert {tuple(shard["hashes"]) for shard in index} == {("xxh64",)}
    assert {tuple(shard["column_encodings"]) for shard in index} == {("ndarray:uint16:32",)}
    assert {tuple(shard["column_names"]) for shard in index} == {("input_ids",)}


def test_figures(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    figures = write_all(job)
    blocks = expected_blocks(job)
    sources = expected_blocks(job, of_tokens=np.repeat(SOURCES, SIZES))
    assert figures.blocks == len(blocks) == 450
    assert Counter(dict(enumerate(figures.token_counts.tolist()))) - Counter() == Counter(blocks.ravel().tolist())
    assert figures.source_tokens.tolist() == [int((sources == source).sum()) for source in range(4)]
    assert figures.source_blocks.tolist() == [int((sources == source).any(axis=1).sum()) for source in range(4)]
    assert sum(figures.source_blocks) > 450  # some blocks are of two sources


def test_splits_of_one_stream(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    splits = [split("train_16", 0, 300), split("train_32", 300, 120), split("val", 420, 30)]
    for each in splits:
        write_all(job, 1, each)
    read = [read_back(job.data / each.name) for each in splits]
    assert (np.concatenate(read) == expected_blocks(job)).all()


def test_same_bytes_with_more_processes(tmp_path: Path, written: dict[str, bytes]) -> None:
    job = make_job(tmp_path)
    seen: list[int] = []
    tasks = tasks_of(job)
    assert len(tasks) > 2
    write_groups(job, tasks, 2, seen.append)
    finish_split(job, SPLIT)
    assert files_in(job.data) == written
    assert sum(seen) == 450
    assert len(seen) == len(tasks)


def test_done_groups_are_skipped(tmp_path: Path, written: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    job = make_job(tmp_path)
    write_all(job)
    monkeypatch.setattr(groups, "_write_shards", lambda *_: pytest.fail("written again"))
    seen: list[int] = []
    write_groups(job, tasks_of(job), 2, seen.append)
    write_group(job, SPLIT, 0)
    finish_split(job, SPLIT)
    assert sum(seen) == 450
    assert files_in(job.data) == written


class Interruption(BaseException):
    pass


def interrupt(monkeypatch: pytest.MonkeyPatch, at: int) -> Callable[[], int]:
    """Lets the `at`-th of all calls that change something raise, before or after it does so; counts them."""
    calls = 0

    def interrupted(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def call(*args: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == at:
                raise Interruption
            result = original(*args, **options)
            calls += 1
            if calls == at:
                raise Interruption
            return result

        monkeypatch.setattr(owner, name, call)

    for owner, name in [
        (os, "replace"),
        (os, "fsync"),
        (shutil, "copyfile"),
        (np, "savez_compressed"),
        (block_writer.BlockWriter, "write_shard"),
        (block_writer.BlockWriter, "finish"),
        (streaming.base.util, "merge_index"),
    ]:
        interrupted(owner, name)
    return lambda: calls


def test_interrupted_anywhere_and_again_gives_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups, "GROUP_SHARDS", 2)
    small = split("train", 0, 65)

    def run(job: WriteJob, at: int) -> int:
        with monkeypatch.context() as patched:
            count = interrupt(patched, at)
            write_all(job, 1, small)
            return count()

    whole = make_job(tmp_path / "whole")
    points = run(whole, 0)
    assert len(tasks_of(whole, small)) == 2
    assert points > 40
    for at in range(1, points + 1):
        job = make_job(tmp_path / "interrupted")
        with pytest.raises(Interruption):
            run(job, at)
        write_all(job, 1, small)
        assert files_in(job.data) == files_in(whole.data)
        assert not list(job.work.rglob("*.tmp"))
        shutil.rmtree(job.work)


def test_what_a_killed_process_leaves_is_no_hindrance(tmp_path: Path, written: dict[str, bytes]) -> None:
    job = make_job(tmp_path)
    for name in ("00001", "00001.tmp", "00002.tmp"):
        (job.data / "train" / name).mkdir(parents=True)
        (job.data / "train" / name / "shard.00000.mds").write_bytes(b"half")
        (job.data / "train" / name / "shard.00099.mds").write_bytes(b"another")
    (job.work / "groups/train-00000.npz.tmp").write_bytes(b"half")
    (job.data / "train/index.json.tmp").write_bytes(b"half")
    write_all(job)
    assert files_in(job.data) == written
    assert not list(job.work.rglob("*.tmp"))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_full_disk(tmp_path: Path, written: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    job = make_job(tmp_path)

    def full(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        patched.setattr(block_writer, "_write", full)
        with pytest.raises(UserError, match=r"no space left on the device while writing .*train/00000"):
            write_all(job)
    assert files_in(job.data) == {}
    write_groups(job, tasks_of(job), 1)
    with monkeypatch.context() as patched:
        patched.setattr(streaming.base.util, "merge_index", full)
        with pytest.raises(UserError, match=r"no space left on the device while writing .*train"):
            finish_split(job, SPLIT)
    finish_split(job, SPLIT)
    assert files_in(job.data) == written


def test_an_error_in_a_worker_process_is_raised_here(tmp_path: Path, written: dict[str, bytes]) -> None:
    job = make_job(tmp_path)
    path = job.segments.token_path(2)
    tokens = path.read_bytes()
    path.write_bytes(tokens[:-2])
    with pytest.raises(UserError, match=r"000002-000000\.tokens is missing or cut off"):
        write_groups(job, tasks_of(job), 2)
    path.write_bytes(tokens)
    write_all(job, 2)
    assert files_in(job.data) == written


def test_finish_needs_all_groups(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    write_group(job, SPLIT, 0)
    with pytest.raises(UserError, match=r"group 1 of the split train isn't written in .*run the conversion again"):
        finish_split(job, SPLIT)
    write_groups(job, tasks_of(job), 1)
    (job.data / "train/00001/index.json").unlink()
    with pytest.raises(UserError, match=r"train/00001/index\.json is missing.*restart=true"):
        finish_split(job, SPLIT)
    assert not (job.data / "train/index.json").exists()


def test_names_that_mean_something_in_a_url(
    tmp_path: Path, written: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(tmp_path / "s3:#50%?a=b; c")
    write_all(job)
    assert files_in(job.data) == written
    (tmp_path / "a#b").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "a#b"))
    with pytest.raises(UserError, match=r"TMPDIR: .*a#b.* has a character that means something in a URL"):
        finish_split(job, SPLIT)


def test_merging_is_silent(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    job = make_job(tmp_path)
    handlers, level = list(logging.root.handlers), logging.root.manager.disable
    with caplog.at_level(logging.INFO):
        write_all(job)
    assert caplog.records == []
    assert (logging.root.handlers, logging.root.manager.disable) == (handlers, level)


def test_worker_processes_import_no_pytorch(tmp_path: Path, written: dict[str, bytes]) -> None:
    job = make_job(tmp_path)
    write_groups(job, tasks_of(job)[1:], 1)
    program = """
import pickle, sys
from bertchen.conversion import groups
from bertchen.conversion.pack import Split
heavy = {"torch", "torchvision", "transformers", "datasets", "composer"}
assert not {*heavy, "streaming"} & set(sys.modules)
job, split = pickle.load(sys.stdin.buffer)
groups._begin_worker(job)
groups._write_in_worker(split, 0)
assert not heavy & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, input=pickle.dumps((job, SPLIT)), check=True)
    finish_split(job, SPLIT)
    assert files_in(job.data) == written


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A split of several shards in two groups."""
    job = make_job(tmp_path)
    write_all(job, 1, split("train", 0, 300))
    return job.data / "train"


@pytest.mark.parametrize("hashes", ["auto", True, False])
def test_whole_shards_pass(folder: Path, hashes: bool) -> None:
    check_shards(folder, hashes)


def test_missing_shard(folder: Path) -> None:
    (folder / "00001/shard.00002.mds").unlink()
    with pytest.raises(UserError, match=r"00001/shard\.00002\.mds is missing.*convert the data again"):
        check_shards(folder)


def test_shard_of_wrong_size(folder: Path) -> None:
    path = folder / "00000/shard.00001.mds"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"00000/shard\.00001\.mds has \d+ bytes, should have \d+.*remove this file"):
        check_shards(folder, hashes=False)


def test_damaged_shard(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / "00001/shard.00001.mds"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    for hashes in ("auto", True):
        with pytest.raises(UserError, match=r"00001/shard\.00001\.mds is damaged.*convert the data again"):
            check_shards(folder, hashes)  # type: ignore[arg-type]
    check_shards(folder, hashes=False)
    monkeypatch.setattr(shards, "AUTO_HASH_BYTES", 1000)
    check_shards(folder, "auto")


def test_compressed_shards_may_stand_beside_or_behind_the_uncompressed(tmp_path: Path) -> None:
    job = make_job(tmp_path, compression="zstd")
    write_all(job)
    check_shards(job.data / "train", True)
    dataset = StreamingDataset(local=str(job.data / "train"), shuffle=False, batch_size=1)
    assert (dataset[0]["input_ids"] == expected_blocks(job)[0]).all()  # unpacks the first shard
    first = job.data / "train/00000/shard.00000.mds"
    assert first.exists()
    check_shards(job.data / "train", True)
    Path(f"{first}.zstd").unlink(missing_ok=True)
    check_shards(job.data / "train", True)
    first.write_bytes(b"")
    with pytest.raises(UserError, match=r"00000/shard\.00000\.mds has 0 bytes"):
        check_shards(job.data / "train")


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

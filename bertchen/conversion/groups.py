"""Blocks → the files of one split: writing MDS shards in groups, and uploading them.

A split is written in groups of as many blocks as fill `GROUP_SHARDS` shards, so the files don't depend on who writes
which group. Of a conversion's work folder it takes and makes:

    arrangement/<stream>.npy          where the blocks' tokens are: `block_spans`
    data/<split>/<group>/             the group's shards and their index.json
    groups/<split>-<group>.npz        its figures; written last, so that a group which has them is done
    data/<split>/index.json           of all groups
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlparse

import numpy as np
import numpy.typing as npt

from bertchen.config.schema_convert import ConvertConfig
from bertchen.conversion.light_streaming import import_streaming_lightly
from bertchen.conversion.segments import DamagedWork, Integers, Segments
from bertchen.conversion.token_store import BATCH_TOKENS, SourceTally, TokenStore, read_blocks
from bertchen.conversion.upload import upload_files
from bertchen.data.shards import INDEX
from bertchen.errors import UserError, naming_full_disk
from bertchen.processes import worker_pool

if TYPE_CHECKING:
    from bertchen.conversion.block_writer import BlockWriter
    from bertchen.conversion.pack import Split

GROUP_SHARDS = 8
_COUNTED = 1 << 18


@dataclass(frozen=True)
class WriteJob:
    """What the groups of a conversion have in common; worker processes get it once.

    Attributes:
        segments: with the tokens.
        work: the work folder.
        settings: `block_size`, `shard_size`, `compression`, `seed` and `keep_local` are used.
        remote: URL that the content of `data/` is uploaded to, if any.
    """

    segments: Segments
    work: Path
    settings: ConvertConfig
    remote: str | None = None

    @property
    def data(self) -> Path:
        return self.work / "data"

    @property
    def keeps_shards(self) -> bool:
        return self.remote is None or self.settings.keep_local

    def runs(self, split: Split) -> Integers:
        return np.load(self.work / "arrangement" / f"{split.stream}.npy", mmap_mode="r")

    def figures_file(self, split: Split, group: int) -> Path:
        return self.work / "groups" / f"{split.name}-{group:05d}.npz"


@dataclass(frozen=True)
class Figures:
    """What was counted in blocks.

    Attributes:
        blocks: how many.
        token_counts: (ids,) how often each token occurs; ids behind the last that occurs may be missing.
        source_tokens, source_blocks: (sources,) tokens of each source, and blocks with a token of it; sources behind
            the last that occurs may be missing.
    """

    blocks: int
    token_counts: Integers
    source_tokens: Integers
    source_blocks: Integers


def group_count(split: Split, dtype: np.dtype, settings: ConvertConfig) -> int:
    """How many groups of shards make a split of tokens of this type."""
    return -(-split.blocks // _blocks_per_group(dtype, settings))


def write_groups(
    job: WriteJob,
    tasks: Sequence[tuple[Split, int]],
    workers: int,
    on_blocks: Callable[[int], None] = lambda _: None,
) -> None:
    """Writes groups, several at a time in processes of their own; with one worker in this process.

    Args:
        tasks: (split, group); those that are done already are skipped.
        on_blocks: called with the number of blocks of each group when it is done, the skipped ones included.

    Raises:
        UserError: see `write_group`; or a worker process was killed.
    """
    todo = []
    for split, group in tasks:
        if _is_done(job, split, group):
            on_blocks(_blocks_in_group(job, split, group))
        else:
            todo.append((split, group))
    workers = min(workers, len(todo))
    if workers <= 1:
        for split, group in todo:
            write_group(job, split, group)
            on_blocks(_blocks_in_group(job, split, group))
        return
    with worker_pool(workers, _begin_worker, (job,)) as pool:
        futures = {pool.submit(_write_in_worker, *task): task for task in todo}
        for future in as_completed(futures):
            future.result()
            on_blocks(_blocks_in_group(job, *futures[future]))


def write_group(job: WriteJob, split: Split, group: int) -> None:
    """Writes one group of a split's shards and uploads it, unless that is done already.

    What an interrupted call has left is made anew; the files are the same, byte for byte.

    Raises:
        UserError: the disk is full, or the upload failed.
    """
    if _is_done(job, split, group):
        return
    folder = job.data / split.name / f"{group:05d}"
    with naming_full_disk(folder):
        job.figures_file(split, group).unlink(missing_ok=True)  # of a job with another out
        figures = _write_shards(job, split, group, folder)
        if job.remote:
            shards = sorted(path.name for path in folder.iterdir() if path.name != INDEX)
            upload_files(job.data, [f"{split.name}/{folder.name}/{name}" for name in (*shards, INDEX)], job.remote)
            if not job.keeps_shards:
                for name in shards:
                    (folder / name).unlink()
        with _replacing(job.figures_file(split, group)) as path, open(path, "wb") as file:
            np.savez_compressed(file, **vars(figures), remote=job.remote or "", kept=job.keeps_shards)


def finish_split(job: WriteJob, split: Split) -> Figures:
    """Joins the indexes of a split's groups, which must all be done, and uploads the result.

    Returns:
        The figures of the whole split.

    Raises:
        UserError: a group isn't there; the disk is full; the upload failed.
    """
    from streaming.base.util import merge_index

    folder = job.data / split.name
    groups = range(group_count(split, job.segments.dtype, job.settings))
    figures = _sum_figures(_load_figures(job, split, group) for group in groups)
    # In a temporary folder, because merge_index takes paths for URLs and doesn't replace an index that is there.
    with naming_full_disk(folder), tempfile.TemporaryDirectory() as temporary, _quiet_logging():
        if urlparse(temporary).path != temporary:
            raise UserError(f"TMPDIR: {temporary} has a character that means something in a URL: name another folder")
        copies = []
        for group in groups:
            copies.append(os.path.join(temporary, f"{group:05d}", INDEX))
            os.mkdir(os.path.dirname(copies[-1]))
            _copy_index(folder / f"{group:05d}" / INDEX, copies[-1])
        merge_index(copies, temporary)
        with _replacing(folder / INDEX) as path:
            shutil.copyfile(os.path.join(temporary, INDEX), path)
    if job.remote:
        upload_files(job.data, [f"{split.name}/{INDEX}"], job.remote)
    return figures


def _write_shards(job: WriteJob, split: Split, group: int, folder: Path) -> Figures:
    temporary = folder.with_name(f"{folder.name}.tmp")
    for left in (temporary, folder):
        if left.exists():
            shutil.rmtree(left)
    settings, dtype = job.settings, job.segments.dtype
    runs = job.runs(split)
    begin = group * _blocks_per_group(dtype, settings)
    end = begin + _blocks_in_group(job, split, group)
    tally, token_counts = SourceTally(job.segments), np.zeros(0, np.int64)
    step = max(1, BATCH_TOKENS // settings.block_size)

    def blocks(first: int, last: int) -> Iterator[npt.NDArray]:
        nonlocal token_counts
        for at in range(first, last, step):
            numbers = split.block_numbers(at, min(at + step, last), settings.seed)
            found = read_blocks(store, runs, numbers, settings.block_size, tally.add)
            for part in np.array_split(found.ravel(), -(-found.size // _COUNTED)):  # bincount makes them 8 bytes each
                token_counts = _padded_sum(token_counts, np.bincount(part))
            yield found

    writer = _open_writer(temporary, dtype, settings)
    try:
        with TokenStore(job.segments) as store:
            for first in range(begin, end, writer.blocks_per_shard):
                last = min(first + writer.blocks_per_shard, end)
                writer.write_shard(blocks(first, last), last - first)
        writer.finish()
    except BaseException:
        writer.cancel_future_jobs()
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    with open(temporary / INDEX, "rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, folder)
    return Figures(end - begin, token_counts, tally.tokens, tally.blocks)


def _open_writer(folder: Path, dtype: np.dtype, settings: ConvertConfig) -> BlockWriter:
    from bertchen.conversion.block_writer import BlockWriter  # imports Streaming

    return BlockWriter(folder, dtype, settings.block_size, settings.shard_size, settings.compression)


def _blocks_per_group(dtype: np.dtype, settings: ConvertConfig) -> int:
    return GROUP_SHARDS * _blocks_per_shard(dtype, settings.block_size, settings.shard_size, settings.compression)


@cache
def _blocks_per_shard(dtype: np.dtype, block_size: int, shard_size: int, compression: str | None) -> int:
    """How many blocks Streaming's writer puts into a shard."""
    settings = ConvertConfig(block_size=block_size, shard_size=shard_size, compression=compression)
    with tempfile.TemporaryDirectory() as folder:
        writer = _open_writer(Path(folder), dtype, settings)
        writer.cancel_future_jobs()
    return writer.blocks_per_shard


def _blocks_in_group(job: WriteJob, split: Split, group: int) -> int:
    size = _blocks_per_group(job.segments.dtype, job.settings)
    return min(size, split.blocks - group * size)


# Of a worker process.
_job: WriteJob


def _begin_worker(job: WriteJob) -> None:
    global _job
    _job = job
    import_streaming_lightly()


def _write_in_worker(split: Split, group: int) -> None:
    write_group(_job, split, group)


def _is_done(job: WriteJob, split: Split, group: int) -> bool:
    """Whether the group is written, and is where this job is to bring it: an earlier one may have had another out."""
    path = job.figures_file(split, group)
    if not path.exists():
        return False
    with np.load(path) as arrays:
        return job.remote in (None, str(arrays["remote"])) and bool(arrays["kept"] or not job.keeps_shards)


def _load_figures(job: WriteJob, split: Split, group: int) -> Figures:
    if not _is_done(job, split, group):
        raise UserError(
            f"group {group} of the split {split.name} isn't written in {job.work}: run the conversion again"
        )
    with np.load(job.figures_file(split, group)) as arrays:
        return Figures(
            int(arrays["blocks"]), *(arrays[name] for name in ("token_counts", "source_tokens", "source_blocks"))
        )


def _sum_figures(parts: Iterable[Figures]) -> Figures:
    total = Figures(0, *(np.zeros(0, np.int64) for _ in range(3)))
    for part in parts:
        total = Figures(
            total.blocks + part.blocks,
            _padded_sum(total.token_counts, part.token_counts),
            _padded_sum(total.source_tokens, part.source_tokens),
            _padded_sum(total.source_blocks, part.source_blocks),
        )
    return total


def _padded_sum(first: Integers, second: Integers) -> Integers:
    total = np.zeros(max(len(first), len(second)), np.int64)
    total[: len(first)] += first
    total[: len(second)] += second
    return total


def _copy_index(path: Path, copy: str) -> None:
    try:
        shutil.copyfile(path, copy)
    except FileNotFoundError:
        raise DamagedWork(f"{path} is missing: throw the interrupted conversion away with restart=true") from None


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Gives a temporary path beside `path`; what is written there is on the disk and renamed if the body succeeds."""
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _quiet_logging() -> Iterator[None]:
    """merge_index warns of its temporary folders, by way of `logging.warning`, which also gives the root a handler."""
    handler, before = logging.NullHandler(), logging.root.manager.disable
    logging.root.addHandler(handler)
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
        logging.root.removeHandler(handler)

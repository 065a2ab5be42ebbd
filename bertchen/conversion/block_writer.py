"""Blocks of tokens → the files of MDS shards, as they come."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import xxhash
import zstandard
from streaming.base.format import MDSWriter

from bertchen.data.shards import COLUMN, HASH

T = TypeVar("T")

DEFAULT_LEVEL = 3


class BlockWriter(MDSWriter):
    """Streaming's writer of MDS shards, for blocks of one size: the same files.

    Streaming's own holds a shard in memory up to three times. As it is known how large each block is, and how many go
    into a shard, they can be written as they come.

    Args:
        folder: made by the writer; has to be empty.
        compression: None, `zstd` or `zstd:<level>`.
        size_limit: bytes of a shard at most.
    """

    def __init__(
        self, folder: Path, dtype: np.dtype, block_size: int, size_limit: int, compression: str | None
    ) -> None:
        super().__init__(
            columns={COLUMN: f"ndarray:{dtype.name}:{block_size}"},
            out=str(folder),
            compression=compression,
            hashes=[HASH],
            size_limit=size_limit,
        )
        self.executor = _AtOnce()
        self._block_bytes = sum(self.column_sizes)
        self.blocks_per_shard = max(
            1, (size_limit - self.extra_bytes_per_shard) // (self._block_bytes + self.extra_bytes_per_sample)
        )

    def write_shard(self, blocks: Iterable[npt.NDArray], count: int) -> None:
        """Writes the next shard.

        Args:
            blocks: (blocks, block_size) each, together `count` blocks.
        """
        raw_name, zip_name = self._name_next_shard()
        path, packed = Path(self.local, raw_name), None
        raw = _write(path, self._parts(blocks, count))
        if zip_name:
            level = int((self.compression or "").partition(":")[2] or DEFAULT_LEVEL)
            packed = _write(path.with_name(zip_name), _compressed(path, level))
            path.unlink()
        self.shards.append({"samples": count, "raw_data": raw, "zip_data": packed, **self.get_config()})

    def _parts(self, blocks: Iterable[npt.NDArray], count: int) -> Iterator[Any]:
        """The content of a shard: number of samples, where each begins and the last ends, column types, samples."""
        header = 4 + 4 * (count + 1) + len(self.config_data)
        ends = header + np.arange(count + 1, dtype=np.int64) * self._block_bytes
        yield np.uint32(count).tobytes()
        yield ends.astype(np.uint32).tobytes()
        yield self.config_data
        given = 0
        for some in blocks:
            given += len(some)
            yield np.ascontiguousarray(some).data.cast("B")
        if given != count:
            raise RuntimeError(f"{given} blocks were given for a shard of {count}")


class _AtOnce(ThreadPoolExecutor):
    """For the writer's uploads, of which there are none: its threads hide errors and make it wait for a second."""

    def submit(self, function: Callable[..., T], /, *args: Any, **options: Any) -> Future[T]:
        future: Future[T] = Future()
        future.set_result(function(*args, **options))
        return future


def _write(path: Path, parts: Iterable[Any]) -> dict[str, Any]:
    """Writes bytes to a file, which is then on the disk; what an index says of it."""
    digest, size = xxhash.xxh64(), 0
    with open(path, "wb") as file:
        for part in parts:
            file.write(part)
            digest.update(part)
            size += len(part)
        file.flush()
        os.fsync(file.fileno())
    return {"basename": path.name, "bytes": size, "hashes": {HASH: digest.hexdigest()}}


def _compressed(path: Path, level: int) -> Iterator[bytes]:
    """The file as one frame that tells its size, which Streaming's library asks for."""
    with open(path, "rb") as file:
        yield from zstandard.ZstdCompressor(level=level).read_to_iter(file, size=path.stat().st_size)

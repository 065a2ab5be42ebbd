"""Blocks straight from the files of MDS shards: a file stays open, and a block is one read at a known place."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from streaming.base.format.base.reader import Reader
from streaming.base.format.mds.reader import MDSReader

from bertchen.errors import UserError

AT_MOST_OPEN = 256
_OFFSET = 4  # bytes


@dataclass(frozen=True)
class BlockType:
    """What every block of a data set is: `length` tokens of `dtype`."""

    dtype: np.dtype
    length: int

    @property
    def bytes(self) -> int:
        return self.length * self.dtype.itemsize


def block_type(shards: Iterable[Reader], column: str) -> BlockType | None:
    """The type of all blocks, where every sample is one array of a fixed length (`ndarray:uint16:512`).

    None where shards have other columns, another encoding or another format, or aren't alike.
    """
    layouts = {
        (*shard.column_names, *shard.column_encodings) if isinstance(shard, MDSReader) else () for shard in shards
    }
    layout = layouts.pop()
    if layouts or len(layout) != 2 or layout[0] != column:
        return None
    kind, *shape = layout[1].split(":")
    if kind != "ndarray" or len(shape) != 2 or not shape[1].isdecimal():
        return None
    return BlockType(np.dtype(shape[0]), int(shape[1]))


class DamagedShard(UserError):
    """A shard's file isn't what the index says."""


class OpenShards:
    """The shard files that a process has open: the `at_most` used last.

    Files are read by position, so forked processes may share them; a pickle holds none. There are no memory maps: that
    a file was cut short is an error here, not the end of the process. One thread may read while another closes.
    """

    def __init__(self, block: BlockType, at_most: int = AT_MOST_OPEN) -> None:
        self.block = block
        self.at_most = at_most
        self._open: OrderedDict[str, tuple[BinaryIO, int]] = OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.block, self.at_most)

    def __len__(self) -> int:
        return len(self._open)

    def read(self, shard: MDSReader, rows: Sequence[int], into: Sequence[memoryview]) -> None:
        """Reads blocks of a shard, each into a buffer of its size in bytes.

        Args:
            shard: where from.
            rows: numbers of the blocks in the shard.
            into: a buffer for each.

        Raises:
            FileNotFoundError: the shard isn't there, or only compressed.
            DamagedShard: its file is not what the index says; it is closed.
        """
        with self._lock:
            file, start = self._file(shard)
            handle, size = file.fileno(), self.block.bytes
            for row, buffer in zip(rows, into, strict=True):
                if os.preadv(handle, [buffer], start + row * size) != size:
                    self._open.pop(file.name)[0].close()
                    raise _damaged(file, shard)

    def close_removed(self) -> None:
        """Closes files that were removed meanwhile: only then is their room on the disk free."""
        with self._lock:
            for path, (file, _) in list(self._open.items()):
                if not os.fstat(file.fileno()).st_nlink:
                    del self._open[path]
                    file.close()

    def _file(self, shard: MDSReader) -> tuple[BinaryIO, int]:
        """The file and where its first block begins."""
        path = os.path.join(shard.dirname, shard.split, shard.raw_data.basename)
        if path in self._open:
            self._open.move_to_end(path)
            return self._open[path]
        file = open(path, "rb", buffering=0)  # noqa: SIM115
        try:
            opened = file, self._first_block(file, shard)
        except BaseException:
            file.close()
            raise
        self._open[path] = opened
        if len(self._open) > self.at_most:
            self._open.popitem(last=False)[1][0].close()
        return opened

    def _first_block(self, file: BinaryIO, shard: MDSReader) -> int:
        """A shard begins with its number of samples, their offsets and the offset of its end."""
        header = os.pread(file.fileno(), 2 * _OFFSET, 0) + os.pread(
            file.fileno(), _OFFSET, (1 + shard.samples) * _OFFSET
        )
        if len(header) == 3 * _OFFSET:
            samples, first, end = (int(number) for number in np.frombuffer(header, dtype=np.uint32))
            if samples == shard.samples and end - first == samples * self.block.bytes:
                return first
        raise _damaged(file, shard)


def _damaged(file: BinaryIO, shard: MDSReader) -> DamagedShard:
    return DamagedShard(
        f"{file.name} is damaged: it doesn't hold the {shard.samples} blocks that index.json lists: convert the data "
        "again, or, if a remote serves it, remove this file and it is fetched anew"
    )

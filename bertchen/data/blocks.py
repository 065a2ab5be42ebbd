"""Datasets and loaders over MDS shards of token blocks: the training stream and the exact evaluation set."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from time import sleep, time_ns
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from streaming.base.constant import TICK
from streaming.base.dataset import _Iterator, _ShardState
from torch import Tensor
from torch.utils.data import DataLoader

from bertchen.data.cache import CachedDataset
from bertchen.data.cutting import cut_rows
from bertchen.data.masking import IGNORE_INDEX, max_masked_per_row
from bertchen.data.open_shards import DamagedShard, OpenShards, block_type
from bertchen.data.order import PARTITION
from bertchen.data.row_ids import BLOCKS
from bertchen.data.shards import COLUMN
from bertchen.data.together import LoaderInStep, in_step
from bertchen.errors import UserError

log = logging.getLogger(__name__)

PADDING_INDEX = -1
STRETCH = 1 << 13  # samples that are looked at at once
READ_ATTEMPTS = 8
LOOK_TICKS = round(1 / TICK)  # between looks whether whoever fetches a shard is alive


class BlockDataset(CachedDataset):
    """A StreamingDataset of token blocks that gives their numbers; `read` gives the tokens of many at once.

    Shuffling, epochs, resumption, fetching and eviction are StreamingDataset's; the shares of processes and workers are
    those of `bertchen.data.order`. What StreamingDataset does for each sample (opening the shard, looking with a lock
    whether it is there) is done here for many at once. Samples that aren't arrays of one length it reads itself.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(partition_algo=PARTITION, **options)
        # Rounded down, so that an epoch has no more batches than it has for one process.
        self.length = self.num_samples // self._parallel_rank_world.num_ranks
        block = block_type(self.shards, COLUMN)
        if block is None:
            log.warning("%s: samples aren't arrays of one length, so reading is slower", self.streams[0].local)
        self._files = None if block is None else OpenShards(block)

    def __getitem__(self, at: int) -> int:
        """The number itself: blocks are read when a batch is put together."""
        return int(at)

    def read(self, numbers: Sequence[int]) -> npt.NDArray:
        """The blocks of these numbers (at least one), as they are stored: (blocks, block_size).

        Raises:
            UserError: a shard is damaged, or can't be fetched.
        """
        if self._files is None:
            return np.stack([self.get_item(number)[COLUMN] for number in numbers])
        if self._stream.is_cached:
            self._files.close_removed()
        block = self._files.block
        blocks = np.empty((len(numbers), block.length), dtype=block.dtype)
        buffer = memoryview(blocks).cast("B")
        numbers = np.asarray(numbers, dtype=np.int64)
        shards = self._shards_of(numbers)
        rows = numbers - self.spanner.shard_bounds[shards]
        order = shards.argsort(kind="stable")
        for places in np.split(order, np.flatnonzero(np.diff(shards[order])) + 1):
            shard = int(shards[places[0]])
            into = [buffer[place * block.bytes : (place + 1) * block.bytes] for place in places.tolist()]
            self._read(shard, rows[places].tolist(), into)
        return blocks

    def close_removed(self) -> None:
        if self._files is not None:
            self._files.close_removed()

    def _read(self, shard: int, rows: Sequence[int], into: Sequence[memoryview]) -> None:
        """Reads blocks of one shard, which is fetched or decompressed first where it isn't there."""
        for _ in range(READ_ATTEMPTS):
            try:
                self._files.read(self.shards[shard], rows, into)
                self._shard_access_times[shard] = time_ns()
                return
            except FileNotFoundError:
                self.prepare_shard(shard)
            except DamagedShard as error:
                self.drop_damaged(shard, error)
        raise UserError(
            f"{self._stream.url(self.shards[shard])} was fetched {READ_ATTEMPTS} times and removed from the cache each "
            "time before it was read: raise data.cache_limit, or choose a folder on a larger disk for data.local"
        )

    def _shards_of(self, numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        return self.spanner.shard_bounds.searchsorted(numbers, side="right") - 1

    def _prepare_thread(self, it: _Iterator) -> None:
        """StreamingDataset's thread that has shards fetched and decompressed ahead of reading."""
        try:
            self._prepare_ahead(it)
        finally:
            it.on_exit()  # after a failure too, or the end of the epoch waits for it

    def _ready_thread(self, it: _Iterator) -> None:
        """StreamingDataset's thread that finds how far the shards that are there reach."""
        try:
            self._find_ready(it)
        finally:
            it.on_exit()

    def _prepare_ahead(self, it: _Iterator) -> None:
        prepared: set[int] = set()
        while it.prepare_index < it.total and not self._has_ended(it):
            stop = min(it.total, it.yield_index + self.predownload + 1)
            ids = it.sample_ids[it.prepare_index : stop]
            shards, first = np.unique(self._shards_of(ids[ids >= 0]), return_index=True)
            for shard in shards[first.argsort()].tolist():
                if self._has_ended(it):
                    break
                if shard not in prepared or self._shard_states[shard] != _ShardState.LOCAL:
                    self.prepare_shard(shard, False, lambda: not self._has_ended(it))
                    prepared.add(shard)
            self._shard_access_times[shards[self._shard_states.numpy()[shards] == _ShardState.LOCAL]] = time_ns()
            it.prepare_index = stop
            if not len(ids):
                sleep(TICK)

    def _find_ready(self, it: _Iterator) -> None:
        ticks = 1
        while it.ready_index < it.total and not self._has_ended(it):
            may_fetch = it.yield_index + self.predownload + 1
            # A shard that is there stays there, but for a limit of the cache.
            stop = min(it.total, it.ready_index + STRETCH, may_fetch if self.cache_limit else it.total)
            ids = it.sample_ids[it.ready_index : stop]
            shards = self._shards_of(ids)
            states = self._shard_states.numpy()[shards]
            missing = np.flatnonzero((ids >= 0) & (states != _ShardState.LOCAL))
            ready = int(missing[0]) if len(missing) else len(ids)
            if ready:
                it.ready_index += ready
            elif len(missing) and states[0] != _ShardState.PREPARING and it.ready_index < may_fetch:
                self.prepare_shard(int(shards[0]), False, lambda: not self._has_ended(it))
            else:
                if len(missing) and not ticks % LOOK_TICKS:
                    self.free_abandoned(int(shards[0]))
                ticks += 1
                sleep(TICK)

    def _has_ended(self, it: _Iterator) -> bool:
        """Whether another epoch was begun, or the other thread has failed."""
        return it.should_exit() or self._event.is_set()


def to_batch(blocks: npt.NDArray, numbers: Sequence[int], seq_len: int) -> dict[str, Tensor]:
    """Blocks and their numbers to `input_ids` (rows, seq_len) and `row_ids` (rows,), both int64."""
    row_ids = torch.tensor(numbers, dtype=torch.int64)
    input_ids, row_ids = cut_rows(torch.from_numpy(blocks.astype(np.int64)), row_ids, seq_len)
    return {"input_ids": input_ids, "row_ids": row_ids}


def read_batch(numbers: Sequence[int], dataset: BlockDataset, seq_len: int) -> dict[str, Any]:
    """A batch of the blocks of these numbers, cut to `seq_len`; `blocks` are the numbers."""
    batch = to_batch(dataset.read(numbers), numbers, seq_len)
    return {**batch, BLOCKS: np.asarray(numbers, dtype=np.int64)}


def train_loader(
    dataset: BlockDataset, blocks_per_device: int, seq_len: int, num_workers: int, prefetch_factor: int = 2
) -> DataLoader[Any]:
    """Batches of `blocks_per_device` blocks, cut to `seq_len`; an epoch's last batch, if it isn't full, is dropped.

    The loader draws from a generator of its own, so that starting it leaves PyTorch's alone.
    """
    return LoaderInStep(
        dataset,
        batch_size=blocks_per_device,
        collate_fn=partial(read_batch, dataset=dataset, seq_len=seq_len),
        num_workers=num_workers,
        prefetch_factor=prefetch_factor if num_workers else None,
        persistent_workers=num_workers > 0,
        pin_memory=torch.cuda.is_available(),
        drop_last=True,
        generator=torch.Generator(),
    )


def deal_blocks(blocks: int, blocks_per_batch: int, rank: int, world_size: int) -> list[list[int]]:
    """Which blocks each batch of a process holds, for an evaluation that counts every block once.

    Every process gets the same number of batches, all of one size; -1 fills them up.
    """
    batches = -(-blocks // (blocks_per_batch * world_size))
    mine = range(rank, batches * blocks_per_batch * world_size, world_size)
    dealt = [at if at < blocks else PADDING_INDEX for at in mine]
    return [dealt[start : start + blocks_per_batch] for start in range(0, len(dealt), blocks_per_batch)]


class EvaluationBatches:
    """The validation blocks as masked batches of one shape, each block once over all processes.

    The batches are the same at every evaluation, so they are made at the first and kept in memory (2,500 blocks of 512
    tokens take 10 MB a sequence length).

    Args:
        dataset: the validation split.
        seq_len: the length to cut blocks to.
        blocks_per_batch: blocks in a batch, before cutting.
        masking: `mask_tokens` with everything but the tokens, the rows and the step filled in.
        rate: the share that `masking` hides.
        rank, world_size: of the process.
        limit: take only the first so many blocks.
    """

    def __init__(
        self,
        dataset: BlockDataset,
        block_size: int,
        seq_len: int,
        blocks_per_batch: int,
        masking: Callable[..., tuple[Tensor, Tensor]],
        rate: float,
        rank: int,
        world_size: int,
        limit: int | None = None,
    ) -> None:
        self.dataset = dataset
        self.block_size = block_size
        self.seq_len = seq_len
        self.masking = masking
        self.max_masked_per_row = max_masked_per_row(rate, seq_len)
        self.blocks = dataset.num_samples if limit is None else min(limit, dataset.num_samples)
        self.dealt = deal_blocks(self.blocks, blocks_per_batch, rank, world_size)
        self._kept: list[tuple[Tensor, Tensor]] = []

    def __len__(self) -> int:
        return len(self.dealt)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return in_step(self._batches())

    def _batches(self) -> Iterator[dict[str, Any]]:
        for number, indices in enumerate(self.dealt):
            if number == len(self._kept):
                self._kept.append(self._masked(indices))
            input_ids, labels = self._kept[number]
            yield {
                "input_ids": input_ids.long(),
                "labels": labels.long(),
                "max_masked_per_row": self.max_masked_per_row,
            }

    def _masked(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        blocks = np.zeros((len(indices), self.block_size), dtype=np.int64)
        if real := [at for at in indices if at != PADDING_INDEX]:
            blocks[: len(real)] = self.dataset.read(real)
        batch = to_batch(blocks, indices, self.seq_len)
        input_ids, labels = self.masking(batch["input_ids"], batch["row_ids"], step=0)
        labels[batch["row_ids"] < 0] = IGNORE_INDEX
        return input_ids.int(), labels.int()

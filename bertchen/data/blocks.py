"""Datasets and loaders over MDS shards of token blocks: the training stream and the exact evaluation set."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from composer.utils import dist
from streaming import StreamingDataset
from streaming.base.storage import CloudDownloader
from torch import Tensor
from torch.utils.data import DataLoader

from bertchen.data.cutting import cut_rows
from bertchen.data.manifest import MANIFEST
from bertchen.data.masking import IGNORE_INDEX, max_masked_per_row
from bertchen.errors import UserError

PADDING_INDEX = -1


def fetch_manifest(remote: str, local: str, timeout: float) -> None:
    """Copies the manifest of a remote data set into its cache, once on each node.

    Raises:
        UserError: it can't be fetched.
    """
    target = os.path.join(local, MANIFEST)
    failed: str | None = None
    if dist.get_local_rank() == 0 and not os.path.exists(target):
        source = f"{remote.rstrip('/')}/{MANIFEST}"
        is_new = not os.path.exists(local)
        try:
            os.makedirs(local, exist_ok=True)
            CloudDownloader.get(remote).direct_download(source, target, timeout)
        except Exception as error:  # each store raises its own
            failed = f"data.remote={remote}: {source} can't be fetched: {type(error).__name__}: {error}"
            if is_new:
                shutil.rmtree(local, ignore_errors=True)
    failures = [message for message in dist.all_gather_object(failed) if message]
    if failures:
        raise UserError(failures[0])


class BlockDataset(StreamingDataset):
    """A StreamingDataset whose samples also carry their number, which masking needs to be repeatable."""

    def __getitem__(self, at: int) -> dict[str, Any]:
        sample = super().__getitem__(at)
        return {"input_ids": sample["input_ids"], "row_id": int(at)}


def collate_blocks(samples: Sequence[dict[str, Any]], seq_len: int) -> dict[str, Tensor]:
    """Blocks to `input_ids` (rows, seq_len) and `row_ids` (rows,), both int64."""
    blocks = np.stack([sample["input_ids"] for sample in samples]).astype(np.int64)
    row_ids = torch.tensor([sample["row_id"] for sample in samples], dtype=torch.int64)
    input_ids, row_ids = cut_rows(torch.from_numpy(blocks), row_ids, seq_len)
    return {"input_ids": input_ids, "row_ids": row_ids}


def train_loader(
    dataset: BlockDataset, blocks_per_device: int, seq_len: int, num_workers: int, prefetch_factor: int = 2
) -> DataLoader[Any]:
    """Batches of `blocks_per_device` blocks, cut to `seq_len`; an epoch's last batch, if it isn't full, is dropped.

    The loader draws from a generator of its own, so that starting it leaves PyTorch's alone.
    """
    return DataLoader(
        dataset,
        batch_size=blocks_per_device,
        collate_fn=partial(collate_blocks, seq_len=seq_len),
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
        batch = collate_blocks([self._sample(at) for at in indices], self.seq_len)
        input_ids, labels = self.masking(batch["input_ids"], batch["row_ids"], step=0)
        labels[batch["row_ids"] < 0] = IGNORE_INDEX
        return input_ids.int(), labels.int()

    def _sample(self, at: int) -> dict[str, Any]:
        if at == PADDING_INDEX:
            return {"input_ids": np.zeros(self.block_size, dtype=np.int64), "row_id": PADDING_INDEX}
        return self.dataset[at]

"""Shorter rows from the stored blocks: 512 is cut into 2 x 256, 4 x 128 or 8 x 64, and no token is lost."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

Batch = dict[str, Tensor | int]


def cut_rows(input_ids: Tensor, row_ids: Tensor, seq_len: int) -> tuple[Tensor, Tensor]:
    """(rows, long) to (rows * long / seq_len, seq_len), with an id for each new row.

    The pieces of row r have the ids r * pieces, r * pieces + 1, …: as constant and distinct as those of the rows.

    Raises:
        ValueError: if rows can't be cut evenly.
    """
    rows, length = input_ids.shape
    if seq_len < 1 or length % seq_len:
        raise ValueError(f"rows of {length} tokens can't be cut into rows of {seq_len}")
    pieces = length // seq_len
    ids = row_ids.repeat_interleave(pieces) * pieces
    piece = (row_ids.new_ones(len(ids)).cumsum(0) - 1) % pieces
    return input_ids.reshape(rows * pieces, seq_len), ids + piece


def split_by_tokens(batch: Batch, tokens: int) -> Sequence[Batch]:
    """Microbatches of at most `tokens` tokens each, whatever the length of the rows (at least one row each).

    Values that aren't tensors are the same in each.
    """
    input_ids = batch["input_ids"]
    assert isinstance(input_ids, Tensor)
    rows, seq_len = input_ids.shape
    size = max(1, tokens // seq_len)
    return [
        {key: value[start : start + size] if isinstance(value, Tensor) else value for key, value in batch.items()}
        for start in range(0, rows, size)
    ]

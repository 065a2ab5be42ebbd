"""Cutting blocks into shorter rows and batches into microbatches: nothing is lost, nothing changes its name."""

from __future__ import annotations

import pytest
import torch
from composer.algorithms.seq_length_warmup.seq_length_warmup import set_batch_sequence_length
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from bertchen.data.cutting import cut_rows, split_by_tokens

LENGTHS = st.sampled_from([(512, 64), (512, 128), (512, 256), (512, 512), (6, 1), (6, 2), (6, 3), (6, 6)])


def tokens(rows: int, length: int) -> Tensor:
    return torch.arange(rows * length).reshape(rows, length)


@given(st.integers(1, 9), LENGTHS)
def test_rows_are_those_that_composer_cuts(rows: int, lengths: tuple[int, int]) -> None:
    length, seq_len = lengths
    cut, _ = cut_rows(tokens(rows, length), torch.arange(rows), seq_len)
    expected = set_batch_sequence_length({"input_ids": tokens(rows, length)}, seq_len, truncate=False)["input_ids"]
    assert torch.equal(cut, expected)


@given(
    st.lists(st.integers(0, 2**40), min_size=1, max_size=9, unique=True),
    LENGTHS,
)
def test_ids_are_distinct_and_go_with_their_tokens(ids: list[int], lengths: tuple[int, int]) -> None:
    length, seq_len = lengths
    input_ids = torch.tensor(ids)[:, None] * length + torch.arange(length)
    cut, row_ids = cut_rows(input_ids, torch.tensor(ids), seq_len)
    assert len(set(row_ids.tolist())) == len(row_ids) == len(cut)
    # The first token of a piece tells block and place, whatever the batch around it.
    assert (row_ids * seq_len == cut[:, 0]).all()


@given(st.permutations(range(6)), st.sampled_from([64, 128, 256, 512]))
def test_ids_do_not_depend_on_the_batch(order: list[int], seq_len: int) -> None:
    input_ids, ids = tokens(6, 512), torch.arange(6) * 17
    together = dict(zip(*[part.tolist() for part in cut_rows(input_ids, ids, seq_len)[::-1]], strict=True))
    shuffled = cut_rows(input_ids[order], ids[order], seq_len)
    alone = [cut_rows(input_ids[at : at + 1], ids[at : at + 1], seq_len) for at in order]
    for rows, row_ids in [shuffled, *alone]:
        assert all(together[row_id] == row for row, row_id in zip(rows.tolist(), row_ids.tolist(), strict=True))


def test_ids_of_padding_stay_negative() -> None:
    """So an evaluation can tell the pieces of blocks that only fill up a batch."""
    _, row_ids = cut_rows(tokens(3, 8), torch.tensor([-1, 0, 5]), 2)
    assert (row_ids < 0).tolist() == [True] * 4 + [False] * 8


@pytest.mark.parametrize("seq_len", [0, -1, 5, 7, 16])
def test_uneven_cuts_are_refused(seq_len: int) -> None:
    with pytest.raises(ValueError, match=f"rows of 8 tokens can't be cut into rows of {seq_len}"):
        cut_rows(tokens(2, 8), torch.arange(2), seq_len)


@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 100))
def test_microbatches_joined_are_the_batch(rows: int, seq_len: int, limit: int) -> None:
    batch = {"input_ids": tokens(rows, seq_len), "row_ids": torch.arange(rows), "max_masked_per_row": 5}
    parts = split_by_tokens(batch, limit)
    for key in ("input_ids", "row_ids"):
        assert torch.equal(torch.cat([part[key] for part in parts]), batch[key])
    assert all(part["max_masked_per_row"] == 5 for part in parts)
    size = max(1, limit // seq_len)
    assert [len(part["input_ids"]) for part in parts] == [size] * (rows // size) + [rows % size] * (rows % size > 0)
    assert all(part["input_ids"].numel() <= max(limit, seq_len) for part in parts)

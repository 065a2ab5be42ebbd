"""Masking for masked language modelling (Devlin et al., 2019), decided by an integer hash.

Which tokens of a row are hidden, and how, is a pure function of `(seed, step, row id, position)`: the same on every
device, for every number of workers and processes, in any order of rows, and after a restart. The hash is the finalizer
of SplitMix64 (Steele et al., 2014), computed in wrapping int64 arithmetic.

Each row hides the rate's share of the tokens that can be hidden, rounded up or down at random such that the expected
share is the rate itself. So the number hidden has a bound, `max_masked_per_row`, and shapes can be fixed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

IGNORE_INDEX = -100

# Which question the hash answers for a position.
_CHOICE, _ACTION, _REPLACEMENT, _ROUNDING = range(4)
# Where a score has a bit that puts special tokens after all others: above its 24 random bits and any position's.
_LAST = 62
_GOLDEN = 0x9E3779B97F4A7C15
_MASK_64 = (1 << 64) - 1

# On a CPU, rows of so many tokens are masked at a time: few enough for its cache, and for PyTorch to leave them to one
# thread (it divides 32,768 and more). Threads would have to wait for each other after each of many small operations,
# which takes long where loader workers or other processes want the cores.
PIECE = 32_000


@dataclass(frozen=True)
class MaskingVocabulary:
    """What masking must know of a tokenizer.

    Attributes:
        mask_token_id: what hides a token.
        special: which ids are never hidden and never put in a token's place, bool, (vocab_size,).
        replacements: the other ids, int64, (vocab_size - number of special ids,).
    """

    mask_token_id: int
    special: Tensor
    replacements: Tensor

    @classmethod
    def build(cls, vocab_size: int, special_ids: Sequence[int], mask_token_id: int) -> MaskingVocabulary:
        """From the tokenizer's length (not the model's padded vocabulary) and its special ids.

        Raises:
            ValueError: if there is no id left to put in a token's place.
        """
        special = torch.zeros(vocab_size, dtype=torch.bool)
        special[torch.tensor(sorted({*special_ids, mask_token_id}))] = True
        replacements = (~special).nonzero().flatten()
        if not len(replacements):
            raise ValueError(f"all {vocab_size} tokens are special")
        return cls(mask_token_id, special, replacements)

    def to(self, device: torch.device) -> MaskingVocabulary:
        """The same, with its tensors on `device`."""
        return MaskingVocabulary(self.mask_token_id, self.special.to(device), self.replacements.to(device))


def max_masked_per_row(rate: float, seq_len: int) -> int:
    """The most tokens that `mask_tokens` hides in a row of `seq_len`."""
    return math.ceil(seq_len * rate)


def mask_tokens(
    input_ids: Tensor,
    row_ids: Tensor,
    vocabulary: MaskingVocabulary,
    rate: float,
    seed: int,
    step: int,
    mask_share: float = 0.8,
    random_share: float = 0.1,
) -> tuple[Tensor, Tensor]:
    """Hides `rate` of the tokens that aren't special.

    Args:
        input_ids: (rows, seq_len).
        row_ids: a number for each row that stays the same wherever and whenever it is read, int64, (rows,).
        vocabulary: see `MaskingVocabulary`, on the device of `input_ids`.
        rate: share to hide, 0 to 1.
        seed: of the run.
        step: of the training; a constant in evaluation, which so masks the same way every time.
        mask_share: of the chosen, the share that becomes the mask token.
        random_share: of the chosen, the share that becomes another token at random; the rest stays as it is.

    Returns:
        input_ids with tokens hidden, and labels: the tokens that were there, -100 where nothing was chosen.
    """
    if not 0 <= rate <= 1 or mask_share < 0 or random_share < 0 or mask_share + random_share > 1:
        raise ValueError(f"shares must lie in 0 to 1: {rate=}, {mask_share=}, {random_share=}")

    def piece(input_ids: Tensor, row_ids: Tensor) -> tuple[Tensor, Tensor]:
        return _mask_rows(input_ids, _row_keys(row_ids, seed, step), vocabulary, rate, mask_share, random_share)

    if input_ids.device.type != "cpu":
        return piece(input_ids, row_ids)
    after, labels = torch.empty_like(input_ids), torch.empty_like(input_ids)
    rows = max(1, PIECE // max(1, input_ids.shape[1]))
    for start in range(0, len(input_ids), rows):
        some = slice(start, start + rows)
        after[some], labels[some] = piece(input_ids[some], row_ids[some])
    return after, labels


def _mask_rows(
    input_ids: Tensor, keys: Tensor, vocabulary: MaskingVocabulary, rate: float, mask_share: float, random_share: float
) -> tuple[Tensor, Tensor]:
    """`mask_tokens` with the random bits of each row in the place of its number."""
    seq_len = input_ids.shape[1]
    keys = keys[:, None]
    special = vocabulary.special.index_select(0, input_ids.flatten()).view_as(input_ids)

    position = torch.arange(seq_len, device=input_ids.device)
    wanted = (seq_len - special.sum(dim=1)).double() * rate
    number = wanted.floor()
    number = number + (_uniform(_hash(keys, position[:1], _ROUNDING)).flatten() < wanted - number)

    # The tokens with the smallest scores are chosen. A score's lower bits are its position, which so comes with it.
    bits = max(1, (seq_len - 1).bit_length())
    score = _shift_right(_hash(keys, position, _CHOICE), 40).bitwise_left_shift_(bits).bitwise_or_(position)
    score.bitwise_or_(special.long().bitwise_left_shift_(_LAST))
    smallest = _sort_rows(score)[:, : max_masked_per_row(rate, seq_len)]
    position = smallest & ((1 << bits) - 1)
    chosen = torch.arange(position.shape[1], device=input_ids.device) < number[:, None]

    token = input_ids.gather(1, position)
    action = _uniform(_hash(keys, position, _ACTION))
    replacement = _shift_right(_hash(keys, position, _REPLACEMENT), 1) % len(vocabulary.replacements)
    replacement = vocabulary.replacements.index_select(0, replacement.flatten()).view_as(position)
    after = torch.where(action < mask_share + random_share, replacement.to(token.dtype), token)
    after = torch.where(action < mask_share, vocabulary.mask_token_id, after)
    labels = torch.full_like(input_ids, IGNORE_INDEX)
    return (
        input_ids.scatter(1, position, torch.where(chosen, after, token)),
        labels.scatter_(1, position, torch.where(chosen, token, IGNORE_INDEX)),
    )


def step_seed(seed: int, step: int, row: int) -> int:
    """A seed for PyTorch's generators, 0 to 2^63 - 1, for one step from a row of its global batch on."""
    return _mix_int(_mix_int(_mix_int(seed) + step) + row) >> 1


def _row_keys(row_ids: Tensor, seed: int, step: int) -> Tensor:
    key = _mix_int(_mix_int(seed) + step)
    return _mix(row_ids.long() * _signed(_GOLDEN) + _signed(key))


def _hash(keys: Tensor, position: Tensor, question: int) -> Tensor:
    """64 random bits for each position: keys (rows, 1), position (length,) or (rows, length), to (rows, length)."""
    return _mix(keys + (position * 4 + (question + 1)) * _signed(_GOLDEN))


def _sort_rows(x: Tensor) -> Tensor:
    """(rows, length) with each row ascending. On a CPU by NumPy, which takes a third of PyTorch's time."""
    return torch.from_numpy(np.sort(x.numpy(), axis=1)) if x.device.type == "cpu" else x.sort(dim=1).values


def _uniform(bits: Tensor) -> Tensor:
    """64 bits to a float32 in [0, 1), exact on every device."""
    return _shift_right(bits, 40).float() * 2.0**-24


def _mix(x: Tensor) -> Tensor:
    x = _shift_right(x, 30).bitwise_xor_(x).mul_(_signed(0xBF58476D1CE4E5B9))
    x = _shift_right(x, 27).bitwise_xor_(x).mul_(_signed(0x94D049BB133111EB))
    return _shift_right(x, 31).bitwise_xor_(x)


def _mix_int(x: int) -> int:
    """`_mix` on a Python integer, as an unsigned 64-bit number, after one golden-ratio increment."""
    x = (x + _GOLDEN) & _MASK_64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK_64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK_64
    return x ^ (x >> 31)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """A logical shift: PyTorch's int64 is signed and shifts in the sign."""
    return (x >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def _signed(x: int) -> int:
    return x - (1 << 64) if x >= 1 << 63 else x

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

import torch
from torch import Tensor

IGNORE_INDEX = -100

# Which question the hash answers for a position.
_CHOICE, _ACTION, _REPLACEMENT, _ROUNDING = range(4)
_GOLDEN = 0x9E3779B97F4A7C15
_MASK_64 = (1 << 64) - 1


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
    eligible = ~vocabulary.special[input_ids]
    keys = _row_keys(row_ids, seed, step)
    seq_len = input_ids.shape[1]

    wanted = eligible.sum(dim=1).double() * rate
    number = wanted.floor()
    number = number + (_uniform(_hash(keys, 1, _ROUNDING)).flatten() < wanted - number)
    score = _uniform(_hash(keys, seq_len, _CHOICE)).masked_fill(~eligible, 2.0)
    order = score.argsort(dim=1, stable=True)
    position = torch.arange(seq_len, device=input_ids.device).expand_as(order)
    rank = torch.empty_like(order).scatter_(1, order, position)
    chosen = rank < number[:, None]

    action = _uniform(_hash(keys, seq_len, _ACTION))
    replacement = vocabulary.replacements[
        _shift_right(_hash(keys, seq_len, _REPLACEMENT), 1) % len(vocabulary.replacements)
    ]
    masked = torch.where(chosen & (action < mask_share), vocabulary.mask_token_id, input_ids)
    replaced = chosen & (action >= mask_share) & (action < mask_share + random_share)
    return torch.where(replaced, replacement, masked), torch.where(chosen, input_ids, IGNORE_INDEX)


def step_seed(seed: int, step: int, rank: int) -> int:
    """A seed for PyTorch's generators, 0 to 2^63 - 1, for one step on one process."""
    return _mix_int(_mix_int(_mix_int(seed) + step) + rank) >> 1


def _row_keys(row_ids: Tensor, seed: int, step: int) -> Tensor:
    key = _mix_int(_mix_int(seed) + step)
    return _mix(row_ids.long() * _signed(_GOLDEN) + _signed(key))


def _hash(keys: Tensor, length: int, question: int) -> Tensor:
    """(rows,) to (rows, length): 64 random bits a position."""
    position = torch.arange(length, device=keys.device) * 4 + question + 1
    return _mix(keys[:, None] + position * _signed(_GOLDEN))


def _uniform(bits: Tensor) -> Tensor:
    """64 bits to a float32 in [0, 1), exact on every device."""
    return _shift_right(bits, 40).float() * 2.0**-24


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift_right(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shift_right(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shift_right(x, 31)


def _mix_int(x: int) -> int:
    """`_mix` on a Python integer, as an unsigned 64-bit number, after one golden-ratio increment."""
    x = (x + _GOLDEN) & _MASK_64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK_64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK_64
    return x ^ (x >> 31)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """A logical shift: PyTorch's int64 is signed and shifts in the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _signed(x: int) -> int:
    return x - (1 << 64) if x >= 1 << 63 else x

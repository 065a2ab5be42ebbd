"""Masking: shares, uniformity and repeatability, and the hash behind it against a reference in plain integers.

Statistical bounds are five standard deviations at fixed seeds.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bertchen.data import masking
from bertchen.data.masking import (
    IGNORE_INDEX,
    MaskingVocabulary,
    _mix,
    _mix_int,
    _signed,
    mask_tokens,
    max_masked_per_row,
    step_seed,
)

MASK = 3
SPECIAL = [0, 1, 2, 3, 40]
VOCAB_SIZE = 64
VOCABULARY = MaskingVocabulary.build(VOCAB_SIZE, SPECIAL, MASK)
ORDINARY = sorted(set(range(VOCAB_SIZE)) - set(SPECIAL))
SIGMAS = 5
GAMMA = 0x9E3779B97F4A7C15


class Masked(NamedTuple):
    """What masking made of `before`, and which tokens it chose."""

    before: Tensor
    after: Tensor
    labels: Tensor

    @property
    def chosen(self) -> Tensor:
        return self.labels != IGNORE_INDEX


def rows_of(count: int, seq_len: int, ids: list[int] = ORDINARY, seed: int = 0) -> Tensor:
    drawn = torch.randint(len(ids), (count, seq_len), generator=torch.Generator().manual_seed(seed))
    return torch.tensor(ids)[drawn]


def masked(before: Tensor, rate: float = 0.3, seed: int = 42, step: int = 7, **shares: float) -> Masked:
    after, labels = mask_tokens(before, torch.arange(len(before)), VOCABULARY, rate, seed, step, **shares)
    return Masked(before, after, labels)


def close_to(count: float, trials: float, share: float) -> bool:
    """Whether a count of independent trials lies within five standard deviations of its mean."""
    return abs(count - trials * share) <= SIGMAS * math.sqrt(trials * share * (1 - share)) + 1e-9


def test_unchosen_tokens_stay_and_labels_are_the_originals() -> None:
    result = masked(rows_of(200, 64, list(range(VOCAB_SIZE))))
    assert torch.equal(result.after[~result.chosen], result.before[~result.chosen])
    assert torch.equal(result.labels[result.chosen], result.before[result.chosen])
    assert (result.labels[~result.chosen] == -100).all()
    assert result.chosen.any()


def test_the_input_is_left_alone() -> None:
    before = rows_of(20, 64)
    kept = before.clone()
    masked(before)
    assert torch.equal(before, kept)


@pytest.mark.parametrize("rate", [0.15, 0.3, 0.5])
def test_special_tokens_are_never_chosen_and_never_put_in(rate: float) -> None:
    result = masked(rows_of(500, 64, list(range(VOCAB_SIZE))), rate, mask_share=0.0, random_share=1.0)
    special = torch.isin(result.before, torch.tensor(SPECIAL))
    assert special.any()
    assert not (result.chosen & special).any()
    assert not torch.isin(result.after[result.chosen], torch.tensor(SPECIAL)).any()


@settings(max_examples=40, deadline=None)
@given(
    rate=st.floats(0, 1),
    seq_len=st.integers(1, 40),
    seed=st.integers(0, 2**63 - 1),
    step=st.integers(0, 10**7),
)
def test_a_row_hides_the_floor_or_the_ceiling_of_its_share(rate: float, seq_len: int, seed: int, step: int) -> None:
    before = rows_of(30, seq_len, list(range(VOCAB_SIZE)), seed % 1000)
    result = masked(before, rate, seed, step)
    eligible = (~torch.isin(before, torch.tensor(SPECIAL))).sum(dim=1)
    for number, able in zip(result.chosen.sum(dim=1).tolist(), eligible.tolist(), strict=True):
        assert math.floor(able * rate) <= number <= math.ceil(able * rate)
        assert number <= max_masked_per_row(rate, seq_len)


@pytest.mark.parametrize(("rate", "seq_len"), [(0.3, 512), (0.3, 64), (0.15, 8), (0.01, 32), (0.2, 5), (0.999, 3)])
def test_the_mean_share_is_the_rate(rate: float, seq_len: int) -> None:
    """A row has floor(n * rate) tokens hidden, and one more with the probability of the rest."""
    rows = 4000
    result = masked(rows_of(rows, seq_len), rate)
    surplus = result.chosen.sum().item() - rows * math.floor(seq_len * rate)
    assert close_to(surplus, rows, seq_len * rate - math.floor(seq_len * rate))


@pytest.mark.parametrize(
    ("rate", "whole"), [(0.1, 10), (0.3, 30), (0.6, 60), (0.07, 7), (0.29, 29), (0.57, 57), (0.7, 70)]
)
def test_whole_shares_are_exact(rate: float, whole: int) -> None:
    """Although 100 * 0.07 is 7.000000000000001 in floating point, and 100 * 0.29 is 28.999999999999996."""
    numbers = masked(rows_of(300, 100), rate).chosen.sum(dim=1)
    assert (numbers == whole).all()
    assert whole <= max_masked_per_row(rate, 100)


@pytest.mark.parametrize(("rate", "seq_len", "bound"), [(0.3, 512, 154), (0.25, 8, 2), (0.0, 8, 0), (1.0, 8, 8)])
def test_bound_of_a_row(rate: float, seq_len: int, bound: int) -> None:
    assert max_masked_per_row(rate, seq_len) == bound


def test_80_10_10() -> None:
    result = masked(rows_of(2000, 128))
    chosen = result.chosen.sum().item()
    hidden = (result.after == MASK).sum().item()
    # A random token is the original itself once in len(ORDINARY) times.
    changed = (result.chosen & (result.after != MASK) & (result.after != result.before)).sum().item()
    assert close_to(hidden, chosen, 0.8)
    assert close_to(changed, chosen, 0.1 * (1 - 1 / len(ORDINARY)))


@pytest.mark.parametrize(("mask_share", "random_share"), [(1, 0), (0, 1), (0, 0), (0.5, 0.5), (0.2, 0.3)])
def test_other_shares(mask_share: float, random_share: float) -> None:
    result = masked(rows_of(1000, 128), mask_share=mask_share, random_share=random_share)
    chosen = result.chosen.sum().item()
    assert close_to((result.after == MASK).sum().item(), chosen, mask_share)
    unchanged = (result.chosen & (result.after == result.before)).sum().item()
    assert close_to(unchanged, chosen, 1 - mask_share - random_share + random_share / len(ORDINARY))


def chi_square(counts: Tensor) -> float:
    expected = counts.sum() / len(counts)
    return float(((counts - expected) ** 2 / expected).sum())


def chi_square_bound(cells: int) -> float:
    """Mean and five standard deviations of chi-square with cells - 1 degrees of freedom."""
    return cells - 1 + SIGMAS * math.sqrt(2 * (cells - 1))


def test_replacements_are_uniform_over_the_ordinary_tokens() -> None:
    result = masked(rows_of(2000, 128), mask_share=0.0, random_share=1.0)
    counts = result.after[result.chosen].bincount(minlength=VOCAB_SIZE)[ORDINARY].double()
    assert counts.sum() == result.chosen.sum()
    assert chi_square(counts) < chi_square_bound(len(ORDINARY))


def test_replacements_do_not_depend_on_the_token_replaced() -> None:
    result = masked(torch.full((2000, 128), ORDINARY[5]), mask_share=0.0, random_share=1.0)
    counts = result.after[result.chosen].bincount(minlength=VOCAB_SIZE)[ORDINARY].double()
    assert chi_square(counts) < chi_square_bound(len(ORDINARY))


def test_every_position_is_chosen_alike() -> None:
    result = masked(rows_of(4000, 64))
    for share, values in ((0.3, result.chosen), (0.24, result.after == MASK)):
        assert all(close_to(count, 4000, share) for count in values.sum(dim=0).tolist())


def correlation(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a.flatten().double(), b.flatten().double()]))[0, 1])


@pytest.mark.parametrize("distance", [1, 2, 4, 16])
def test_neighbours_are_not_correlated(distance: int) -> None:
    rows, seq_len = 4000, 64
    chosen = masked(rows_of(rows, seq_len)).chosen
    pairs = rows * (seq_len - distance)
    # The number chosen in a row is fixed, so two of its positions are correlated by -1 / (seq_len - 1).
    expected = -1 / (seq_len - 1)
    assert abs(correlation(chosen[:, distance:], chosen[:, :-distance]) - expected) < SIGMAS / math.sqrt(pairs)


@pytest.mark.parametrize("distance", [-2, -1, 1, 2])
def test_what_becomes_of_a_token_is_not_correlated_with_its_neighbours(distance: int) -> None:
    result = masked(rows_of(4000, 64), mask_share=0.5, random_share=0.5)
    hidden = result.after == MASK
    here, there = (
        (slice(None, -distance), slice(distance, None))
        if distance > 0
        else (slice(-distance, None), slice(None, distance))
    )
    chosen = result.chosen[:, here]
    for neighbour in (result.chosen[:, there], hidden[:, there]):
        assert abs(correlation(hidden[:, here][chosen], neighbour[chosen])) < SIGMAS / math.sqrt(chosen.sum().item())


def test_the_rounding_of_a_row_is_not_correlated_with_the_next_nor_with_its_tokens() -> None:
    result = masked(rows_of(20_000, 5), 0.3, mask_share=0.5, random_share=0.5)
    more = result.chosen.sum(dim=1) == 2
    assert abs(correlation(more[1:], more[:-1])) < SIGMAS / math.sqrt(len(more))
    hidden_first = (result.after == MASK)[:, 0]
    first = result.chosen[:, 0]
    assert abs(correlation(hidden_first[first], more[first])) < SIGMAS / math.sqrt(first.sum().item())


def test_the_same_again() -> None:
    before = rows_of(50, 64)
    first, second = masked(before), masked(before)
    assert torch.equal(first.after, second.after)
    assert torch.equal(first.labels, second.labels)


def test_pytorchs_generator_has_no_part_in_it() -> None:
    before = rows_of(50, 64)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = masked(before)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(masked(before).after, first.after)


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_order_and_grouping_of_rows_make_no_difference(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 20))
    row_ids = torch.tensor(
        data.draw(st.lists(st.integers(-(2**40), 2**40), min_size=count, max_size=count, unique=True))
    )
    before = rows_of(count, 24, list(range(VOCAB_SIZE)))
    whole = torch.stack(mask_tokens(before, row_ids, VOCABULARY, 0.3, 1, 2))
    order = torch.tensor(data.draw(st.permutations(range(count))))
    parts = order.split(data.draw(st.integers(1, count)))
    apart = [torch.stack(mask_tokens(before[part], row_ids[part], VOCABULARY, 0.3, 1, 2)) for part in parts]
    assert torch.equal(torch.cat(apart, dim=1), whole[:, order])


@pytest.mark.parametrize("piece", [1, 24, 100, 1_000_000])
def test_masking_in_pieces_makes_no_difference(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    before = rows_of(50, 24, list(range(VOCAB_SIZE)))
    each = [masked_row(before[row], row) for row in range(50)]
    monkeypatch.setattr(masking, "PIECE", piece)
    whole = masked(before)
    assert torch.equal(whole.after, torch.stack([after for after, _ in each]))
    assert torch.equal(whole.labels, torch.stack([labels for _, labels in each]))


def masked_row(before: Tensor, row: int) -> tuple[Tensor, Tensor]:
    after, labels = mask_tokens(before[None], torch.tensor([row]), VOCABULARY, 0.3, 42, 7)
    return after[0], labels[0]


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("id_dtype", [torch.int32, torch.int64])
def test_dtypes_make_no_difference(dtype: torch.dtype, id_dtype: torch.dtype) -> None:
    before = rows_of(20, 64, list(range(VOCAB_SIZE)))
    reference = masked(before)
    after, labels = mask_tokens(before.to(dtype), torch.arange(20, dtype=id_dtype), VOCABULARY, 0.3, 42, 7)
    assert torch.equal(after.long(), reference.after)
    assert torch.equal(labels.long(), reference.labels)


@pytest.mark.parametrize("other", [{"step": 8}, {"seed": 43}, {"step": 0}, {"seed": 42 + 2**40}])
def test_other_steps_and_seeds_are_not_correlated(other: dict[str, int]) -> None:
    rows, seq_len = 2000, 64
    before = rows_of(rows, seq_len)
    first, second = masked(before), masked(before, **other)
    assert abs(correlation(first.chosen, second.chosen)) < SIGMAS / math.sqrt(rows * seq_len)
    both = first.chosen & second.chosen
    assert abs(correlation((first.after == MASK)[both], (second.after == MASK)[both])) < SIGMAS / both.sum().sqrt()


def test_other_rows_are_not_correlated() -> None:
    rows, seq_len = 2000, 64
    chosen = masked(torch.full((rows, seq_len), ORDINARY[0])).chosen
    for shift in (1, 2, 8):
        assert abs(correlation(chosen[shift:], chosen[:-shift])) < SIGMAS / math.sqrt((rows - shift) * seq_len)


def test_no_two_rows_of_a_large_epoch_are_masked_alike() -> None:
    """Row ids, steps and seeds don't fold into each other: 3 seeds x 5 steps x 2,000 rows are all different."""
    before = torch.full((2000, 64), ORDINARY[0])
    patterns = {
        tuple(row)
        for seed in (0, 1, 42)
        for step in range(5)
        for row in masked(before, 0.3, seed, step).chosen.tolist()
    }
    assert len(patterns) == 3 * 5 * 2000


def test_rate_0_and_1() -> None:
    before = rows_of(20, 64, list(range(VOCAB_SIZE)))
    none = masked(before, 0.0)
    assert torch.equal(none.after, before)
    assert not none.chosen.any()
    every = masked(before, 1.0)
    assert torch.equal(every.chosen, ~torch.isin(before, torch.tensor(SPECIAL)))


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
def test_rows_without_a_token_to_hide_stay(rate: float) -> None:
    before = rows_of(20, 64, SPECIAL)
    result = masked(before, rate)
    assert torch.equal(result.after, before)
    assert not result.chosen.any()


def test_no_rows_give_no_rows() -> None:
    after, labels = mask_tokens(torch.empty(0, 8, dtype=torch.long), torch.empty(0), VOCABULARY, 0.3, 1, 1)
    assert after.shape == labels.shape == (0, 8)


@pytest.mark.parametrize(
    "wrong",
    [
        {"rate": -0.1},
        {"rate": 1.1},
        {"mask_share": -0.1},
        {"random_share": -0.1},
        {"mask_share": 0.8, "random_share": 0.3},
    ],
)
def test_shares_outside_of_0_to_1_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="shares"):
        masked(rows_of(2, 8), **wrong)


@given(st.integers(0, 100))
def test_shares_that_make_up_one_are_taken(percent: int) -> None:
    masked(rows_of(1, 8), mask_share=percent / 100, random_share=(100 - percent) / 100)


def test_vocabulary() -> None:
    built = MaskingVocabulary.build(10, [1, 0, 0], 4)
    assert built.special.tolist() == [True, True, False, False, True, False, False, False, False, False]
    assert built.replacements.tolist() == [2, 3, 5, 6, 7, 8, 9]
    with pytest.raises(ValueError, match="special"):
        MaskingVocabulary.build(3, [0, 1], 2)


def finalizer(z: int) -> int:
    """The output function of SplitMix64 (Steele et al., 2014, figure 17: mix64variant13), on a Python integer."""
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


WORD = st.integers(0, 2**64 - 1)


@given(st.lists(WORD, min_size=1, max_size=20))
def test_mix_is_splitmix64s_finalizer(words: list[int]) -> None:
    mixed = _mix(torch.tensor([_signed(word) for word in words]))
    assert [value % 2**64 for value in mixed.tolist()] == [finalizer(word) for word in words]


@given(st.integers(-(2**65), 2**65))
def test_mix_int_is_one_step_of_splitmix64(word: int) -> None:
    assert _mix_int(word) == finalizer((word + GAMMA) % 2**64)


def test_known_sequence_of_splitmix64() -> None:
    """The first outputs of SplitMix64 for the seed 1234567, as published with its reference implementation in C."""
    published = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert [_mix_int(1234567 + number * GAMMA) for number in range(5)] == published


@given(WORD)
def test_signed_is_the_same_64_bits(word: int) -> None:
    assert -(2**63) <= _signed(word) < 2**63
    assert _signed(word) % 2**64 == word


@given(st.integers(0, 2**63), st.integers(0, 2**40), st.integers(0, 2**16))
def test_step_seed_is_a_seed_for_pytorch(seed: int, step: int, row: int) -> None:
    number = step_seed(seed, step, row)
    assert 0 <= number < 2**63
    torch.Generator().manual_seed(number)


def test_step_seeds_differ() -> None:
    seeds = {step_seed(seed, step, row) for seed in range(5) for step in range(200) for row in range(8)}
    assert len(seeds) == 5 * 200 * 8


def by_hand(row: list[int], row_id: int, rate: float, seed: int, step: int) -> tuple[list[int], list[int]]:
    """Masking of a row as it is designed, in Python's integers: the same today, tomorrow and on every device.

    A row's key is the finalizer of `row_id * GAMMA + key`, the key two steps of SplitMix64 from seed and step. The
    question q (0: which tokens, 1: what becomes of them, 2: which token instead, 3: rounding) at position p is answered
    by the finalizer of the row's key + (4 p + q + 1) * GAMMA; its upper 24 bits make a number in [0, 1).
    """
    run = finalizer((finalizer((seed + GAMMA) % 2**64) + step + GAMMA) % 2**64)
    key = finalizer((row_id * GAMMA + run) % 2**64)

    def bits(position: int, question: int) -> int:
        return finalizer((key + (4 * position + question + 1) * GAMMA) % 2**64)

    def uniform(position: int, question: int) -> float:
        return (bits(position, question) >> 40) / 2**24

    able = [position for position, token in enumerate(row) if token not in SPECIAL]
    wanted = len(able) * rate
    number = math.floor(wanted) + (uniform(0, 3) < wanted - math.floor(wanted))
    after, labels = list(row), [-100] * len(row)
    for position in sorted(able, key=lambda position: uniform(position, 0))[:number]:
        labels[position] = row[position]
        action = uniform(position, 1)
        if action < 0.8:
            after[position] = MASK
        elif action < 0.9:
            after[position] = ORDINARY[(bits(position, 2) >> 1) % len(ORDINARY)]
    return after, labels


@settings(max_examples=30, deadline=None)
@given(
    row=st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=1, max_size=64),
    row_id=st.integers(-1, 2**40),
    rate=st.floats(0, 1, width=32),
    seed=st.integers(0, 2**32 - 1),
    step=st.integers(0, 10**6),
)
def test_masks_are_those_of_the_design(row: list[int], row_id: int, rate: float, seed: int, step: int) -> None:
    after, labels = mask_tokens(torch.tensor([row]), torch.tensor([row_id]), VOCABULARY, rate, seed, step)
    assert (after[0].tolist(), labels[0].tolist()) == by_hand(row, row_id, rate, seed, step)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("rate", [0.0, 0.15, 0.3, 1.0])
@pytest.mark.parametrize("seq_len", [1, 64, 512])
def test_a_gpu_masks_as_a_cpu_does(rate: float, seq_len: int) -> None:
    before = rows_of(1000, seq_len, list(range(VOCAB_SIZE)))
    row_ids = torch.arange(1000) * 1_234_567
    on_cpu = mask_tokens(before, row_ids, VOCABULARY, rate, 42, 7)
    device = torch.device("cuda")
    on_gpu = mask_tokens(before.to(device), row_ids.to(device), VOCABULARY.to(device), rate, 42, 7)
    for cpu, gpu in zip(on_cpu, on_gpu, strict=True):
        assert torch.equal(cpu, gpu.cpu())

"""The order of blocks against a plain list: the same global batches on any number of processes, workers and nodes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from streaming.base.partition import get_partitions
from streaming.base.shuffle import get_shuffle

from bertchen.data.order import PARTITION, default_parts, epoch_order


@dataclass(frozen=True)
class Layout:
    """Nodes, processes on each, loader processes of each."""

    nodes: int
    ranks: int
    workers: int

    @property
    def processes(self) -> int:
        return self.nodes * self.ranks


layouts = st.builds(Layout, st.integers(1, 6), st.integers(1, 4), st.integers(1, 3))


def batches_of(layout: Layout, samples: int, parts: int, global_batch: int, first: int = 0) -> list[list[list[int]]]:
    """What each process gets in each step, as its DataLoader asks its workers in turns: [step][rank][row]."""
    per_device = global_batch // layout.processes
    dealt = get_partitions(
        PARTITION, samples, parts, layout.nodes, layout.ranks, layout.workers, per_device, first, layout.nodes
    )
    assert dealt.shape == (layout.nodes, layout.ranks, layout.workers, dealt.shape[3], per_device)
    in_turns = dealt.transpose(3, 2, 0, 1, 4).reshape(-1, layout.processes, per_device)
    full = (in_turns >= 0).all(axis=(1, 2))
    assert (in_turns[~full] == -1).all(), "a batch is whole or not there, on all processes alike"
    assert full[: full.sum()].all(), "those that aren't there come last"
    return in_turns[full].tolist()


def flat(lists: Iterable[list[int]]) -> list[int]:
    return list(chain.from_iterable(lists))


def joined(steps: list[list[list[int]]]) -> list[list[int]]:
    return [flat(ranks) for ranks in steps]


@st.composite
def epochs(draw: st.DrawFn) -> tuple[int, int, int, list[Layout]]:
    """Blocks, parts, a global batch, and layouts whose processes divide it."""
    some = draw(st.lists(layouts, min_size=1, max_size=3))
    global_batch = int(np.lcm.reduce([layout.processes for layout in some])) * draw(st.integers(1, 3))
    samples = draw(st.integers(0, 5 * global_batch + 3))
    return samples, draw(st.integers(1, 20)), global_batch, some


@given(epochs(), st.data())
def test_all_layouts_read_the_batches_of_one_process(
    epoch: tuple[int, int, int, list[Layout]], data: st.DataObject
) -> None:
    samples, parts, global_batch, some = epoch
    alone = joined(batches_of(Layout(1, 1, 1), samples, parts, global_batch))
    assert len(alone) == samples // global_batch
    assert len(set(flat(alone))) == len(flat(alone)), "none twice"
    for layout in some:
        assert joined(batches_of(layout, samples, parts, global_batch)) == alone
    # Left after some steps, and gone on with by others.
    done, read = 0, []
    for layout in some:
        steps = joined(batches_of(layout, samples, parts, global_batch, first=done * global_batch))
        now = data.draw(st.integers(0, len(steps)))
        read += steps[:now]
        done += now
    assert read + joined(batches_of(some[0], samples, parts, global_batch, first=done * global_batch)) == alone


@given(epochs(), st.integers(1, 4))
def test_another_global_batch_goes_on_without_losing_or_repeating_a_block(
    epoch: tuple[int, int, int, list[Layout]], times: int
) -> None:
    samples, parts, global_batch, some = epoch
    steps = joined(batches_of(some[0], samples, parts, global_batch))
    half = len(steps) // 2
    rest = joined(batches_of(some[0], samples, parts, global_batch * times, first=half * global_batch))
    read = flat(steps[:half] + rest)
    assert sorted(read) == sorted(epoch_order(samples, parts)[: len(read)].tolist())


def parts_of(places: np.ndarray, samples: int, parts: int) -> np.ndarray:
    bounds = np.arange(parts + 1) * samples // parts
    return np.searchsorted(bounds, places, side="right") - 1


@given(st.integers(0, 300), st.integers(1, 40))
def test_an_epoch_has_each_block_once_from_all_parts_in_turn(samples: int, parts: int) -> None:
    order = epoch_order(samples, parts)
    assert sorted(order.tolist()) == list(range(samples))
    turns = order[: samples // parts * parts].reshape(-1, parts)
    assert (parts_of(turns, samples, parts) == np.arange(parts)).all()
    assert (np.diff(turns, axis=0) == 1).all(), "a part's blocks come in their order"
    assert epoch_order(samples, 1).tolist() == list(range(samples))


@pytest.mark.parametrize("parts", [1, 2, 8])
def test_parts_are_those_of_the_shuffle(parts: int) -> None:
    """A part has the same shards in every epoch: so a node has in its cache what it needs."""
    shards = np.array([9, 14, 3, 30, 7, 11])
    samples = int(shards.sum())

    def blocks_of_parts(epoch: int) -> list[list[int]]:
        shuffled = get_shuffle("py1e", shards, parts, seed=1, epoch=epoch, block_size=64)
        seen, part = shuffled[epoch_order(samples, parts)], parts_of(epoch_order(samples, parts), samples, parts)
        return [sorted(seen[part == number].tolist()) for number in range(parts)]

    assert sorted(flat(blocks_of_parts(0))) == list(range(samples))
    assert blocks_of_parts(0) == blocks_of_parts(1)


@pytest.mark.parametrize("nodes", [1, 2, 4, 8])
def test_a_node_reads_its_parts_alone(nodes: int) -> None:
    samples, parts, global_batch = 1000, 8, 64
    steps = np.array(batches_of(Layout(nodes, 2, 1), samples, parts, global_batch))
    by_node = steps.reshape(len(steps), nodes, -1)
    for node in range(nodes):
        assert len(set(parts_of(by_node[:, node].ravel(), samples, parts).tolist())) == parts // nodes


def test_three_nodes_read_few_parts_of_others() -> None:
    samples, parts, global_batch = 999, 8, 48
    by_node = np.array(batches_of(Layout(3, 1, 1), samples, parts, global_batch))
    for node in range(3):
        assert len(set(parts_of(by_node[:, node].ravel(), samples, parts).tolist())) <= 4


def test_the_end_of_an_epoch_is_empty() -> None:
    assert batches_of(Layout(2, 2, 2), 50, 4, 16, first=48) == []
    assert batches_of(Layout(2, 2, 2), 15, 4, 16) == []


@pytest.mark.parametrize(("shuffle", "global_batch", "parts"), [(True, 1024, 8), (True, 12, 4), (True, 7, 1)])
def test_default_parts_divide_the_batch(shuffle: bool, global_batch: int, parts: int) -> None:
    assert default_parts(shuffle, global_batch) == parts
    assert global_batch % parts == 0


def test_data_that_is_not_shuffled_keeps_its_order() -> None:
    parts = default_parts(False, 1024)
    steps = joined(batches_of(Layout(2, 2, 1), 4096, parts, 1024))
    assert flat(steps) == list(range(4096))

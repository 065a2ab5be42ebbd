"""A stream of several stages against plain loaders of each: whatever the order of switches, each goes on in its own."""

from __future__ import annotations

import json
import multiprocessing
import resource
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from streaming import MDSWriter
from streaming.base.dataset import _ShardState
from torch.utils.data import DataLoader

from bertchen.data.blocks import BlockDataset, train_loader
from bertchen.data.shared_memory import allow_open_files
from bertchen.data.stages import StageBlocks, StagedBlocks, staged_loader
from bertchen.errors import UserError

BLOCK, BATCH = 16, 4
BLOCKS = {"train_4": 9, "train_8": 14, "train_16": 27}
BATCHES = [blocks // BATCH for blocks in BLOCKS.values()]
FIRST = [0, 9, 23]

MakeStages = Callable[..., StagedBlocks]


def block(split: str, number: int) -> np.ndarray:
    """Tokens that tell their block: no two blocks are alike."""
    return (np.arange(BLOCK) * 7 + number * 3 + 100 * list(BLOCKS).index(split)).astype(np.uint16)


@pytest.fixture(scope="session")
def stage_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three folders of 9, 14 and 27 blocks of 16 tokens, several shards each."""
    folder = tmp_path_factory.mktemp("stage_shards")
    for split, blocks in BLOCKS.items():
        columns = {"input_ids": f"ndarray:uint16:{BLOCK}"}
        with MDSWriter(out=str(folder / split), columns=columns, size_limit=300) as writer:
            for number in range(blocks):
                writer.write({"input_ids": block(split, number)})
    return folder


def options(split: str, more: dict[str, Any]) -> dict[str, Any]:
    return {"split": split, "batch_size": BATCH, "shuffle": True, "shuffle_seed": 1, "num_canonical_nodes": 1, **more}


@pytest.fixture
def stages(stage_shards: Path, shared_memory_given_back: None) -> MakeStages:
    def make(workers: int = 0, seq_len: int = BLOCK, **more: Any) -> StagedBlocks:
        blocks = [StageBlocks(local=str(stage_shards), **options(split, more)) for split in BLOCKS]
        load = partial(train_loader, blocks_per_device=BATCH, seq_len=seq_len, num_workers=workers)
        return StagedBlocks(blocks, load, BATCH)

    return make


def numbers(batch: dict[str, Any]) -> list[int]:
    return batch["row_ids"].tolist()


@pytest.fixture
def alone(stage_shards: Path, shared_memory_given_back: None) -> list[list[list[int]]]:
    """Numbers of the batches of each folder in three epochs, as a plain loader gives them."""

    def epochs(split: str) -> list[list[int]]:
        data = BlockDataset(local=str(stage_shards), **options(split, {}))
        loader = train_loader(data, BATCH, BLOCK, 0)
        return [numbers(batch) for _ in range(3) for batch in loader]

    return [epochs(split) for split in BLOCKS]


def read(staged: StagedBlocks, schedule: Sequence[int]) -> list[list[int]]:
    """Row ids of a batch for each stage number of the schedule."""
    running = iter(staged_loader(staged))
    return [read_one(staged, running, stage) for stage in schedule]


def read_one(staged: StagedBlocks, running: Iterator[dict[str, Any]], stage: int) -> list[int]:
    staged.stage = stage
    return numbers(next(running))


def expected(alone: list[list[list[int]]], schedule: Sequence[int]) -> list[list[int]]:
    """Each stage's batches in its own order, with numbers that follow those of the stages before."""
    sequences = [iter(batches) for batches in alone]
    return [[number + FIRST[stage] for number in next(sequences[stage])] for stage in schedule]


# 2, 3 and 6 batches make an epoch of each.
SCHEDULES = {
    "forward": [0] * 2 + [1] * 3 + [2] * 8,
    "each but a while": [0] + [1] * 2 + [2] * 3,
    "back and forth": [2, 2, 0, 2, 0, 2, 2, 2, 0, 0, 2],
    "at every step": [0, 1, 2] * 5,
    "one for long": [1] * 9,
}


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_each_stage_goes_on_where_it_was(stages: MakeStages, alone: list, schedule: list[int]) -> None:
    assert read(stages(), schedule) == expected(alone, schedule)


def test_loader_processes_read_ahead_and_lose_nothing(stages: MakeStages, alone: list) -> None:
    schedule = SCHEDULES["back and forth"]
    assert read(stages(workers=2, seq_len=BLOCK), schedule) == expected(alone, schedule)


def test_loader_processes_run_for_the_current_stage_only(stages: MakeStages) -> None:
    staged = stages(workers=2)
    running = iter(staged_loader(staged))
    started = []
    for stage in (0, 1, 1, 2):
        read_one(staged, running, stage)
        started.append({process.pid for process in multiprocessing.active_children()})
    assert [len(processes) for processes in started] == [2, 2, 2, 2]
    assert started[1] == started[2]
    assert not started[0] & started[1]
    assert not started[1] & started[3]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_restart_anywhere_gives_the_rest(stages: MakeStages, workers: int) -> None:
    """The state is taken as Composer takes it: after a batch was trained on, whatever was read ahead."""
    schedule = [0, 0, 1, 2, 2, 2, 1, 2, 0, 1]
    whole = read(stages(), schedule)
    cuts = range(len(schedule)) if workers == 0 else (2, 6)
    for cut in cuts:
        interrupted = stages(workers)
        running = iter(staged_loader(interrupted))
        assert [read_one(interrupted, running, stage) for stage in schedule[:cut]] == whole[:cut]
        state = json.loads(json.dumps(interrupted.state_dict(cut * BATCH, True)))
        del running
        resumed = stages(workers)
        resumed.load_state_dict(state)
        assert resumed.state_dict(cut * BATCH, True) == state
        assert read(resumed, schedule[cut:]) == whole[cut:]


def test_a_batch_that_was_not_trained_on_comes_again(stages: MakeStages) -> None:
    """Training can be stopped when a batch was handed out, and before its step."""
    schedule = [0, 1, 2, 2]
    whole = read(stages(), schedule)
    for cut in range(len(schedule)):
        interrupted = stages()
        running = iter(staged_loader(interrupted))
        for stage in schedule[: cut + 1]:
            read_one(interrupted, running, stage)
        resumed = stages()
        resumed.load_state_dict(interrupted.state_dict(cut * BATCH, True))
        assert read(resumed, schedule[cut:]) == whole[cut:]


def test_a_state_can_be_loaded_in_the_middle(stages: MakeStages) -> None:
    staged = stages()
    running = iter(staged_loader(staged))
    state = staged.state_dict(0, True)
    first = [read_one(staged, running, stage) for stage in (0, 2, 2)]
    staged.load_state_dict(state)
    assert [read_one(staged, running, stage) for stage in (0, 2, 2)] == first


@pytest.mark.parametrize("seq_len", [4, 16])
def test_rows_of_different_stages_have_different_ids(stages: MakeStages, seq_len: int) -> None:
    """And each tells its block, so that a row is masked alike after a restart."""
    staged = stages(seq_len=seq_len)
    running = iter(staged_loader(staged))
    pieces = BLOCK // seq_len
    seen: list[int] = []
    for stage, split in enumerate(BLOCKS):
        staged.stage = stage
        for batch in islice(running, BATCHES[stage]):
            assert batch["input_ids"].shape == (BATCH * pieces, seq_len)
            ids = batch["row_ids"].reshape(BATCH, pieces)
            assert torch.equal(ids % pieces, torch.arange(pieces).expand(BATCH, pieces))
            blocks = (ids[:, 0] // pieces - FIRST[stage]).tolist()
            assert batch["input_ids"].reshape(BATCH, BLOCK).tolist() == [block(split, at).tolist() for at in blocks]
            seen += ids.flatten().tolist()
    assert len(set(seen)) == len(seen) == sum(BATCHES) * BATCH * pieces


def test_a_stage_runs_out_with_its_last_full_batch(stages: MakeStages) -> None:
    staged = stages()
    running = iter(staged_loader(staged))
    for stage, batches in enumerate(BATCHES):
        staged.stage = stage
        for _ in range(batches):
            assert not staged.has_run_out()
            next(running)
        assert staged.has_run_out()
    staged.stage = 0
    assert staged.has_run_out()
    staged.start_over()
    assert not staged.has_run_out()


def test_it_starts_over_in_another_order_and_sorted_data_in_the_same(
    stages: MakeStages, caplog: pytest.LogCaptureFixture
) -> None:
    passes = {}
    for shuffle in (True, False):
        with caplog.at_level("INFO", "bertchen"):
            batches = read(stages(shuffle=shuffle), [1] * 2 * BATCHES[1])
        assert caplog.messages == ["the data of train_8 starts over"]
        caplog.clear()
        passes[shuffle] = batches[: BATCHES[1]], batches[BATCHES[1] :]
    assert passes[True][0] != passes[True][1]
    assert passes[False][0] == passes[False][1] == [list(range(9 + at, 13 + at)) for at in (0, 4, 8)]


def test_a_shard_whose_fetching_was_broken_off_is_fetched_again(stages: MakeStages) -> None:
    """A loader process that has to end in the middle of it leaves its mark in shared memory."""
    staged = stages()
    whole = read(staged, [0, 1])
    again = stages()
    again.stages[0]._shard_states[0] = _ShardState.PREPARING
    assert read(again, [0, 1]) == whole


def test_its_loader_has_no_length_and_leaves_pytorchs_generator_alone(stages: MakeStages) -> None:
    loader = staged_loader(stages())
    assert isinstance(loader, DataLoader)
    with pytest.raises(TypeError):
        len(loader)
    torch.manual_seed(7)
    state = torch.get_rng_state()
    next(iter(loader))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("state", "theirs"),
    [
        ({"stages": {"train_4": {}, "train_16": {}}}, "[train_4,train_16]"),
        ({"stages": {"train_8": {}, "train_4": {}, "train_16": {}}}, "[train_8,train_4,train_16]"),
        ({"epoch": 0, "sample_in_epoch": 8}, "[]"),
    ],
)
def test_a_checkpoint_of_other_stages_is_refused(stages: MakeStages, state: dict[str, Any], theirs: str) -> None:
    with pytest.raises(UserError) as caught:
        stages().load_state_dict(state)
    assert str(caught.value).startswith("data.stage_splits=[train_4,train_8,train_16]: ")
    assert f"a run with {theirs}: " in str(caught.value)


def test_a_run_may_open_as_many_files_as_the_machine_allows() -> None:
    """With five folders the datasets of a few runs at once need more than the usual 1,024."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[0] - 1, before[1]))
    try:
        allow_open_files()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (before[1], before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)

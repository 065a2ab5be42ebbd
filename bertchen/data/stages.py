"""Data a stage: the training blocks of several folders as one stream of batches, each folder at a place of its own."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy.typing as npt
from streaming.base.dataset import _ShardState
from streaming.base.world import World
from torch import Generator, Tensor
from torch.utils.data import DataLoader, IterableDataset

from bertchen.data.blocks import BlockDataset
from bertchen.errors import UserError

log = logging.getLogger(__name__)


class StageBlocks(BlockDataset):
    """The blocks of one stage, read from a place that is set from outside.

    StreamingDataset keeps its place in shared memory, and each time it is iterated it begins the next epoch, unless a
    checkpoint was loaded before. A stage that is left and comes back begins in the middle of the same epoch: so here
    the place belongs to the object, and loader processes have it from their start.

    Attributes:
        epoch: how often all blocks were gone through before; the order of shuffled blocks depends on it.
        sample_in_epoch: blocks of this epoch that were handed out, over all processes.
        first_number: added to the blocks' numbers, so that those of different stages differ.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.epoch = 0
        self.sample_in_epoch = 0
        self.first_number = 0

    @property
    def split(self) -> str:
        """The folder's name."""
        return str(self.streams[0].split)

    def __getitem__(self, at: int) -> int:
        return super().__getitem__(at) + self.first_number

    def read(self, numbers: Sequence[int]) -> npt.NDArray:
        return super().read([number - self.first_number for number in numbers])

    def place(self) -> dict[str, Any]:
        """Where reading is, in StreamingDataset's own words, for a checkpoint."""
        return self.state_dict(self.sample_in_epoch, from_beginning=True)

    def load_state_dict(self, obj: dict[str, Any]) -> None:
        """Goes to a place that `place` gave, be it with another number of processes."""
        self.epoch, self.sample_in_epoch = obj["epoch"], obj["sample_in_epoch"]
        self.num_canonical_nodes, self.shuffle_seed = obj["num_canonical_nodes"], obj["shuffle_seed"]
        self.initial_physical_nodes = obj["initial_physical_nodes"]

    def stop_reading(self) -> None:
        """Ends the threads that read ahead, where this process itself was reading."""
        if hasattr(self, "_iterator"):
            self._iterator.non_blocking_exit()

    def _resume(self, world: World, epoch: int) -> tuple[int, int]:
        """Where to begin, which StreamingDataset asks at the start of an iteration."""
        self.num_canonical_nodes = self.num_canonical_nodes or world.num_nodes
        self._set_shuffle_block_size(world)
        return self.epoch, self.sample_in_epoch

    def _resume_incr_epoch(self) -> tuple[int, int]:
        place = super()._resume_incr_epoch()  # returns when nobody reads the stage any more
        if self._unique_worker_world.is_local_leader:
            # What a loader process was fetching when it had to end is fetched by nobody.
            states = self._shard_states.numpy()
            states[states == _ShardState.PREPARING] = _ShardState.REMOTE
        return place


class StagedBlocks(IterableDataset[dict[str, Tensor]]):
    """Batches from the folder of the current stage, without an end.

    There is no epoch of the whole: a stage whose full batches are used up has run out (a rest smaller than a batch is
    left out); whoever decides about stages then sets `stage`, else it starts over, shuffled anew. So durations are
    given in steps, tokens or samples.

    What loader processes have read ahead when a stage is left is given up. Only batches that were handed out count,
    so none is lost or repeated when the stage comes back. Processes run for the current stage only.

    Args:
        stages: the blocks of each stage.
        load: makes the batches of a stage from its place on, `train_loader` without its dataset.
        blocks_per_batch: over all processes.

    Attributes:
        stage: number of the stage that the next batch comes from, to be set between two batches. A checkpoint doesn't
            hold it: it belongs to whoever sets it.
    """

    def __init__(
        self, stages: Sequence[StageBlocks], load: Callable[[StageBlocks], DataLoader[Any]], blocks_per_batch: int
    ) -> None:
        self.stages = list(stages)
        self.load = load
        self.blocks_per_batch = blocks_per_batch
        self.stage = 0
        self._reading = 0
        self._handed_out = 0  # blocks since the beginning of the run
        self._batches: Iterator[dict[str, Tensor]] | None = None
        first_number = 0
        for blocks in self.stages:
            blocks.first_number = first_number
            first_number += blocks.num_samples

    @property
    def current(self) -> StageBlocks:
        """The blocks of the current stage."""
        return self.stages[self.stage]

    def has_run_out(self) -> bool:
        """Whether the current stage has no full batch left; the same on all processes."""
        return self.current.num_samples - self.current.sample_in_epoch < self.blocks_per_batch

    def start_over(self) -> None:
        """Lets the current stage begin anew, in another order if it is shuffled."""
        self._leave()
        self.current.epoch += 1
        self.current.sample_in_epoch = 0
        log.info("the data of %s starts over", self.current.split)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        self._leave()
        while True:
            if self.has_run_out():
                self.start_over()
            if self._batches is None or self._reading != self.stage:
                self._leave()
                self._reading = self.stage
                self._batches = iter(self.load(self.current))
            batch = next(self._batches, None)
            if batch is None:
                raise RuntimeError(f"{self.current.split} ended after {self.current.sample_in_epoch} blocks")
            self.current.sample_in_epoch += self.blocks_per_batch
            self._handed_out += self.blocks_per_batch
            yield batch

    def state_dict(self, num_samples: int, from_beginning: bool) -> dict[str, Any]:
        """The place of each stage.

        Args:
            num_samples: blocks that were trained on in the whole run. A batch that was handed out but isn't among them,
                because training was stopped before its step, comes again.
            from_beginning: always true.
        """
        places = {blocks.split: blocks.place() for blocks in self.stages}
        places[self.stages[self._reading].split]["sample_in_epoch"] -= self._handed_out - num_samples
        return {"stages": places, "trained": num_samples}

    def load_state_dict(self, obj: dict[str, Any]) -> None:
        """Goes to the places that a checkpoint holds.

        Raises:
            UserError: it is that of a run with other stages.
        """
        refuse_other_stages(obj, [blocks.split for blocks in self.stages])
        self._leave()
        self._handed_out = obj["trained"]
        for blocks in self.stages:
            blocks.load_state_dict(obj["stages"][blocks.split])

    def _leave(self) -> None:
        """Ends the processes and threads that read ahead."""
        self._batches = None
        self.stages[self._reading].stop_reading()


def refuse_other_stages(saved: dict[str, Any], splits: Sequence[str]) -> None:
    """Raises a UserError if a checkpoint's state of the training data isn't that of stages of these folders."""
    theirs = list(saved.get("stages", {}))
    if theirs != list(splits):
        raise UserError(
            f"data.stage_splits=[{','.join(splits)}]: the checkpoint is of a run with [{','.join(theirs)}]: give the "
            "same, or start anew with overwrite=true"
        )


def staged_loader(staged: StagedBlocks) -> DataLoader[Any]:
    """The batches as a DataLoader, in which alone Composer looks for the state of a dataset; it has no length.

    It draws from a generator of its own, so that starting it leaves PyTorch's alone.
    """
    return DataLoader(staged, batch_size=None, collate_fn=_as_it_is, generator=Generator())


def _as_it_is(batch: Any) -> Any:
    return batch

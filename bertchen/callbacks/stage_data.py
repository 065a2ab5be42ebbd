"""Hands each stage of a curriculum its own data, and goes on when that runs out."""

from __future__ import annotations

from typing import Protocol

from composer.core import Callback, State
from composer.loggers import Logger

from bertchen.callbacks.metrics_file import MetricsFile
from bertchen.data.stages import StagedBlocks

NEXT, RESTART = "next", "restart"
WHEN_STAGE_ENDS = (NEXT, RESTART)


class Stages(Protocol):
    """What a curriculum must offer.

    Attributes:
        stage: number of the current stage.
    """

    @property
    def stage(self) -> int: ...

    def move_on(self, state: State, logger: Logger, reason: str) -> bool:
        """Goes to the next stage, for a reason in words, and says so as at any switch; False where there is none."""
        ...


class StageData(Callback):
    """Before each step the loader learns the curriculum's stage; a stage whose data has run out is left or starts over.

    The last stage starts over in either case, and so do all of a curriculum that comes back to its stages. That the
    data starts over becomes an event in metrics.jsonl.

    Args:
        blocks: the loader's.
        curriculum: decides about stages.
        when_stage_ends: `next` or `restart`.
    """

    def __init__(self, blocks: StagedBlocks, curriculum: Stages, when_stage_ends: str) -> None:
        self.blocks = blocks
        self.curriculum = curriculum
        self.when_stage_ends = when_stage_ends

    def before_dataloader(self, state: State, logger: Logger) -> None:
        self.blocks.stage = self.curriculum.stage
        while self.blocks.has_run_out():
            split = self.blocks.current.split
            reason = f"the data of {split} ran out"
            if self.when_stage_ends == NEXT and self.curriculum.move_on(state, logger, reason):
                self.blocks.stage = self.curriculum.stage
                continue
            self.blocks.start_over()
            for destination in logger.destinations:
                if isinstance(destination, MetricsFile):
                    destination.log_event(state.timestamp.batch.value, event="data_starts_over", split=split)

"""Seeds PyTorch's generators anew at every microbatch: a restart continues as if nothing had happened."""

from __future__ import annotations

import torch
from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist

from bertchen.data.masking import step_seed


class StepSeed(Callback):
    """Dropout depends on the seed, the step and the place of a microbatch's first row in the global batch alone.

    So it depends neither on what was drawn before nor on who draws: another number of processes drops the same, as long
    as microbatches hold the same rows. Composer restores its saved generator states in mid-epoch only where it spins
    the loader forward itself, which it doesn't with StreamingDataset; evaluations and loaders draw from the generators
    too.

    Args:
        seed: of the run.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._row = 0

    def batch_start(self, state: State, logger: Logger) -> None:
        self._row = dist.get_global_rank() * len(state.batch["input_ids"])

    def before_forward(self, state: State, logger: Logger) -> None:
        torch.manual_seed(step_seed(self.seed, state.timestamp.batch.value, self._row))
        self._row += len(state.batch["input_ids"])

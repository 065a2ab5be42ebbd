"""Seeds PyTorch's generators anew at every step, so that a restart continues as if nothing had happened."""

from __future__ import annotations

import torch
from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist

from bertchen.data.masking import step_seed


class StepSeed(Callback):
    """Dropout of step n depends on the seed, n and the process alone, not on what was drawn before.

    Composer restores its saved generator states in mid-epoch only where it spins the loader forward itself, which it
    doesn't with StreamingDataset; evaluations and loaders draw from the generators too.

    Args:
        seed: of the run.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def batch_start(self, state: State, logger: Logger) -> None:
        torch.manual_seed(step_seed(self.seed, state.timestamp.batch.value, dist.get_global_rank()))

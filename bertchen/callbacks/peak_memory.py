"""Peak memory after every step, on a GPU and without one."""

from __future__ import annotations

import resource

import torch
from composer.core import Callback, State
from composer.loggers import Logger


def peak_memory() -> int:
    """Most memory in use so far [bytes]: allocated on the GPU, or resident in the process without one."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class PeakMemory(Callback):
    """Logs `memory/peak_gb` (10^9 bytes), see `peak_memory`."""

    def batch_end(self, state: State, logger: Logger) -> None:
        logger.log_metrics({"memory/peak_gb": peak_memory() / 1e9})

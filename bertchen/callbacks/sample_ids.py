"""`samples.jsonl`: which blocks each step was made of, exact across restarts."""

from __future__ import annotations

import json
import os
from pathlib import Path

from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist

from bertchen.callbacks.metrics_file import forget_repeated
from bertchen.data.row_ids import global_row_ids


class SampleIds(Callback):
    """Appends a line `{"step": 7, "blocks": [31, 4, …]}` at the start of each step.

    `step` is the number of steps before, as in `metrics.jsonl`; the blocks are those of the global batch in their
    order, whatever number of processes trains. On a restart the lines of steps that will be repeated are dropped.

    Args:
        path: of the file, on the first process.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def fit_start(self, state: State, logger: Logger) -> None:
        if dist.get_global_rank() == 0:
            forget_repeated(self.path, state.timestamp.batch.value)

    def batch_start(self, state: State, logger: Logger) -> None:
        blocks = global_row_ids(state.batch)
        if dist.get_global_rank() == 0:
            with self.path.open("a") as file:
                file.write(json.dumps({"step": state.timestamp.batch.value, "blocks": blocks}) + "\n")

"""`metrics.jsonl`: one JSON object a step with everything that was logged in it, exact across restarts."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import torch
from composer.core import State
from composer.loggers import Logger, LoggerDestination
from composer.utils import dist


def keep_before(lines: list[str], step: int) -> list[str]:
    """The lines of steps before `step`; a line cut off by a kill ends the file."""
    kept = []
    for line in lines:
        try:
            if json.loads(line)["step"] >= step:
                continue
        except (ValueError, KeyError, TypeError):
            break
        kept.append(line if line.endswith("\n") else line + "\n")
    return kept


def forget_repeated(path: Path, step: int) -> None:
    """Leaves in a file, which is made if it isn't there, what `keep_before` keeps: a restart writes the rest again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text("".join(keep_before(lines, step)))
    os.replace(temporary, path)


class MetricsFile(LoggerDestination):
    """Collects what is logged in a step and appends it as one line when the next step begins.

    `step` is the number of finished steps at the time of logging, so that a step's loss and the validation that
    followed the step before stand in one line. A step's events have lines of their own behind it. What was collected
    but not yet written is part of the checkpoint; on a restart the lines of steps that will be repeated are dropped.

    Args:
        path: of the file, on the first process.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._pending: dict[str, Any] = {}
        self._events: list[dict[str, Any]] = []

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        if step is None or dist.get_global_rank() != 0:
            return
        self._begin(step)
        self._pending.update({name: _number(value) for name, value in metrics.items()})

    def log_event(self, step: int, **facts: Any) -> None:
        """Collects a line of its own, `{"step": …, "event": …, …}`, to be written behind that of the step."""
        if dist.get_global_rank() == 0:
            self._begin(step)
            self._events.append({"step": step, **facts})

    def flush(self) -> None:
        """Writes what was collected."""
        if len(self._pending) > 1:  # not the step alone
            self._append(self._pending)
        for event in self._events:
            self._append(event)
        self._pending, self._events = {}, []

    def state_dict(self) -> dict[str, Any]:
        return {"pending": dict(self._pending), "events": list(self._events)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if dist.get_global_rank() == 0:  # every process loads what the first one saved
            self._pending, self._events = dict(state["pending"]), list(state["events"])

    def fit_start(self, state: State, logger: Logger) -> None:
        if dist.get_global_rank() != 0:
            return
        # A checkpoint in whose step nothing was logged yet still holds the step before it.
        forget_repeated(self.path, self._pending.get("step", state.timestamp.batch.value))

    def eval_standalone_start(self, state: State, logger: Logger) -> None:
        self.fit_start(state, logger)

    def close(self, state: State, logger: Logger) -> None:
        self.flush()

    def _begin(self, step: int) -> None:
        if self._pending and self._pending["step"] != step:
            self.flush()
        self._pending.setdefault("step", step)

    def _append(self, record: dict[str, Any]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")


def _number(value: Any) -> Any:
    """A logged value as JSON has it: NaN is null, infinities are text."""
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        value = value.item()
    elif hasattr(value, "tolist"):  # other tensors, and NumPy's numbers and arrays
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [_number(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value

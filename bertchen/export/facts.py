"""What a model card says of a training run, and where the validation results come from."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_VALIDATION = re.compile(r"metrics/(eval[^/]*)/([^/]+)")
_STEP_KEYS = ("step", "batch", "time/batch")


@dataclass(frozen=True)
class CardFacts:
    """Facts for the card. Everything may be missing; the card then doesn't speak of it.

    Attributes:
        name: of the model, as on the Hub (`owner/name`).
        parameters: their number, each counted once.
        steps: optimizer steps.
        tokens: tokens read in training, all epochs together.
        seconds: wall-clock time of training.
        hardware: what it ran on.
        precision: Composer's name of the precision.
        config: the resolved configuration of the run.
        manifest: the data's `manifest.json`.
        validation: evaluator (`eval_512`) to metric to value.
        validation_step: the step after which these were measured.
    """

    name: str | None = None
    parameters: int | None = None
    steps: int | None = None
    tokens: int | None = None
    seconds: float | None = None
    hardware: str | None = None
    precision: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    manifest: dict[str, Any] = field(default_factory=dict)
    validation: dict[str, dict[str, float]] = field(default_factory=dict)
    validation_step: int | None = None


def read_validation(path: Path, up_to: int | None = None) -> tuple[int | None, dict[str, dict[str, float]]]:
    """The last validation in a `metrics.jsonl`, which may be spread over several lines of one step.

    Args:
        path: one JSON object a line; a file that isn't there holds no validation.
        up_to: lines of later steps are left out: they are of a later model than the checkpoint's.

    Returns:
        The step, if the lines have one, and evaluator to metric to value.
    """
    step: int | None = None
    found: dict[str, dict[str, float]] = {}
    if not path.is_file():
        return step, found
    with open(path, encoding="utf-8", errors="replace") as lines:
        for line in lines:
            entry = _parse(line)
            values = {match: entry[key] for key in entry if (match := _VALIDATION.fullmatch(key))}
            at = next((int(entry[key]) for key in _STEP_KEYS if isinstance(entry.get(key), (int, float))), None)
            if not values or (at is not None and up_to is not None and at > up_to):
                continue
            if at is None or at != step:
                step, found = at, {}
            for match, value in values.items():
                if isinstance(value, (int, float)):
                    found.setdefault(match[1], {})[match[2]] = float(value)
    return step, found


def _parse(line: str) -> dict[str, Any]:
    """The line's object; an empty one for a line that a crash cut off."""
    try:
        entry = json.loads(line)
    except ValueError:
        return {}
    return entry if isinstance(entry, dict) else {}

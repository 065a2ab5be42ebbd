"""Reads `metrics.jsonl`."""

from __future__ import annotations

import json
import os
import statistics
from pathlib import Path
from typing import Any

from bertchen.errors import UserError

Rows = list[dict[str, Any]]


def read_metrics(path: str | os.PathLike[str]) -> Rows:
    """The lines of a run's `metrics.jsonl`; one cut off at the end of the file is left out.

    Raises:
        UserError: there is no such file, or it holds something else.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"{path}: can't be read: {error.strerror}; give the metrics.jsonl of a run") from None
    rows: Rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(json.loads(line))
        except ValueError:
            if number < len(lines):
                raise UserError(f"{path}, line {number}: not JSON; give the metrics.jsonl of a run") from None
    return rows


def series(rows: Rows, key: str, by: str = "step") -> tuple[list[float], list[float]]:
    """The values of `by` and of `key` where both were logged."""
    pairs = [(row[by], row[key]) for row in rows if row.get(key) is not None and row.get(by) is not None]
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def last_value(rows: Rows, key: str) -> float:
    """The last logged value of `key`."""
    return next(row[key] for row in reversed(rows) if key in row)


def median_value(rows: Rows, key: str) -> float:
    """The median of all logged values of `key`."""
    return statistics.median(row[key] for row in rows if row.get(key) is not None)

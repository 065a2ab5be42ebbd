"""A table of a report: Markdown that is aligned in a terminal too, and CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from bertchen.tasks.statistics import mean_std

NONE = "–"
_NARROWEST = 3  # Markdown knows a column by its dashes


@dataclass
class Table:
    """Cells as they are shown.

    Attributes:
        name: of its file, without ending.
        title: over it.
        columns: names of the columns; the first is to the left, the others to the right.
        rows: as many cells each.
        notes: below it.
    """

    name: str
    title: str
    columns: Sequence[str]
    rows: list[Sequence[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def markdown(self, level: int = 3) -> str:
        """The table with its title as a heading of a level, and its notes; without rows these alone."""
        blocks = [f"{'#' * level} {self.title}"]
        if self.rows:
            blocks.append(self._grid())
        if self.notes:
            blocks.append("\n".join(f"- {note}" for note in self.notes))
        return "\n\n".join(blocks)

    def _grid(self) -> str:
        lines = [[_escaped(cell) for cell in line] for line in (self.columns, *self.rows)]
        widths = [max(_NARROWEST, *map(len, column)) for column in zip(*lines, strict=True)]
        rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
        head, *body = (_padded(line, widths) for line in lines)
        return "\n".join("| " + " | ".join(line) + " |" for line in (head, rule, *body))

    def csv(self) -> str:
        """The cells, a header line first."""
        return as_csv([self.columns, *self.rows])


def as_csv(lines: Sequence[Sequence[object]]) -> str:
    """Lines of cells; numbers in full precision, None and NaN as nothing."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for line in lines:
        writer.writerow(["" if cell is None or cell != cell else cell for cell in line])
    return text.getvalue()


def spread(values: Sequence[float], decimals: int, mark: str = "") -> str:
    """`0.812 ± 0.004` of several values, `0.812` of one, `–` of none; the mark behind it."""
    values = [value for value in values if value is not None and not math.isnan(value)]
    if not values:
        return NONE
    mean, deviation = mean_std(values)
    shown = f"{mean:.{decimals}f}"
    return (shown if len(values) == 1 else f"{shown} ± {deviation:.{decimals}f}") + mark


def p_value(value: float) -> str:
    """`0.031`, or `< 0.001`."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _escaped(cell: str) -> str:
    return " ".join(str(cell).replace("|", "\\|").split())


def _padded(line: Sequence[str], widths: Sequence[int]) -> list[str]:
    first, *others = zip(line, widths, strict=True)
    return [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]

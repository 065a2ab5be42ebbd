"""Schema of scripts/report.py."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class ReportConfig:
    """What is reported, and where to.

    Attributes:
        results: files with results; the command takes them without a key as well.
        runs: folders of fine-tuning runs (or their metrics.jsonl) whose learning curves are drawn.
        out: folder for report.md, tables and pictures; those of an earlier report are replaced.
        tasks: names of tasks to report; none means all.
        rows: models beside a row of the paper's tables, by the row's name: rows.hybrid=[runs/a,runs/b]. Without it a
            model belongs to the row whose name is a part of its path, as the names of yamls/paper/ are.
        pictures: whether any are drawn.
    """

    results: list[str] = field(default_factory=list)
    runs: list[str] = field(default_factory=list)
    out: str = "report"
    tasks: list[str] = field(default_factory=list)
    rows: dict[str, list[str]] = field(default_factory=dict)
    pictures: bool = True

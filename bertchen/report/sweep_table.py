"""The tables that a sweep ends with: every model on every split, over its seeds."""

from __future__ import annotations

import os

from bertchen.report.evaluations import group, read_entries
from bertchen.report.task_tables import results_table, splits


def sweep_tables(results: str, hashes: set[str]) -> str:
    """A Markdown table for each task and split, of the records with these configuration hashes alone."""
    if not os.path.exists(results):
        return ""
    entries = [entry for entry in read_entries([results]) if entry.record.get("config_hash") in hashes]
    evaluations, notes = group(entries)
    tables = [results_table(models, evaluations).markdown() for models in splits(evaluations)]
    return "\n\n".join(["", *tables, *notes])

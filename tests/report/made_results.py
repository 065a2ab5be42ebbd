"""Results of models that are right so often, as files, and the report made of them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bertchen.config import load_config
from bertchen.config.schema_report import ReportConfig
from bertchen.report.tables import Table
from bertchen.report.task_report import Report, make_report
from bertchen.tasks.baselines import classification_baselines
from bertchen.tasks.metrics import classification_metrics
from bertchen.tasks.results import append_result, write_predictions

LABELS = ["0-Kein", "1-Gering", "2-Vorhanden", "3-Stark", "4-Extrem"]
SENTIMENT = ["negative", "neutral", "positive"]


class Results:
    """Writes records with predictions that are right so often."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / "results.jsonl"

    def add(self, task: str, split: str, model: str, seed: int, right: float, **more: Any) -> None:
        labels = {"germeval17": SENTIMENT, "germeval24": LABELS}[task]
        numbers = random.Random(f"{split}")
        gold = numbers.choices(labels, range(len(labels), 0, -1), k=120)
        numbers = random.Random(f"{model}-{seed}")
        predicted = [label if numbers.random() < right else numbers.choice(labels) for label in gold]
        rows = [{"id": str(i), "gold": a, "predicted": b} for i, (a, b) in enumerate(zip(gold, predicted, strict=True))]
        metrics = classification_metrics(gold, predicted, labels)
        baselines = classification_baselines(gold, gold, labels)
        self.record("classification", task, split, model, seed, metrics, rows, baselines=baselines, **more)

    def record(
        self, kind: str, task: str, split: str, model: str, seed: int, metrics: dict[str, float], rows: Sequence[Any],
        **more: Any,
    ) -> None:  # fmt: skip
        path = write_predictions(self.folder / "predictions", f"{task}-{split}-{seed}", rows)
        record = {
            "task": task, "kind": kind, "split": split, "model": model, "model_fingerprint": "f" * 12,
            "random_weights": False, "seed": seed, "protocol": "held_out", "metrics": metrics, "baselines": {},
            "examples": len(rows), "config": {"seed": seed, "optimizer": {"lr": 3e-5}}, "parameters": 137_000_000,
            "predictions": f"predictions/{path.name}",
        }  # fmt: skip
        append_result(self.path, record | more)


def report(results: Results, *arguments: str) -> Report:
    return make_report(load_config(ReportConfig, [f"results=[{results.path}]", *arguments], "usage"))


def tables(made: Report) -> dict[str, Table]:
    every = [table for section in made.sections for table in (*section.tables, *section.files)]
    found = {table.name: table for table in every}
    assert len(found) == len(every), "two tables of one name"
    return found


def column(table: Table, name: str) -> list[str]:
    place = list(table.columns).index(name)
    return [row[place] for row in table.rows]

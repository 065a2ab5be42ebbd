"""Lines of results.jsonl brought together: one `Evaluation` for a model on a split, over its seeds."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bertchen.config.load import flatten
from bertchen.errors import UserError
from bertchen.tasks.results import Record, read_results

TRAINING_MARK = "†"
TRAINING_NOTE = f"{TRAINING_MARK} measured on the training set: how well it was learned, not how well the task is done"

_REQUIRED = ("task", "kind", "split", "model", "seed", "metrics")
# Keys of a run's configuration that don't make another experiment of it.
_INCIDENTAL = (
    "autoresume", "callbacks", "compile", "console_log_interval", "data.folder", "dry_run", "eval_batch_tokens",
    "export", "loggers", "microbatch_size", "model", "name", "overwrite", "progress_bar", "protocol", "random_weights",
    "results", "save_folder", "seed", "task", "trust_remote_code",
)  # fmt: skip
_NAMED_DIFFERENCES = 3


@dataclass(frozen=True)
class Entry:
    """A record and the folder that its paths are relative to."""

    record: Record
    folder: Path

    @property
    def predictions(self) -> Path | None:
        """The file with its predictions, where it names one."""
        name = self.record.get("predictions")
        return self.folder / name if name else None


@dataclass
class Evaluation:
    """A model, fine-tuned in one way, on one split.

    Attributes:
        task, kind, split, protocol: as recorded.
        name: of the model as it was given.
        label: the name, and what tells it from others of that name.
        random_weights: whether it was fine-tuned from random weights.
        experiment: what it shares with the same runs on other splits.
        by_seed: an entry for each seed.
    """

    task: str
    kind: str
    split: str
    protocol: str
    name: str
    label: str
    random_weights: bool
    experiment: str
    by_seed: dict[int, Entry] = field(default_factory=dict)

    def values(self, metric: str) -> list[float]:
        """The metric of each seed that has it, in the order of the seeds."""
        found = (self.by_seed[seed].record["metrics"].get(metric) for seed in sorted(self.by_seed))
        return [value for value in found if value is not None]

    @property
    def on_training_set(self) -> bool:
        """Whether its figures were measured on what it was trained on."""
        return is_training_figure(self.split, self.protocol)

    @property
    def mark(self) -> str:
        """What stands behind each of its figures."""
        return TRAINING_MARK if self.on_training_set else ""

    def first(self, key: str) -> Any:
        """A fact that all seeds share, of the first that has it."""
        return next((entry.record[key] for entry in self.by_seed.values() if entry.record.get(key)), None)


def is_training_figure(split: str, protocol: str) -> bool:
    """Whether an evaluation of this split under this protocol is on the training set."""
    return split == "train" or protocol == "paper"


def standing(split: str, protocol: str) -> str:
    """What such a figure says, in words."""
    if protocol == "paper":
        return f"training set {TRAINING_MARK}, the paper's protocol"
    if split == "train":
        return f"training set {TRAINING_MARK}, for comparison only"
    return f"{split}, used for choosing" if split == "dev" else f"{split}, held out"


def read_entries(paths: Sequence[str | os.PathLike[str]]) -> list[Entry]:
    """The records of several files.

    Raises:
        UserError: a file can't be read, or a record lacks what is needed.
    """
    entries = []
    for path in paths:
        for record in read_results(path):
            missing = [key for key in _REQUIRED if record.get(key) is None]
            if missing:
                raise UserError(f"{path}: a record of {record['task']} has no {missing[0]}: it can't be reported")
            entries.append(Entry(record, Path(path).parent))
    return entries


def group(entries: Iterable[Entry]) -> tuple[list[Evaluation], list[str]]:
    """One evaluation for each model, way of fine-tuning and split; and notes about what was left out.

    Runs that differ in more than seed and places are different evaluations, whose labels say in what. Of several
    records of one seed the newest counts.
    """
    entries = list(entries)
    labels = _labels(entries)
    groups: dict[tuple[str, ...], Evaluation] = {}
    repeated = 0
    for entry in entries:
        record, experiment = entry.record, _experiment(entry.record)
        task, split, protocol = record["task"], record["split"], record.get("protocol", "held_out")
        evaluation = groups.setdefault(
            (task, split, protocol, experiment),
            Evaluation(
                task, record["kind"], split, protocol, record["model"], labels[task, experiment],
                bool(record.get("random_weights")), experiment,
            ),
        )  # fmt: skip
        repeated += record["seed"] in evaluation.by_seed
        evaluation.by_seed[record["seed"]] = entry
    notes = [f"{repeated} repeated evaluations of a seed: the newest counts"] if repeated else []
    return sorted(groups.values(), key=_place), notes


def _place(evaluation: Evaluation) -> tuple[Any, ...]:
    """Tests come first, what was trained on last."""
    split, protocol = evaluation.split, evaluation.protocol
    rank = 3 if protocol == "paper" else 2 if split == "train" else 0 if split.startswith("test") else 1
    return evaluation.task, rank, *test_order(evaluation)


def test_order(evaluation: Evaluation) -> tuple[bool, str]:
    """The synchronic test set of GermEval 2017 before the diachronic one, as the organisers have them."""
    return "diachronic" in evaluation.split, evaluation.split


def _experiment(record: Mapping[str, Any]) -> str:
    """What makes it one experiment: the model, its weights and the settings."""
    weights = None if record.get("random_weights") else record.get("model_fingerprint")
    return json.dumps([record["model"], weights, bool(record.get("random_weights")), _settings(record)], sort_keys=True)


def _settings(record: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: value
        for key, value in flatten(record.get("config") or {}).items()
        if key not in _INCIDENTAL and key.partition(".")[0] not in _INCIDENTAL
    }


def _labels(entries: Iterable[Entry]) -> dict[tuple[str, str], str]:
    """For each task and experiment the model's name and what tells it from the others of that name."""
    alike: dict[tuple[str, str, bool], dict[str, Mapping[str, Any]]] = defaultdict(dict)
    for entry in entries:
        record = entry.record
        key = record["task"], record["model"], bool(record.get("random_weights"))
        alike[key].setdefault(_experiment(record), record)
    labels = {}
    for (task, model, random_weights), experiments in alike.items():
        settings = {experiment: _settings(record) for experiment, record in experiments.items()}
        weights = {experiment: record.get("model_fingerprint") for experiment, record in experiments.items()}
        for experiment in experiments:
            marks = ["random weights"] if random_weights else []
            if not random_weights and len(set(weights.values())) > 1:
                marks.append(f"weights {str(weights[experiment])[:8]}")
            marks += _differences(settings[experiment], list(settings.values()))
            labels[task, experiment] = f"{model} ({', '.join(marks)})" if marks else model
    return labels


def _differences(settings: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> list[str]:
    """`optimizer.lr=1e-05` for each setting that isn't the same in all."""
    keys = sorted({key for other in others for key in other})
    differ = [key for key in keys if len({json.dumps(other.get(key), sort_keys=True) for other in others}) > 1]
    shown = [f"{key}={settings.get(key)}" for key in differ[:_NAMED_DIFFERENCES]]
    return shown + ([f"and {len(differ) - len(shown)} more"] if len(differ) > len(shown) else [])

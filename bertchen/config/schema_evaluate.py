"""What `scripts/evaluate.py` can be told."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING


@dataclass
class EvaluateConfig:
    """A sweep: every model is fine-tuned for every task with every seed.

    Attributes:
        models: each as `model` of a fine-tuning, or a mapping of it and whatever else is to be set for this one:
            `{model: runs/first, random_weights: true}`.
        tasks: `all` of yamls/finetune/, or a list of their names or of paths.
        seeds: so many, from 42 on, or a list of them.
        results: the file that all runs write their records to.
        save_folder: each run's folder lies in it, as <task>/<model>-<seed>-<hash of its configuration>.
        set: keys of fine-tuning configurations that are set for all runs, as `{max_duration: 1ep}`.
        processes: of each run; one a GPU. 1 starts `python main.py`, more the launcher.
        part: `1/4` does the first of four parts of the runs, for several commands side by side; null does all.
        keep_weights: leave checkpoints and best weights of finished runs, and export their models.
        dry_run: check everything, list the runs, start none.
    """

    models: list[Any] = MISSING
    tasks: Any = "all"
    seeds: Any = 5
    results: str = "results.jsonl"
    save_folder: str = "runs"
    set: dict[str, Any] = field(default_factory=dict)
    processes: int = 1
    part: str | None = None
    keep_weights: bool = False
    dry_run: bool = False

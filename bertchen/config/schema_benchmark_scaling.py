"""What `scripts/benchmark_scaling.py` can be told."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING


@dataclass
class BenchmarkScalingConfig:
    """The same pretraining run by several numbers of processes.

    Attributes:
        processes: to compare; the first is what the others are compared with. On GPUs each has one.
        train: keys of `yamls/pretrain.yaml`; `train.data.local=mds train.tokenizer=tokenizer` are needed.
        steps: timed steps of a run, after `warmup` that aren't.
        repetitions: turns of all numbers of processes, one after the other.
        folder: of the runs and their logs; what earlier ones left there is replaced.
    """

    processes: list[int] = field(default_factory=lambda: [1, 2])
    train: dict[str, Any] = MISSING
    steps: int = 30
    warmup: int = 10
    repetitions: int = 1
    folder: str = "runs/scaling"

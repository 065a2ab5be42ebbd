"""The tasks that have a YAML in `yamls/finetune/`, and configurations made of one and further values."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

YAML_FOLDER = Path(__file__).resolve().parents[2] / "yamls" / "finetune"


def task_names() -> list[str]:
    """The names of the YAMLs, without their ending."""
    return sorted(path.stem for path in YAML_FOLDER.glob("*.yaml"))


def find_task(name: str) -> str | None:
    """The YAML of a task: a path as it is, a name in `yamls/finetune/`; None if there is none."""
    path = Path(name) if name.endswith((".yaml", ".yml")) else YAML_FOLDER / f"{name}.yaml"
    return str(path) if path.is_file() else None


def as_overrides(values: Mapping[str, Any]) -> list[str]:
    """`{"seed": 1, "data": {"folder": "x"}}` as a command line has it: `seed=1`, `data.folder="x"`."""
    return [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in _leaves(values)]


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value

"""Schema of scripts/export_hf.py."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from omegaconf import MISSING

from bertchen.errors import UserError

_POSITIONAL = ("checkpoint", "out")


@dataclass
class ExportConfig:
    """An export.

    Attributes:
        checkpoint: file that Composer wrote, such as `runs/first/latest-rank0.pt`.
        out: folder to write.
        name: of the model in its card, as on the Hub (`owner/name`); null takes the folder's name.
        dtype: of the written weights: float32, which keeps the checkpoint's exactly, or bfloat16.
        overwrite: replace a folder that an earlier export wrote.
        trust_checkpoint: unpickle the whole checkpoint, which can run any code that is in it.
    """

    checkpoint: str = MISSING
    out: str = MISSING
    name: str | None = None
    dtype: str = "float32"
    overwrite: bool = False
    trust_checkpoint: bool = False


def as_overrides(argv: Sequence[str], usage: str) -> list[str]:
    """Rewrites `CHECKPOINT FOLDER key=value …` as `checkpoint=CHECKPOINT out=FOLDER key=value …`.

    A path may hold a `=` behind its first `/`. Configuration files (`.yaml`) and options are passed on.

    Raises:
        UserError: more than two paths.
    """
    others = [item for item in argv if re.match(r"-|\w[\w.]*=", item) or item.endswith((".yaml", ".yml"))]
    paths = [item for item in argv if item not in others]
    if len(paths) > len(_POSITIONAL):
        raise UserError(f"{paths[len(_POSITIONAL)]}: one argument too many; usage: {usage}")
    # Quoted, so that a path that reads as a number or a list in YAML stays a path.
    named = [f"{key}={json.dumps(path)}" for key, path in zip(_POSITIONAL, paths, strict=False)]
    return named + others

"""Schema of scripts/write_sample.py."""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import MISSING


@dataclass
class SampleConfig:
    """
    out: folder to write.
    characters: about so many characters of text.
    seed: another seed gives other documents.
    overwrite: replace a sample that is already in `out`.
    """

    out: str = MISSING
    characters: int = 3_000_000
    seed: int = 42
    overwrite: bool = False

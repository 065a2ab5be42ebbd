"""Schema of scripts/train_tokenizer.py; yamls/tokenizer.yaml explains the keys."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING


@dataclass
class TokenizerConfig:
    input: Any = MISSING
    out: str = MISSING
    text_column: str = "text"
    vocab_size: int = 32768
    min_frequency: int = 2
    alphabet_size: int = 1000
    max_documents: int | None = None
    max_characters: int | None = None
    held_out: float = 0.01
    compare_to: list[str] = field(default_factory=list)
    seed: int = 42
    overwrite: bool = False

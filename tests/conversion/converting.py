"""Running whole conversions of small corpora, and reading what they made by means of other libraries."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from streaming.base.format import reader_from_json

from bertchen.config import Config, load_config
from bertchen.config.schema_convert import ConvertConfig
from bertchen.conversion.convert import convert
from bertchen.tokenizer import load_tokenizer, separator_id

ROOT = Path(__file__).resolve().parents[2]
SCRIPT, YAML = ROOT / "scripts/convert_dataset.py", ROOT / "yamls/data/local.yaml"
BLOCK = 16

# What the manifest says of the run itself.
_OF_THE_RUN = ("config", "seconds", "created", "versions")


def some_texts(count: int, seed: int = 0) -> list[str]:
    """Texts of 1 to 60 words."""
    words = re.findall(r"\w+", "Über allen Gipfeln ist Ruh, in allen Wipfeln spürest du kaum einen Hauch")
    numbers = random.Random(seed)
    return [" ".join(numbers.choices(words, k=numbers.randint(1, 60))) for _ in range(count)]


def write_corpus(path: Path, texts: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


@cache  # it takes as long as a small conversion
def config_of(source: Path | None, tokenizer: str, out: Path | str, *overrides: str) -> Config[ConvertConfig]:
    """Of a conversion with small blocks, in this process; later overrides win."""
    where = [f"source.path={source}"] if source else []
    defaults = [f"tokenizer={tokenizer}", f"out={out}", f"block_size={BLOCK}", "val_blocks=3", "workers=1"]
    return load_config(ConvertConfig, [str(YAML), *where, *defaults, *overrides], "usage")


def run(source: Path | None, tokenizer: str, out: Path | str, *overrides: str) -> dict[str, Any]:
    """Converts; the manifest."""
    manifest = convert(config_of(source, tokenizer, out, *overrides))
    assert manifest is not None
    return manifest


def blocks_of(folder: Path) -> list[tuple[int, ...]]:
    """The blocks of a split, by Streaming's own reader, in the order in which they are written."""
    index = json.loads((folder / "index.json").read_text())
    readers = [reader_from_json(str(folder), None, shard) for shard in index["shards"]]
    return [tuple(reader[row]["input_ids"].tolist()) for reader in readers for row in range(reader.samples)]


def reference(tokenizer_folder: str, texts: list[str]) -> list[int]:
    """Hugging Face's tokens of each text and the separator, joined."""
    tokenizer = load_tokenizer(tokenizer_folder)
    encoded = [tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids for text in texts]
    return [token for ids in encoded if ids for token in [*ids, separator_id(tokenizer)]]


def cut(tokens: list[int]) -> Counter[tuple[int, ...]]:
    """The blocks of tokens that are cut from the first on; the remainder is left out."""
    whole = np.array(tokens[: len(tokens) // BLOCK * BLOCK]).reshape(-1, BLOCK)
    return Counter(map(tuple, whole.tolist()))


def everything_in(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too, with its content."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def converted(out: Path) -> dict[str, Any]:
    """All files of a converted data set; of the manifest what doesn't tell of the run."""
    return told_apart(everything_in(out))


def told_apart(files: dict[str, bytes]) -> dict[str, Any]:
    manifest = json.loads(files["manifest.json"])
    assert manifest.keys() >= set(_OF_THE_RUN)
    return {**files, "manifest.json": {name: value for name, value in manifest.items() if name not in _OF_THE_RUN}}

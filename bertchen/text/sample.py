"""Sample text for the demo: German documents of our own, from a small grammar, with nothing to download.

The documents are varied but follow rules that a masked language model can learn within minutes: agreement of
article, adjective and noun, verb forms and their places, words that go together, one topic a document.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from random import Random

import zstandard

from bertchen.text.german.documents import document
from bertchen.text.staging import staged_folder

_COMPRESSED_FILES = 3


def generate_documents(seed: int, characters: int) -> Iterator[str]:
    """Documents until they have at least `characters` characters together.

    The text depends on the seed alone: fewer characters give the beginning of the same documents.
    """
    rng = Random(seed)
    written = 0
    while written < characters:
        text = document(rng)
        written += len(text)
        yield text


def write_sample(folder: str, seed: int = 42, characters: int = 3_000_000, overwrite: bool = False) -> list[str]:
    """Writes the documents as JSON lines, `{"text": …, "id": …}`, into several `.jsonl.zst` and one `.jsonl`.

    Returns:
        The paths of the files.

    Raises:
        UserError: the folder isn't empty or can't be written; then nothing is left behind.
    """
    names = [*(f"sample-{number}.jsonl.zst" for number in range(_COMPRESSED_FILES)), "sample-last.jsonl"]
    with staged_folder(folder, holds="sample-*.jsonl*", overwrite=overwrite) as temporary:
        lines: list[list[str]] = [[] for _ in names]
        for number, text in zip(count(), generate_documents(seed, characters), strict=False):
            record = {"text": text, "id": f"sample-{seed}-{number:06}"}
            lines[number % len(names)].append(json.dumps(record, ensure_ascii=False) + "\n")
        for name, part in zip(names, lines, strict=True):
            raw = "".join(part).encode()
            compressed = zstandard.ZstdCompressor().compress(raw) if name.endswith(".zst") else raw
            (temporary / name).write_bytes(compressed)
    return [str(Path(folder) / name) for name in names]

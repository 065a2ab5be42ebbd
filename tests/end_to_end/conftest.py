"""A corpus, a tokenizer and shards, made once by the commands of README's first steps; all runs share them."""

from __future__ import annotations

import json
import logging
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch.distributed
import zstandard
from running import (
    BLOCK_SIZE,
    PYTHON,
    ROOT,
    Prepared,
    german_documents,
    names_in_shared_memory,
    succeed,
)
from shared_memory import given_back

import main
from bertchen.errors import user_errors

DOCUMENTS = 130


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prepared]:
    """About 240 training blocks of 64 tokens in several shards: 15 steps an epoch. Don't change it."""
    folder = tmp_path_factory.mktemp("prepared")
    made = Prepared(folder / "corpus", folder / "tokenizer", folder / "mds")
    made.corpus.mkdir()
    documents = german_documents(DOCUMENTS, seed=7)
    for name, part in (("a.jsonl.zst", documents[::2]), ("b.jsonl.zst", documents[1::2])):
        lines = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in part)
        (made.corpus / name).write_bytes(zstandard.ZstdCompressor().compress(lines.encode()))
    succeed(
        PYTHON, "scripts/train_tokenizer.py", "yamls/tokenizer.yaml", f"input={made.corpus}/*.jsonl.zst",
        f"out={made.tokenizer}", "vocab_size=400",
    )  # fmt: skip
    succeed(
        PYTHON, "scripts/convert_dataset.py", "yamls/data/local.yaml", f"source.path={made.corpus}",
        f"tokenizer={made.tokenizer}", f"out={made.mds}", f"block_size={BLOCK_SIZE}", "val_blocks=22",
        "shard_size=4096",
    )  # fmt: skip
    yield made
    _remove_shared_memory(tmp_path_factory.getbasetemp())


def _remove_shared_memory(folder: Path) -> None:
    """Removes what killed runs of these tests left: the segments that go with a `locals` which names `folder`."""
    for segment in names_in_shared_memory(folder):
        for other in segment.parent.glob(segment.name.replace("locals", "*")):
            other.unlink()


@pytest.fixture(scope="session")
def in_process() -> Callable[..., None]:
    """`main.py` as the launcher starts it, but in this process, which saves the seconds of its imports.

    The process group stays: to destroy gloo's now and then waits for ever (seen with torch 2.7).
    """
    return _in_process


def _in_process(*arguments: str) -> None:
    level = logging.getLogger("bertchen").level
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the other processes: sums in another order are other sums
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        try:
            with given_back(), user_errors():
                main.main(list(arguments))
        finally:
            torch.set_num_threads(threads)
            logging.getLogger("bertchen").setLevel(level)


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Makes small file systems in memory, of so many KiB; skips where this user can't mount."""
    folders: list[Path] = []

    def mount(kibibytes: int) -> Path:
        folder = tmp_path / f"disk{len(folders)}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={kibibytes}k", "tmpfs", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False) if os.getuid() == 0 else None
        if done is None or done.returncode:
            pytest.skip(f"needs to mount a tmpfs: {done.stderr.strip() if done else 'not root'}")
        folders.append(folder)
        return folder

    yield mount
    for folder in folders:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)

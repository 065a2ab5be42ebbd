"""Documents → blocks → shards: the work of scripts/convert_dataset.py.

Tokenize everything into one temporary file (`tokens`), decide about blocks and splits (`pack`), write the
blocks as shards in their order (`shards`), describe the result (`manifest`). The shards are the same, byte
for byte, for the same configuration, text and library versions; `workers` has no part in it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from bertchen.config import Config
from bertchen.config.schema_convert import ConvertConfig
from bertchen.data.manifest import MANIFEST, build_manifest, write_manifest
from bertchen.data.pack import SPLITTERS, STRATEGIES, Split
from bertchen.data.shards import write_shards
from bertchen.data.tokens import TokenFile, tokenize_documents
from bertchen.errors import UserError
from bertchen.text.readers import read_documents, resolve_paths, total_bytes
from bertchen.text.staging import staged_folder
from bertchen.tokenizer import load_tokenizer


def convert(config: Config[ConvertConfig]) -> dict[str, Any]:
    """Converts text files into `out/train`, `out/val` (MDS shards) and `out/manifest.json`.

    Needs room for twice the tokens (2 bytes each) in the file system of `out` while it runs.

    Returns:
        The manifest.

    Raises:
        UserError: a wrong value, nothing to read, damaged input, too little text, nowhere to write, a full
            disk. Then nothing is left behind, and an `out` that was there stays as it was.
    """
    begin = time.monotonic()
    settings = config.value
    _check(config)
    paths = resolve_paths(settings.source.path)
    with staged_folder(settings.out, holds=MANIFEST, overwrite=settings.overwrite) as folder:
        _check_not_replaced(config, paths)
        tokenizer = load_tokenizer(settings.tokenizer)
        _check_first_documents(paths, settings.source.text_column)
        tokens = _tokenize(paths, tokenizer, folder / "tokens.tmp", settings)
        splits = STRATEGIES[settings.strategy](tokens.lengths, tokens.keys, settings)
        counts = {name: _write(folder / name, tokens, split, settings) for name, split in splits.items()}
        tokens.path.unlink()
        manifest = build_manifest(
            config.to_dict(), tokenizer, tokens, splits, counts["train"], time.monotonic() - begin
        )
        write_manifest(folder, manifest)
    return manifest


def show_manifest(manifest: dict[str, Any]) -> str:
    """The figures of a conversion for the terminal."""
    dropped, splits = manifest["dropped_tokens"], manifest["splits"]
    tokens = manifest["tokens"]["in_documents"]
    lines = [
        f"{manifest['documents']:,} documents ({manifest['empty_documents']:,} empty), "
        f"{manifest['characters']:,} characters, {tokens:,} tokens, "
        f"{manifest['characters_per_token']:.2f} characters a token",
        *(
            f"{name}: {split['blocks']:,} blocks of {manifest['block_size']}, {split['tokens']:,} tokens, "
            f"{split['documents']:,} documents"
            for name, split in splits.items()
        ),
        f"dropped: {dropped['remainder']:,} tokens at the end of training, "
        f"{dropped['validation_documents']:,} tokens of validation documents",
        f"unigram entropy of training: {manifest['unigram_entropy_nats']:.4f} nats a token",
        f"{manifest['seconds']:.0f} s, {tokens / max(manifest['seconds'], 0.1):,.0f} tokens/s",
    ]
    return "\n".join(lines)


def _check(config: Config[ConvertConfig]) -> None:
    settings = config.value
    path = settings.source.path
    if not isinstance(path, str) and not (isinstance(path, list) and all(isinstance(item, str) for item in path)):
        config.fail("source.path", "should be a file, a folder, a glob or a list of these")
    for key, table in (("strategy", STRATEGIES), ("split_by", SPLITTERS)):
        if getattr(settings, key) not in table:
            config.fail(key, f"unknown, should be one of: {', '.join(table)}")
    for key, least in (("block_size", 2), ("val_blocks", 1), ("seed", 0), ("workers", 0)):
        if getattr(settings, key) < least:
            config.fail(key, f"should be at least {least}")
    if settings.seed >= 1 << 64:
        config.fail("seed", "should be below 2^64")
    smallest = 1024 + 8 * settings.block_size
    if not smallest <= settings.shard_size < 1 << 32:
        config.fail("shard_size", f"should be a number of bytes from {smallest} (a block) to {(1 << 32) - 1}")
    from streaming.base.compression import is_compression  # takes seconds to import

    if settings.compression is not None and not is_compression(settings.compression):
        config.fail("compression", "should be null or zstd (or zstd:1 to zstd:22)")


def _check_not_replaced(config: Config[ConvertConfig], paths: list[str]) -> None:
    """`overwrite` removes what is in `out`: not the text or the tokenizer that this conversion reads."""
    out = os.path.realpath(os.path.expanduser(config.value.out))
    for key, path in [("tokenizer", config.value.tokenizer), *(("source.path", path) for path in paths)]:
        if os.path.realpath(os.path.expanduser(path)).startswith(os.path.join(out, "")):
            config.fail(key, f"lies in out={config.value.out}, which is replaced: choose another out")


def _check_first_documents(paths: list[str], text_column: str) -> None:
    """Meets a wrong column or a wrong file before hours of work, not after them."""
    for path in paths:
        next(read_documents([path], text_column), None)


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _tokenize(paths: list[str], tokenizer: PreTrainedTokenizerBase, path: Path, settings: ConvertConfig) -> TokenFile:
    workers = settings.workers or available_cores()
    with tqdm(total=total_bytes(paths), unit="B", unit_scale=True, unit_divisor=1024, desc="tokenizing") as bar:
        documents = read_documents(paths, settings.source.text_column, bar.update)
        tokens = tokenize_documents(documents, tokenizer, path, settings.seed, workers)
    if not len(tokens.lengths):
        raise UserError(
            f"source.path={settings.source.path}: there is no text in {tokens.documents} documents of "
            f"{len(paths)} files"
        )
    return tokens


def _write(folder: Path, tokens: TokenFile, split: Split, settings: ConvertConfig) -> npt.NDArray[np.int64]:
    """Writes one split and counts its tokens by id."""
    counts = np.zeros(tokens.ids, dtype=np.int64)

    def counted() -> Iterator[npt.NDArray]:
        for batch in split.batches(tokens.open(), settings.block_size):
            counts[:] += np.bincount(batch.ravel(), minlength=tokens.ids)
            yield batch

    with tqdm(total=len(split.order), unit=" blocks", desc=f"writing {folder.name}") as bar:
        encoding = f"ndarray:{tokens.dtype.name}:{settings.block_size}"
        write_shards(folder, counted(), encoding, settings.shard_size, settings.compression, bar.update)
    return counts

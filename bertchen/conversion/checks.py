"""What is checked before a conversion begins: its keys, its folders, and the first rows of its input."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from bertchen.config import Config
from bertchen.config.schema_convert import ConvertConfig
from bertchen.conversion.engine import check_engine
from bertchen.conversion.pack import SPLITTERS, STRATEGIES
from bertchen.conversion.work import Output
from bertchen.errors import UserError
from bertchen.text.documents import NO_TEXT_COLUMN, NOT_A_STRING, Document, Rejected
from bertchen.text.readers import read_chunks
from bertchen.text.sources import Source

# So many files of a source are looked into before the work begins.
CHECKED_FILES, CHECKED_REMOTE_FILES = 64, 2

_COMPRESSION = re.compile(r"zstd(:([1-9]|1\d|2[0-2]))?")


def check_keys(config: Config[ConvertConfig]) -> None:
    """Checks the keys that can be wrong by themselves, those of the sources and of `clean` apart.

    Raises:
        UserError: names the key, its value and what would be right.
    """
    settings = config.value
    for key, table in (("strategy", STRATEGIES), ("split_by", SPLITTERS), ("on_bad_rows", ("fail", "skip"))):
        if getattr(settings, key) not in table:
            config.fail(key, f"unknown, should be one of: {', '.join(table)}")
    check_engine(config)
    for key, least in (("block_size", 2), ("val_blocks", 1), ("seed", 0), ("workers", 0)):
        if getattr(settings, key) < least:
            config.fail(key, f"should be at least {least}")
    if settings.seed >= 1 << 64:
        config.fail("seed", "should be below 2^64")
    smallest = 1024 + 8 * settings.block_size
    if not smallest <= settings.shard_size < 1 << 32:
        config.fail("shard_size", f"should be a number of bytes from {smallest} (a block) to {(1 << 32) - 1}")
    _check_lengths(config)
    if settings.compression is not None and not _COMPRESSION.fullmatch(settings.compression):
        config.fail("compression", "should be null or zstd (or zstd:1 to zstd:22)")
    if "://" not in settings.out:
        if not settings.keep_local:
            config.fail("keep_local", f"out={settings.out} is local, and nothing would be left: give a remote out")
        return
    if settings.overwrite:
        config.fail("overwrite", f"out={settings.out} is remote, where nothing is replaced: give another out")


def _check_lengths(config: Config[ConvertConfig]) -> None:
    """The keys that divide the data by sequence length."""
    settings = config.value
    is_packed = settings.strategy != "not_packed"
    for key, lengths in (("lengths", [] if is_packed else settings.lengths), ("stages", list(settings.stages))):
        for length in lengths:
            if length < 1 or settings.block_size % length:
                config.fail(key, f"{length} doesn't divide the blocks of block_size={settings.block_size} tokens")
    if not is_packed:
        if not settings.lengths or len(set(settings.lengths)) < len(settings.lengths):
            config.fail("lengths", "strategy=not_packed takes documents of these lengths: name each once")
        if settings.stages:
            config.fail("stages", "strategy=not_packed makes a folder for each of `lengths` already: leave it out")
    if settings.stages and (min(settings.stages.values()) <= 0 or abs(sum(settings.stages.values()) - 1) > 1e-6):
        config.fail("stages", "the shares should be positive and sum to 1")


def check_folders(config: Config[ConvertConfig], output: Output) -> None:
    """Checks that what is written doesn't lie where it would be read, and that `out` and `work` are two folders.

    Raises:
        UserError: they don't lie apart.
    """
    written = [("work", output.work), *([("out", output.folder)] if output.keeps_local else [])]
    if output.keeps_local and (_is_in(output.work, output.folder) or _is_in(output.folder, output.work)):
        raise UserError(f"work={output.work} and out={output.folder} lie in one another: choose another work")
    settings = config.value
    for name, source in (settings.sources or {"": settings.source}).items():
        paths = source.path if isinstance(source.path, list) else [source.path]
        for path in paths:
            if not isinstance(path, str) or not os.path.isdir(os.path.expanduser(path)):
                continue
            for key, folder in written:
                if _is_in(folder, Path(path).expanduser()):
                    raise UserError(
                        f"{key}={folder} lies in {f'sources.{name}' if name else 'source'}.path={path}, all of whose "
                        f"files are read, those of {key} too: choose another {key}"
                    )


def check_input_stays(config: Config[ConvertConfig], output: Output, sources: Sequence[Source]) -> None:
    """Checks that neither the text nor the tokenizer lies where things are removed: in `out`, replaced, or `work`.

    Raises:
        UserError: names the file.
    """
    settings = config.value
    removed = [("work", output.work), *([("out", output.folder)] if output.keeps_local else [])]
    paths = [("tokenizer", settings.tokenizer)]
    for source in sources:
        key = f"sources.{source.name}" if settings.sources else "source"
        paths += [(key, file.path) for file in source.files if "://" not in file.path]
    for key, folder in removed:
        inside = os.path.join(os.path.realpath(folder), "")
        for name, path in paths:
            if os.path.realpath(os.path.expanduser(path)).startswith(inside):
                raise UserError(f"{name}: {path} lies in {key}={folder}, which is removed: choose another {key}")


def check_first_rows(sources: Sequence[Source], skip: bool) -> None:
    """Meets a wrong column or a wrong file before hours of work, not after them.

    Args:
        skip: bad rows are skipped, so that they are wrong only where a source has nothing else.

    Raises:
        UserError: what is wrong with the first bad row.
    """
    for source in sources:
        files = source.files[: CHECKED_REMOTE_FILES if "://" in source.files[0].path else CHECKED_FILES]
        chunks = (next(read_chunks(file.path, source.rules), None) for file in files)
        rows = (chunk.rows() for chunk in chunks if chunk is not None)
        rejected = _nothing_but_wrong(rows) if skip else next(filter(None, map(_first_bad, rows)), None)
        if rejected is not None:
            raise UserError(rejected.message)


def _first_bad(rows: Iterable[Document | Rejected]) -> Rejected | None:
    """The first bad row, if no document comes before it."""
    for row in rows:
        if isinstance(row, Document):
            return None
        if row.is_bad:
            return row
    return None


def _nothing_but_wrong(files: Iterator[Iterator[Document | Rejected]]) -> Rejected | None:
    """The first row whose column is wrong, if no file begins with anything else."""
    first = None
    for rows in files:
        for row in rows:
            if isinstance(row, Document) or (row.is_bad and row.reason not in (NO_TEXT_COLUMN, NOT_A_STRING)):
                return None
            if row.is_bad:
                first = first or row
    return first


def _is_in(folder: Path, above: Path) -> bool:
    """Whether a folder is another one or lies in it."""
    return Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(above))

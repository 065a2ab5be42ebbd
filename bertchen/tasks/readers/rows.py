"""The rows of the files that tasks come in, each with its place: lines, CSV, JSON lines, Parquet; compressed or not.

A task's files are small, so they are read whole.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import os
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

import zstandard

from bertchen.errors import UserError
from bertchen.tasks.examples import Origin
from bertchen.text.documents import column_of, is_blank, json_type
from bertchen.text.files import StoredFile

_BATCH_ROWS = 1024
_ABSENT = object()


@dataclass(frozen=True)
class Skipped:
    """A row of a published file that gives no example: it lacks what is named in `reason`."""

    origin: Origin
    reason: str


def fail(origin: Origin, problem: str) -> NoReturn:
    """Raises the `UserError` for a row: its file and line, and what is wrong with it."""
    raise UserError(f"{origin}: {problem}")


def extension(path: str) -> str:
    """Of a file name without that of a compression: ".tsv" for dev.tsv.gz."""
    stem, last = os.path.splitext(path.lower())
    return os.path.splitext(stem)[1] if last in _DECOMPRESS else last


def read_text(path: str) -> str:
    """A file's text, decompressed. A byte order mark is left out.

    Raises:
        UserError: it can't be read or decompressed, is cut off, or isn't UTF-8.
    """
    with StoredFile(path) as file:
        raw = file.read()
    decompress = _DECOMPRESS.get(os.path.splitext(path.lower())[1])
    if decompress:
        try:
            raw = decompress(raw)
        except _DECOMPRESSION_ERRORS as error:
            raise UserError(f"{path}: damaged or cut off: {str(error) or type(error).__name__}") from None
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}:{line}: not UTF-8: {error.reason}") from None


def lines(path: str) -> Iterator[tuple[Origin, str]]:
    """The lines without their ends. Only a line feed ends a line: U+2028 and the like may stand in a text."""
    text = read_text(path)
    for number, line in enumerate(text.removesuffix("\n").split("\n") if text else (), 1):
        yield Origin(path, number), line.removesuffix("\r")


def fields(path: str, delimiter: str, quote: str | None) -> Iterator[tuple[Origin, list[str]]]:
    """The fields of a delimited file's rows, with the line that each begins in.

    Args:
        quote: character around fields that hold a delimiter, a line feed or itself (doubled); None: quotes are text.

    Raises:
        UserError: as `read_text`; a field whose quotes are wrong.
    """
    if quote is None:
        for origin, line in lines(path):
            yield origin, line.split(delimiter)
        return
    csv.field_size_limit(sys.maxsize)  # of the whole process; the limit is there for files that one doesn't trust
    reader = csv.reader(io.StringIO(read_text(path), newline="\n"), delimiter=delimiter, quotechar=quote, strict=True)
    while True:
        origin = Origin(path, reader.line_num + 1)
        try:
            row = next(reader, None)
        except csv.Error as error:
            fail(origin, f"not a row of fields with {delimiter!r} between and {quote!r} around them: {error}")
        if row is None:
            return
        yield origin, row


def records(path: str) -> Iterator[tuple[Origin, dict[str, Any]]]:
    """The rows of a Parquet file, or else of JSON lines, by column. Blank lines are passed over.

    Raises:
        UserError: as `read_text`; a file that isn't Parquet; a line that isn't a JSON object.
    """
    return _parquet_records(path) if extension(path) == ".parquet" else _json_records(path)


def text_of(record: dict[str, Any], column: str, origin: Origin) -> str:
    """A column that has to hold a text; a dot leads into a nested one.

    Raises:
        UserError: it isn't there, is no text or a blank one.
    """
    value = column_of(record, column, _ABSENT)
    if value is _ABSENT:
        fail(origin, f"no column {column}; columns there: {', '.join(map(str, record)) or 'none'}")
    if not isinstance(value, str):
        fail(origin, f"{column} is {json_type(value)}, should be a string")
    if is_blank(value):
        fail(origin, f"{column} is empty")
    return value


def name_of(record: dict[str, Any], column: str, origin: Origin) -> str:
    """A column that holds a name, such as an id or a label: a text, or a whole number, which becomes one.

    Raises:
        UserError: as `text_of`.
    """
    value = column_of(record, column, None)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return text_of(record, column, origin)


def _json_records(path: str) -> Iterator[tuple[Origin, dict[str, Any]]]:
    for origin, line in lines(path):
        if is_blank(line):
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            fail(origin, f"not JSON: {error}")
        if not isinstance(record, dict):
            fail(origin, f"a JSON {json_type(record)}, should be an object")
        yield origin, record


def _parquet_records(path: str) -> Iterator[tuple[Origin, dict[str, Any]]]:
    # Few tasks come as Parquet, and pyarrow takes a while to import.
    import pyarrow as pa
    import pyarrow.parquet as pq

    row = 0
    with StoredFile(path, at_random=True) as file:
        try:
            for batch in pq.ParquetFile(file).iter_batches(_BATCH_ROWS, use_threads=False):
                for record in batch.to_pylist():
                    row += 1
                    yield Origin(path, row), record
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            if file.error:
                raise file.error from error
            raise UserError(f"{path}: not a readable Parquet file behind row {row}: {error}") from None


def _unzstd(raw: bytes) -> bytes:
    """Decompresses one or more frames; unlike the library's own reader, it doesn't take a cut-off frame as it is."""
    pieces = []
    while raw:
        frame = zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()
        pieces.append(frame.decompress(raw))
        if not frame.eof:
            raise EOFError("the file ends inside a frame")
        raw = frame.unused_data
    return b"".join(pieces)


_DECOMPRESS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.decompress,
    ".bz2": bz2.decompress,
    ".xz": lzma.decompress,
    ".zst": _unzstd,
}
_DECOMPRESSION_ERRORS = (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError, zstandard.ZstdError)
COMPRESSIONS = tuple(_DECOMPRESS)

"""Documents from files, one at a time: JSON lines, Parquet and plain text, compressed or not, local or not.

Nothing is skipped in silence: what isn't a document is a `UserError` that names file and line. Memory is
bound by the longest document, not by the file. Files are opened through fsspec, so a source may also be a URL
such as `s3://bucket/folder` where fsspec's package for it is installed. Decompression is ours because fsspec
ends a cut-off zstd file, or one of several frames, without an error.
"""

from __future__ import annotations

import bz2
import json
import lzma
import os
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import fsspec
import zstandard
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from bertchen.errors import UserError

CHUNK_BYTES = 1 << 16
PARQUET_ROWS = 64
_MAGIC = re.compile(r"[*?\[]")

# Each has `decompress(bytes)`, `eof` and `unused_data`, and reads one gzip member, zstd frame, … of a file.
_DECOMPRESSORS: dict[str, Callable[[], Any]] = {
    ".gz": lambda: zlib.decompressobj(wbits=31),
    ".zst": lambda: zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj(),
    ".bz2": bz2.BZ2Decompressor,
    ".xz": lzma.LZMADecompressor,
}
_DECOMPRESSION_ERRORS = (zlib.error, zstandard.ZstdError, lzma.LZMAError, OSError, EOFError)


@dataclass(frozen=True)
class Document:
    """One document.

    Attributes:
        text: its text as it stands in the file, possibly empty.
        path: the file that it comes from, as `resolve_paths` gave it.
        row: its line or row in that file, from 0; always 0 in a text file.
    """

    text: str
    path: str
    row: int


def resolve_paths(source: str | Sequence[str]) -> list[str]:
    """The files that `source` names: sorted, each once.

    Args:
        source: a file, a folder (searched recursively for every known extension; hidden files and folders
            are passed over), a glob such as `corpus/**/*.jsonl.gz`, or a list of these. Paths or fsspec
            URLs. A path relative to the working directory stays relative.

    Raises:
        UserError: a part of `source` names no file, or a file of an unknown kind.
    """
    sources = [source] if isinstance(source, str) else list(source)
    if not sources:
        raise UserError("the source of the documents is an empty list: name a file, a folder or a glob")
    found = [path for item in sources for path in _resolve(str(item))]
    return sorted({url_to_fs(path)[1]: path for path in found}.values())


def total_bytes(paths: Sequence[str]) -> int:
    """Size of the files as stored (compressed): the sum of what `read_documents` reports to `on_bytes`."""
    return sum(_size(path) for path in paths)


def read_documents(
    paths: Sequence[str],
    text_column: str = "text",
    on_bytes: Callable[[int], None] | None = None,
) -> Iterator[Document]:
    """The documents of the files, in the order of the files and their rows.

    Kinds of file: `.jsonl` and `.json` (an object on each line; blank lines are passed over), `.txt` (one
    document) and `.parquet`; all but the last also with `.gz`, `.zst`, `.bz2` or `.xz` behind. An empty text
    is a document; null is not text.

    Args:
        paths: files, as from `resolve_paths`.
        text_column: key or column that holds the text; text files have none.
        on_bytes: called with the number of stored (compressed) bytes read since its last call.

    Raises:
        UserError: a file that can't be read, is cut off or damaged, or holds bytes that aren't UTF-8; a line
            that isn't a JSON object; a row in which `text_column` is missing or no text.
    """
    report = on_bytes or (lambda _: None)
    for path in paths:
        kind, _ = _kind(path)
        yield from _READERS[kind](path, text_column, report)


def _resolve(source: str) -> list[str]:
    if not source:
        raise UserError("the source of the documents is empty: name a file, a folder or a glob")
    try:
        filesystem, root = url_to_fs(source)
    except (ImportError, ValueError) as error:
        raise UserError(f"{source}: fsspec can't open it: {error}") from None
    local = isinstance(filesystem, LocalFileSystem)
    absolute = os.path.isabs(source) or source.startswith(("~", "file:", "local:"))
    with _readable(source):
        if filesystem.isfile(root):
            _kind(source)
            return [os.path.relpath(root) if local and not absolute else source]
        if filesystem.isdir(root):
            found, fixed = filesystem.find(root), root
        else:
            found, fixed = (
                [path for path in filesystem.glob(root) if filesystem.isfile(path)],
                _MAGIC.split(root)[0],
            )
    found = [path for path in found if not _hidden(path[len(fixed) :])]
    known = [path for path in found if _split_extension(path)]
    if not known and found:
        raise UserError(f"{source}: none of its {len(found)} files is of a known kind, not {found[0]}; known: {_KNOWN}")
    if not known:
        raise UserError(f"{source}: matches no file: name a file, a folder with files in it or a glob")
    if not local:
        return [filesystem.unstrip_protocol(path) for path in known]
    return known if absolute else [os.path.relpath(path) for path in known]


def _hidden(path: str) -> bool:
    return any(part.startswith(".") for part in path.split("/"))


def _split_extension(path: str) -> tuple[str, str] | None:
    """(kind, compression) of a file name, None where the kind is unknown."""
    stem, last = os.path.splitext(path.lower())
    compression = last if last in _DECOMPRESSORS else ""
    kind = os.path.splitext(stem)[1] if compression else last
    if kind not in _READERS or (compression and kind == ".parquet"):
        return None
    return kind, compression


def _kind(path: str) -> tuple[str, str]:
    extension = _split_extension(path)
    if extension is None:
        raise UserError(f"{path}: unknown kind of file; known: {_KNOWN}")
    return extension


def _size(path: str) -> int:
    filesystem, root = url_to_fs(path)
    with _readable(path):
        return int(filesystem.size(root) or 0)


@contextmanager
def _readable(path: str) -> Iterator[None]:
    """Turns errors of the file system into `UserError`."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: can't be read: {error.strerror or error}") from error


def _read_json_lines(path: str, text_column: str, report: Callable[[int], None]) -> Iterator[Document]:
    for row, line in enumerate(_lines(_chunks(path, report))):
        where = f"{path}, line {row + 1}"
        decoded = _decode(line, where)
        if not decoded or decoded.isspace():
            continue
        try:
            record = json.loads(decoded)
        except (json.JSONDecodeError, RecursionError) as error:
            raise UserError(f"{where}: not JSON ({error}); each line should hold one object") from None
        if not isinstance(record, dict):
            raise UserError(f"{where}: JSON {_json_type(record)}, should be an object with a text")
        if text_column not in record:
            _fail_column(where, text_column, record)
        yield Document(_text(record[text_column], where, text_column), path, row)


def _read_text(path: str, text_column: str, report: Callable[[int], None]) -> Iterator[Document]:
    yield Document(_decode(b"".join(_chunks(path, report)), path), path, 0)


def _read_parquet(path: str, text_column: str, report: Callable[[int], None]) -> Iterator[Document]:
    # Only Parquet needs pyarrow, and training imports this package without reading any.
    import pyarrow
    import pyarrow.parquet

    size = _size(path)
    row = reported = 0
    with _readable(path), fsspec.open(path, "rb") as file:
        try:
            # With a buffer size, a row group's column is read page by page instead of whole.
            parquet = pyarrow.parquet.ParquetFile(file, buffer_size=CHUNK_BYTES)
            fields = parquet.schema_arrow
            if text_column not in fields.names:
                _fail_column(path, text_column, fields.names)
            kind = fields.field(text_column).type
            if pyarrow.types.is_dictionary(kind):
                kind = kind.value_type
            if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
                raise UserError(f"{path}: column {text_column} holds {kind}, should hold strings")
            rows = parquet.metadata.num_rows
            for batch in parquet.iter_batches(batch_size=PARQUET_ROWS, columns=[text_column]):
                for value in batch.column(0):
                    where = f"{path}, row {row + 1}"
                    try:
                        text = value.as_py()
                    except UnicodeDecodeError as error:
                        raise UserError(f"{where}: not UTF-8: {error.reason}") from None
                    yield Document(_text(text, where, text_column), path, row)
                    row += 1
                share = size * row // rows
                report(share - reported)
                reported = share
        except pyarrow.ArrowException as error:
            raise UserError(f"{path}: not a readable Parquet file: {error}") from None
    report(size - reported)


_READERS: dict[str, Callable[[str, str, Callable[[int], None]], Iterator[Document]]] = {
    ".jsonl": _read_json_lines,
    ".json": _read_json_lines,
    ".txt": _read_text,
    ".parquet": _read_parquet,
}
_KNOWN = f"{', '.join(_READERS)}; all but .parquet also with {', '.join(_DECOMPRESSORS)}"


def _chunks(path: str, report: Callable[[int], None]) -> Iterator[bytes]:
    """The file's decompressed bytes, in pieces."""
    _, compression = _kind(path)
    with _readable(path), fsspec.open(path, "rb") as file:
        stored = _stored(file, report)
        yield from _decompress(stored, path, _DECOMPRESSORS[compression]) if compression else stored


def _stored(file: Any, report: Callable[[int], None]) -> Iterator[bytes]:
    while chunk := file.read(CHUNK_BYTES):
        yield chunk
        report(len(chunk))


def _decompress(stored: Iterator[bytes], path: str, new: Callable[[], Any]) -> Iterator[bytes]:
    """Decompresses a file of one or more members; one that ends inside a member is an error."""
    decompressor, complete = new(), False
    for chunk in stored:
        while chunk:
            if complete:
                chunk = chunk.lstrip(b"\0")  # gzip allows zeros between and after its members
                if not chunk:
                    break
                decompressor, complete = new(), False
            try:
                yield decompressor.decompress(chunk)
            except _DECOMPRESSION_ERRORS as error:
                raise UserError(f"{path}: damaged, can't be decompressed: {error}") from None
            complete = decompressor.eof
            chunk = decompressor.unused_data if complete else b""
    if not complete:
        raise UserError(f"{path}: cut off: the compressed data ends too early; fetch or make the file again")


def _lines(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Lines without their end. Only a line feed ends one: U+2028 and the like may stand in a JSON string."""
    pending: list[bytes] = []
    for chunk in chunks:
        first, *others = chunk.split(b"\n")
        pending.append(first)
        if others:
            yield b"".join(pending)
            yield from others[:-1]
            pending = [others[-1]]
    last = b"".join(pending)
    if last:
        yield last


def _decode(raw: bytes, where: str) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8: {error.reason} at byte {error.start}") from None


def _text(value: object, where: str, text_column: str) -> str:
    if not isinstance(value, str):
        raise UserError(f"{where}: {text_column} is {_json_type(value)}, should be a string")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # "\ud800" is valid JSON, but no tokenizer takes it
        raise UserError(f"{where}: {text_column} is not valid Unicode: {error.reason}") from None
    return value


def _fail_column(where: str, text_column: str, columns: Any) -> NoReturn:
    present = ", ".join(str(name) for name in columns) or "none"
    raise UserError(f"{where}: no column {text_column}; columns there: {present} (set text_column)")


def _json_type(value: object) -> str:
    names = {dict: "object", list: "array", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")

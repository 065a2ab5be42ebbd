"""Chunks: some rows of a file, cut out in one process and parsed in another."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from bertchen.text.documents import (
    EMPTY,
    NO_TEXT_COLUMN,
    NOT_JSON,
    NOT_UTF8,
    BadFile,
    Document,
    Rejected,
    Row,
    RowRules,
    column_of,
    documents_of,
    ends_document,
    is_blank,
    json_type,
    no_column,
)

_MISSING = object()


@dataclass(frozen=True)
class Chunk:
    """Some rows of a file, not parsed yet; it can be pickled.

    Attributes:
        path: the file.
        first_row, next_row: it holds rows from `first_row` to before `next_row`.
        stored_bytes: of the file as stored, read for it; over all chunks of a file they sum to its size.
        rules: how its rows become documents.
        kind: what `raw` is, a key of the table of parsers.
        raw: the rows.
        rejected: the one thing that it holds instead of rows, if the file can't be read from here on.
    """

    path: str
    first_row: int
    next_row: int
    stored_bytes: int
    rules: RowRules
    kind: str = ""
    raw: bytes = field(default=b"", repr=False)
    rejected: Rejected | None = None

    @classmethod
    def bad(cls, path: str, error: BadFile, row: int, next_row: int, stored_bytes: int, rules: RowRules) -> Chunk:
        """The chunk for a file that can't be read from `row` on."""
        return cls(path, row, next_row, stored_bytes, rules, rejected=Rejected(path, -1, error.reason, str(error)))

    def rows(self, allow_empty: bool = False) -> Iterator[Document | Rejected]:
        """Its documents, and the rows that give none, in their order.

        Args:
            allow_empty: a document without text is one; otherwise it is rejected as `empty`.
        """
        if self.rejected:
            yield self.rejected
            return
        for item in documents_of(_PARSERS[self.kind](self), self.path, self.rules):
            if isinstance(item, Document) and not allow_empty and is_blank(item.text):
                message = f"{_where(self, item.row)}: the text is empty"
                yield Rejected(self.path, item.row, EMPTY, message)
            else:
                yield item


def line_ends_document(line: bytes, kind: str, rules: RowRules) -> bool:
    """Whether a line of a chunk of that kind ends the document of the lines before it (`group_rows`)."""
    chunk = Chunk("", 0, 1, 0, rules, kind, line)
    return any(isinstance(row, Row) and ends_document(row, rules) for row in _PARSERS[kind](chunk))


def _where(chunk: Chunk, row: int) -> str:
    return _PLACES[chunk.kind].format(path=chunk.path, number=row + 1)


def _json_rows(chunk: Chunk) -> Iterator[Row | Rejected]:
    for number, line in enumerate(chunk.raw.split(b"\n"), chunk.first_row):
        row = _json_row(line, number, chunk)
        if row:
            yield row


def _json_row(line: bytes, number: int, chunk: Chunk) -> Row | Rejected | None:
    rules, where = chunk.rules, _where(chunk, number)
    decoded = _decode(line, where, chunk.path, number)
    if isinstance(decoded, Rejected):
        return decoded
    if is_blank(decoded):
        return None
    try:
        record = json.loads(decoded)
    except (ValueError, RecursionError) as error:
        message = f"{where}: not JSON ({error}); each line should hold one object"
        return Rejected(chunk.path, number, NOT_JSON, message)
    if not isinstance(record, dict):
        message = f"{where}: JSON {json_type(record)}, should be an object with a text"
        return Rejected(chunk.path, number, NOT_JSON, message)
    drop = column_of(record, rules.drop_column, default=None) if rules.drop_column else None
    text = column_of(record, rules.text_column, default=_MISSING)
    if text is _MISSING:
        return Rejected(chunk.path, number, NO_TEXT_COLUMN, no_column(where, rules.text_column, record))
    return Row(number, where, text, drop)


def _text_rows(chunk: Chunk) -> Iterator[Row | Rejected]:
    text = _decode(chunk.raw, chunk.path, chunk.path, 0)
    yield text if isinstance(text, Rejected) else Row(0, chunk.path, text)


def _line_rows(chunk: Chunk) -> Iterator[Row | Rejected]:
    for number, line in enumerate(chunk.raw.split(b"\n"), chunk.first_row):
        where = _where(chunk, number)
        # U+FEFF is a byte order mark at the beginning of a file alone.
        text = _decode(line, where, chunk.path, number, "utf-8" if number else "utf-8-sig")
        yield text if isinstance(text, Rejected) else Row(number, where, text)


def _parquet_rows(chunk: Chunk) -> Iterator[Row | Rejected]:
    import pyarrow  # takes long to import, and only Parquet needs it

    number = chunk.first_row
    with pyarrow.ipc.open_stream(chunk.raw) as stream:
        for batch in stream:
            for index in range(batch.num_rows):
                where = _where(chunk, number)
                try:
                    yield parquet_row(batch, index, number, where)
                except UnicodeDecodeError as error:
                    yield Rejected(chunk.path, number, NOT_UTF8, f"{where}: not UTF-8: {error.reason}")
                number += 1


def parquet_row(batch: Any, index: int, number: int = 0, where: str = "") -> Row:
    """A row of a `RecordBatch` of two columns: text, and what may drop the row.

    Raises:
        UnicodeDecodeError: the bytes are no text.
    """
    return Row(number, where, batch.column(0)[index].as_py(), batch.column(1)[index].as_py())


def _decode(raw: bytes, where: str, path: str, number: int, encoding: str = "utf-8-sig") -> str | Rejected:
    try:
        return raw.decode(encoding)
    except UnicodeDecodeError as error:
        message = f"{where}: not UTF-8: {error.reason} at byte {error.start}"
        return Rejected(path, number, NOT_UTF8, message)


_PARSERS: dict[str, Callable[[Chunk], Iterator[Row | Rejected]]] = {
    "json": _json_rows,
    "lines": _line_rows,
    "text": _text_rows,
    "parquet": _parquet_rows,
    "": lambda chunk: iter(()),
}
_PLACES = {
    "json": "{path}, line {number}",
    "lines": "{path}, line {number}",
    "parquet": "{path}, row {number}",
    "text": "{path}",
}

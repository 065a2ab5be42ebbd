"""Rows of Parquet files: cut in one process, parsed in another. Only who reads Parquet imports this, and pyarrow."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bertchen.text.chunks import Chunk, parquet_row
from bertchen.text.documents import (
    DAMAGED,
    NO_TEXT_COLUMN,
    NOT_A_STRING,
    BadFile,
    RowRules,
    ends_document,
    no_column,
)
from bertchen.text.files import READ_BYTES, StoredFile

# What a row weighs besides its text, so that chunks of empty rows are bound too.
_ROW_BYTES = 8
_BATCH_BYTES = 1 << 18
_BATCH_ROWS = 4096


def cut_parquet(path: str, rules: RowRules, start_row: int, limit: int) -> Iterator[Chunk]:
    """The rows from `start_row` on in chunks of about `limit` bytes of text, then a chunk without rows.

    Memory is bound by the file's pages and `limit`, not by its row groups; row groups before `start_row` aren't read.

    Raises:
        UserError: it can't be read.
    """
    row = start_row
    with StoredFile(path, at_random=True) as file:
        reader = _Reader(path, file, rules)
        try:
            for batches in _cut(reader.batches(start_row), rules, limit):
                first, row = row, row + sum(batch.num_rows for batch in batches)
                yield Chunk(path, first, row, reader.bytes_of(first, row), rules, "parquet", _serialized(batches))
        except BadFile as error:
            if row < reader.rows:
                yield Chunk.bad(path, error, row, reader.rows, reader.bytes_of(row, reader.rows), rules)
        else:
            yield Chunk(path, row, row, reader.bytes_of(row, reader.rows), rules)


class _Reader:
    """The two columns of a Parquet file that matter.

    Attributes:
        rows: of the file; 1 where they aren't known or there are none.
    """

    def __init__(self, path: str, file: StoredFile, rules: RowRules) -> None:
        self.rows = 1
        self._path, self._file, self._rules = path, file, rules

    def bytes_of(self, first_row: int, next_row: int) -> int:
        """The rows' share of the bytes as stored; over all rows they sum to the size."""
        size = self._file.size or 0
        return size * next_row // self.rows - size * first_row // self.rows

    def batches(self, start_row: int) -> Iterator[pa.RecordBatch]:
        """Batches of two columns, text and what may drop the row.

        Raises:
            BadFile: it is damaged from here on, or has no column of texts.
            UserError: it can't be read.
        """
        with self._bad_file():
            # With a buffer size, a row group's column is read page by page instead of whole.
            parquet = pq.ParquetFile(self._file, buffer_size=READ_BYTES)
            schema = parquet.schema_arrow
            self.rows = max(parquet.metadata.num_rows, 1)
            names = self._columns(schema)
            for number in range(parquet.num_row_groups):
                group = parquet.metadata.row_group(number)
                if start_row >= group.num_rows:
                    start_row -= group.num_rows
                    continue
                batch_size = min(max(_BATCH_BYTES * group.num_rows // max(group.total_byte_size, 1), 1), _BATCH_ROWS)
                for batch in parquet.iter_batches(batch_size, [number], names, use_threads=False):
                    skipped = min(start_row, batch.num_rows)
                    start_row -= skipped
                    yield self._two_columns(batch.slice(skipped), names)

    def _columns(self, schema: pa.Schema) -> list[str]:
        rules, kind = self._rules, _type_of(schema, self._rules.text_column)
        if kind is None:
            raise BadFile(NO_TEXT_COLUMN, no_column(self._path, rules.text_column, _names(schema)))
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
            message = f"{self._path}: column {rules.text_column} holds {kind}, should hold strings"
            raise BadFile(NOT_A_STRING, message)
        drop = rules.drop_column
        return [rules.text_column, drop] if drop and _type_of(schema, drop) else [rules.text_column]

    def _two_columns(self, batch: pa.RecordBatch, names: list[str]) -> pa.RecordBatch:
        text = _column(batch, names[0]).cast(pa.large_string())
        drop = _column(batch, names[1]) if len(names) == 2 else pa.nulls(len(text))
        return pa.RecordBatch.from_arrays([text, drop], ["text", "drop"])

    @contextmanager
    def _bad_file(self) -> Iterator[None]:
        """Turns pyarrow's errors into `BadFile`, but for those of reading: pyarrow may pass these on as its own."""
        try:
            yield
        except (pa.ArrowException, OSError) as error:
            if self._file.error:
                raise self._file.error from error
            raise BadFile(DAMAGED, f"{self._path}: not a readable Parquet file: {error}") from None


def _cut(batches: Iterator[pa.RecordBatch], rules: RowRules, limit: int) -> Iterator[list[pa.RecordBatch]]:
    """Batches put together: each ends with the first row behind `limit` bytes that may end it."""
    pending: list[pa.RecordBatch] = []
    weight = 0
    try:
        for batch in batches:
            weights = _weights(batch)
            begin = base = 0
            while (end := _next_end(batch, weights, base + limit - weight, rules)) is not None:
                yield [*pending, batch.slice(begin, end - begin)]
                pending, weight, begin, base = [], 0, end, int(weights[end - 1])
            if begin < batch.num_rows:
                pending.append(batch.slice(begin))
                weight += int(weights[-1]) - base
    except BadFile:
        whole = _whole(pending, rules)
        if whole:
            yield whole
        raise
    if pending:
        yield pending


def _weights(batch: pa.RecordBatch) -> npt.NDArray[np.int64]:
    """(rows,) bytes of text up to each row, its own included."""
    lengths = pc.fill_null(pc.binary_length(batch.column(0)), 0)
    return np.cumsum(lengths.to_numpy(zero_copy_only=False) + _ROW_BYTES, dtype=np.int64)


def _next_end(batch: pa.RecordBatch, weights: npt.NDArray[np.int64], bound: int, rules: RowRules) -> int | None:
    """Row behind the first one that brings the weight to `bound` and may end a chunk; None if none does."""
    first = int(np.searchsorted(weights, bound))
    return next((row + 1 for row in range(first, batch.num_rows) if _may_end(batch, row, rules)), None)


def _may_end(batch: pa.RecordBatch, row: int, rules: RowRules) -> bool:
    if not rules.group_rows:
        return True
    try:
        return ends_document(parquet_row(batch, row), rules)
    except UnicodeDecodeError:
        return False


def _whole(pending: list[pa.RecordBatch], rules: RowRules) -> list[pa.RecordBatch]:
    """The rows up to the last one that may end a chunk."""
    while pending:
        last = pending.pop()
        end = next((row for row in range(last.num_rows, 0, -1) if _may_end(last, row - 1, rules)), 0)
        if end:
            return [*pending, last.slice(0, end)]
    return []


def _serialized(batches: list[pa.RecordBatch]) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batches[0].schema) as stream:
        for batch in batches:
            stream.write_batch(batch)
    return sink.getvalue().to_pybytes()


def _names(schema: pa.Schema) -> list[str]:
    """Names of the columns, dotted where they are nested."""
    names: list[str] = []
    for column in schema:
        nested = column.flatten() if pa.types.is_struct(column.type) else []
        names += _names(pa.schema(nested)) if nested else [column.name]
    return names


def _type_of(schema: pa.Schema, name: str) -> pa.DataType | None:
    """Type of a column that may be dotted, None if there is none."""
    if name in schema.names:
        return schema.field(name).type
    kind: pa.DataType = pa.struct(list(schema))
    for part in name.split("."):
        if not pa.types.is_struct(kind) or kind.get_field_index(part) < 0:
            return None
        kind = kind.field(part).type
    return kind


def _column(batch: pa.RecordBatch, name: str) -> pa.Array:
    if name in batch.schema.names:
        return batch.column(name)
    top, *below = name.split(".")
    return pc.struct_field(batch.column(top), below)

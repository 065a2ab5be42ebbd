"""What a document is, and which rows of a file make one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

NOT_JSON = "not JSON"
NO_TEXT_COLUMN = "no text column"
NOT_A_STRING = "not a string"
NOT_UTF8 = "not UTF-8"
EMPTY = "empty"
DAMAGED = "damaged file"

# Why a row can be bad: the reasons that a manifest counts.
BAD_REASONS: tuple[str, ...] = (NOT_JSON, NO_TEXT_COLUMN, NOT_A_STRING, NOT_UTF8, EMPTY, DAMAGED)


@dataclass(frozen=True)
class Document:
    """One document.

    Attributes:
        text: its text as it stands in the file.
        path: the file that it comes from, as `resolve_paths` gave it.
        row: its line or row in that file, from 0, of several the first; always 0 in a text file that is one document.
    """

    text: str
    path: str
    row: int


@dataclass(frozen=True)
class Rejected:
    """A row that gives no document.

    Attributes:
        path, row: where it stands; row -1 is the file as a whole.
        reason: one of `BAD_REASONS`, or `drop_rows: <value>`.
        message: file, row and what is wrong with it, in a sentence for the user.
        is_bad: False where the row was left out on request.
    """

    path: str
    row: int
    reason: str
    message: str
    is_bad: bool = True


@dataclass(frozen=True)
class RowRules:
    """How rows become documents.

    Attributes:
        text_column: key or column of the text; dots lead into nested ones (`content.text`), unless a column bears the
            whole name. Text files have no columns.
        group_rows: rows are joined with a line feed until an empty one ends the document.
        drop_column, drop_values: rows whose (dotted) column equals one of the values, or is a list that holds one, are
            left out. A row without that column stays.
    """

    text_column: str = "text"
    group_rows: bool = False
    drop_column: str | None = None
    drop_values: tuple[str, ...] = ()

    def dropped_for(self, value: Any) -> str | None:
        """The value of `drop_values` for which a row with `value` in its column is left out, None if it stays."""
        values = value if isinstance(value, list) else [value]
        return next((name for name in map(_name, values) if name in self.drop_values), None)


@dataclass(frozen=True)
class Row:
    """A row as it was read.

    Attributes:
        number: from 0.
        where: file and row for a message.
        text, drop: what is in the column of the text, and in the one that may drop the row.
    """

    number: int
    where: str
    text: Any
    drop: Any = None


class BadFile(Exception):
    """A file gives no rows, or none from here on; `reason` is one of `BAD_REASONS`."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def documents_of(rows: Iterable[Row | Rejected], path: str, rules: RowRules) -> Iterator[Document | Rejected]:
    """The documents that the rows make under the rules. A document without rows to group may be empty."""
    group: list[str] = []
    first = 0
    for row in rows:
        checked = row if isinstance(row, Rejected) else document_of(row, path, rules)
        if isinstance(checked, Rejected) or not rules.group_rows:
            yield checked
        elif not is_blank(checked.text):
            first = first if group else checked.row
            group.append(checked.text.removesuffix("\n").removesuffix("\r"))
        elif group:
            yield Document("\n".join(group), path, first)
            group = []
    if group:
        yield Document("\n".join(group), path, first)


def document_of(row: Row, path: str, rules: RowRules) -> Document | Rejected:
    """The row's text as a document, or why it is none."""
    name = rules.dropped_for(row.drop) if rules.drop_column else None
    if name is not None:
        message = f"{row.where}: left out, {rules.drop_column} is or holds {name}"
        return Rejected(path, row.number, f"drop_rows: {name}", message, is_bad=False)
    if not isinstance(row.text, str):
        message = f"{row.where}: {rules.text_column} is {json_type(row.text)}, should be a string"
        return Rejected(path, row.number, NOT_A_STRING, message)
    try:
        row.text.encode()
    except UnicodeEncodeError as error:  # "\ud800" is valid JSON, but no tokenizer takes it
        message = f"{row.where}: {rules.text_column} is not valid Unicode: {error.reason}"
        return Rejected(path, row.number, NOT_UTF8, message)
    return Document(row.text, path, row.number)


def ends_document(row: Row, rules: RowRules) -> bool:
    """Whether the row ends the document of the rows before it (`group_rows`)."""
    document = document_of(row, "", rules)
    return isinstance(document, Document) and is_blank(document.text)


def is_blank(text: str) -> bool:
    """Whether there is nothing but white space in `text`."""
    return not text or text.isspace()


def column_of(record: dict[str, Any], column: str, default: Any) -> Any:
    """The value of a column that may be dotted; None where it, or an object above it, is null."""
    if column in record:
        return record[column]
    value: Any = record
    for name in column.split("."):
        if value is None:
            return None
        if not isinstance(value, dict) or name not in value:
            return default
        value = value[name]
    return value


def no_column(where: str, text_column: str, columns: Iterable[Any]) -> str:
    """The message for a row or file without `text_column`."""
    present = ", ".join(str(name) for name in columns) or "none"
    return f"{where}: no column {text_column}; columns there: {present} (set text_column)"


def json_type(value: object) -> str:
    """JSON's word for the type of `value`."""
    names = {dict: "object", list: "array", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")


def _name(value: Any) -> str:
    """A value as it is written in a YAML's list of strings."""
    return value if isinstance(value, str) else str(value)

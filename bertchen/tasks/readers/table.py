"""Classification from a table: CSV, TSV, JSON lines or Parquet with a column of texts and one of labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from bertchen.tasks.examples import Origin, TextExample
from bertchen.tasks.readers.rows import extension, fail, fields, name_of, records, text_of

# (delimiter, quote) of files without columns of their own, by extension
_DELIMITED = {".csv": (",", '"'), ".tsv": ("\t", None), ".txt": ("\t", None)}


def read_table(
    path: str,
    text: str | int = "text",
    label: str | int = "label",
    pair: str | int | None = None,
    id: str | int | None = None,
    header: bool = True,
    delimiter: str | None = None,
    quote: str | None = None,
    names: Sequence[str] | None = None,
) -> Iterator[TextExample]:
    """The rows of a table as examples of classification.

    Args:
        text, label, pair, id: columns of the text, its label, the second text of a pair, and the id. Without an id, the
            text makes one.
        header: the first row of CSV and TSV has the columns' names; without it they are numbers, from 1 on.
        delimiter, quote: of CSV and TSV; without them `,` and `"` in .csv, a tab and no quotes in .tsv and .txt.
        names: labels by their number from 0 on, where the label's column holds numbers, as the Hub's do.

    Raises:
        UserError: a broken row, one without text or label, or one with a number that `names` lacks.
    """
    rows = _delimited(path, header, delimiter, quote) if extension(path) in _DELIMITED else records(path)
    for origin, record in rows:
        yield TextExample(
            id=name_of(record, str(id), origin) if id is not None else "",
            text=text_of(record, str(text), origin),
            label=_label(record, str(label), names, origin),
            origin=origin,
            pair=text_of(record, str(pair), origin) if pair is not None else None,
        )


def _delimited(
    path: str, header: bool, delimiter: str | None, quote: str | None
) -> Iterator[tuple[Origin, dict[str, Any]]]:
    """Rows by column. Those of the first row are what every row has to have."""
    usual_delimiter, usual_quote = _DELIMITED[extension(path)]
    columns: list[str] | None = None
    # A quote belongs to its delimiter: who names a delimiter alone gets no quotes.
    for origin, row in fields(path, delimiter or usual_delimiter, quote or (None if delimiter else usual_quote)):
        if columns is None:
            columns = row if header else [str(number) for number in range(1, len(row) + 1)]
            if header:
                continue
        if len(row) != len(columns):
            fail(origin, f"{len(row)} fields, should be {len(columns)}: {', '.join(columns)}")
        yield origin, dict(zip(columns, row, strict=True))


def _label(record: dict[str, Any], column: str, names: Sequence[str] | None, origin: Origin) -> str:
    label = name_of(record, column, origin)
    if names is None:
        return label
    if not label.isdecimal() or int(label) >= len(names):
        fail(origin, f"{column} is {label}, should be a number from 0 to {len(names) - 1}, a place in names")
    return names[int(label)]

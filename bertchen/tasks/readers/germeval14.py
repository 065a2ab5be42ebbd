"""GermEval 2014: named entities, nested, as TSV of number, word, outer tag and inner tag.

A line that begins with # names the source of the sentence below it, and a blank line ends a sentence.
"""

from __future__ import annotations

from collections.abc import Iterator

from bertchen.errors import UserError
from bertchen.tasks.examples import Origin, TagExample
from bertchen.tasks.readers.rows import fail, lines
from bertchen.text.documents import is_blank

_COLUMNS = ("number", "word", "outer tag", "inner tag")


def read_germeval14(path: str, levels: int = 2) -> Iterator[TagExample]:
    """The sentences as examples of tagging.

    Args:
        levels: 2 for outer and inner tags, 1 for the outer ones alone.

    Raises:
        UserError: a row of another number of fields, or without a word or tag; another `levels`.
    """
    if levels not in (1, 2):
        raise UserError(f"data.options.levels={levels}: germeval14 has 1 or 2")
    rows: list[list[str]] = []
    begin: Origin | None = None
    for origin, line in lines(path):
        if line.startswith("#") or is_blank(line):
            if begin is not None:
                yield _sentence(rows, begin, levels)
            rows, begin = [], None
            continue
        row = line.split("\t")
        if len(row) != len(_COLUMNS):
            fail(origin, f"{len(row)} fields, should be {len(_COLUMNS)}: {', '.join(_COLUMNS)}")
        if "" in row:
            fail(origin, f"no {_COLUMNS[row.index('')]}")
        rows.append(row)
        begin = begin or origin
    if begin is not None:
        yield _sentence(rows, begin, levels)


def _sentence(rows: list[list[str]], origin: Origin, levels: int) -> TagExample:
    _, words, *tags = zip(*rows, strict=True)
    return TagExample("", words, tuple(tags[:levels]), origin)

"""GermEval 2017: posts about Deutsche Bahn, as TSV of address, text, relevance, sentiment, aspects.

The files have no quoting: quotes, doubled ones too, are part of the text. Some rows lack a field or the text.
"""

from __future__ import annotations

from collections.abc import Iterator

from bertchen.errors import UserError
from bertchen.tasks.examples import TextExample
from bertchen.tasks.readers.rows import Skipped, fail, fields
from bertchen.text.documents import is_blank

_COLUMNS = ("url", "text", "relevance", "sentiment", "aspects")
_LABELS = ("relevance", "sentiment")


def read_germeval17(path: str, label: str = "sentiment", ids: bool = True) -> Iterator[TextExample | Skipped]:
    """The rows as examples of classification; those that lack text or label are skipped.

    Args:
        label: `sentiment` (subtask B) or `relevance` (subtask A).
        ids: the address is the id, so that it may stand there only once; without, the text makes one.

    Raises:
        UserError: a row of more fields than columns; another `label`.
    """
    if label not in _LABELS:
        raise UserError(f"data.options.label={label}: germeval17 has {' and '.join(_LABELS)}")
    at = _COLUMNS.index(label)
    for origin, row in fields(path, "\t", None):
        if any(not is_blank(field) for field in row[len(_COLUMNS) :]):
            fail(origin, f"{len(row)} fields, should be {len(_COLUMNS)} at most: {', '.join(_COLUMNS)}")
        url, text, found = (row[place].strip() if place < len(row) else "" for place in (0, 1, at))
        if not text or not found or (ids and not url):
            yield Skipped(origin, f"address, text or {label}" if ids else f"text or {label}")
        else:
            yield TextExample(url if ids else "", row[1], found, origin)

"""10kGNAD: news articles by topic, as rows of label and text: a semicolon between, single quotes where needed."""

from __future__ import annotations

from collections.abc import Iterator

from bertchen.tasks.examples import TextExample
from bertchen.tasks.readers.table import read_table


def read_gnad10(path: str) -> Iterator[TextExample]:
    """The articles as examples of classification.

    Raises:
        UserError: as `read_table`.
    """
    return read_table(path, text=2, label=1, header=False, delimiter=";", quote="'")

"""GermEval 2018: offensive tweets, as TSV of text, coarse and fine label, without a header and without quoting."""

from __future__ import annotations

from collections.abc import Iterator

from bertchen.errors import UserError
from bertchen.tasks.examples import TextExample
from bertchen.tasks.readers.table import read_table

_COLUMNS = {"coarse": 2, "fine": 3}


def read_germeval18(path: str, label: str = "coarse") -> Iterator[TextExample]:
    """The tweets as examples of classification by `label`: `coarse` or `fine`.

    Raises:
        UserError: as `read_table`; another `label`.
    """
    if label not in _COLUMNS:
        raise UserError(f"data.options.label={label}: germeval18 has {' and '.join(_COLUMNS)}")
    return read_table(path, text=1, label=_COLUMNS[label], header=False, delimiter="\t")

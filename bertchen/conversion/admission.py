"""Which keys can still be among those that a sample of so many documents or tokens takes: saves tokenizing others."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from bertchen.conversion.tokens import ALL_KEYS
from bertchen.text.sources import Source

BUFFER = 1 << 16


class Admission:
    """Follows the documents of one source; those above `at_most` are certainly not in its sample.

    A sample takes the documents with the smallest keys until they are so many, or hold so many tokens. So once that
    many have been seen below some key, nothing above it is needed, whatever comes later.

    Args:
        target: documents or tokens of the sample; None without such a sample.
        by_tokens: whether `target` counts tokens.
    """

    def __init__(self, target: int | None, by_tokens: bool) -> None:
        self.at_most = ALL_KEYS
        self._target, self._by_tokens = target, by_tokens
        self._keys = np.empty(0, np.uint64)
        self._sizes = np.empty(0, np.int64)
        self._new: list[npt.NDArray] = []
        self._new_count = 0

    @classmethod
    def of(cls, source: Source) -> Admission:
        by_tokens = source.tokens is not None
        return cls(source.tokens if by_tokens else source.documents, by_tokens)

    def add(self, documents: Callable[[], npt.NDArray]) -> None:
        """Takes documents (of the type `document_type`) into account; asked for only where that matters."""
        if self._target is None:
            return
        found = documents()
        self._new.append(found[found["key"] <= np.uint64(min(self.at_most, ALL_KEYS - 1))])
        self._new_count += len(self._new[-1])
        if self._new_count >= max(BUFFER, len(self._keys)):
            self._lower()

    def _lower(self) -> None:
        assert self._target is not None
        new = np.concatenate(self._new)
        self._new, self._new_count = [], 0
        sizes = new["length"].astype(np.int64) if self._by_tokens else np.ones(len(new), np.int64)
        keys, sizes = np.concatenate([self._keys, new["key"]]), np.concatenate([self._sizes, sizes])
        order = np.argsort(keys, kind="stable")
        self._keys, self._sizes = keys[order], sizes[order]
        count = int(np.searchsorted(np.cumsum(self._sizes), self._target)) + 1
        if count <= len(self._keys):
            self.at_most = int(self._keys[count - 1])
            kept = int(np.searchsorted(self._keys, self._keys[count - 1], side="right"))
            self._keys, self._sizes = self._keys[:kept], self._sizes[:kept]

"""MinHash bands of documents: texts that are nearly equal share at least one of them.

With `bands` bands of `rows` MinHash values each, two texts whose sets of word n-grams have the Jaccard similarity s
share a band with probability 1 - (1 - s^rows)^bands (Broder 1997; Leskovec, Rajaraman and Ullman, Mining of Massive
Datasets, chapter 3). The defaults are those of FineWeb (Penedo et al. 2024, section 3.4).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from itertools import islice

import numpy as np
import numpy.typing as npt
import xxhash

_WORD = re.compile(r"\w+")
# MinHash makes an array of the n-grams times the permutations: a long document is taken in pieces.
_PIECE = 1024


class NearDuplicates:
    """Reduces a text to numbers that near duplicates share; the same in every process and on every machine.

    Args:
        ngram: words in an n-gram.
        bands, rows: bands of a text, and MinHash values in each of them.
        seed: of MinHash's permutations.

    Raises:
        ImportError: datasketch isn't installed.
    """

    def __init__(self, ngram: int = 5, bands: int = 14, rows: int = 8, seed: int = 1) -> None:
        from datasketch import MinHash

        self.ngram = ngram
        self.bands = bands
        self.rows = rows
        self._empty = MinHash(bands * rows, seed=seed, hashfunc=xxhash.xxh64_intdigest, scheme="affine64")

    def shingles(self, text: str) -> Iterator[bytes]:
        """The n-grams of a text's words, in lower case and without punctuation, joined by blanks, as UTF-8.

        A text of fewer words is one shingle, and one without any word is its own, so that it equals itself alone.
        """
        words = _WORD.findall(unicodedata.normalize("NFC", text).casefold()) or [text]
        for start in range(max(len(words) - self.ngram, 0) + 1):
            yield " ".join(words[start : start + self.ngram]).encode()

    def signature(self, text: str) -> npt.NDArray[np.uint64]:
        """MinHash values, (bands * rows,)."""
        minhash = self._empty.copy()
        shingles = self.shingles(text)
        while piece := list(islice(shingles, _PIECE)):
            minhash.update_batch(piece)
        return minhash.hashvalues

    def band_hashes(self, text: str) -> npt.NDArray[np.uint64]:
        """A hash of each band, (bands,): those of two texts are equal in a place where all rows of the band are."""
        values = self.signature(text).astype("<u8").reshape(self.bands, self.rows)
        # Seeded with the band's number, so that equal rows in different bands aren't taken for a band in common.
        hashes = [xxhash.xxh64_intdigest(rows.tobytes(), seed=band) for band, rows in enumerate(values)]
        return np.array(hashes, dtype=np.uint64)

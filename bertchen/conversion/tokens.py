"""A chunk of input → token ids: what worker processes do. Imports little, because each worker imports it anew.

Documents are encoded whole: no cut through a text is safe with every tokenizer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash
from tokenizers import Tokenizer

from bertchen.conversion.segments import document_type
from bertchen.conversion.word_cache import WordCache
from bertchen.text.cleaning import Cleaning
from bertchen.text.documents import EMPTY, Document, Rejected
from bertchen.text.readers import Chunk

BATCH_CHARACTERS = 1 << 18
NOT_SAMPLED = "not sampled"
ALL_KEYS = 1 << 64

Encode = Callable[[list[str]], list[npt.NDArray]]


@dataclass(frozen=True)
class Recipe:
    """How text becomes tokens, in a form that goes to other processes and into JSON.

    Attributes:
        name: of the tokenizer, for messages, and for slow ones also where they are loaded from.
        tokenizer: a fast tokenizer's JSON; None for a slow one.
        separator: id of the token that ends a document.
        ids: number of possible ids: one more than the largest.
        seed: of the documents' keys.
        clean: the cleaners by name.
        bands: MinHash bands of a document.
        by_words: whether words can be remembered, see `WordCache`.
    """

    name: str
    tokenizer: str | None
    separator: int
    ids: int
    seed: int
    clean: dict[str, Any]
    bands: int
    by_words: bool = False

    @property
    def dtype(self) -> np.dtype:
        """`uint16`, or `uint32` where the vocabulary asks for it."""
        return np.dtype(np.uint16 if self.ids <= 1 << 16 else np.uint32)


@dataclass
class Tokenized:
    """What a chunk came to.

    Attributes:
        tokens: token ids, document after document, each followed by the separator.
        documents: (documents,) of the type `document_type`.
        read, characters, bad, dropped, by_file: as in `SegmentInfo`.
        error: the message of the first bad row.
    """

    tokens: npt.NDArray
    documents: npt.NDArray
    read: int = 0
    characters: int = 0
    bad: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    by_file: Counter[str] = field(default_factory=Counter)
    error: str | None = None

    def reject(self, row: Rejected) -> None:
        """Counts a row that gives no document."""
        if row.is_bad:
            self.bad[row.reason] += 1
            self.error = self.error or row.message
        else:
            self.dropped[row.reason] += 1


def document_key(text: str, seed: int) -> int:
    """A hash of seed and text, even over 64 bits: the same wherever the text stands, so its order is a random one."""
    return xxhash.xxh64_intdigest(text.encode(), seed=seed)


def make_encoder(recipe: Recipe) -> Encode:
    """A function from texts to token ids, those of `tokenizer(texts, add_special_tokens=False)` but faster.

    Ids are arrays of the recipe's dtype, (tokens,) each.

    With one difference: a text that spells a special token (`[SEP]`, `</s>`) is text, as it is with
    `split_special_tokens=True`. So a separator in the data always is the end of a document.
    """
    if recipe.tokenizer is None:
        from bertchen.tokenizer import load_tokenizer  # imports transformers, which takes seconds

        slow = load_tokenizer(recipe.name)
        options = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}
        return lambda texts: [np.array(ids, dtype=recipe.dtype) for ids in slow(texts, **options)["input_ids"]]
    if recipe.by_words:
        return WordCache(recipe.tokenizer, recipe.dtype)
    backend = Tokenizer.from_str(recipe.tokenizer)
    # A tokenizer.json may hold settings of a call.
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True
    return lambda texts: [
        np.array(each.ids, dtype=recipe.dtype) for each in backend.encode_batch_fast(texts, add_special_tokens=False)
    ]


class ChunkTokenizer:
    """Tokenizes chunks by a recipe."""

    def __init__(self, recipe: Recipe) -> None:
        self._dtype, self._seed = recipe.dtype, recipe.seed
        self._end = np.array([recipe.separator], dtype=recipe.dtype)
        self._encode = make_encoder(recipe)
        self._cleaning = Cleaning.from_dict(recipe.clean)
        self._document_type = document_type(recipe.bands)

    def __call__(self, chunk: Chunk, below: int = ALL_KEYS, at_most: int = ALL_KEYS) -> Tokenized:
        """Tokenizes the documents of a chunk that are to be kept.

        Args:
            below: documents whose key is not below it are left out, before cleaning: a part of the source.
            at_most: documents whose key is above it are left out, after cleaning, when it is known that those with
                smaller keys suffice.
        """
        result = Tokenized(np.empty(0, self._dtype), np.empty(0, self._document_type))
        tokens = [result.tokens]
        documents = [result.documents]
        batches = _batches(self._kept(chunk.rows(), below, at_most, result))
        for batch in batches:
            encoded = self._encode([document.text for document, _ in batch])
            kept = []
            for (document, key), ids in zip(batch, encoded, strict=True):
                if not len(ids):
                    result.reject(_empty(document))
                    continue
                tokens += [ids, self._end]
                kept.append((len(ids) + 1, key, self._cleaning.bands(document.text)))
                result.characters += len(document.text)
                result.by_file[document.path] += 1
            documents.append(np.array(kept, dtype=self._document_type))
        result.tokens, result.documents = np.concatenate(tokens), np.concatenate(documents)
        return result

    def _kept(
        self, rows: Iterator[Document | Rejected], below: int, at_most: int, result: Tokenized
    ) -> Iterator[tuple[Document, int]]:
        for row in rows:
            result.read += 1
            if isinstance(row, Rejected):
                result.reject(row)
                continue
            key = document_key(row.text, self._seed)
            if key >= below:
                result.dropped[NOT_SAMPLED] += 1
            elif reason := self._cleaning.reason(row.text):
                result.dropped[reason] += 1
            elif key > at_most:
                result.dropped[NOT_SAMPLED] += 1
            else:
                yield row, key


def _empty(document: Document) -> Rejected:
    where = f"{document.path}, row {document.row + 1}"
    message = f"{where}: the text is empty (no token); on_bad_rows=skip leaves such rows out"
    return Rejected(document.path, document.row, EMPTY, message, is_bad=True)


def _batches(documents: Iterable[tuple[Document, int]]) -> Iterator[list[tuple[Document, int]]]:
    """Batches that one call of the tokenizer gets, bounded because its result takes many times their size."""
    batch: list[tuple[Document, int]] = []
    characters = 0
    for document, key in documents:
        batch.append((document, key))
        characters += len(document.text)
        if characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch

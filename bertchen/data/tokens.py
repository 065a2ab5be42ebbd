"""Documents → one file of tokens, in the order of the documents, each with the separator behind it.

Documents are encoded whole: no cut through a text is safe with every tokenizer. They are encoded in threads,
because fast tokenizers compute outside the interpreter's lock, and written in the order in which they were
read, so that the file is the same for any number of threads.
"""

from __future__ import annotations

import os
from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import xxhash
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from bertchen.text.readers import Document
from bertchen.tokenizer import separator_id

T, R = TypeVar("T"), TypeVar("R")

BATCH_CHARACTERS = 1 << 18
_PARALLELISM = "TOKENIZERS_PARALLELISM"


@dataclass(frozen=True)
class TokenFile:
    """The tokens of a corpus. Documents without a token are counted, but have no part in the file.

    Attributes:
        path: raw token ids of type `dtype`, document after document, each followed by the separator.
        dtype: `uint16`, or `uint32` where the vocabulary asks for it.
        ids: number of possible ids: one more than the largest.
        lengths: (documents,) int64, tokens of each document in the file, its separator included.
        keys: (documents,) uint64, a hash of seed and text: the same wherever the document stands, and
            evenly distributed, so the order of the keys is a random order of the texts.
        documents: number of documents read, the empty ones included.
        empty_documents: number of those that have no token.
        characters: Unicode characters of all documents.
        by_file: documents of each file, the empty ones included.
    """

    path: Path
    dtype: np.dtype
    ids: int
    lengths: npt.NDArray[np.int64]
    keys: npt.NDArray[np.uint64]
    documents: int
    empty_documents: int
    characters: int
    by_file: dict[str, int]

    def open(self) -> npt.NDArray:
        """The tokens, (tokens,), mapped into memory and read-only."""
        return np.memmap(self.path, dtype=self.dtype, mode="r")


Encode = Callable[[list[str]], list[list[int]]]


def make_encoder(tokenizer: PreTrainedTokenizerBase) -> Encode:
    """A function from texts to token ids, those of `tokenizer(texts, add_special_tokens=False)` but faster.

    With one difference: a text that spells a special token (`[SEP]`, `</s>`) is text, as it is with
    `split_special_tokens=True`. So a separator in the data always is the end of a document.
    """
    if not tokenizer.is_fast:
        return lambda texts: tokenizer(texts, add_special_tokens=False, split_special_tokens=True, verbose=False)[
            "input_ids"
        ]
    # A copy, because a tokenizer.json may hold settings of a call (truncation), which are removed here.
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True
    return lambda texts: [each.ids for each in backend.encode_batch_fast(texts, add_special_tokens=False)]


def tokenize_documents(
    documents: Iterable[Document],
    tokenizer: PreTrainedTokenizerBase,
    path: Path,
    seed: int,
    workers: int,
) -> TokenFile:
    """Writes the tokens of the documents to `path`.

    Args:
        documents: read lazily; few batches of about 256 K characters (or of one document) are in memory.
        seed: of the documents' keys.
        workers: threads; slow tokenizers, which threads can't speed up, get one.

    Raises:
        UserError: the tokenizer has no separator; also whatever `documents` raises.
    """
    encode_texts, separator = make_encoder(tokenizer), separator_id(tokenizer)
    vocabulary = max(len(tokenizer), 1 + max(tokenizer.get_vocab().values()))
    dtype = np.dtype(np.uint16 if vocabulary <= 1 << 16 else np.uint32)

    def encode(batch: list[Document]) -> tuple[npt.NDArray, list[int], list[int]]:
        encoded = encode_texts([document.text for document in batch])
        keys = [xxhash.xxh64_intdigest(document.text.encode(), seed=seed) for document in batch]
        parts = [np.array([*ids, separator], dtype=dtype) for ids in encoded if ids]
        kept = [key for key, ids in zip(keys, encoded, strict=True) if ids]
        return np.concatenate(parts or [np.empty(0, dtype)]), [len(part) for part in parts], kept

    lengths, keys = array("q"), array("Q")
    by_file: Counter[str] = Counter()
    characters = 0

    def counted() -> Iterator[Document]:
        nonlocal characters
        for document in documents:
            by_file[document.path] += 1
            characters += len(document.text)
            yield document

    # Not ndarray.tofile, whose OSError doesn't say that the disk is full.
    with open(path, "wb") as file, _own_parallelism_only():
        results = _in_order(encode, _batches(counted()), workers if tokenizer.is_fast else 1)
        for tokens, batch_lengths, batch_keys in results:
            file.write(tokens.data)
            lengths.extend(batch_lengths)
            keys.extend(batch_keys)
    return TokenFile(
        path=path,
        dtype=dtype,
        ids=vocabulary,
        lengths=np.array(lengths, dtype=np.int64),
        keys=np.array(keys, dtype=np.uint64),
        documents=by_file.total(),
        empty_documents=by_file.total() - len(lengths),
        characters=characters,
        by_file=dict(by_file),
    )


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += len(document.text)
        if characters >= BATCH_CHARACTERS or len(batch) >= BATCH_CHARACTERS // 64:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _in_order(function: Callable[[T], R], items: Iterable[T], workers: int) -> Iterator[R]:
    """`map` in threads: results in the order of the items, few items under way at a time."""
    pending: deque[Future[R]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="tokenize") as pool:
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) > 2 * workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


@contextmanager
def _own_parallelism_only() -> Iterator[None]:
    """Keeps the tokenizers library from starting threads of its own beside ours."""
    before = os.environ.get(_PARALLELISM)
    os.environ[_PARALLELISM] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_PARALLELISM]
        else:
            os.environ[_PARALLELISM] = before

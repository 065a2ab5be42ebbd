"""Which blocks there are, which of them are validation, and in which order they are written.

Nothing here holds tokens: a split is a list of spans of the token file, joined into one stream that is cut
into blocks, and an order of these blocks. So shuffled blocks are read where they lie, without a second copy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from bertchen.config.schema_convert import ConvertConfig
from bertchen.errors import UserError

Integers = npt.NDArray[np.int64]

# See split_by_document.
MIN_VAL_DOCUMENTS = 20
MAX_VAL_SHARE = 0.1

_READ_TOKENS = 1 << 20


@dataclass(frozen=True)
class Stream:
    """Spans of the token file, joined.

    Attributes:
        starts, lengths: (spans,) where each span begins in the token file, and its tokens; no span is empty.
        documents: (spans,) the document that each span comes from.
    """

    starts: Integers
    lengths: Integers
    documents: Integers

    @property
    def tokens(self) -> int:
        return int(self.lengths.sum())

    @cached_property
    def _joined(self) -> tuple[Integers, Integers]:
        """(offset, end) of the runs of spans that lie side by side in the file too.

        A run's tokens stand at stream position p < end and at p + offset in the file.
        """
        ends = np.cumsum(self.lengths)
        gap = np.flatnonzero(self.starts[1:] != self.starts[:-1] + self.lengths[:-1])
        first, last = np.append(0, gap + 1), np.append(gap, len(ends) - 1)
        return self.starts[first] - (ends[first] - self.lengths[first]), ends[last]

    def read(self, tokens: npt.NDArray, blocks: Integers, block_size: int) -> npt.NDArray:
        """Blocks by their number in the stream, as (blocks, block_size) of the token file's type."""
        offsets, ends = self._joined
        positions = blocks[:, None] * block_size + np.arange(block_size)
        return tokens[positions + offsets[np.searchsorted(ends, positions, side="right")]]


@dataclass(frozen=True)
class Split:
    """The blocks of one split.

    Attributes:
        stream: what is cut into blocks; tokens behind the last whole block are dropped.
        order: (blocks,) numbers of the stream's blocks in the order in which they are written.
    """

    stream: Stream
    order: Integers

    def batches(self, tokens: npt.NDArray, block_size: int) -> Iterator[npt.NDArray]:
        """The blocks in their order, as arrays (at most some, block_size)."""
        step = max(1, _READ_TOKENS // block_size)
        for start in range(0, len(self.order), step):
            yield self.stream.read(tokens, self.order[start : start + step], block_size)

    def documents(self, block_size: int) -> int:
        """Number of documents that have at least one token in the blocks."""
        ends = np.cumsum(self.stream.lengths)
        first, last = (ends - self.stream.lengths) // block_size, (ends - 1) // block_size
        used = np.zeros(last[-1] + 2, dtype=np.int64)
        used[self.order + 1] = 1
        used_before = np.cumsum(used)
        return len(np.unique(self.stream.documents[used_before[last + 1] > used_before[first]]))


def pack_naive(lengths: Integers, keys: npt.NDArray[np.uint64], settings: ConvertConfig) -> dict[str, Split]:
    """The strategy `naive`: documents joined in their order and cut, blocks shuffled with the seed.

    Args:
        lengths: (documents,) tokens of each document, its separator included.
        keys: (documents,) seeded hashes of the texts.

    Raises:
        UserError: there are too few blocks, or, when whole documents are split, too few documents.
    """
    total, needed = int(lengths.sum()), settings.val_blocks * settings.block_size
    if total < needed + settings.block_size:
        blocks = total // settings.block_size
        raise UserError(
            f"val_blocks={settings.val_blocks}: the corpus has {total:,} tokens, {blocks} blocks of "
            f"{settings.block_size}, and one must be left for training: "
            + ("lower val_blocks or add text" if blocks > 1 else "add text")
        )
    return SPLITTERS[settings.split_by](lengths, keys, settings)


def split_by_block(lengths: Integers, keys: npt.NDArray[np.uint64], settings: ConvertConfig) -> dict[str, Split]:
    """All documents make one stream; the last `val_blocks` of its shuffled blocks are validation.

    As the paper has it. A document that runs over several blocks can then be on both sides.
    """
    stream = _whole_documents(lengths, np.arange(len(lengths)))
    order = _shuffled(stream.tokens // settings.block_size, settings.seed, 0)
    train, val = order[: -settings.val_blocks], order[-settings.val_blocks :]
    return {"train": Split(stream, train), "val": Split(stream, val)}


def split_by_document(lengths: Integers, keys: npt.NDArray[np.uint64], settings: ConvertConfig) -> dict[str, Split]:
    """Whole documents are validation, drawn at random until they fill `val_blocks`; the others are training.

    The order of drawing is that of the keys, thus a matter of seed and texts alone, not of files. A text that
    occurs more than once is drawn once, and its copies are kept out of training.

    Documents can be very long (a play of 2 million characters is 900 blocks), and validation on two of them
    would say little. So a document gives at most a part of the validation set: a window at a random place
    with the separator behind it. Its other tokens are dropped, as they may be on neither side. At first the
    window is 1/20 of the validation set (but at least a block). It is doubled as long as the drawn documents
    hold more than a tenth of the corpus, so that validation doesn't use up a corpus of few, long documents.
    """
    needed = settings.val_blocks * settings.block_size
    total = int(lengths.sum())
    by_key = np.argsort(keys, kind="stable")
    is_first = np.append(True, np.diff(keys[by_key]) != 0)
    texts = by_key[is_first]
    # Tokens that training loses with each text: those of all of its copies.
    lost = np.cumsum(np.add.reduceat(lengths[by_key], np.flatnonzero(is_first)))

    window = min(needed, max(settings.block_size, needed // MIN_VAL_DOCUMENTS))
    while True:
        filled = np.cumsum(np.minimum(lengths[texts], window))
        count = int(np.searchsorted(filled, needed)) + 1
        if window == needed or (count <= len(texts) and lost[count - 1] <= MAX_VAL_SHARE * total):
            break
        window = min(needed, 2 * window)
    if count > len(texts) or total - lost[count - 1] < settings.block_size:
        raise UserError(
            f"val_blocks={settings.val_blocks}: {len(texts)} different documents are too few to take so many "
            f"blocks of {settings.block_size} tokens from some and leave a block of others for training: "
            "lower val_blocks, add documents, or split within documents with split_by=block"
        )
    chosen = texts[:count]
    val = _windows(lengths, keys, chosen, window)
    train = _whole_documents(lengths, np.flatnonzero(~np.isin(keys, keys[chosen])))
    return {
        "train": Split(train, _shuffled(train.tokens // settings.block_size, settings.seed, 0)),
        "val": Split(val, _shuffled(settings.val_blocks, settings.seed, 1)),
    }


def _whole_documents(lengths: Integers, documents: Integers) -> Stream:
    starts = np.cumsum(lengths) - lengths
    return Stream(starts[documents], lengths[documents], documents)


def _windows(lengths: Integers, keys: npt.NDArray[np.uint64], documents: Integers, window: int) -> Stream:
    """Of each document at most `window` tokens, the separator at the end included."""
    separators = np.cumsum(lengths)[documents] - 1
    length = lengths[documents]
    given = np.minimum(length, window)
    # The lower half of the key: the documents were chosen by the upper one, which is thus not even.
    places = (keys[documents] & np.uint64(0xFFFFFFFF)).astype(np.int64) % (length - given + 1)
    starts = np.stack([separators - (length - 1) + places, separators], axis=1).ravel()
    parts = np.stack([given - 1, np.ones_like(given)], axis=1).ravel()
    return Stream(starts, parts, np.repeat(documents, 2))


def _shuffled(count: int, seed: int, stream: int) -> Integers:
    return np.random.Generator(np.random.PCG64([seed, stream])).permutation(count)


Splitter = Callable[[Integers, npt.NDArray[np.uint64], ConvertConfig], dict[str, Split]]
SPLITTERS: dict[str, Splitter] = {"document": split_by_document, "block": split_by_block}
STRATEGIES: dict[str, Splitter] = {"naive": pack_naive}

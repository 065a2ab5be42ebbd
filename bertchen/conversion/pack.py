"""Documents → streams → blocks → splits: which blocks there are, and in which order they are written.

Nothing here holds tokens. A stream is a list of spans of all tokens, joined and cut into blocks of `block_size`; a
split is a range of places in an order of a stream's blocks. So blocks are read where they lie, without a second copy.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bertchen.config.schema_convert import ConvertConfig
from bertchen.conversion.choose import choose_documents, choose_validation
from bertchen.conversion.order import LIMIT, permuted, places_of
from bertchen.conversion.segments import Integers, Segments
from bertchen.conversion.streams import (
    Order,
    Piece,
    RunWriter,
    Takes,
    all_documents,
    longest_first,
    reading_or_mixed_order,
    windows_of,
)
from bertchen.conversion.table import DocumentTable, Fate
from bertchen.conversion.tally import Destinations, Tally
from bertchen.errors import UserError

if TYPE_CHECKING:
    from bertchen.text.sources import Source

FILE = "arrangement.json"

# Of a stream's order of blocks; a stream of documents of one length has that length.
_TRAIN, _VAL = 0, 1

_DROPPED = {
    Fate.NOT_SAMPLED: "not sampled",
    Fate.EXACT_DUPLICATE: "exact duplicate",
    Fate.NEAR_DUPLICATE: "near duplicate",
    Fate.COPY_OF_VALIDATION: "copy of a validation document",
}
_REST = "rest of a validation document"
_UNUSED = "not needed for validation"


@dataclass(frozen=True)
class Split:
    """The blocks of one split.

    Attributes:
        name: of its folder.
        stream: `<stream>.npy` in the arrangement's folder holds the stream's runs: (runs, 2) int64, the number of the
            run's first token among all tokens, and where the run ends in the stream.
        stream_tokens, stream_blocks: of the stream; tokens behind the last block are dropped.
        shuffled: whether the stream's blocks are in a random order, that of `permuted` with `shuffle_stream`.
        shuffle_stream: see there.
        first, blocks: the split has the places first to first + blocks of the order.
        held_out: of an order that isn't shuffled: so many blocks, the last ones of the shuffled order, aren't in it.
    """

    name: str
    stream: str
    stream_tokens: int
    stream_blocks: int
    shuffled: bool
    shuffle_stream: int
    first: int
    blocks: int
    held_out: int = 0

    def block_numbers(self, start: int, stop: int, seed: int) -> Integers:
        """The numbers in the stream of the split's blocks start to stop."""
        places = np.arange(self.first + start, self.first + stop)
        if self.shuffled:
            return permuted(places, self.stream_blocks, seed, self.shuffle_stream)
        if self.held_out:
            held = self._held_numbers(seed)
            return places + np.searchsorted(held - np.arange(len(held)), places, side="right")
        return places

    def places(self, numbers: Integers, seed: int) -> Integers:
        """The places of blocks in the order of which the split is a range; -1 for those that aren't in it."""
        if self.shuffled:
            return places_of(numbers, self.stream_blocks, seed, self.shuffle_stream)
        if self.held_out:
            held = self._held_numbers(seed)
            below = np.searchsorted(held, numbers, side="right")
            return np.where(held[below - 1] == numbers, -1, numbers - below)
        return numbers

    def _held_numbers(self, seed: int) -> Integers:
        """Numbers of the blocks that aren't in the order, ascending."""
        places = np.arange(self.stream_blocks - self.held_out, self.stream_blocks)
        return np.sort(permuted(places, self.stream_blocks, seed, self.shuffle_stream))


@dataclass(frozen=True)
class Arrangement:
    """What is written: the splits by name, and figures about them (`Tally.figures`, and the splits' blocks)."""

    splits: dict[str, Split]
    figures: dict[str, Any]


def arrange(
    segments: Segments, sources: Sequence[Source], settings: ConvertConfig, folder: Path, limit: int = LIMIT
) -> Arrangement:
    """Decides which documents make which blocks, and writes that into `folder`, `arrangement.json` last.

    Works in files in the folder, about 25 bytes a document, and 8 for each MinHash band.

    Args:
        limit: documents that are held in memory at a time.

    Raises:
        UserError: a source has less than was asked for, nothing is left, there are too few blocks or documents.
    """
    check_packing(settings)
    _check_any(segments)
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "table").mkdir(parents=True)
    table = DocumentTable.build(segments, len(sources), folder / "table", limit)
    choose_documents(table, sources, settings)
    streams = STRATEGIES[settings.strategy](table, settings)
    tally = Tally(len(sources))
    for stream in streams:
        _write_stream(stream, table, settings, folder, tally)
    documents, tokens = table.totals()
    for fate, reason in _DROPPED.items():
        tally.drop(reason, documents[:, fate], tokens[:, fate])
    figures = tally.figures([source.name for source in sources])
    splits = {split.name: split for stream in streams for split in stream.splits}
    for split in splits.values():
        figures["splits"][split.name]["blocks"] = split.blocks
    shutil.rmtree(folder / "table")
    arrangement = Arrangement(splits, figures)
    _write(folder / FILE, arrangement)
    return arrangement


def load_arrangement(folder: Path) -> Arrangement | None:
    """What `arrange` wrote into a folder; None if it didn't come to its end."""
    try:
        raw = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return Arrangement({name: Split(**split) for name, split in raw["splits"].items()}, raw["figures"])


def check_packing(settings: ConvertConfig) -> None:
    """Checks the keys that `arrange` alone needs.

    Raises:
        UserError: shares of `stages` that don't sum to 1, a length that doesn't divide the block, `stages` where they
            have no meaning.
    """
    lengths = {
        "stages": list(settings.stages),
        "lengths": settings.lengths if settings.strategy == "not_packed" else [],
    }
    for key, values in lengths.items():
        for length in values:
            if length < 1 or settings.block_size % length:
                raise UserError(f"{key}: {length} doesn't divide a block of block_size={settings.block_size} tokens")
    if not settings.stages:
        return
    if settings.strategy == "not_packed":
        raise UserError("stages: strategy=not_packed makes a folder for each of `lengths` already: leave stages out")
    shares = list(settings.stages.values())
    if min(shares) <= 0 or abs(sum(shares) - 1) > 1e-6:
        raise UserError(f"stages: the shares {shares} sum to {sum(shares):g}: they should be positive and sum to 1")


@dataclass(frozen=True)
class _Stream:
    """What becomes one stream: `pieces()` gives its documents, `splits` its blocks."""

    name: str
    pieces: Callable[[], Iterator[Piece]]
    splits: list[Split]


def pack_naive(table: DocumentTable, settings: ConvertConfig) -> list[_Stream]:
    """The strategy `naive`: documents joined in their order and cut, blocks shuffled with the seed."""
    return _pack(table, settings, reading_or_mixed_order(settings), shuffled=True)


def pack_sorted(table: DocumentTable, settings: ConvertConfig) -> list[_Stream]:
    """The strategy `sorted`: documents joined from the longest to the shortest and cut, blocks left in their order."""
    return _pack(table, settings, longest_first, shuffled=False)


def pack_not_packed(table: DocumentTable, settings: ConvertConfig) -> list[_Stream]:
    """The strategy `not_packed`: documents of exactly the wanted lengths, which so begin and end with their part.

    Those of one length are joined to blocks. The others make the validation set, as many blocks as are needed.

    Raises:
        UserError: too few documents of a length, or others.
    """
    order = reading_or_mixed_order(settings)
    streams = []
    for length in sorted(settings.lengths):
        stream = _one_split(table, settings, f"train_{length}", order, lambda each, n=length: each == n, length)
        if not stream.splits[0].blocks:
            there, needed = stream.splits[0].stream_tokens // length, settings.block_size // length
            raise UserError(
                f"lengths: {there} documents have exactly {length} tokens, separator included, and a block of "
                f"block_size={settings.block_size} takes {needed}: leave {length} out or add text"
            )
        streams.append(stream)
    stream = _one_split(
        table, settings, "val", order, lambda each: ~np.isin(each, settings.lengths), _VAL, settings.val_blocks
    )
    if stream.splits[0].stream_blocks < settings.val_blocks:
        raise UserError(
            f"val_blocks={settings.val_blocks}: the documents of other lengths than {sorted(settings.lengths)} are "
            f"only {stream.splits[0].stream_blocks} blocks of {settings.block_size}: lower val_blocks or add text"
        )
    return [*streams, stream]


def _one_split(
    table: DocumentTable,
    settings: ConvertConfig,
    name: str,
    order: Order,
    takes: Takes,
    shuffle_stream: int,
    blocks: int | None = None,
) -> _Stream:
    """A stream that is one split: all of its blocks, shuffled, or the first of these."""
    tokens = sum(int(lengths[takes(lengths)].sum(dtype=np.int64)) for _, (lengths,) in table.kept("length"))
    in_stream = tokens // settings.block_size
    split = Split(name, name, tokens, in_stream, True, shuffle_stream, 0, in_stream if blocks is None else blocks)
    return _Stream(name, lambda: order(table, takes), [split])


def _pack(table: DocumentTable, settings: ConvertConfig, order: Order, shuffled: bool) -> list[_Stream]:
    """All kept documents in one order, but for those that are validation.

    Raises:
        UserError: there are too few blocks, or, when whole documents are split, too few documents.
    """
    size = settings.block_size
    total, needed = _kept_tokens(table), settings.val_blocks * size
    if total < needed + size:
        blocks = total // size
        raise UserError(
            f"val_blocks={settings.val_blocks}: the corpus has {total:,} tokens, {blocks} blocks of "
            f"{size}, and one must be left for training: "
            + ("lower val_blocks or add text" if blocks > 1 else "add text")
        )
    return SPLITTERS[settings.split_by](table, settings, order, shuffled)


def split_by_document(table: DocumentTable, settings: ConvertConfig, order: Order, shuffled: bool) -> list[_Stream]:
    """Whole documents are validation, the others are training: see `choose_validation`."""
    drawn = choose_validation(table, settings)
    tokens = _kept_tokens(table)
    blocks = tokens // settings.block_size
    train = Split("train", "train", tokens, blocks, shuffled, _TRAIN, 0, blocks)
    val = Split(
        "val", "val", settings.val_blocks * settings.block_size, settings.val_blocks, True, _VAL, 0, settings.val_blocks
    )
    return [
        _Stream("train", lambda: order(table, all_documents), _stages(train, settings)),
        _Stream("val", lambda: iter([windows_of(table, drawn, val.stream_tokens)]), [val]),
    ]


def split_by_block(table: DocumentTable, settings: ConvertConfig, order: Order, shuffled: bool) -> list[_Stream]:
    """All documents make one stream; the last `val_blocks` of its shuffled blocks are validation.

    As the paper has it. A document that runs over several blocks can then be on both sides.
    """
    tokens = _kept_tokens(table)
    blocks, held = tokens // settings.block_size, settings.val_blocks
    train = Split("train", "all", tokens, blocks, shuffled, _TRAIN, 0, blocks - held, 0 if shuffled else held)
    val = Split("val", "all", tokens, blocks, True, _TRAIN, blocks - held, held)
    return [_Stream("all", lambda: order(table, all_documents), [*_stages(train, settings), val])]


def _stages(train: Split, settings: ConvertConfig) -> list[Split]:
    """The training split, or what `stages` makes of it: the shortest length gets the first places.

    Where the longest documents come first it gets the last ones, so that short documents meet the short lengths.

    Raises:
        UserError: a stage gets no block.
    """
    if not settings.stages:
        return [train]
    lengths = sorted(settings.stages)
    shares = np.cumsum([settings.stages[length] for length in lengths])
    ends = [0, *np.floor(shares / shares[-1] * train.blocks + 0.5).astype(np.int64).tolist()]
    splits = []
    for length, begin, end in zip(lengths, ends[:-1], ends[1:], strict=True):
        if begin == end:
            raise UserError(
                f"stages: {settings.stages[length]:g} of {train.blocks} training blocks is no block for {length}: "
                "raise its share, leave it out or add text"
            )
        first = begin if train.shuffled else train.blocks - end
        splits.append(replace(train, name=f"train_{length}", first=first, blocks=end - begin))
    return splits


def _kept_tokens(table: DocumentTable) -> int:
    return int(table.totals()[1][:, Fate.KEPT].sum())


def _write_stream(stream: _Stream, table: DocumentTable, settings: ConvertConfig, folder: Path, tally: Tally) -> None:
    """Writes the stream's runs, and counts what its splits have."""
    splits = stream.splits
    tokens, blocks = splits[0].stream_tokens, splits[0].stream_blocks

    def owners(numbers: Integers) -> Integers:
        owner = np.full(len(numbers), len(splits))
        places: dict[bool, Integers] = {}  # the splits of a stream are ranges of its shuffled order, or of another one
        for index, split in enumerate(splits):
            if split.blocks == blocks:
                owner[:] = index
                continue
            if split.shuffled not in places:
                places[split.shuffled] = split.places(np.minimum(numbers, blocks - 1), settings.seed)
            place = places[split.shuffled]
            owner[(place >= split.first) & (place < split.first + split.blocks)] = index
        owner[numbers >= blocks] = len(splits) + 1
        return owner

    reasons = [_UNUSED, f"remainder of {stream.name}"]
    to = Destinations(settings.block_size, [split.name for split in splits], reasons, owners)
    with RunWriter(folder / f"{stream.name}.npy") as writer:
        for piece in stream.pieces():
            sources = table.sources_of(piece.numbers)
            tally.add(sources, piece.lengths, piece.given, writer.tokens, to, _REST)
            writer.add(piece.starts, piece.spans)
    assert writer.tokens == tokens, (stream.name, writer.tokens, tokens)


def _check_any(segments: Segments) -> None:
    if int(segments.document_starts[-1]):
        return
    read = sum(info.read for info in segments.infos)
    reasons: Counter[str] = Counter()
    for info in segments.infos:
        reasons.update(info.bad)
        reasons.update(info.dropped)
    why = ", ".join(f"{reason}: {count:,}" for reason, count in reasons.most_common())
    raise UserError(
        f"no document is left of the {read:,} that were read"
        + (f" ({why}): loosen what leaves them out" if why else ": there is no text")
    )


def _write(path: Path, arrangement: Arrangement) -> None:
    temporary = path.with_name(f"{path.name}.tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(asdict(arrangement), file, ensure_ascii=False)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


Splitter = Callable[[DocumentTable, ConvertConfig, Order, bool], list[_Stream]]
SPLITTERS: dict[str, Splitter] = {"document": split_by_document, "block": split_by_block}
Strategy = Callable[[DocumentTable, ConvertConfig], list[_Stream]]
STRATEGIES: dict[str, Strategy] = {"naive": pack_naive, "sorted": pack_sorted, "not_packed": pack_not_packed}

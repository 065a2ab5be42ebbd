"""Which documents are kept, and which of them are validation: decisions over all of them, by their keys.

As a key is a hash of seed and text, the order of the keys is a random one that doesn't depend on files or workers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from bertchen.config.schema_convert import ConvertConfig
from bertchen.conversion.segments import Integers
from bertchen.conversion.table import DocumentTable, Fate
from bertchen.errors import UserError

if TYPE_CHECKING:
    from bertchen.text.sources import Source

# See choose_validation.
MIN_VAL_DOCUMENTS = 20
MAX_VAL_SHARE = 0.1


def choose_documents(table: DocumentTable, sources: Sequence[Source], settings: ConvertConfig) -> None:
    """Samples and mixes the sources, then drops duplicates over all of them: sets the fates in the table.

    Raises:
        UserError: a source has less than was asked for.
    """
    for index, source in enumerate(sources):
        sample_source(table, index, source, _key_of(source, settings))
    if any(source.weight is not None for source in sources):
        mix_sources(table, sources, settings)
    if settings.clean.get("exact_duplicates") is not None:
        drop_exact_duplicates(table)
    if table.bands:
        drop_near_duplicates(table)


def sample_source(table: DocumentTable, index: int, source: Source, key: str) -> None:
    """Keeps the documents with the smallest keys, as many as `sample.documents` or `sample.tokens` says.

    Raises:
        UserError: the source has fewer.
    """
    if source.documents is None and source.tokens is None:
        return
    documents, tokens = (int(total[index, Fate.KEPT]) for total in table.totals())
    by_tokens = source.tokens is not None
    wanted = source.tokens if source.tokens is not None else source.documents
    assert wanted is not None
    if wanted > (tokens if by_tokens else documents):
        raise UserError(
            f"{key}.sample.{'tokens' if by_tokens else 'documents'}={wanted}: the source has {documents:,} documents "
            f"of together {tokens:,} tokens, separators included: ask for less, or for all of it by leaving this out"
        )
    _keep_smallest_keys(table, index, wanted, by_tokens)


def mix_sources(table: DocumentTable, sources: Sequence[Source], settings: ConvertConfig) -> None:
    """Keeps of each source its share of a mixture that is as large as it can be without repeating a source.

    Raises:
        UserError: a source has nothing to give.
    """
    there = table.totals()[1][:, Fate.KEPT].tolist()
    for source, tokens in zip(sources, there, strict=True):
        if not tokens:
            raise UserError(
                f"{_key_of(source, settings)}.weight={source.weight}: the source has no documents to mix in: "
                "leave it out"
            )
    # Exact, so that rounding takes nothing from the source that is used up.
    weights = [Fraction(source.weight or 0) for source in sources]
    scale = min(tokens / weight for tokens, weight in zip(there, weights, strict=True) if weight)
    for index, weight in enumerate(weights):
        _keep_smallest_keys(table, index, int(scale * weight), by_tokens=True)


def drop_exact_duplicates(table: DocumentTable) -> None:
    """Of the documents with the same text keeps the first."""
    last = None
    for keys, numbers in table.sorted_by("key"):
        table.put("fate", numbers[~_begins_run(keys, last)], Fate.EXACT_DUPLICATE)
        last = keys[-1]


def drop_near_duplicates(table: DocumentTable) -> None:
    """Of the documents that are linked by common bands, directly or through others, keeps the first.

    In memory are 16 bytes for each document that has a band in common with another.
    """
    path = table.folder / "links"
    linked = _write_links(table, path)
    # Each linked document points to an earlier one of its cluster, or to itself.
    parents = np.arange(len(linked))
    for links in _read_links(path, table.stretch):
        _union(parents, *np.searchsorted(linked, links).T)
    table.put("fate", linked[parents != np.arange(len(linked))], Fate.NEAR_DUPLICATE)
    path.unlink()


@dataclass(frozen=True)
class Validation:
    """Documents of which the validation set is made, in the order in which they were drawn.

    Attributes:
        numbers, keys, lengths: (documents,)
        window: tokens that a document gives at most.
    """

    numbers: Integers
    keys: npt.NDArray[np.uint64]
    lengths: Integers
    window: int


def choose_validation(table: DocumentTable, settings: ConvertConfig) -> Validation:
    """Draws whole documents for validation until they fill `val_blocks`, and sets their fates and their copies'.

    The order of drawing is that of the keys, thus a matter of seed and texts alone, not of files. A text that
    occurs more than once is drawn once, and its copies are kept out of training.

    Documents can be very long (a play of 2 million characters is 900 blocks), and validation on two of them
    would say little. So a document gives at most a part of the validation set: a window at a random place
    with the separator behind it. Its other tokens are dropped, as they may be on neither side. At first the
    window is 1/20 of the validation set (but at least a block). It is doubled as long as the drawn documents
    hold more than a tenth of the corpus, so that validation doesn't use up a corpus of few, long documents.

    Raises:
        UserError: there are too few documents.
    """
    needed = settings.val_blocks * settings.block_size
    total = int(table.totals()[1][:, Fate.KEPT].sum())
    window = min(needed, max(settings.block_size, needed // MIN_VAL_DOCUMENTS))
    numbers, keys, lengths = _texts_by_key(table, needed, window)
    # (window, documents drawn), where there are as many; a larger window needs fewer documents.
    draws = []
    while True:
        count = int(np.searchsorted(np.cumsum(np.minimum(lengths, window)), needed)) + 1
        if count <= len(numbers):
            draws.append((window, count))
        if window == needed:
            break
        window = min(needed, 2 * window)
    lost = _tokens_up_to(table, [keys[count - 1] for _, count in draws])
    # With the largest window, whatever it costs.
    chosen = next((index for index, tokens in enumerate(lost) if tokens <= MAX_VAL_SHARE * total), len(draws) - 1)
    if not draws or total - lost[chosen] < settings.block_size:
        raise UserError(
            f"val_blocks={settings.val_blocks}: {_distinct_texts(table)} different documents are too few to take so "
            f"many blocks of {settings.block_size} tokens from some and leave a block of others for training: "
            "lower val_blocks, add documents, or split within documents with split_by=block"
        )
    window, count = draws[chosen]
    drawn = Validation(numbers[:count], keys[:count], lengths[:count], window)
    table.put_where(lambda _, each: each <= keys[count - 1], Fate.COPY_OF_VALIDATION, "key")
    table.put("fate", drawn.numbers, Fate.VALIDATION)
    return drawn


def _keep_smallest_keys(table: DocumentTable, source: int, wanted: int, by_tokens: bool) -> None:
    """Keeps the fewest documents with the smallest keys that are so many, or hold so many tokens."""
    start, stop = table.source_starts[source : source + 2].tolist()
    held, last = 0, None
    if wanted:
        for keys, numbers in table.sorted_by("key", start, stop):
            sizes = table.take(numbers, "length")[0] if by_tokens else np.ones(len(numbers), np.int64)
            ends = held + np.cumsum(sizes, dtype=np.int64)
            if (place := int(np.searchsorted(ends, wanted))) < len(ends):
                last = keys[place], numbers[place]
                break
            held = int(ends[-1])
        else:
            return

    def is_behind(numbers: Integers, keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
        if last is None:
            return np.ones(len(numbers), bool)
        return (keys > last[0]) | ((keys == last[0]) & (numbers > last[1]))

    table.put_where(is_behind, Fate.NOT_SAMPLED, "key", start=start, stop=stop)


def _begins_run(keys: npt.NDArray[np.uint64], last: np.uint64 | None) -> npt.NDArray[np.bool_]:
    """Which of the sorted keys differ from the one before, the first from `last`."""
    return np.append(last is None or keys[0] != last, keys[1:] != keys[:-1])


def _write_links(table: DocumentTable, path: Path) -> Integers:
    """Writes pairs of documents with the same band, the earlier one first, and gives the numbers in them, sorted."""
    table.add_flags("linked")
    with open(path, "wb") as file:
        for column in table.band_columns:
            last, first = None, -1
            for bands, numbers in table.sorted_by(column):
                begins = _begins_run(bands, last)
                run = np.maximum.accumulate(np.where(begins, np.arange(len(begins)), -1))
                firsts = np.where(run >= 0, numbers[run], first)
                last, first = bands[-1], firsts[-1]
                links = np.stack([firsts, numbers], axis=1)[~begins]
                file.write(links.tobytes())
                table.put("linked", links.ravel(), 1)
    return np.concatenate([numbers[linked == 1] for numbers, (linked,) in table.stretches("linked")])


def _read_links(path: Path, pairs: int) -> Iterator[Integers]:
    """The pairs, as (so many at a time, 2)."""
    with open(path, "rb") as file:
        while piece := file.read(16 * pairs):
            yield np.frombuffer(piece, np.int64).reshape(-1, 2)


def _union(parents: Integers, left: Integers, right: Integers) -> None:
    """Joins the clusters of left and right, pair by pair; the smallest of a cluster is its root."""
    while True:
        left, right = _roots(parents, left), _roots(parents, right)
        apart = left != right
        if not apart.any():
            return
        left, right = left[apart], right[apart]
        # Of several that a root should point to, the smallest; the others follow in the next round.
        np.minimum.at(parents, np.maximum(left, right), np.minimum(left, right))


def _roots(parents: Integers, members: Integers) -> Integers:
    """The roots of the members' clusters; makes them all point to what theirs points to, until that is the root."""
    while True:
        above = parents[members]
        higher = parents[above]
        if (above == higher).all():
            return above
        parents[members] = higher


def _texts_by_key(table: DocumentTable, needed: int, window: int) -> tuple[Integers, npt.NDArray[np.uint64], Integers]:
    """(numbers, keys, lengths) of the different texts with the smallest keys, until windows of them hold `needed`."""
    pieces = [(np.empty(0, np.int64), np.empty(0, np.uint64), np.empty(0, np.int64))]
    last, held = None, 0
    for keys, numbers in table.sorted_by("key"):
        begins = _begins_run(keys, last)
        last = keys[-1]
        numbers, keys = numbers[begins], keys[begins]
        lengths = table.take(numbers, "length")[0].astype(np.int64)
        ends = held + np.cumsum(np.minimum(lengths, window))
        count = int(np.searchsorted(ends, needed)) + 1
        pieces.append((numbers[:count], keys[:count], lengths[:count]))
        if count <= len(ends):
            break
        held = int(ends[-1]) if len(ends) else held
    numbers, keys, lengths = (np.concatenate(column) for column in zip(*pieces, strict=True))
    return numbers, keys, lengths


def _tokens_up_to(table: DocumentTable, limits: Sequence[np.uint64]) -> list[int]:
    """The tokens of all documents whose key is at most each limit."""
    tokens = [0] * len(limits)
    for _, (keys, lengths) in table.kept("key", "length"):
        for index, limit in enumerate(limits):
            tokens[index] += int(lengths[keys <= limit].sum(dtype=np.int64))
    return tokens


def _distinct_texts(table: DocumentTable) -> int:
    count, last = 0, None
    for keys, _ in table.sorted_by("key"):
        count += int(_begins_run(keys, last).sum())
        last = keys[-1]
    return count


def _key_of(source: Source, settings: ConvertConfig) -> str:
    return f"sources.{source.name}" if settings.sources else "source"

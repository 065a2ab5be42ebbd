"""Figures about a raw corpus: its sources are read as the conversion reads them, once, for all tokenizers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from typing import Any

from tqdm import tqdm

from bertchen.config import Config
from bertchen.config.schema_stats import StatsConfig
from bertchen.conversion.tokens import ALL_KEYS, BATCH_CHARACTERS, NOT_SAMPLED, document_key
from bertchen.errors import UserError
from bertchen.report.data_stats import Measurement, Part, check_positive, load_others, total_of
from bertchen.text.cleaning import Cleaning, build_cleaning
from bertchen.text.documents import EMPTY, Document, Rejected
from bertchen.text.readers import read_chunks
from bertchen.text.sources import Source, resolve_sources
from bertchen.tokenizer import load_tokenizer


def raw_stats(config: Config[StatsConfig]) -> dict[str, Any]:
    """Reads the corpus and counts.

    Rules about rows, `sample.fraction` and the cleaners of single documents are applied; what a conversion decides
    about the corpus as a whole is not, and is named in the notes: samples of so many documents or tokens, weights,
    duplicates.

    Returns:
        The figures as plain containers: `parts` by source, `total`, `bad` and `dropped` documents by reason, and for
        each of `tokenizers` the figures with lengths of documents.

    Raises:
        UserError: a wrong value, nothing to read, a bad row with `on_bad_rows=fail`.
    """
    settings = config.value
    check_positive(config, "max_documents", "max_characters", "most_frequent")
    sources = resolve_sources(config)
    cleaning = build_cleaning(config)
    first = Measurement(settings.tokenizer, load_tokenizer(settings.tokenizer))
    others = load_others(settings.compare_to, settings.tokenizer, config)
    parts = {source.name: Part() for source in sources}
    is_limited = settings.max_documents is not None or settings.max_characters is not None
    stored = None if is_limited else sum(file.bytes for source in sources for file in source.files)
    with tqdm(total=stored, unit="B", unit_scale=True, unit_divisor=1024, desc="reading", disable=None) as bar:
        reading = _Reading(settings, cleaning, bar.update)
        for source in sources:
            for batch in reading.batches(source):
                batch_ids = first.encode([document.text for document in batch])
                kept = [(document.text, ids) for document, ids in zip(batch, batch_ids, strict=True) if len(ids)]
                for document, ids in zip(batch, batch_ids, strict=True):
                    if not len(ids):
                        reading.reject(_empty(document))
                texts = [text for text, _ in kept]
                first.add_documents([ids for _, ids in kept])
                parts[source.name].add(len(kept), texts, [ids for _, ids in kept])
                for other in others:
                    other.add_documents(other.encode(texts))
    total = total_of(parts.values())
    if not total.documents:
        left_out = ", ".join(f"{reason}: {count:,}" for reason, count in (reading.bad + reading.dropped).items())
        raise UserError(f"no document is left of the sources {', '.join(parts)} (left out: {left_out or 'none'})")
    return {
        "kind": "raw",
        "corpus": ", ".join(parts),
        "parts": {name: asdict(part) for name, part in parts.items()},
        "total": asdict(total),
        "bad": dict(reading.bad),
        "dropped": dict(reading.dropped),
        "tokenizers": [each.summary(total, settings.most_frequent) for each in (first, *others)],
        "notes": [*reading.notes(), *_not_applied(sources, cleaning)],
        "config": config.to_dict(),
    }


class _Reading:
    """The documents of the sources that are to be counted, in batches.

    Attributes:
        bad, dropped: documents left out, by reason: because something is wrong with them, and on request.
    """

    def __init__(self, settings: StatsConfig, cleaning: Cleaning, on_bytes: Callable[[int], Any]) -> None:
        self._settings, self._cleaning, self._on_bytes = settings, cleaning, on_bytes
        self._ended_early: list[str] = []
        self.bad: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()

    def batches(self, source: Source) -> Iterator[list[Document]]:
        """Batches of about `BATCH_CHARACTERS`, or of one document."""
        batch: list[Document] = []
        characters = 0
        for document in self._limited(self._kept(source), source):
            batch.append(document)
            characters += len(document.text)
            if characters >= BATCH_CHARACTERS:
                yield batch
                batch, characters = [], 0
        if batch:
            yield batch

    def reject(self, row: Rejected) -> None:
        """Counts a row that gives no document, or raises, as `on_bad_rows` says."""
        if row.is_bad and self._settings.on_bad_rows == "fail":
            raise UserError(row.message)
        (self.bad if row.is_bad else self.dropped)[row.reason] += 1

    def notes(self) -> list[str]:
        """What is to be known about what was read."""
        if not self._ended_early:
            return []
        return [f"read no further than max_documents or max_characters: {', '.join(self._ended_early)}"]

    def _limited(self, documents: Iterable[Document], source: Source) -> Iterator[Document]:
        most, most_characters = self._settings.max_documents, self._settings.max_characters
        characters = 0
        for number, document in enumerate(documents, start=1):
            yield document
            characters += len(document.text)
            if number == most or (most_characters is not None and characters >= most_characters):
                self._ended_early.append(source.name)
                return

    def _kept(self, source: Source) -> Iterator[Document]:
        below = ALL_KEYS if source.fraction is None else int(source.fraction * ALL_KEYS)
        for row in self._rows(source):
            if isinstance(row, Rejected):
                self.reject(row)
            elif below < ALL_KEYS and document_key(row.text, self._settings.seed) >= below:
                self.dropped[NOT_SAMPLED] += 1
            elif reason := self._cleaning.reason(row.text):
                self.dropped[reason] += 1
            else:
                yield row

    def _rows(self, source: Source) -> Iterator[Document | Rejected]:
        for file in source.files:
            for chunk in read_chunks(file.path, source.rules):
                yield from chunk.rows()
                self._on_bytes(chunk.stored_bytes)


def _empty(document: Document) -> Rejected:
    where = f"{document.path}, row {document.row + 1}"
    message = f"{where}: the text is empty (no token); on_bad_rows=skip leaves such rows out"
    return Rejected(document.path, document.row, EMPTY, message, is_bad=True)


def _not_applied(sources: Iterable[Source], cleaning: Cleaning) -> list[str]:
    """The notes about settings that need the whole corpus."""
    whole = [f"sample of {source.name}" for source in sources if source.documents or source.tokens]
    whole += ["weights"] * any(source.weight is not None for source in sources)
    whole += ["exact duplicates"] * cleaning.exact_duplicates
    whole += ["near duplicates"] * (cleaning.near_duplicates is not None)
    return [f"not applied here, but by a conversion: {', '.join(whole)}"] if whole else []

"""From files to a tokenizer's folder: the work of scripts/train_tokenizer.py."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import tokenizers
import transformers
import xxhash
from tqdm import tqdm

from bertchen.config import Config
from bertchen.config.schema_tokenizer import TokenizerConfig
from bertchen.errors import UserError
from bertchen.text.files import resolve_paths, total_bytes
from bertchen.text.readers import read_documents
from bertchen.text.staging import staged_folder
from bertchen.tokenizer.bpe import train_tokenizer
from bertchen.tokenizer.figures import Figures, as_table, count_words, measure
from bertchen.tokenizer.fingerprint import tokenizer_fingerprint
from bertchen.tokenizer.loading import load_tokenizer

REPORT = "report.json"

# The figures are read off so much text at most, of which no document gives more than a small part.
_SAMPLE_CHARACTERS = 5_000_000
_SAMPLE_CHARACTERS_A_DOCUMENT = 100_000


def train_from_files(config: Config[TokenizerConfig]) -> dict[str, Any]:
    """Trains a tokenizer on files and writes it, with its report, into the folder `out`.

    Returns:
        The report, as in `report.json`: text and documents used, and the figures of each tokenizer.

    Raises:
        UserError: a wrong value, nothing to read, nowhere to write; then nothing is left behind.
    """
    settings = config.value
    _check(config)
    paths = resolve_paths(settings.input)
    others = {name: load_tokenizer(name) for name in settings.compare_to}
    with staged_folder(settings.out, holds="tokenizer.json", overwrite=settings.overwrite) as folder:
        corpus = Corpus(paths, settings)
        tokenizer = train_tokenizer(
            corpus,
            settings.vocab_size,
            min_frequency=settings.min_frequency,
            alphabet_size=settings.alphabet_size,
            progress=sys.stderr.isatty(),
        )
        sample = corpus.held_out if corpus.held_out.words() else corpus.trained_on
        rows = [measure(tokenizer, settings.out, sample.texts)]
        rows += [measure(other, name, sample.texts) for name, other in others.items()]
        report = {
            "fingerprint": tokenizer_fingerprint(tokenizer),
            "training": {"documents": corpus.documents, "characters": corpus.characters},
            "measured_on": {
                "text": "held-out documents" if sample is corpus.held_out else "training documents",
                "documents": len(sample.texts),
                "characters": sample.characters,
                "words": sample.words(),
            },
            "tokenizers": [asdict(row) for row in rows],
            "config": config.to_dict(),
            "versions": {"tokenizers": tokenizers.__version__, "transformers": transformers.__version__},
        }
        tokenizer.save_pretrained(folder)
        with open(folder / REPORT, "w", encoding="utf-8") as file:
            json.dump(report, file, ensure_ascii=False, indent=2)
            file.write("\n")
    return report


def show_report(report: dict[str, Any]) -> str:
    """The report for the terminal."""
    training, measured = report["training"], report["measured_on"]
    characters_per_word = measured["characters"] / measured["words"]
    rows = [Figures(**row) for row in report["tokenizers"]]
    return "\n".join(
        (
            f"trained on {training['documents']:,} documents: {training['characters']:,} characters",
            f"measured on {measured['documents']:,} {measured['text']}: "
            f"{measured['characters']:,} characters, {measured['words']:,} words, "
            f"{characters_per_word:.2f} characters/word",
            "",
            as_table(rows),
        )
    )


@dataclass
class Sample:
    """A bounded sample of documents."""

    texts: list[str] = field(default_factory=list)
    characters: int = 0

    def add(self, text: str) -> None:
        room = min(_SAMPLE_CHARACTERS_A_DOCUMENT, _SAMPLE_CHARACTERS - self.characters)
        if text and room > 0:
            self.texts.append(text[:room])
            self.characters += len(self.texts[-1])

    def words(self) -> int:
        return count_words(self.texts)


class Corpus:
    """The documents to train on; read anew, and alike, each time it is iterated.

    The first time also shows a progress bar, counts, and gathers the samples for the figures.

    Attributes:
        documents, characters: what the training is given.
        held_out: sample of the documents that the training is not given.
        trained_on: sample of those that it is given.
    """

    def __init__(self, paths: list[str], settings: TokenizerConfig) -> None:
        self._paths = paths
        self._settings = settings
        self._counted = False
        self.documents = 0
        self.characters = 0
        self.held_out = Sample()
        self.trained_on = Sample()

    def __iter__(self) -> Iterator[str]:
        if self._counted:
            yield from (text for text, held_out in self._read(None) if not held_out)
            return
        with tqdm(
            total=total_bytes(self._paths),
            unit="B",
            unit_scale=True,
            unit_divisor=1024,
            desc="reading",
            disable=None,
        ) as bar:
            for text, held_out in self._read(bar):
                if held_out:
                    self.held_out.add(text)
                    continue
                self.trained_on.add(text)
                self.documents += 1
                self.characters += len(text)
                yield text
        self._counted = True
        if not self.trained_on.words():
            held_out = len(self.held_out.texts)
            hint = f"; {held_out} documents are held out: set held_out=0" if held_out else ""
            raise UserError(f"input={self._settings.input}: no text to train on in {len(self._paths)} files{hint}")

    def _read(self, bar: tqdm | None) -> Iterator[tuple[str, bool]]:
        """The texts and whether each is held out, up to `max_documents` and `max_characters`."""
        settings = self._settings
        characters = 0
        on_bytes = bar.update if bar is not None else None
        for number, document in enumerate(read_documents(self._paths, settings.text_column, on_bytes)):
            if settings.max_documents is not None and number >= settings.max_documents:
                return
            text = document.text
            if settings.max_characters is not None:
                text = text[: settings.max_characters - characters]
            characters += len(text)
            yield text, _chance(settings.seed, number) < settings.held_out
            if characters == settings.max_characters:
                return


def _chance(seed: int, number: int) -> float:
    """A number in [0, 1) that depends on nothing but the seed and the document's number."""
    return xxhash.xxh64_intdigest(f"{seed}:{number}".encode()) / 2**64


def _check(config: Config[TokenizerConfig]) -> None:
    settings = config.value
    is_list = isinstance(settings.input, list) and all(isinstance(item, str) for item in settings.input)
    if not is_list and not isinstance(settings.input, str):
        config.fail("input", "should be a file, a folder, a glob or a list of these")
    if not 0 <= settings.held_out <= 0.5:
        config.fail("held_out", "should be a share of the documents from 0 to 0.5")
    for key in ("vocab_size", "min_frequency", "alphabet_size", "max_documents", "max_characters"):
        value = getattr(settings, key)
        if value is not None and value < 1:
            config.fail(key, "should be at least 1")
    if os.path.abspath(settings.out) in {os.path.abspath(name) for name in settings.compare_to}:
        config.fail("compare_to", "names the folder that is to be written: give another one")

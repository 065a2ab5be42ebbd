"""What figures about a corpus are made of: its parts, the lengths of its documents, what each tokenizer makes of it.

What is kept of the text is counted by token, by character or by length, so memory doesn't grow with the corpus: it has
few different lengths, because k of them take documents of k * k / 2 tokens at least.
"""

from __future__ import annotations

import math
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from bertchen.config import Config
from bertchen.conversion.describe import entropy
from bertchen.conversion.tally import percentiles
from bertchen.conversion.tokens import Recipe, make_encoder
from bertchen.tokenizer import load_tokenizer, tokenizer_fingerprint
from bertchen.tokenizer.bpe import cuts_at_spaces
from bertchen.tokenizer.figures import TokenCounts, TokenIds, count_words, shown_token


@dataclass
class Part:
    """What was read of a source or a split; `tokens` are those of the first tokenizer, without separators."""

    documents: int = 0
    characters: int = 0
    words: int = 0
    tokens: int = 0

    def add(self, documents: int, texts: Sequence[str], ids: Sequence[TokenIds]) -> None:
        """Adds a batch: so many documents (or ends of documents), texts and their tokens."""
        self.documents += documents
        self.characters += sum(map(len, texts))
        self.words += count_words(texts)
        self.tokens += sum(map(len, ids))


def total_of(parts: Iterable[Part]) -> Part:
    """The parts together."""
    total = Part()
    for part in parts:
        for name, value in asdict(part).items():
            setattr(total, name, getattr(total, name) + value)
    return total


def length_histogram(lengths: Counter[int]) -> dict[str, list[int]]:
    """`edges` and `counts`: documents with lengths from an edge to below the next, two edges for each doubling.

    Args:
        lengths: how often each length occurs, one at least.
    """
    doublings = max(lengths).bit_length()
    edges = sorted({math.ceil(2 ** (half / 2)) for half in range(2 * doublings + 1)})
    if 0 in lengths:
        edges.insert(0, 0)
    values, weights = list(lengths), list(lengths.values())
    counts, _ = np.histogram(values, bins=edges, weights=weights)
    return {"edges": edges, "counts": counts.astype(int).tolist()}


class Measurement:
    """What one tokenizer makes of the text.

    Args:
        name: folder or name, as the user gave it.
        tokenizer: loaded.
    """

    def __init__(self, name: str, tokenizer: PreTrainedTokenizerBase) -> None:
        self.name, self.tokenizer = name, tokenizer
        self.counts = TokenCounts(tokenizer)
        self._lengths: Counter[int] = Counter()
        as_json = tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else None
        self.encode = make_encoder(
            Recipe(
                name, as_json, separator=0, ids=len(self.counts.counts), seed=0, clean={}, bands=0,
                by_words=as_json is not None and cuts_at_spaces(as_json),
            )
        )  # fmt: skip

    def add_documents(self, ids: Sequence[TokenIds]) -> None:
        """Adds whole documents, each as its token ids."""
        self.add_pieces(ids)
        self._lengths.update(map(len, ids))

    def add_pieces(self, ids: Sequence[TokenIds]) -> None:
        """Adds pieces of documents, whose lengths mean nothing."""
        self.counts.add(ids)

    def summary(self, total: Part, most_frequent: int) -> dict[str, Any]:
        """The figures as plain containers; without whole documents, those of lengths are None."""
        tokens, fallen_back = self.counts.tokens, self.counts.fallen_back
        return {
            **asdict(self.counts.figures(self.name, max(total.words, 1), total.characters)),
            "fingerprint": tokenizer_fingerprint(self.tokenizer),
            "entries_used": int(np.count_nonzero(self.counts.counts)),
            "unigram_entropy_nats": entropy(self.counts.counts),
            "byte_tokens": self.counts.byte_tokens,
            "unknown_tokens": self.counts.unknown_tokens,
            "tokens_per_document": percentiles(self._lengths),
            "length_histogram": length_histogram(self._lengths) if self._lengths else None,
            "most_frequent": [
                {
                    "id": index,
                    "token": self.tokenizer.convert_ids_to_tokens(index),
                    "text": shown_token(self.tokenizer, index),
                    "count": count,
                    "share": count / tokens,
                }
                for index, count in self.counts.most_frequent(most_frequent)
            ],
            "fallen_back": {
                "characters": fallen_back.total(),
                "different": len(fallen_back),
                "most_frequent": [
                    {
                        "character": character,
                        "code_point": f"U+{ord(character):04X}",
                        "name": unicodedata.name(character, "unnamed"),
                        "count": count,
                    }
                    for character, count in sorted(fallen_back.items(), key=lambda item: (-item[1], item[0]))
                ][:most_frequent],
            },
        }


def load_others(names: Sequence[str], first: str, config: Config[Any]) -> list[Measurement]:
    """The tokenizers of `compare_to`."""
    if len({os.path.abspath(name) for name in [first, *names]}) <= len(names):
        config.fail("compare_to", f"names a tokenizer twice, or {first}, which it is compared to")
    return [Measurement(name, load_tokenizer(name)) for name in names]


def check_positive(config: Config[Any], *keys: str) -> None:
    """Raises for a key whose value is below 1; null is fine."""
    for key in keys:
        value = getattr(config.value, key)
        if value is not None and value < 1:
            config.fail(key, "should be at least 1")

"""What a tokenizer makes of a text: tokens a word, characters a token, bytes and unknowns, frequencies of tokens."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase

from bertchen.tokenizer.bpe import pieces

_BATCH = 64
_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
_NO_BYTE = -1
_NEVER_UTF8 = 0xFF
_METASPACE = "▁"
_VISIBLE = str.maketrans({" ": "␣", "\n": "⏎", "\t": "⇥", "\r": "␍"})

TokenIds = Sequence[int] | npt.NDArray


@dataclass(frozen=True)
class Figures:
    """Figures of one tokenizer on one text.

    Attributes:
        name: folder or name of the tokenizer.
        vocab_size: entries, added tokens included.
        tokens: tokens of the text, without special tokens around it.
        tokens_per_word: "fertility"; a word is what white space separates.
        characters_per_token: white space included.
        byte_share: share of the tokens that are byte-fallback tokens (`<0xC3>`), of 1; None if it has none.
        unknown_share: share of the tokens that are the unknown token, of 1.
    """

    name: str
    vocab_size: int
    tokens: int
    tokens_per_word: float
    characters_per_token: float
    byte_share: float | None
    unknown_share: float


class TokenCounts:
    """How often each token occurs in texts, which are added batch by batch; of a size that the vocabulary bounds.

    Attributes:
        counts: (ids,) occurrences of each token.
        fallen_back: occurrences of each character that became byte-fallback tokens.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        vocab = tokenizer.get_vocab()
        ids = max(len(tokenizer), 1 + max(vocab.values(), default=0))
        self._vocab_size = len(tokenizer)
        self._unknown = tokenizer.unk_token_id
        self._bytes = np.full(ids, _NO_BYTE, dtype=np.int16)
        for token, index in vocab.items():
            if match := _BYTE_TOKEN.fullmatch(token):
                self._bytes[index] = int(match[1], 16)
        self.counts = np.zeros(ids, dtype=np.int64)
        self.fallen_back: Counter[str] = Counter()

    def add(self, texts: Sequence[TokenIds]) -> None:
        """Adds texts, each as its token ids."""
        if not texts:
            return
        ids = np.concatenate(texts, dtype=np.int64, casting="unsafe")
        self.counts += np.bincount(ids, minlength=len(self.counts))
        at = np.flatnonzero(self._bytes[ids] != _NO_BYTE)
        if len(at):
            text_of = np.searchsorted(np.cumsum([len(text) for text in texts]), at, side="right")
            # Tokens in a row are the bytes of whole characters, unless the text was cut among them: such are ignored.
            breaks = 1 + np.flatnonzero((np.diff(at) != 1) | (np.diff(text_of) != 0))
            raw = np.insert(self._bytes[ids[at]].astype(np.uint8), breaks, _NEVER_UTF8)
            self.fallen_back.update(raw.tobytes().decode("utf-8", errors="ignore"))

    @property
    def tokens(self) -> int:
        return int(self.counts.sum())

    @property
    def byte_tokens(self) -> int | None:
        """Byte-fallback tokens; None if the tokenizer has none."""
        is_byte = self._bytes != _NO_BYTE
        return int(self.counts[is_byte].sum()) if is_byte.any() else None

    @property
    def unknown_tokens(self) -> int:
        return 0 if self._unknown is None else int(self.counts[self._unknown])

    def most_frequent(self, number: int) -> list[tuple[int, int]]:
        """(id, occurrences) of the most frequent tokens, the most frequent first, ties by id."""
        order = np.argsort(-self.counts, kind="stable")[:number]
        return [(int(index), int(self.counts[index])) for index in order if self.counts[index]]

    def figures(self, name: str, words: int, characters: int) -> Figures:
        """The figures on the texts that were added, which have so many words (at least one) and characters."""
        tokens, byte_tokens = self.tokens, self.byte_tokens
        return Figures(
            name=name,
            vocab_size=self._vocab_size,
            tokens=tokens,
            tokens_per_word=tokens / words,
            characters_per_token=characters / max(tokens, 1),
            byte_share=None if byte_tokens is None else byte_tokens / max(tokens, 1),
            unknown_share=self.unknown_tokens / max(tokens, 1),
        )


def count_words(texts: Iterable[str]) -> int:
    """Words of the texts: what white space separates."""
    return sum(len(text.split()) for text in texts)


def measure(tokenizer: PreTrainedTokenizerBase, name: str, texts: Sequence[str]) -> Figures:
    """Figures of a tokenizer on texts that hold at least one word."""
    counts = TokenCounts(tokenizer)
    parts = [piece for text in texts for piece in pieces(text)]
    for start in range(0, len(parts), _BATCH):
        counts.add(tokenizer(parts[start : start + _BATCH], add_special_tokens=False, verbose=False)["input_ids"])
    return counts.figures(name, count_words(texts), sum(map(len, texts)))


def shown_token(tokenizer: PreTrainedTokenizerBase, index: int) -> str:
    """A token as shown to people: its text with white space made visible, or its entry where it is no text alone."""
    entry = tokenizer.convert_ids_to_tokens(index)
    if entry is None:
        return f"({index})"
    text = tokenizer.decode([index], clean_up_tokenization_spaces=False)
    if _BYTE_TOKEN.fullmatch(entry) or not text or "\N{REPLACEMENT CHARACTER}" in text:
        text = entry
    elif entry.startswith(_METASPACE) and not text.startswith((" ", _METASPACE)):  # decoding takes the first space away
        text = f" {text}"
    return "".join(character if character.isprintable() else f"\\u{ord(character):04x}" for character in visible(text))


def visible(text: str) -> str:
    """The text with signs for spaces, tabs and ends of lines."""
    return text.translate(_VISIBLE)


def as_table(rows: Sequence[Figures]) -> str:
    """The figures as an aligned table, one line a tokenizer."""
    header = ("tokenizer", "entries", "tokens/word", "characters/token", "bytes", "unknown")
    return aligned([header, *(_cells(asdict(row)) for row in rows)])


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """A table of lines of equally many cells: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join((line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))))
        for line in lines
    )


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        row["name"],
        f"{row['vocab_size']:,}",
        f"{row['tokens_per_word']:.3f}",
        f"{row['characters_per_token']:.3f}",
        "-" if row["byte_share"] is None else f"{row['byte_share']:.4%}",
        f"{row['unknown_share']:.4%}",
    )

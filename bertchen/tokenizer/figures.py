"""What a tokenizer makes of a text: tokens a word, characters a token, bytes and unknowns."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from bertchen.tokenizer.bpe import pieces

_BATCH = 64
_BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")


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


def count_words(texts: Iterable[str]) -> int:
    """Words of the texts: what white space separates."""
    return sum(len(text.split()) for text in texts)


def measure(tokenizer: PreTrainedTokenizerBase, name: str, texts: Sequence[str]) -> Figures:
    """Figures of a tokenizer on texts that hold at least one word."""
    vocab = tokenizer.get_vocab()
    byte_ids = {index for token, index in vocab.items() if _BYTE_TOKEN.fullmatch(token)}
    parts = [piece for text in texts for piece in pieces(text)]
    tokens = byte_tokens = unknown_tokens = 0
    for start in range(0, len(parts), _BATCH):
        batch = tokenizer(parts[start : start + _BATCH], add_special_tokens=False, verbose=False)
        for ids in batch["input_ids"]:
            tokens += len(ids)
            byte_tokens += sum(index in byte_ids for index in ids)
            unknown_tokens += sum(index == tokenizer.unk_token_id for index in ids)
    return Figures(
        name=name,
        vocab_size=len(tokenizer),
        tokens=tokens,
        tokens_per_word=tokens / count_words(texts),
        characters_per_token=sum(map(len, texts)) / max(tokens, 1),
        byte_share=byte_tokens / max(tokens, 1) if byte_ids else None,
        unknown_share=unknown_tokens / max(tokens, 1),
    )


def as_table(rows: Sequence[Figures]) -> str:
    """The figures as an aligned table, one line a tokenizer."""
    header = ("tokenizer", "entries", "tokens/word", "characters/token", "bytes", "unknown")
    lines = [header, *(_cells(asdict(row)) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
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

"""Schemas of scripts/data_stats.py: one for a corpus as a YAML of yamls/data/ names it, one for a converted folder."""

from __future__ import annotations

from dataclasses import dataclass, field

from bertchen.config.schema_convert import ConvertConfig


@dataclass
class StatsConfig(ConvertConfig):
    """A raw corpus: the keys of the conversion, of which those are used that say what is read, and:

    Attributes:
        tokenizer: the tokenizer of the figures.
        compare_to: other tokenizers, folders or names on the Hugging Face Hub.
        max_documents, max_characters: of each source; reading ends with the document that reaches one of them.
        most_frequent: so many tokens (and characters that became bytes) are listed.
        out: folder for stats.json and lengths.png, given on the command line; a YAML's is that of the conversion.
        overwrite: whether these two may be replaced; likewise.
    """

    out: str | None = None  # type: ignore[assignment]
    compare_to: list[str] = field(default_factory=list)
    max_documents: int | None = None
    max_characters: int | None = None
    most_frequent: int = 20


@dataclass
class FolderStatsConfig:
    """A converted folder.

    Attributes:
        tokenizer: the one that it was converted with, by default where the manifest says that it was.
        compare_to, most_frequent, out, overwrite: as in `StatsConfig`.
        max_characters: of each split, from its beginning; where its blocks are shuffled that is a random part.
    """

    tokenizer: str | None = None
    compare_to: list[str] = field(default_factory=list)
    max_characters: int | None = None
    most_frequent: int = 20
    out: str | None = None
    overwrite: bool = False

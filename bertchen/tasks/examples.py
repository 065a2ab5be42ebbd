"""What a task's files are read into: one class of examples for each kind of task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["classification", "tagging", "question_answering"]


@dataclass(frozen=True)
class Origin:
    """Where an example came from.

    Attributes:
        path: its file.
        line: its line in it, from 1 on; in a Parquet file its row, in a JSON document its place among the examples.
    """

    path: str
    line: int

    def __str__(self) -> str:
        return f"{self.path}:{self.line}"


@dataclass(frozen=True)
class TextExample:
    """A text, or a pair of texts, and its class."""

    id: str
    text: str
    label: str
    origin: Origin
    pair: str | None = None


@dataclass(frozen=True)
class TagExample:
    """A sentence and the tags of its words.

    Attributes:
        words: the words, as the file divides them.
        tags: `tags[level][word]` in IOB2; level 0 is the outer one.
    """

    id: str
    words: tuple[str, ...]
    tags: tuple[tuple[str, ...], ...]
    origin: Origin


@dataclass(frozen=True)
class Answer:
    """An answer: `context[start : start + len(text)] == text`."""

    text: str
    start: int


@dataclass(frozen=True)
class SpanExample:
    """A question about a context, and the answers accepted: several in test sets, none where it can't be answered."""

    id: str
    question: str
    context: str
    answers: tuple[Answer, ...]
    origin: Origin


Example = TextExample | TagExample | SpanExample

"""Questions in SQuAD's format (GermanQuAD, MLQA): its JSON, or the Hub's rows as Parquet or JSON lines."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from bertchen.errors import UserError
from bertchen.tasks.examples import Answer, Origin, SpanExample
from bertchen.tasks.readers.rows import extension, fail, name_of, read_text, records, text_of
from bertchen.text.documents import json_type

# The key of an id. Inside a string its quotes would have backslashes before them.
_ID = re.compile(r'(?<!\\)"id"\s*:\s*')


def read_squad(path: str) -> Iterator[SpanExample]:
    """The questions as examples of question answering.

    Raises:
        UserError: JSON that isn't in SQuAD's format; a question without id, text or context; a broken answer. Whether
            answers are where they say is for `load_task_data` to check.
    """
    if extension(path) in (".parquet", ".jsonl"):
        for origin, record in records(path):
            yield _example(record, record, origin)
        return
    text = read_text(path)
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: not JSON: {error.msg}") from None
    places = _Places(path, text)
    for paragraph, question in _questions(document, path):
        yield _example(question, paragraph, places.of(question.get("id")))


class _Places:
    """Lines of a JSON document in which questions' ids stand, asked for in the document's order.

    A JSON parser tells of no lines, and an error without one sends its reader searching through megabytes.
    """

    def __init__(self, path: str, text: str) -> None:
        self._path, self._text = path, text
        self._keys = _ID.finditer(text)
        self._decoder = json.JSONDecoder()
        self._line, self._counted = 1, 0

    def of(self, id: Any) -> Origin:
        """The line of the next `"id": id`; where there is none, that of the one found before."""
        for key in self._keys:
            if self._decoder.raw_decode(self._text, key.end())[0] == id:
                self._line += self._text.count("\n", self._counted, key.start())
                self._counted = key.start()
                break
        return Origin(self._path, self._line)


def _questions(document: Any, path: str) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Each question with its paragraph."""
    try:
        for article in document["data"]:
            for paragraph in article["paragraphs"]:
                for question in paragraph["qas"]:
                    if not isinstance(question, dict):
                        raise TypeError("a question is an object")
                    yield paragraph, question
    except (KeyError, TypeError) as error:
        told = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(
            f'{path}: not SQuAD\'s format, {{"data": [{{"paragraphs": [{{"context": …, "qas": […]}}]}}]}}: {told}'
        ) from None


def _example(question: dict[str, Any], paragraph: dict[str, Any], origin: Origin) -> SpanExample:
    id = name_of(question, "id", origin)
    answers = () if question.get("is_impossible") else _answers(question.get("answers"), id, origin)
    return SpanExample(
        id=id,
        question=text_of(question, "question", origin),
        context=text_of(paragraph, "context", origin),
        answers=answers,
        origin=origin,
    )


def _answers(found: Any, id: str, origin: Origin) -> tuple[Answer, ...]:
    """From a list of objects, as in SQuAD's files, or from an object of lists, as the Hub has it."""
    try:
        if isinstance(found, dict):
            pairs = list(zip(found["text"], found["answer_start"], strict=True))
        else:
            pairs = [(answer["text"], answer["answer_start"]) for answer in found]
    except (KeyError, TypeError, ValueError):
        shown = json_type(found) if not isinstance(found, list | dict) else json.dumps(found, ensure_ascii=False)[:200]
        fail(origin, f"question {id}: answers is {shown}, should hold text and answer_start of each")
    for text, start in pairs:
        if not isinstance(text, str) or not text or isinstance(start, bool) or not isinstance(start, int):
            fail(origin, f"question {id}: an answer with text {text!r} and answer_start {start!r}")
    return tuple(Answer(text, start) for text, start in pairs)

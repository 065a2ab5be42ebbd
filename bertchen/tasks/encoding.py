"""From examples to the model's inputs: tokens, windows, and where words, tags and answers lie among them.

Notable: texts are tokenized in batches by the fast tokenizer, without special tokens; these are put around and between
by the tokenizer's own template, which is read off one encoded pair. With ours, that has no `[CLS]`, a text is only its
tokens and a pair is A [SEP] B. Words of a sentence are joined by spaces before they are tokenized, since a tokenizer
that counts a word's space to the word would see other tokens than in pretraining.

A window of a context that doesn't hold the whole answer has its first token as the answer's start and end, as is usual
for SQuAD (Devlin et al., 2019), so that windows without the answer learn to claim nothing. Where there is no `[CLS]`
that token is the question's first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from bertchen.config.schema_finetune import EncodingConfig
from bertchen.errors import UserError
from bertchen.tasks.encoder import Encoder
from bertchen.tasks.examples import Example, Kind, SpanExample, TagExample, TextExample
from bertchen.tokenizer import separator_id

if TYPE_CHECKING:
    from bertchen.tasks.data import TaskData

Ints = NDArray[np.int32]
T = TypeVar("T")

LONG_INPUTS = ("auto", "truncate", "windows", "whole")
NOWHERE = -1
_BATCH = 1024
_MIN_ROOM = 4


@dataclass(frozen=True, eq=False)
class Features:
    """One input of the model. An example has one, or several windows.

    Attributes:
        example: index of its example.
        input_ids: (length,).
        token_type_ids: (length,), or None for a model without them.
        label: classification: index of the label; None where it isn't known.
        words: tagging: index in the sentence of each word that begins in this input, (words,).
        word_starts: the token that it begins with, (words,).
        tags: indexes of the words' tags, (words, levels).
        start, end: question answering: first and last token of the answer, 0 and 0 where it isn't in this window.
        offsets: the characters of the context that each token covers, (length, 2); -1, -1 for other tokens. None in
            training.
    """

    example: int
    input_ids: Ints
    token_type_ids: Ints | None = None
    label: int | None = None
    words: Ints | None = None
    word_starts: Ints | None = None
    tags: Ints | None = None
    start: int | None = None
    end: int | None = None
    offsets: Ints | None = None

    def __len__(self) -> int:
        return len(self.input_ids)


def output_names(data: TaskData) -> list[str]:
    """What the logits stand for, in their order: labels, or tags; nothing that has a name for question answering."""
    return data.tags if data.kind == "tagging" else list(data.labels)


def encode(
    examples: Sequence[Example], encoder: Encoder, data: TaskData, settings: EncodingConfig, training: bool
) -> list[Features]:
    """The inputs of all examples, in their order, the windows of one after the other.

    Args:
        examples: of one kind, that of `data`.
        encoder: whose tokenizer and length limit count.
        data: kind, labels and tags; its examples aren't looked at.
        settings: what becomes of long inputs.
        training: leaves out what only evaluation needs.

    Raises:
        UserError: settings that contradict each other or the model, or an example that is too long to be read whole.
    """
    layout = _Layout.of(encoder, data.kind, settings)
    return list(_ENCODERS[data.kind](examples, layout, output_names(data), training))


# -- special tokens and length -------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Template:
    """The special tokens of an input: before the text, between the two of a pair, at the end; and their types.

    `types` are those of the five parts: before, first text, between, second text, end.
    """

    before: Ints
    between: Ints
    end: Ints
    types: tuple[int, int, int, int, int]

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, pair: bool) -> _Template:
        texts = ("a", "a") if pair else ("a",)
        encoded = tokenizer(*texts, padding=False, truncation=False, return_token_type_ids=True)
        ids, types = np.array(encoded["input_ids"], np.int32), encoded["token_type_ids"]
        which = encoded.sequence_ids(0)
        last = max(which, key=lambda index: -1 if index is None else index)
        first_text = [place for place, index in enumerate(which) if index == 0]
        last_text = [place for place, index in enumerate(which) if index == last]
        between = slice(first_text[-1] + 1, last_text[0] if pair else first_text[-1] + 1)
        parts = (slice(0, first_text[0]), slice(first_text[0], first_text[-1] + 1), between,
                 slice(last_text[0], last_text[-1] + 1), slice(last_text[-1] + 1, None))  # fmt: skip
        before, _, middle, _, end = (ids[part] for part in parts)
        return cls(before, middle, end, tuple((types[part] or [0])[0] for part in parts))

    @property
    def size(self) -> int:
        return len(self.before) + len(self.between) + len(self.end)

    def join(self, first: Ints, second: Ints | None) -> tuple[Ints, Ints]:
        """Tokens and token types of an input."""
        texts = (first, self.between[:0], first[:0]) if second is None else (first, self.between, second)
        parts = (self.before, *texts, self.end)
        return np.concatenate(parts), np.repeat(np.array(self.types, np.int32), [len(part) for part in parts])


@dataclass(frozen=True)
class _Layout:
    """How the inputs of a task are made: `limit` tokens at most (None: any number), long ones treated as `how` says."""

    encoder: Encoder
    limit: int | None
    how: str
    stride: int
    single: _Template
    pair: _Template

    @classmethod
    def of(cls, encoder: Encoder, kind: Kind, settings: EncodingConfig) -> _Layout:
        limit = _limit(encoder, settings)
        how = settings.long_inputs
        if how == "auto":
            how = "whole" if limit is None else "windows" if kind == "question_answering" else "truncate"
        single, pair = (_Template.of(encoder.tokenizer, is_pair) for is_pair in (False, True))
        if limit is not None and limit < pair.size + _MIN_ROOM:
            raise UserError(
                f"encoding.max_length={limit}: should be at least {pair.size + _MIN_ROOM} for this tokenizer"
            )
        if settings.stride < 0:
            raise UserError(f"encoding.stride={settings.stride}: should be 0 or more")
        return cls(encoder, limit, how, settings.stride, single, pair)

    def windows(self, length: int, room: int) -> list[tuple[int, int]]:
        """The pieces of a text of `length` tokens, each of at most `room`.

        The overlap is at most half of the room, so that a long question doesn't make windows without number.
        """
        if length <= room:
            return [(0, length)]
        if self.how == "truncate":
            return [(0, room)]
        step = room - min(self.stride, room // 2)
        starts = range(0, length - room + step, step)
        return [(start, min(start + room, length)) for start in starts]

    def check_whole(self, length: int, example: Example) -> None:
        if self.how == "whole" and self.limit is not None and length > self.limit:
            raise UserError(
                f"{example.origin}: example {example.id} has {length} tokens, and {self.encoder.name} reads at most "
                f"{self.limit}: take encoding.long_inputs=truncate or windows"
            )

    def feature(self, example: int, template: _Template, first: Ints, second: Ints | None, **more: Any) -> Features:
        ids, types = template.join(first, second)
        if not len(ids):
            # A text of which the tokenizer leaves nothing, and no special tokens around it.
            ids, types = np.array([separator_id(self.encoder.tokenizer)], np.int32), np.zeros(1, np.int32)
        return Features(example, ids, types if self.encoder.token_types else None, **more)


def _limit(encoder: Encoder, settings: EncodingConfig) -> int | None:
    chosen, model = settings.max_length, encoder.max_length
    if settings.long_inputs not in LONG_INPUTS:
        raise UserError(f"encoding.long_inputs={settings.long_inputs}: unknown; known: {', '.join(LONG_INPUTS)}")
    if chosen is not None and model is not None and chosen > model:
        raise UserError(f"encoding.max_length={chosen}: {encoder.name} reads at most {model} tokens")
    if settings.long_inputs == "whole":
        if chosen is not None:
            raise UserError(f"encoding.max_length={chosen} and encoding.long_inputs=whole contradict: leave one out")
        return model
    limit = model if chosen is None else chosen
    if limit is None and settings.long_inputs != "auto":
        raise UserError(
            f"encoding.long_inputs={settings.long_inputs} needs encoding.max_length: {encoder.name} has no "
            "limit of its own"
        )
    return limit


# -- tokens --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Tokens:
    """Tokens of a text, without special ones, and the characters that each covers, (tokens, 2)."""

    ids: Ints
    offsets: Ints


def _tokenize(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], offsets: bool) -> list[_Tokens]:
    encoded = tokenizer(
        list(texts), add_special_tokens=False, padding=False, truncation=False, verbose=False,
        return_attention_mask=False, return_token_type_ids=False, return_offsets_mapping=offsets,
    )  # fmt: skip
    places = encoded["offset_mapping"] if offsets else [()] * len(texts)
    return [
        _Tokens(np.array(ids, np.int32), np.array(where, np.int32).reshape(-1, 2))
        for ids, where in zip(encoded["input_ids"], places, strict=True)
    ]


def _batches(examples: Sequence[T]) -> Iterator[tuple[int, Sequence[T]]]:
    for start in range(0, len(examples), _BATCH):
        yield start, examples[start : start + _BATCH]


# -- classification ------------------------------------------------------------------------------------------


def _texts(
    examples: Sequence[TextExample], layout: _Layout, names: Sequence[str], training: bool
) -> Iterator[Features]:
    index_of = {label: index for index, label in enumerate(names)}
    tokenizer = layout.encoder.tokenizer
    for start, batch in _batches(examples):
        texts = _tokenize(tokenizer, [example.text for example in batch], offsets=False)
        with_pair = [example.pair for example in batch if example.pair is not None]
        pairs = iter(_tokenize(tokenizer, with_pair, offsets=False) if with_pair else [])
        for number, (example, text) in enumerate(zip(batch, texts, strict=True), start):
            second = None if example.pair is None else next(pairs).ids
            for first, other in _text_windows(layout, example, text.ids, second):
                template = layout.single if other is None else layout.pair
                yield layout.feature(number, template, first, other, label=index_of.get(example.label))


def _text_windows(
    layout: _Layout, example: TextExample, first: Ints, second: Ints | None
) -> Iterator[tuple[Ints, Ints | None]]:
    """A text, or its windows; of a pair the second, while the first is cut to half of the room."""
    special = (layout.single if second is None else layout.pair).size
    length = special + len(first) + (0 if second is None else len(second))
    layout.check_whole(length, example)
    if layout.how == "whole" or layout.limit is None or length <= layout.limit:
        yield first, second
        return
    room = layout.limit - special
    if second is None:
        yield from ((first[begin:end], None) for begin, end in layout.windows(len(first), room))
        return
    first = first[: max(room // 2, room - len(second))]
    yield from ((first, second[begin:end]) for begin, end in layout.windows(len(second), room - len(first)))


# -- tagging -------------------------------------------------------------------------------------------------


def _sentences(
    examples: Sequence[TagExample], layout: _Layout, names: Sequence[str], training: bool
) -> Iterator[Features]:
    index_of = {tag: index for index, tag in enumerate(names)}
    for start, batch in _batches(examples):
        sentences = _tokenize(layout.encoder.tokenizer, [" ".join(example.words) for example in batch], offsets=True)
        for number, (example, tokens) in enumerate(zip(batch, sentences, strict=True), start):
            layout.check_whole(layout.single.size + len(tokens.ids), example)
            words, firsts = _first_tokens(example.words, tokens.offsets)
            tags = np.array([[index_of[tag] for tag in level] for level in example.tags], np.int32).T[words]
            room = len(tokens.ids) if layout.limit is None else layout.limit - layout.single.size
            for begin, end in layout.windows(len(tokens.ids), room):
                inside = (firsts >= begin) & (firsts < end)
                yield layout.feature(
                    number, layout.single, tokens.ids[begin:end], None,
                    words=words[inside], word_starts=firsts[inside] - begin + len(layout.single.before),
                    tags=tags[inside],
                )  # fmt: skip


def _first_tokens(words: Sequence[str], offsets: Ints) -> tuple[Ints, Ints]:
    """The words that have a token of their own, and the first one of each.

    A word of characters that the tokenizer drops has none, and a token begins one word only.
    """
    lengths = np.array([len(word) for word in words], np.int64)
    ends = np.cumsum(lengths + 1) - 1
    starts = ends - lengths
    first = np.searchsorted(offsets[:, 1], starts, side="right")
    found = first < len(offsets)
    found[found] = offsets[first[found], 0] < ends[found]
    with_token = np.flatnonzero(found).astype(np.int32)
    _, alone = np.unique(first[with_token], return_index=True)
    return with_token[alone], first[with_token[alone]].astype(np.int32)


# -- question answering --------------------------------------------------------------------------------------


def _questions(
    examples: Sequence[SpanExample], layout: _Layout, names: Sequence[str], training: bool
) -> Iterator[Features]:
    tokenizer = layout.encoder.tokenizer
    for start, batch in _batches(examples):
        questions = _tokenize(tokenizer, [example.question for example in batch], offsets=False)
        # The same context serves several questions.
        distinct = list(dict.fromkeys(example.context for example in batch))
        contexts = dict(zip(distinct, _tokenize(tokenizer, distinct, offsets=True), strict=True))
        for number, (example, question) in enumerate(zip(batch, questions, strict=True), start):
            yield from _question(layout, number, example, question.ids, contexts[example.context], training)


def _question(
    layout: _Layout, number: int, example: SpanExample, question: Ints, context: _Tokens, training: bool
) -> Iterator[Features]:
    layout.check_whole(layout.pair.size + len(question) + len(context.ids), example)
    room = len(context.ids)
    if layout.how != "whole" and layout.limit is not None:
        available = layout.limit - layout.pair.size
        question = question[: available // 2]
        room = available - len(question)
    answer = _answer_tokens(example, context.offsets)
    before = len(layout.pair.before) + len(question) + len(layout.pair.between)
    for begin, end in layout.windows(len(context.ids), room):
        inside = answer is not None and begin <= answer[0] and answer[1] < end
        first, last = (answer[0] - begin + before, answer[1] - begin + before) if inside else (0, 0)
        offsets = None if training else _placed(context.offsets[begin:end], before, len(layout.pair.end))
        yield layout.feature(
            number, layout.pair, question, context.ids[begin:end], start=first, end=last, offsets=offsets
        )


def _placed(offsets: Ints, before: int, after: int) -> Ints:
    """Offsets of a context with so many other tokens around it."""
    return np.pad(offsets, ((before, after), (0, 0)), constant_values=NOWHERE)


def _answer_tokens(example: SpanExample, offsets: Ints) -> tuple[int, int] | None:
    """First and last token of the first answer, spaces at its ends left aside; None without one."""
    if not example.answers or not len(offsets):
        return None
    answer = example.answers[0]
    start = answer.start + len(answer.text) - len(answer.text.lstrip())
    end = answer.start + len(answer.text.rstrip())
    first = int(np.searchsorted(offsets[:, 1], start, side="right"))
    last = int(np.searchsorted(offsets[:, 0], end, side="left")) - 1
    return (first, last) if end > start and first <= last else None


_ENCODERS: dict[str, Callable[..., Iterator[Features]]] = {
    "classification": _texts,
    "tagging": _sentences,
    "question_answering": _questions,
}

"""From predictions to what a task asks for: labels, tags of words, answers as characters of the context.

Notable: an answer is always `context[start:end]`, never text put together from tokens. The best span is looked for
among all spans of allowed length in all windows of a question, so that there is always one. Spaces at its ends are cut
off, and a character isn't parted from the combining marks that follow it, which a tokenizer's normalization may have
joined to it.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bertchen.tasks.data import TaskData
from bertchen.tasks.encoding import Features
from bertchen.tasks.examples import SpanExample, TagExample

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class ScoredAnswer:
    """`text == context[start:end]`; `score` is the sum of the logits of its first and last token."""

    text: str
    start: int
    end: int
    score: float


def group_windows(features: Sequence[Features], examples: int) -> list[list[int]]:
    """For each example the indexes of its inputs."""
    groups: list[list[int]] = [[] for _ in range(examples)]
    for index, feature in enumerate(features):
        groups[feature.example].append(index)
    return groups


def class_logits(features: Sequence[Features], logits: Sequence[Floats], examples: int) -> Floats:
    """(examples, labels): each example's logits, as the mean over its windows."""
    total = np.zeros((examples, len(logits[0])), np.float64)
    example = np.array([feature.example for feature in features])
    np.add.at(total, example, np.stack(logits))
    return (total / np.bincount(example, minlength=examples).clip(min=1)[:, None]).astype(np.float32)


# -- answers -------------------------------------------------------------------------------------------------


def best_answers(
    example: SpanExample,
    windows: Sequence[tuple[Features, Floats, Floats]],
    n_best: int = 20,
    max_answer_tokens: int = 100,
) -> list[ScoredAnswer]:
    """The best answers to a question over all of its windows, the best first, each place once.

    Args:
        example: the question.
        windows: inputs made for evaluation, and their logits of start and end, (length,) each.
        n_best: so many at most.
        max_answer_tokens: length of an answer at most.

    Returns:
        Answers that aren't empty. None at all only if the context has no token but white space.
    """
    # Characters that aren't white space, counted up to each place.
    ink = np.concatenate([[0], np.cumsum([not character.isspace() for character in example.context])])
    found: dict[tuple[int, int], float] = {}
    for feature, start_logits, end_logits in windows:
        assert feature.offsets is not None, "encode with training=False"
        first, last, scores = _best_spans(feature.offsets, ink, start_logits, end_logits, n_best, max_answer_tokens)
        starts, ends = feature.offsets[first, 0], feature.offsets[last, 1]
        for start, end, score in zip(starts.tolist(), ends.tolist(), scores.tolist(), strict=True):
            place = _trim(example.context, start, end)
            found[place] = max(score, found.get(place, -np.inf))
    ranked = sorted(found.items(), key=lambda item: (-item[1], item[0]))[:n_best]
    return [ScoredAnswer(example.context[start:end], start, end, score) for (start, end), score in ranked]


def _best_spans(
    offsets: NDArray[np.int32],
    ink: NDArray[np.int64],
    start_logits: Floats,
    end_logits: Floats,
    n_best: int,
    max_answer_tokens: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64], Floats]:
    """First and last tokens and scores of the best spans in a window.

    A span begins and ends with a token of the context that isn't white space alone.
    """
    shown = offsets[:, 1] > offsets[:, 0]
    shown[shown] = ink[offsets[shown, 1]] > ink[offsets[shown, 0]]
    start = np.where(shown, start_logits, -np.inf)
    reach = min(max_answer_tokens, len(start))
    end = np.pad(np.where(shown, end_logits, -np.inf), (0, reach - 1), constant_values=-np.inf)
    scores = start[:, None] + np.lib.stride_tricks.sliding_window_view(end, reach)
    flat = scores.ravel()
    # Places that coincide after trimming are dropped later: some more are taken.
    count = min(2 * n_best, flat.size)
    best = np.argpartition(-flat, count - 1)[:count]
    best = best[np.isfinite(flat[best])]
    first, length = np.divmod(best, reach)
    return first, first + length, flat[best]


def _trim(context: str, start: int, end: int) -> tuple[int, int]:
    """Without white space at the ends, and with all combining marks of its first and last character."""
    while end > start and context[end - 1].isspace():
        end -= 1
    while start < end and context[start].isspace():
        start += 1
    while start > 0 and _is_mark(context[start]) and not context[start - 1].isspace():
        start -= 1
    while end < len(context) and _is_mark(context[end]):
        end += 1
    return start, end


def _is_mark(character: str) -> bool:
    return not character.isascii() and unicodedata.category(character).startswith("M")


# -- tags ----------------------------------------------------------------------------------------------------


def decode_tags(
    examples: Sequence[TagExample], features: Sequence[Features], logits: Sequence[Floats], types: Sequence[str]
) -> list[list[list[str]]]:
    """The most probable tag of each word, `[example][level][word]`; sequences that IOB2 doesn't allow are left so.

    Args:
        examples: the sentences.
        features: their inputs.
        logits: (length, levels, tags) of each input.
        types: entity types: `TaskData.labels`.

    Returns:
        Tags; O for words that no input has (cut off, or made of characters that the tokenizer drops). A word in several
        windows has the tag of the window in which it is farthest from the ends.
    """
    names = TaskData("tagging", list(types), 1, {}).tags
    chosen = [np.zeros((len(example.tags), len(example.words)), np.int64) for example in examples]
    margins = [np.full(len(example.words), -1) for example in examples]
    for feature, scores in zip(features, logits, strict=True):
        assert feature.words is not None
        assert feature.word_starts is not None
        margin = np.minimum(feature.word_starts, len(feature) - 1 - feature.word_starts)
        better = margin > margins[feature.example][feature.words]
        words = feature.words[better]
        margins[feature.example][words] = margin[better]
        chosen[feature.example][:, words] = scores[feature.word_starts[better]].argmax(axis=-1).T
    return [[[names[tag] for tag in level] for level in tags.tolist()] for tags in chosen]

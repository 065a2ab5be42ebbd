"""Reading off answers and tags: against trying all spans, and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertchen.tasks.answers import best_answers, class_logits, decode_tags, group_windows
from bertchen.tasks.encoding import Features
from bertchen.tasks.examples import Origin, SpanExample, TagExample

HERE = Origin("test.json", 1)
CONTEXT = "Die Stadt Köln liegt am Rhein ."


def window(offsets: list[tuple[int, int]], example: int = 0) -> Features:
    places = np.array(offsets, np.int32).reshape(-1, 2)
    return Features(example, np.zeros(len(places), np.int32), start=0, end=0, offsets=places)


def words_of(context: str) -> list[tuple[int, int]]:
    places, start = [], 0
    for word in context.split(" "):
        places.append((start, start + len(word)))
        start += len(word) + 1
    return places


def asked(context: str = CONTEXT) -> SpanExample:
    return SpanExample("1", "Wo?", context, (), HERE)


def logits(length: int, **at: float) -> np.ndarray:
    array = np.full(length, -5, np.float32)
    for place, value in at.items():
        array[int(place[1:])] = value
    return array


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**32), lengths=st.lists(st.integers(1, 12), min_size=1, max_size=3),
    longest=st.integers(1, 15), n_best=st.integers(1, 8),
)  # fmt: skip
def test_against_all_spans(seed: int, lengths: list[int], longest: int, n_best: int) -> None:
    numbers = np.random.default_rng(seed)
    context = " ".join("ab"[: 1 + number % 2] for number in range(20))
    places = words_of(context)
    windows, expected = [], {}
    for length in lengths:
        first = int(numbers.integers(0, 20 - length + 1))
        inside = places[first : first + length]
        start, end = numbers.normal(size=(2, length + 2)).astype(np.float32)
        windows.append((window([(-1, -1), *inside, (-1, -1)]), start, end))
        for i in range(length):
            for j in range(i, min(i + longest, length)):
                place = (inside[i][0], inside[j][1])
                score = start[i + 1] + end[j + 1]
                expected[place] = max(score, expected.get(place, -np.inf))
    found = best_answers(asked(context), windows, n_best, longest)
    ranked = sorted(expected.items(), key=lambda item: -item[1])[:n_best]
    assert [(answer.start, answer.end) for answer in found] == [place for place, _ in ranked]
    np.testing.assert_allclose([answer.score for answer in found], [score for _, score in ranked], rtol=1e-6)
    for answer in found:
        assert answer.text == context[answer.start : answer.end]


def test_question_tokens_can_not_answer() -> None:
    places = [(-1, -1), (-1, -1), *words_of(CONTEXT), (-1, -1)]
    high = logits(len(places), _0=99, _1=99, _4=3, _9=99)
    best = best_answers(asked(), [(window(places), high, high)])[0]
    assert (best.text, best.score) == ("Köln", 6)


def test_an_end_before_its_start_does_not_count() -> None:
    places = words_of(CONTEXT)
    best = best_answers(asked(), [(window(places), logits(7, _4=9), logits(7, _2=9, _5=1))])[0]
    assert best.text == "am Rhein"


def test_the_longest_answer_allowed() -> None:
    places = words_of(CONTEXT)
    start, end = logits(7, _0=9), logits(7, _6=9, _2=1)
    assert best_answers(asked(), [(window(places), start, end)], max_answer_tokens=7)[0].text == CONTEXT
    assert best_answers(asked(), [(window(places), start, end)], max_answer_tokens=6)[0].text == "Die Stadt Köln"


def test_the_best_of_all_windows() -> None:
    places = words_of(CONTEXT)
    low, high = logits(3, _0=1), logits(3, _1=2)
    windows = [(window(places[:3]), low, low), (window(places[3:6]), high, high)]
    found = best_answers(asked(), windows, n_best=2)
    assert [answer.text for answer in found] == ["am", "Die"]


def test_spaces_in_tokens_are_cut_off() -> None:
    """Our tokens have the space before them; one after a line feed has that too."""
    context = "Köln\nam  Rhein"
    places = [(0, 4), (4, 5), (4, 7), (7, 8), (8, 14)]
    at = logits(5, _2=5), logits(5, _4=5)
    assert best_answers(asked(context), [(window(places), *at)])[0].text == "am  Rhein"
    blank = logits(5, _1=9, _3=9)
    assert {answer.text for answer in best_answers(asked(context), [(window(places), blank, blank)])} == {
        "Köln", "am", "Rhein", "Köln\nam", "am  Rhein", context,
    }  # fmt: skip


def test_marks_stay_with_their_letter() -> None:
    """A tokenizer that joins them covers the letter alone; one that doesn't may point at a mark."""
    context = "o\u0308l e\u0301"
    joined = [(0, 1), (2, 3), (4, 5)]
    parts = [(0, 1), (1, 2), (2, 3), (4, 5), (5, 6)]
    last = logits(3, _2=5)
    assert best_answers(asked(context), [(window(joined), last, last)])[0].text == "e\u0301"
    first = logits(3, _0=5)
    assert best_answers(asked(context), [(window(joined), first, first)])[0].text == "o\u0308"
    mark = best_answers(asked(context), [(window(parts), logits(5, _1=5), logits(5, _2=5))])[0]
    assert mark.text == "o\u0308l"


def test_nothing_but_white_space() -> None:
    assert best_answers(asked("  \n"), [(window([(0, 2), (2, 3)]), logits(2), logits(2))]) == []


# -- labels and tags -----------------------------------------------------------------------------------------


def test_logits_of_windows_are_averaged() -> None:
    features = [Features(example, np.zeros(1, np.int32)) for example in (0, 1, 1, 2)]
    rows = [np.array(row, np.float32) for row in ([1, 0], [4, 0], [0, 2], [0, 1])]
    np.testing.assert_array_equal(class_logits(features, rows, 3), [[1, 0], [2, 1], [0, 1]])
    assert group_windows(features, 4) == [[0], [1, 2], [3], []]


def test_a_word_s_tag_is_of_the_window_that_has_it_farthest_inside() -> None:
    example = TagExample("1", ("a", "b", "c"), (("O", "O", "O"),), HERE)

    def part(words: list[int], starts: list[int], length: int) -> Features:
        numbers = [np.array(values, np.int32) for values in (words, starts)]
        return Features(0, np.zeros(length, np.int32), words=numbers[0], word_starts=numbers[1])

    def saying(*tags: int) -> np.ndarray:
        return np.eye(3, dtype=np.float32)[list(tags)][:, None]

    features = [part([0, 1], [1, 4], 6), part([1, 2], [2, 4], 8)]  # b is 1 and 2 tokens from the nearer end
    found = decode_tags([example], features, [saying(0, 1, 0, 0, 1, 0), saying(0, 0, 2, 0, 2, 0, 0, 0)], ["ORT"])
    assert found == [[["B-ORT", "I-ORT", "I-ORT"]]]


def test_tags_are_not_repaired() -> None:
    example = TagExample("1", ("a", "b"), (("O", "O"), ("O", "O")), HERE)
    feature = Features(
        0, np.zeros(2, np.int32), words=np.array([0, 1], np.int32), word_starts=np.array([0, 1], np.int32)
    )
    scores = np.zeros((2, 2, 5), np.float32)
    scores[0, 0, 2] = scores[1, 0, 3] = scores[0, 1, 0] = scores[1, 1, 4] = 1
    assert decode_tags([example], [feature], [scores], ["PER", "ORT"]) == [[["I-PER", "B-ORT"], ["O", "I-ORT"]]]


@pytest.mark.parametrize("n_best", [1, 3])
def test_so_many_answers(n_best: int) -> None:
    places = words_of(CONTEXT)
    numbers = np.random.default_rng(0).normal(size=(2, 7)).astype(np.float32)
    found = best_answers(asked(), [(window(places), *numbers)], n_best)
    assert len(found) == n_best
    assert [answer.score for answer in found] == sorted((answer.score for answer in found), reverse=True)

"""Metrics against the libraries' other entrances, independent implementations, and cases worked out by hand."""

from __future__ import annotations

import gzip
import json
import random
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.data.metrics.squad_metrics import squad_evaluate
from transformers.data.processors.squad import SquadExample

from bertchen.tasks.examples import Answer, Origin, SpanExample
from bertchen.tasks.metrics import (
    PRIMARY,
    SCORES,
    classification_metrics,
    confusion,
    example_scores,
    linearized,
    normalize_german,
    span_metrics,
    tagging_metrics,
)

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "tasks"
LABELS = ["negative", "neutral", "positive"]


def question(name: str, *answers: str) -> SpanExample:
    return SpanExample(name, "?", "", tuple(Answer(text, 0) for text in answers), Origin("file", 1))


def squad_v2(gold: list[SpanExample], predicted: dict[str, str]) -> tuple[float, float]:
    """Exact match and F1 by transformers."""
    examples = [
        SquadExample(one.id, one.question, one.context, None, None, "", [{"text": a.text} for a in one.answers])
        for one in gold
    ]
    scores = squad_evaluate(examples, predicted)
    return scores["exact"], scores["f1"]


# --- classification -------------------------------------------------------------------------------------------------


def test_classification_worked_out_by_hand() -> None:
    gold = ["neutral"] * 6 + ["negative"] * 3 + ["positive"]
    predicted = ["neutral"] * 5 + ["negative"] + ["negative"] * 2 + ["neutral"] + ["neutral"]
    metrics = classification_metrics(gold, predicted, LABELS)
    assert metrics["accuracy"] == metrics["micro_f1"] == pytest.approx(0.7)
    assert metrics["precision/neutral"] == pytest.approx(5 / 7)
    assert metrics["recall/neutral"] == pytest.approx(5 / 6)
    assert metrics["f1/neutral"] == pytest.approx(10 / 13)
    assert metrics["f1/negative"] == pytest.approx(2 / 3)
    assert metrics["f1/positive"] == metrics["precision/positive"] == 0
    assert metrics["macro_f1"] == pytest.approx((10 / 13 + 2 / 3) / 3)
    assert [metrics[f"support/{label}"] for label in LABELS] == [3, 6, 1]
    assert confusion(gold, predicted, LABELS) == [[2, 1, 0], [1, 5, 0], [0, 1, 0]]


def test_macro_f1_has_the_same_terms_for_every_model() -> None:
    gold = ["neutral", "neutral", "negative", "negative"]
    never, once = ["neutral"] * 4, ["neutral", "positive", "neutral", "negative"]
    assert classification_metrics(gold, never, LABELS)["macro_f1"] == pytest.approx((2 / 3 + 0) / 2)
    assert classification_metrics(gold, once, LABELS)["macro_f1"] == pytest.approx((1 / 2 + 2 / 3) / 2)


@pytest.mark.parametrize("predicted", [["neutral"], ["neutral", "neutrall"], []])
def test_labels_that_do_not_fit_are_refused(predicted: list[str]) -> None:
    with pytest.raises(ValueError, match="labels"):
        classification_metrics(["neutral", "negative"], predicted, LABELS)


# --- entities -------------------------------------------------------------------------------------------------------

TYPES = ("PER", "LOCderiv", "ORGpart")


def spans(tags: list[str]) -> set[tuple[str, int, int]]:
    """Entities in strict IOB2, by a regular expression over the tags; written against seqeval, not from it."""
    text = " ".join(f"{place}:{tag}" for place, tag in enumerate(tags)) + " "
    pattern = re.compile(r"(\d+):B-(\w+) ((?:\d+:I-\2 )*)")
    return {(m[2], int(m[1]), int(m[1]) + len(m[3].split())) for m in pattern.finditer(text)}


def random_tags(numbers: random.Random, words: int, changed: float, like: list[str] | None = None) -> list[str]:
    tags = ["O", *(f"{prefix}-{kind}" for prefix in "BI" for kind in TYPES)]
    weights = [6] + [2] * 3 + [3] * 3
    new = numbers.choices(tags, weights, k=words)
    return [a if like is None or numbers.random() < changed else b for a, b in zip(new, like or new, strict=True)]


def well_formed(tags: list[str]) -> list[str]:
    """As gold tags are: an I- that continues nothing becomes a B-."""
    mended = []
    for tag in tags:
        continues = tag[:1] != "I" or (mended and mended[-1][2:] == tag[2:])
        mended.append(tag if continues else f"B{tag[1:]}")
    return mended


def test_official_metric_of_nested_entities_adds_up_both_levels() -> None:
    # The outer level has 3 gold entities, of 2 found 1 is right; the inner level has 1, of 2 found 1 is right.
    gold = [
        (("B-ORG", "I-ORG", "O", "B-PER"), ("B-LOC", "O", "O", "O")),
        (("B-LOCderiv", "O"), ("O", "O")),
    ]
    predicted = [
        (("B-ORG", "O", "O", "B-PER"), ("B-LOC", "O", "O", "B-PER")),
        (("O", "O"), ("O", "O")),
    ]
    metrics = tagging_metrics(gold, predicted)
    assert metrics["precision"] == pytest.approx(2 / 4)
    assert metrics["recall"] == pytest.approx(2 / 4)
    assert metrics["f1"] == pytest.approx(2 / 4)
    assert metrics["outer/f1"] == pytest.approx(2 / (2 + 3))
    assert metrics["outer/precision"] == pytest.approx(1 / 2)
    assert metrics["inner/f1"] == pytest.approx(2 / (2 + 1) * 1)
    assert metrics["accuracy"] == pytest.approx(9 / 12)
    assert metrics["f1/LOC"] == 1
    assert metrics["f1/PER"] == pytest.approx(2 / 3)  # the PER of the inner level is found there for nothing
    assert metrics["support/LOCderiv"] == 1
    assert metrics["malformed"] == 0


def test_a_type_that_differs_in_its_suffix_is_another() -> None:
    metrics = tagging_metrics([(("B-LOCderiv",),)], [(("B-LOC",),)])
    assert metrics["f1"] == metrics["f1/LOCderiv"] == 0
    assert "outer/f1" not in metrics


def test_sentences_without_entities() -> None:
    empty = [(("O", "O"), ("O", "O"))]
    metrics = tagging_metrics(empty, empty)
    assert metrics["f1"] == 0
    assert metrics["accuracy"] == 1
    found = tagging_metrics(empty, [(("B-PER", "O"), ("O", "O"))])
    assert found["precision"] == found["inner/f1"] == 0


@pytest.mark.parametrize("seed", range(6))
def test_entities_against_an_independent_count(seed: int) -> None:
    numbers = random.Random(seed)
    sizes = [numbers.randint(1, 12) for _ in range(40)]
    gold = [tuple(well_formed(random_tags(numbers, size, 1)) for _ in range(2)) for size in sizes]
    predicted = [tuple(random_tags(numbers, len(level), 0.3, level) for level in tags) for tags in gold]
    pairs = [(spans(a), spans(b)) for g, p in zip(gold, predicted, strict=True) for a, b in zip(g, p, strict=True)]
    right, found, there = (sum(map(len, sets)) for sets in zip(*((a & b, b, a) for a, b in pairs), strict=True))
    metrics = tagging_metrics(gold, predicted)
    assert metrics["precision"] == pytest.approx(right / found)
    assert metrics["recall"] == pytest.approx(right / there)
    assert metrics["f1"] == pytest.approx(2 * right / (found + there))
    for kind in TYPES:
        counted = sum(one[0] == kind for pair in pairs for side in pair for one in side)
        right_kind = sum(one[0] == kind for a, b in pairs for one in a & b)
        assert metrics[f"f1/{kind}"] == pytest.approx(2 * right_kind / counted)
    outer = [pair for place, pair in enumerate(pairs) if place % 2 == 0]
    assert metrics["outer/recall"] == pytest.approx(sum(len(a & b) for a, b in outer) / sum(len(a) for a, _ in outer))
    scores = example_scores("tagging", "f1", gold, predicted)
    assert scores.shape == (40,)
    assert scores.mean() == pytest.approx(metrics["f1"])


def test_malformed_tags_are_counted_and_are_no_entities() -> None:
    predicted = [(("I-PER", "O", "B-PER", "I-LOC", "I-LOC"),)]
    metrics = tagging_metrics([(("B-PER", "O", "B-PER", "O", "O"),)], predicted)
    assert metrics["malformed"] == 2  # the second I-LOC continues the first
    assert metrics["recall"] == pytest.approx(1 / 2)
    assert metrics["precision"] == 1


def test_tags_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match="sentences, levels and words"):
        tagging_metrics([(("O", "O"),)], [(("O",),)])


# --- answers --------------------------------------------------------------------------------------------------------

GERMAN = st.lists(
    st.sampled_from(
        ["die", "Die", "an", "A", "der", "Straße", "STRASSE", "Äpfel", "„Ja“", "-", "–", "3,5", "%", "Müller-Lüden",
         "u.", "a.", "the", "U\u0308ber", "Über", "’s", "§", "!", "\u00a0", "🙂"]
    ),
    max_size=5,
).map(" ".join)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.lists(GERMAN, min_size=1, max_size=3), GERMAN), min_size=1, max_size=6))
def test_answers_as_transformers_scores_them(rows: list[tuple[list[str], str]]) -> None:
    """But for reference answers of which nothing is left, which transformers drops beside others: none stands here."""
    gold, predicted = [], {}
    for place, (answers, found) in enumerate(rows):
        kept = [answer for answer in answers if squad_v2([question("0", answer)], {"0": ""})[0] == 0] or answers[:1]
        gold.append(question(str(place), *kept))
        predicted[str(place)] = found
    exact, f1 = squad_v2(gold, predicted)
    metrics = span_metrics(gold, predicted)
    assert metrics["exact_match"] == pytest.approx(exact, abs=1e-5)
    assert metrics["f1"] == pytest.approx(f1, abs=1e-5)
    arguments = [[answer.text for answer in one.answers] for one in gold], list(predicted.values())
    assert example_scores("question_answering", "f1", *arguments).mean() == pytest.approx(f1)
    assert example_scores("question_answering", "exact_match", *arguments).mean() == pytest.approx(exact)


def test_many_questions_lose_nothing() -> None:
    """The scores of a third each aren't added up in float32."""
    gold = [question(str(place), "eins zwei drei vier fünf") for place in range(5000)]
    metrics = span_metrics(gold, {one.id: "eins" for one in gold})
    assert metrics["f1"] == pytest.approx(100 / 3, abs=1e-5)


def test_where_transformers_differs() -> None:
    """Vitamin A: the answer "A" is an English article, and nothing is left of it."""
    gold, predicted = [question("0", "Vitamin A", "A")], {"0": "A"}
    assert squad_v2(gold, predicted) == (0, 0)
    assert span_metrics(gold, predicted)["exact_match"] == span_metrics(gold, predicted)["f1"] == 100


def test_answers_worked_out_by_hand() -> None:
    gold = [question("a", "die alte Brücke"), question("b", "1871", "im Jahr 1871"), question("c", "„Faust“")]
    gold.append(question("d"))
    predicted = {"a": "alte Brücke", "b": "Im Jahr 1871.", "c": "Faust", "d": ""}
    metrics = span_metrics(gold, predicted)
    assert metrics["exact_match"] == pytest.approx(50)  # b and d
    assert metrics["f1"] == pytest.approx((80 + 100 + 0 + 100) / 4)
    assert metrics["exact_match_german"] == metrics["f1_german"] == pytest.approx(100)
    assert span_metrics(gold, predicted | {"d": "Faust"})["exact_match"] == pytest.approx(25)


def test_every_question_needs_a_prediction() -> None:
    with pytest.raises(ValueError, match="1 of 2 questions"):
        span_metrics([question("a", "x"), question("b", "y")], {"a": "x"})


@pytest.mark.parametrize(
    ("text", "normalized"),
    [
        ("Die Straße – „nach“ Köln!", "straße nach köln"),
        ("eines der Dinge", "dinge"),
        ("einmal denen dessen", "einmal denen dessen"),
        ("einen, einem; einer eine ein des dem den das", ""),
        ("an a the", "an a the"),
        ("3,5  % + 2 €", "35 2 €"),
    ],
)
def test_german_normalization(text: str, normalized: str) -> None:
    assert normalize_german(text) == normalized


def test_answers_on_mlqa_against_transformers() -> None:
    """Real contexts and answers; the predictions are the answers cut, prolonged or moved in the context."""
    path = SHARED / "mlqa_de" / "dev.json.gz"
    if not path.exists():
        pytest.skip(f"needs {path}")
    gold, predicted, numbers = [], {}, random.Random(0)
    for article in json.loads(gzip.decompress(path.read_bytes()))["data"]:
        for paragraph in article["paragraphs"]:
            for one in paragraph["qas"]:
                context, answers = paragraph["context"], [answer["text"] for answer in one["answers"]]
                start = max(0, one["answers"][0]["answer_start"] + numbers.choice([0, 0, -9, -4, 4, 9]))
                end = one["answers"][0]["answer_start"] + len(answers[0]) + numbers.choice([0, 0, -3, 3, 12])
                gold.append(question(one["id"], *answers))
                predicted[one["id"]] = context[start:end]
    exact, f1 = squad_v2(gold, predicted)
    metrics = span_metrics(gold, predicted)
    assert len(gold) == 512
    assert 5 < exact < f1 < 95
    assert metrics["exact_match"] == pytest.approx(exact, abs=1e-5)
    assert metrics["f1"] == pytest.approx(f1, abs=1e-5)


# --- scores of examples ---------------------------------------------------------------------------------------------


def test_scores_of_examples_average_to_the_metric() -> None:
    numbers = random.Random(3)
    gold = numbers.choices(LABELS, [1, 6, 2], k=300)
    predicted = [label if numbers.random() < 0.6 else numbers.choice(LABELS) for label in gold]
    metrics = classification_metrics(gold, predicted, LABELS)
    for metric in SCORES["classification"]:
        assert example_scores("classification", metric, gold, predicted).mean() == pytest.approx(metrics[metric])
    assert all(PRIMARY[kind] in SCORES[kind] for kind in PRIMARY)


def test_linearized_ratios_have_the_sampling_error_of_a_bootstrap() -> None:
    numbers = np.random.default_rng(0)
    below = numbers.poisson(3, 400).astype(float)
    above = numbers.binomial(below.astype(int), 0.7).astype(float)
    scores = linearized(above, below)
    drawn = numbers.integers(0, 400, (4000, 400))
    ratios = above[drawn].sum(axis=1) / below[drawn].sum(axis=1)
    assert scores.mean() == pytest.approx(above.sum() / below.sum())
    assert scores.std(ddof=1) / 20 == pytest.approx(ratios.std(), rel=0.06)
    assert (linearized(np.zeros(3), np.zeros(3)) == 0).all()

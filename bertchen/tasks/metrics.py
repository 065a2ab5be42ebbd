"""Metrics of a whole set, one prediction an example: shares from 0 to 1, but in percent for question answering.

The libraries' own implementations count: scikit-learn for classes, seqeval for entities, torchmetrics for answers.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bertchen.tasks.examples import Kind, SpanExample

Tags = Sequence[Sequence[str]]  # tags[level][word]

# The metric that tables show first and early stopping watches, and those shown beside it.
PRIMARY: dict[Kind, str] = {"classification": "accuracy", "tagging": "f1", "question_answering": "f1"}
SHOWN: dict[Kind, tuple[str, ...]] = {
    "classification": ("accuracy", "macro_f1"),
    "tagging": ("f1", "precision", "recall", "outer/f1", "inner/f1"),
    "question_answering": ("f1", "exact_match", "f1_german", "exact_match_german"),
}

_SQUAD_QUESTIONS = 32
_GERMAN_ARTICLES = re.compile(r"\b(?:ein(?:e[nmsr]?)?|d(?:er|ie|as|e[nms]))\b")


def classification_metrics(gold: Sequence[str], predicted: Sequence[str], labels: Sequence[str]) -> dict[str, float]:
    """Accuracy, F1 over all classes, and precision, recall, F1 and support of each class.

    `macro_f1` is the mean over the classes that occur in `gold`, so that it has the same terms for every model;
    scikit-learn's default also counts, as zero, a class that is predicted and never right. `micro_f1` equals the
    accuracy, since each example has one class. A class that is never predicted has precision 0.

    Args:
        gold, predicted: a label for each example.
        labels: of the task.

    Returns:
        `accuracy`, `micro_f1`, `macro_f1`, and `precision/<label>`, `recall/…`, `f1/…`, `support/…` for every label.
    """
    from sklearn.metrics import accuracy_score, f1_score, precision_recall_fscore_support

    _check_labels(gold, predicted, labels)
    labels = list(labels)
    precision, recall, f1, support = precision_recall_fscore_support(gold, predicted, labels=labels, zero_division=0)
    metrics = {
        "accuracy": float(accuracy_score(gold, predicted)),
        "micro_f1": float(f1_score(gold, predicted, labels=labels, average="micro", zero_division=0)),
        "macro_f1": float(np.mean([value for value, count in zip(f1, support, strict=True) if count])),
    }
    for place, label in enumerate(labels):
        metrics[f"precision/{label}"] = float(precision[place])
        metrics[f"recall/{label}"] = float(recall[place])
        metrics[f"f1/{label}"] = float(f1[place])
        metrics[f"support/{label}"] = float(support[place])
    return metrics


def confusion(gold: Sequence[str], predicted: Sequence[str], labels: Sequence[str]) -> list[list[int]]:
    """(labels, labels): how often a label (row) was predicted as each (column)."""
    from sklearn.metrics import confusion_matrix

    _check_labels(gold, predicted, labels)
    return confusion_matrix(gold, predicted, labels=list(labels)).tolist()


def tagging_metrics(gold: Sequence[Tags], predicted: Sequence[Tags]) -> dict[str, float]:
    """Entities with the very words and type, in strict IOB2, over all levels together, each level and each type.

    Over the levels together this is the official metric of GermEval 2014 ("strict, combined"): right, found and gold
    entities of the outer and the inner level are added up, and an entity counts on its own level alone. Its script
    is a little more lenient with tags that aren't well-formed: it lets an I- after O begin an entity.

    Args:
        gold, predicted: for each sentence its tags by level, outer first, and word.

    Returns:
        `precision`, `recall`, `f1` and `accuracy` (of the tags of all levels); for two levels `outer/…` and
        `inner/…`; `precision/<type>`, `recall/<type>`, `f1/<type>`, `support/<type>` over the levels together;
        `malformed`: I- tags that continue no entity of their type, over all predictions.
    """
    _check_tags(gold, predicted)
    levels = range(len(gold[0]))
    both = _entity_scores(_rows(gold, levels), _rows(predicted, levels), by_type=True)
    if len(levels) > 1:
        for level in levels:
            scores = _entity_scores(_rows(gold, [level]), _rows(predicted, [level]), by_type=False)
            both |= {f"{level_name(level, len(levels))}/{name}": value for name, value in scores.items()}
    both["malformed"] = float(sum(map(_malformed, _rows(predicted, levels))))
    return both


def level_name(level: int, levels: int) -> str:
    """`outer` and `inner` where there are two levels."""
    return ("outer", "inner")[level] if levels == 2 else f"level_{level}"


def span_metrics(gold: Sequence[SpanExample], predicted: Mapping[str, str]) -> dict[str, float]:
    """Exact match and F1 of answers in percent, the best over a question's reference answers.

    `exact_match` and `f1` are SQuAD's (v1.1) by torchmetrics, as in the paper and in the published figures of
    GermanQuAD: capitals, ASCII punctuation and the English articles a, an, the don't count. So the German "an" is
    lost as well, „ “ – and German articles count. Two things differ in `transformers.data.metrics.squad_metrics`
    (SQuAD v2.0): it leaves out reference answers of which normalization leaves nothing, such as "A" for vitamin A,
    where others are left, so that the prediction "A" is wrong there; and it passes over a missing prediction, which
    is an error here.

    `exact_match_german` and `f1_german` normalize as the official script of MLQA does for German: German articles and
    all Unicode punctuation don't count.

    A question without answers is right where the prediction is empty.

    Args:
        gold: the questions.
        predicted: the answer of each question by its id; empty for none.

    Raises:
        ValueError: a question has no prediction.
    """
    missing = [example.id for example in gold if example.id not in predicted]
    if missing or not gold:
        raise ValueError(f"{len(missing)} of {len(gold)} questions have no prediction: {missing[:3]}")
    texts = {example.id: [answer.text for answer in example.answers] or [""] for example in gold}
    exact_match, f1 = _squad(texts, predicted)
    german = [_german_scores(answers, predicted[key]) for key, answers in texts.items()]
    exact_german, f1_german = 100 * np.mean(german, axis=0)
    return {
        "exact_match": exact_match,
        "f1": f1,
        "exact_match_german": float(exact_german),
        "f1_german": float(f1_german),
    }


def _squad(texts: Mapping[str, Sequence[str]], predicted: Mapping[str, str]) -> tuple[float, float]:
    """Exact match and F1 by torchmetrics, which adds up in float32: thousands of questions would lose 0.01 points."""
    from torchmetrics.functional.text import squad

    keys, sums = list(texts), np.zeros(2)
    for start in range(0, len(keys), _SQUAD_QUESTIONS):
        part = keys[start : start + _SQUAD_QUESTIONS]
        scores = squad(
            [{"id": key, "prediction_text": predicted[key]} for key in part],
            [{"id": key, "answers": {"text": list(texts[key]), "answer_start": []}} for key in part],
        )
        sums += len(part) * np.array([float(scores["exact_match"]), float(scores["f1"])])
    exact_match, f1 = (sums / len(keys)).tolist()
    return exact_match, f1


def normalize_german(text: str) -> str:
    """Without capitals, Unicode punctuation and German articles, words separated by a space."""
    kept = (c for c in text.lower() if c not in string.punctuation and not unicodedata.category(c).startswith("P"))
    return " ".join(_GERMAN_ARTICLES.sub(" ", "".join(kept)).split())


def example_scores(kind: Kind, metric: str, gold: Sequence[Any], predicted: Sequence[Any]) -> npt.NDArray[np.float64]:
    """(examples,): what each example adds to a metric; their mean is the metric.

    Metrics that are means over examples are taken apart into these. F1 scores of entities and classes are ratios of
    sums; they are linearized around their value (the delta method), which gives their sampling error.

    Args:
        kind: of the task.
        metric: a name in `SCORES[kind]`.
        gold, predicted: as in a line of a predictions file.
    """
    return SCORES[kind][metric](gold, predicted)


def _right(gold: Sequence[str], predicted: Sequence[str]) -> npt.NDArray[np.float64]:
    return np.array([first == second for first, second in zip(gold, predicted, strict=True)], dtype=np.float64)


def _macro_f1(gold: Sequence[str], predicted: Sequence[str]) -> npt.NDArray[np.float64]:
    truth, found = np.asarray(gold, dtype=object), np.asarray(predicted, dtype=object)
    classes = [(truth == label, found == label) for label in sorted(set(gold))]
    return np.mean([linearized(2.0 * (a & b), 1.0 * a + b) for a, b in classes], axis=0)


def _entity_f1(gold: Sequence[Tags], predicted: Sequence[Tags]) -> npt.NDArray[np.float64]:
    _check_tags(gold, predicted)
    right, counted = np.zeros(len(gold)), np.zeros(len(gold))
    for level in range(len(gold[0])):
        rows = zip(_entities(_rows(gold, [level])), _entities(_rows(predicted, [level])), strict=True)
        for place, (first, second) in enumerate(rows):
            right[place] += 2 * len(first & second)
            counted[place] += len(first) + len(second)
    return linearized(right, counted)


def _answer_scores(score: Callable[[str, str], float]) -> Callable[..., npt.NDArray[np.float64]]:
    def scores(gold: Sequence[Sequence[str]], predicted: Sequence[str]) -> npt.NDArray[np.float64]:
        pairs = zip(gold, predicted, strict=True)
        return np.array([100.0 * max(score(text, found) for text in texts or [""]) for texts, found in pairs])

    return scores


def _squad_exact(gold: str, predicted: str) -> float:
    from transformers.data.metrics.squad_metrics import compute_exact

    return compute_exact(gold, predicted)


def _squad_f1(gold: str, predicted: str) -> float:
    from transformers.data.metrics.squad_metrics import compute_f1

    return compute_f1(gold, predicted)


def linearized(above: npt.NDArray[np.float64], below: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(examples,): terms with mean `sum(above) / sum(below)`, and to first order its sampling variance; 0 for 0 / 0."""
    if not below.sum():
        return np.zeros_like(above)
    ratio = above.sum() / below.sum()
    return ratio + (above - ratio * below) / below.mean()


# The metrics that models are compared by.
SCORES: dict[Kind, dict[str, Callable[[Sequence[Any], Sequence[Any]], npt.NDArray[np.float64]]]] = {
    "classification": {"accuracy": _right, "macro_f1": _macro_f1},
    "tagging": {"f1": _entity_f1},
    "question_answering": {"f1": _answer_scores(_squad_f1), "exact_match": _answer_scores(_squad_exact)},
}


def _check_labels(gold: Sequence[str], predicted: Sequence[str], labels: Sequence[str]) -> None:
    unknown = ({*gold} | {*predicted}) - {*labels}
    if not gold or len(gold) != len(predicted) or unknown:
        raise ValueError(f"{len(gold)} labels, {len(predicted)} predictions, not in the list: {sorted(unknown)}")


def _check_tags(gold: Sequence[Tags], predicted: Sequence[Tags]) -> None:
    shapes = [[list(map(len, tags)) for tags in side] for side in (gold, predicted)]
    if not gold or shapes[0] != shapes[1]:
        raise ValueError("predicted tags should have the sentences, levels and words of the gold ones")


def _rows(sentences: Sequence[Tags], levels: Sequence[int]) -> list[list[str]]:
    """The tags of one level after the other, as if each were a sentence of its own."""
    return [list(sentence[level]) for level in levels for sentence in sentences]


def _entity_scores(gold: list[list[str]], predicted: list[list[str]], by_type: bool) -> dict[str, float]:
    from seqeval.metrics import accuracy_score, classification_report
    from seqeval.scheme import IOB2

    scores = {"accuracy": float(accuracy_score(gold, predicted))}
    if not any(tag != "O" for row in (*gold, *predicted) for tag in row):
        return scores | dict.fromkeys(("precision", "recall", "f1"), 0.0)
    report = classification_report(gold, predicted, output_dict=True, mode="strict", scheme=IOB2, zero_division=0)
    names = {"precision": "precision", "recall": "recall", "f1": "f1-score", "support": "support"}
    for ours, theirs in names.items():
        if ours != "support":
            scores[ours] = float(report["micro avg"][theirs])
        if by_type:
            types = [name for name in report if not name.endswith(" avg")]
            scores |= {f"{ours}/{name}": float(report[name][theirs]) for name in types}
    return scores


def _entities(rows: list[list[str]]) -> list[set[tuple[str, int, int]]]:
    """Type, first word and end of each row's entities."""
    from seqeval.scheme import IOB2, Entities

    return [{entity.to_tuple()[1:] for entity in row} for row in Entities(rows, IOB2).entities]


def _malformed(row: Sequence[str]) -> int:
    before = ["O", *row]
    return sum(tag.startswith("I-") and last[2:] != tag[2:] for last, tag in zip(before, row, strict=False))


def _german_scores(answers: Sequence[str], predicted: str) -> tuple[float, float]:
    """Exact match and F1, each the best over the answers."""
    found = normalize_german(predicted)
    accepted = [normalize_german(answer) for answer in answers]
    return float(found in accepted), max(_word_f1(answer.split(), found.split()) for answer in accepted)


def _word_f1(gold: Sequence[str], predicted: Sequence[str]) -> float:
    if not gold or not predicted:
        return float(gold == predicted)
    return 2 * (Counter(gold) & Counter(predicted)).total() / (len(gold) + len(predicted))

"""Evaluates a task's model on whole splits: one prediction an example, metrics over the set; or as the paper did.

Notable: `protocol: paper` divides a set into batches in its own order, takes the metrics of each, and averages these;
of a question with several windows each window counts as a question.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bertchen.callbacks import EarlyStopping, TaskEvaluation
from bertchen.config import Config
from bertchen.config.schema_finetune import AnswersConfig, FinetuneConfig
from bertchen.tasks.answers import ScoredAnswer, best_answers, class_logits, decode_tags, group_windows
from bertchen.tasks.baselines import classification_baselines
from bertchen.tasks.batches import Prediction, eval_loader, predict
from bertchen.tasks.data import TaskData
from bertchen.tasks.encoder import Encoder
from bertchen.tasks.encoding import Features, encode
from bertchen.tasks.examples import Example, Kind, SpanExample, TagExample
from bertchen.tasks.heads import TaskModel
from bertchen.tasks.metrics import PRIMARY, classification_metrics, span_metrics, tagging_metrics
from bertchen.tasks.results import Rows, prediction_row
from bertchen.train.devices import compute_dtype
from bertchen.train.finetune_results import DEV, PAPER, TRAIN
from bertchen.train.run_folder import BEST_FILE

_SHOWN_ANSWERS = 5
_DIGITS = 5


@dataclass(frozen=True)
class Decoded:
    """What a model says of an example: a label, tags by level and word, or a text; and what else is worth keeping."""

    predicted: Any
    more: Mapping[str, Any]


def decode(
    data: TaskData,
    settings: AnswersConfig,
    examples: Sequence[Any],
    features: Sequence[Features],
    predictions: Sequence[Prediction],
) -> list[Decoded]:
    """One prediction an example, from those of its inputs.

    Args:
        data: kind and labels.
        settings: for the choice of answers.
        examples: of a split.
        features: their inputs, and `predictions` what the model says of each.
    """
    return _DECODERS[data.kind](data, settings, examples, features, predictions)


def _labels(
    data: TaskData,
    settings: AnswersConfig,
    examples: Sequence[Any],
    features: Sequence[Features],
    predictions: Sequence[Any],
) -> list[Decoded]:
    logits = class_logits(features, predictions, len(examples)).astype(np.float64)
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = (odds / odds.sum(axis=1, keepdims=True)).round(_DIGITS).tolist()
    return [
        Decoded(data.labels[index], {"probabilities": dict(zip(data.labels, row, strict=True))})
        for index, row in zip(logits.argmax(axis=1).tolist(), probabilities, strict=True)
    ]


def _tags(
    data: TaskData,
    settings: AnswersConfig,
    examples: Sequence[TagExample],
    features: Sequence[Features],
    predictions: Sequence[Any],
) -> list[Decoded]:
    tags = decode_tags(examples, features, predictions, data.labels)
    return [Decoded(found, {"words": example.words}) for example, found in zip(examples, tags, strict=True)]


def _answers(
    data: TaskData,
    settings: AnswersConfig,
    examples: Sequence[SpanExample],
    features: Sequence[Features],
    predictions: Sequence[Any],
) -> list[Decoded]:
    decoded = []
    for example, group in zip(examples, group_windows(features, len(examples)), strict=True):
        windows = [(features[index], *predictions[index]) for index in group]
        found = best_answers(example, windows, settings.n_best, settings.max_answer_tokens)
        decoded.append(Decoded(found[0].text if found else "", {"n_best": _shown(found)}))
    return decoded


def _shown(answers: Sequence[ScoredAnswer]) -> list[dict[str, Any]]:
    return [
        {"text": answer.text, "start": answer.start, "score": round(float(answer.score), _DIGITS)}
        for answer in answers[:_SHOWN_ANSWERS]
    ]


_DECODERS: dict[Kind, Callable[..., list[Decoded]]] = {
    "classification": _labels,
    "tagging": _tags,
    "question_answering": _answers,
}


# -- metrics ---------------------------------------------------------------------------------------------------


def set_metrics(data: TaskData, examples: Sequence[Any], predicted: Sequence[Any]) -> dict[str, float]:
    """The metrics of a whole set, of one prediction an example."""
    if data.kind == "classification":
        return classification_metrics([example.label for example in examples], predicted, data.labels)
    if data.kind == "tagging":
        return tagging_metrics([example.tags for example in examples], predicted)
    return span_metrics(examples, {example.id: text for example, text in zip(examples, predicted, strict=True)})


def metric_names(data: TaskData, split: str) -> list[str]:
    """The names of a split's metrics."""
    examples: Sequence[Any] = data.splits[split]
    gold = {
        "classification": lambda example: example.label,
        "tagging": lambda example: example.tags,
        "question_answering": lambda example: example.answers[0].text if example.answers else "",
    }[data.kind]
    return list(set_metrics(data, examples, [gold(example) for example in examples]))


def batch_averages(
    data: TaskData, examples: Sequence[Any], predicted: Sequence[Any], batch_size: int
) -> dict[str, float]:
    """The means of the metrics of batches, as in the paper: no metric of the set, but for accuracy in even batches.

    Metrics of single classes, which aren't in every batch, are left out.
    """
    batches = [
        set_metrics(data, examples[start : start + batch_size], predicted[start : start + batch_size])
        for start in range(0, len(examples), batch_size)
    ]
    names = [name for name in batches[0] if "/" not in name]
    return {name: float(np.mean([batch[name] for batch in batches])) for name in names}


def windows_as_questions(
    examples: Sequence[SpanExample], features: Sequence[Features]
) -> Iterator[tuple[SpanExample, Features]]:
    """Each window with a question of its own, as the paper scores them."""
    for index, feature in enumerate(features):
        question = replace(examples[feature.example], id=f"{examples[feature.example].id}, window {index}")
        yield question, replace(feature, example=index)


# -- a run's evaluations -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Evaluated:
    """An evaluation of a split: its metrics, and the lines of its predictions file."""

    metrics: dict[str, float]
    rows: Rows


class Evaluator:
    """Evaluates the model of a run, on all processes together, as `protocol` says.

    Args:
        config: of the run.
        precision: resolved.
        data: of the task.
        encoder: whose tokenizer reads the examples.
        model: as it is at the time of an evaluation, on the device that it is on.
    """

    def __init__(
        self, config: Config[FinetuneConfig], precision: str, data: TaskData, encoder: Encoder, model: TaskModel
    ) -> None:
        self.cfg = config.value
        self.data = data
        self.encoder = encoder
        self.model = model
        self.dtype = compute_dtype(precision)
        self._inputs: dict[str, list[Features]] = {}

    def __call__(self, split: str) -> Evaluated:
        """Reads the split with the model and computes its metrics."""
        examples, features = self.data.splits[split], self.features(split)
        predictions = self._predict(features)
        decoded = decode(self.data, self.cfg.answers, examples, features, predictions)
        rows = [
            prediction_row(example, found.predicted, **found.more)
            for example, found in zip(examples, decoded, strict=True)
        ]
        predicted = [found.predicted for found in decoded]
        if self.cfg.protocol == PAPER:
            metrics = self._paper_metrics(examples, predicted, features, predictions)
        else:
            metrics = set_metrics(self.data, examples, predicted)
        return Evaluated(metrics, rows)

    def features(self, split: str) -> list[Features]:
        """The inputs of a split, made once."""
        if split not in self._inputs:
            examples = self.data.splits[split]
            self._inputs[split] = encode(examples, self.encoder, self.data, self.cfg.encoding, training=False)
        return self._inputs[split]

    def baselines(self, split: str) -> dict[str, Any]:
        """What guessing by the training set's labels gives on a split; of classifications alone."""
        if self.data.kind != "classification":
            return {}
        trained, gold = (
            [example.label for example in self.data.splits[name]]  # type: ignore[union-attr]
            for name in (TRAIN, split)
        )
        return classification_baselines(trained, gold, self.data.labels)

    def _predict(self, features: list[Features]) -> list[Prediction]:
        loader = eval_loader(features, self.encoder.pad_id, self.cfg.eval_batch_tokens)
        return predict(self.model, loader, next(self.model.parameters()).device, self.dtype)

    def _paper_metrics(
        self,
        examples: Sequence[Any],
        predicted: list[Any],
        features: list[Features],
        predictions: list[Prediction],
    ) -> dict[str, float]:
        if self.data.kind == "question_answering":
            pairs = list(windows_as_questions(examples, features))
            examples, features = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
            decoded = decode(self.data, self.cfg.answers, examples, features, predictions)
            predicted = [found.predicted for found in decoded]
        return batch_averages(self.data, examples, predicted, self.cfg.global_train_batch_size)


def build_evaluation(config: Config[FinetuneConfig], evaluator: Evaluator) -> TaskEvaluation | None:
    """What evaluates during training: dev, or the training set under the paper's protocol; None where there is none."""
    cfg = config.value
    assert cfg.save_folder is not None
    split = TRAIN if cfg.protocol == PAPER else DEV
    if split not in evaluator.data.splits:
        return None
    stopping = None
    if cfg.early_stopping is not None:
        metric = cfg.early_stopping.metric or PRIMARY[cfg.task]
        stopping = EarlyStopping(metric, cfg.early_stopping.patience, Path(cfg.save_folder) / BEST_FILE)
    label = "train_paper_protocol" if cfg.protocol == PAPER else split
    return TaskEvaluation(evaluator.model, partial(_metrics, evaluator, split), label, cfg.eval_interval, stopping)


def _metrics(evaluator: Evaluator, split: str) -> dict[str, float]:
    return evaluator(split).metrics


def describe_inputs(examples: Sequence[Example], features: Sequence[Features]) -> str:
    """`1,000 examples, 41 tokens each on average, 512 at most`."""
    lengths = [len(feature) for feature in features]
    windows = f" in {len(features):,} windows" if len(features) != len(examples) else ""
    return f"{len(examples):,} examples{windows}, {np.mean(lengths):.0f} tokens on average, {max(lengths)} at most"

"""From a model's numbers to predictions, metrics of a set, and the averages over batches that the paper has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from task_files import TASKS, tiny_encoder

from bertchen.config import Config, load_config
from bertchen.config.schema_finetune import FinetuneConfig
from bertchen.tasks.data import load_task_data
from bertchen.tasks.encoder import load_encoder
from bertchen.tasks.encoding import Features
from bertchen.tasks.examples import Answer, Origin, SpanExample, TextExample
from bertchen.train.finetune_checks import check_data
from bertchen.train.finetune_evaluation import (
    Evaluator,
    batch_averages,
    build_evaluation,
    decode,
    metric_names,
    set_metrics,
    windows_as_questions,
)
from bertchen.train.finetune_model import build_task_loader, build_task_model

Make = Callable[..., Config[FinetuneConfig]]
HERE = Origin("file", 1)


@pytest.fixture(scope="module")
def encoder_folder(tiny_tokenizer: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_encoder(tmp_path_factory.mktemp("model") / "encoder", tiny_tokenizer)


@pytest.fixture
def make(encoder_folder: str, tmp_path: Path) -> Make:
    """The configuration of a tiny task."""

    def configured(kind: str, *overrides: str) -> Config[FinetuneConfig]:
        arguments = TASKS[kind](tmp_path / kind, model=encoder_folder, save_folder=str(tmp_path / "run"))
        return load_config(FinetuneConfig, [*arguments, *overrides], "usage")

    return configured


def evaluator_of(config: Config[FinetuneConfig]) -> Evaluator:
    data, encoder = check_data(config), load_encoder(config)
    return Evaluator(config, "fp32", data, encoder, build_task_model(config, data, encoder).model)


def texts(labels: str) -> list[TextExample]:
    return [TextExample(str(number), "text", label, HERE) for number, label in enumerate(labels)]


@pytest.mark.parametrize("kind", TASKS)
def test_an_evaluation_has_a_row_an_example_and_the_metrics_of_its_rows(make: Make, kind: str) -> None:
    evaluator = evaluator_of(make(kind))
    result = evaluator("dev")
    examples = evaluator.data.splits["dev"]
    assert [row["id"] for row in result.rows] == [example.id for example in examples]
    assert result.metrics == set_metrics(evaluator.data, examples, [row["predicted"] for row in result.rows])
    assert list(result.metrics) >= metric_names(evaluator.data, "dev")
    assert bool(evaluator.baselines("dev")) == (kind == "classification")


@pytest.mark.parametrize("kind", TASKS)
def test_how_inputs_are_batched_changes_nothing(make: Make, kind: str) -> None:
    one = evaluator_of(make(kind, "eval_batch_tokens=1"))("test")
    many = evaluator_of(make(kind, "eval_batch_tokens=100000"))("test")
    assert [row["predicted"] for row in one.rows] == [row["predicted"] for row in many.rows]


def test_an_answer_stands_at_its_place(make: Make) -> None:
    evaluator = evaluator_of(make("question_answering", "encoding.max_length=48", "encoding.long_inputs=windows"))
    examples = evaluator.data.splits["test"]
    assert len(evaluator.features("test")) > len(examples), "some questions have several windows"
    for row, example in zip(evaluator("test").rows, examples, strict=True):
        assert row["predicted"] == row["n_best"][0]["text"]
        for answer in row["n_best"]:
            assert example.context[answer["start"] :].startswith(answer["text"])


def test_windows_of_a_text_are_averaged() -> None:
    data = load_task_data_of_two()
    features = [Features(0, np.zeros(1, np.int32)), Features(0, np.zeros(1, np.int32))]
    logits = [np.array([2.0, 0.0], np.float32), np.array([-1.0, 2.0], np.float32)]
    (found,) = decode(data, FinetuneConfig().answers, texts("a"), features, logits)
    assert found.predicted == "b"
    expected = torch.softmax(torch.tensor([0.5, 1.0]), dim=0).tolist()
    assert list(found.more["probabilities"].values()) == pytest.approx(expected, abs=1e-5)


def load_task_data_of_two() -> object:
    from bertchen.tasks.data import TaskData

    return TaskData("classification", ["a", "b"], 1, {"train": texts("ab"), "dev": texts("ab")})


def test_averages_of_batches_are_not_the_set_s() -> None:
    """Batches of 3, 3 and 1: accuracies 1/3, 1 and 0, where the set has 4 of 7."""
    data = load_task_data_of_two()
    gold, predicted = texts("aabaabb"), list("bbbaaba")
    averages = batch_averages(data, gold, predicted, 3)
    assert averages["accuracy"] == pytest.approx((1 / 3 + 1 + 0) / 3)
    assert set_metrics(data, gold, predicted)["accuracy"] == pytest.approx(4 / 7)
    assert all("/" not in name for name in averages)
    whole = batch_averages(data, gold, predicted, 100)
    assert whole == {name: set_metrics(data, gold, predicted)[name] for name in whole}


def test_each_window_counts_as_a_question() -> None:
    questions = [SpanExample(name, "?", "Anna sieht Ulm", (Answer("Ulm", 11),), HERE) for name in ("one", "two")]
    features = [Features(example, np.zeros(1, np.int32)) for example in (0, 0, 1)]
    pairs = list(windows_as_questions(questions, features))
    assert len({question.id for question, _ in pairs}) == 3
    assert [feature.example for _, feature in pairs] == [0, 1, 2]
    assert [question.answers for question, _ in pairs] == [questions[0].answers] * 3


def test_the_paper_scores_windows_without_the_answer_too(make: Make) -> None:
    settings = ("encoding.max_length=48", "encoding.long_inputs=windows")
    held_out = evaluator_of(make("question_answering", *settings))
    papers = evaluator_of(make("question_answering", *settings, "protocol=paper", "global_train_batch_size=1000"))
    windows, questions = held_out.features("train"), held_out.data.splits["train"]
    assert len(windows) > len(questions)
    # A model that always finds the answer where a window has it, and can't elsewhere.
    perfect = [logits_at(feature) for feature in papers.features("train")]
    held_out._predict = papers._predict = lambda features: perfect
    assert held_out("train").metrics["exact_match"] == 100
    with_answer = sum(feature.start > 0 for feature in windows) / len(windows)
    assert papers("train").metrics["exact_match"] == pytest.approx(100 * with_answer)


def logits_at(feature: Features) -> tuple[np.ndarray, np.ndarray]:
    start, end = np.zeros(len(feature), np.float32), np.zeros(len(feature), np.float32)
    start[feature.start], end[feature.end] = (9, 9) if feature.start else (0, 0)
    return start, end


@pytest.mark.parametrize(
    ("overrides", "label"),
    [((), "dev"), (("data.splits.dev=null",), None), (("protocol=paper",), "train_paper_protocol")],
)
def test_what_is_evaluated_during_training(make: Make, overrides: tuple[str, ...], label: str | None) -> None:
    evaluation = build_evaluation(make("classification", *overrides), evaluator_of(make("classification", *overrides)))
    assert (evaluation and evaluation.label) == label


@pytest.mark.parametrize("kind", TASKS)
def test_training_batches_hold_each_example_once(make: Make, kind: str) -> None:
    config = make(kind)
    data, encoder = load_task_data(config), load_encoder(config)
    spec = build_task_loader(config, 8, data, encoder)
    batches = list(spec.dataloader)
    assert sorted(index for batch in batches for index in batch["index"].tolist()) == list(range(44))
    assert [spec.get_num_samples_in_batch(batch) for batch in batches] == [8] * 5 + [4]
    assert all(spec.get_num_tokens_in_batch(batch) == int(batch["attention_mask"].sum()) for batch in batches)


def test_the_head_is_the_seeds(make: Make) -> None:
    heads = [evaluator_of(make("classification", f"seed={seed}")).model.head.weight for seed in (1, 1, 2)]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])

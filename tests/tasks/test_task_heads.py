"""Heads: against Hugging Face's own, against loops, alone against padded, and exported."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny_encoders import FAMILIES, config_of, folder_of, load, shared
from torch import Tensor, nn
from transformers import (
    AutoTokenizer,
    BertForQuestionAnswering,
    BertForTokenClassification,
    RobertaForQuestionAnswering,
)

from bertchen.errors import UserError
from bertchen.model import (
    MosaicBertForQuestionAnswering,
    MosaicBertForSequenceClassification,
    MosaicBertForTokenClassification,
)
from bertchen.tasks.encoder import load_encoder
from bertchen.tasks.heads import TaskModel, export_finetuned, pool

KINDS = ("classification", "tagging", "question_answering")


def task_model(family: str, kind: str, num_labels: int = 3, **options: object) -> TaskModel:
    torch.manual_seed(0)
    model = TaskModel(load(family).model, kind, num_labels, **options)  # type: ignore[arg-type]
    nn.init.normal_(model.head.bias)
    return model.eval()


def padded(family: str, lengths: tuple[int, ...], width: int) -> dict[str, Tensor]:
    encoder = shared(family)
    ids = torch.randint(5, len(encoder.tokenizer), (len(lengths), width), generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(width) < torch.tensor(lengths)[:, None]).long()
    batch = {"input_ids": ids.masked_fill(mask == 0, encoder.pad_id), "attention_mask": mask}
    if encoder.token_types:
        batch["token_type_ids"] = (torch.arange(width) > 3).long().expand_as(ids) * mask
    return batch


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
def test_padding_changes_nothing(family: str, kind: str) -> None:
    model = task_model(family, kind, levels=2 if kind == "tagging" else 1)
    lengths = (3, 11, 1, 7)
    batch = padded(family, lengths, 16)
    with torch.no_grad():
        together = model(batch)
        for row, length in enumerate(lengths):
            alone = model({name: tensor[row : row + 1, :length] for name, tensor in batch.items()})
            for name, logits in alone.items():
                found = together[name][row : row + 1]
                expected_shape = logits.shape
                found = found if kind == "classification" else found[:, :length]
                assert found.shape == expected_shape
                torch.testing.assert_close(found, logits, rtol=1e-4, atol=1e-4)


def test_shapes_and_dtypes() -> None:
    batch = padded("bert", (5, 8), 8)
    assert task_model("bert", "classification", 4)(batch)["logits"].shape == (2, 4)
    assert task_model("bert", "tagging", 5, levels=2)(batch)["logits"].shape == (2, 8, 2, 5)
    model = task_model("bert", "question_answering").to(torch.bfloat16)
    outputs = model(batch)
    assert {tensor.dtype for tensor in outputs.values()} == {torch.float32}
    for logits in outputs.values():
        assert logits.shape == (2, 8)
        assert torch.equal(logits == float("-inf"), batch["attention_mask"] == 0)


# -- against other implementations ---------------------------------------------------------------------------


def with_head_of(reference: nn.Module, head: nn.Linear, encoder: nn.Module, base: str) -> nn.Module:
    getattr(reference, base).load_state_dict(encoder.state_dict())
    place = "qa_outputs" if hasattr(reference, "qa_outputs") else "classifier"
    getattr(reference, place).load_state_dict(head.state_dict())
    return reference.eval()


def test_tagging_as_transformers_does_it() -> None:
    model = task_model("bert", "tagging", 5)
    config = model.encoder.config
    config.num_labels = 5
    reference = with_head_of(BertForTokenClassification(config), model.head, model.encoder, "bert")
    batch = padded("bert", (5, 9), 9)
    tags = torch.randint(0, 5, (2, 9)).masked_fill(batch["attention_mask"] == 0, -100)
    expected = reference(**batch, labels=tags)
    found = model({**batch, "tags": tags[..., None]})
    torch.testing.assert_close(found["logits"][:, :, 0], expected.logits)
    torch.testing.assert_close(found["loss"], expected.loss)


@pytest.mark.parametrize(
    ("family", "reference"), [("bert", BertForQuestionAnswering), ("roberta", RobertaForQuestionAnswering)]
)
def test_answers_as_transformers_does_them(family: str, reference: type) -> None:
    model = task_model(family, "question_answering")
    other = with_head_of(reference(model.encoder.config), model.head, model.encoder, family)
    batch = padded(family, (9, 9), 9)
    where = {"start_positions": torch.tensor([2, 0]), "end_positions": torch.tensor([4, 0])}
    expected, found = other(**batch, **where), model({**batch, **where})
    torch.testing.assert_close(found["start_logits"], expected.start_logits)
    torch.testing.assert_close(found["end_logits"], expected.end_logits)
    torch.testing.assert_close(found["loss"], expected.loss)


@pytest.mark.parametrize("family", FAMILIES)
def test_classification_by_a_loop(family: str) -> None:
    """The mean of the attended states, one row at a time, then the linear layer."""
    model = task_model(family, "classification")
    lengths = (4, 9, 1)
    batch = padded(family, lengths, 9)
    labels = torch.tensor([2, 0, 1])
    rows = []
    for row, length in enumerate(lengths):
        alone = {name: tensor[row : row + 1, :length] for name, tensor in batch.items()}
        states = model.encoder(**alone).last_hidden_state[0]
        rows.append(sum(states[token] for token in range(length)) / length @ model.head.weight.T + model.head.bias)
    expected = torch.stack(rows)
    found = model({**batch, "labels": labels})
    torch.testing.assert_close(found["logits"], expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found["loss"], nn.CrossEntropyLoss()(expected, labels), rtol=1e-4, atol=1e-4)


def test_pooling() -> None:
    hidden = torch.randn(2, 3, 4)
    mask = torch.tensor([[1, 1, 0], [0, 1, 1]])
    hidden[0, 2] = float("nan")  # what lies at padding doesn't count, whatever it is
    torch.testing.assert_close(pool(hidden, mask), torch.stack([hidden[0, :2].mean(0), hidden[1, 1:].mean(0)]))
    assert torch.equal(pool(hidden, mask, "first"), torch.stack([hidden[0, 0], hidden[1, 1]]))


# -- losses --------------------------------------------------------------------------------------------------


def test_loss_of_tags_is_the_mean_over_words_and_levels() -> None:
    model = task_model("bert", "tagging", 3, levels=2)
    batch = padded("bert", (4, 6), 6)
    tags = torch.full((2, 6, 2), -100)
    places = {(0, 1, 0): 2, (0, 1, 1): 0, (1, 2, 0): 1, (1, 5, 1): 2}
    for place, tag in places.items():
        tags[place] = tag
    found = model({**batch, "tags": tags})
    expected = [-found["logits"][place].log_softmax(-1)[tag] for place, tag in places.items()]
    torch.testing.assert_close(found["loss"], torch.stack(expected).mean())


def test_rows_without_a_target_are_left_out() -> None:
    model = task_model("bert", "question_answering")
    batch = padded("bert", (6, 8), 8)
    one = {"start_positions": torch.tensor([-100, 3]), "end_positions": torch.tensor([-100, 5])}
    found = model({**batch, **one})
    start, end = (found[name][1].log_softmax(-1) for name in ("start_logits", "end_logits"))
    torch.testing.assert_close(found["loss"], -(start[3] + end[5]) / 2)
    none = {name: torch.tensor([-100, -100]) for name in one}
    loss = model({**batch, **none})["loss"]
    assert loss.item() == 0
    loss.backward()
    assert all(weight.grad is None or weight.grad.isfinite().all() for weight in model.parameters())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_weight_gets_a_gradient(family: str, kind: str) -> None:
    """Distributed training refuses others."""
    model = task_model(family, kind).train()
    batch = padded(family, (6, 8), 8)
    targets = {
        "classification": {"labels": torch.tensor([0, 1])},
        "tagging": {"tags": torch.zeros(2, 8, 1).long()},
        "question_answering": {"start_positions": torch.tensor([0, 2]), "end_positions": torch.tensor([0, 3])},
    }[kind]
    model({**batch, **targets})["loss"].backward()
    without = [name for name, weight in model.named_parameters() if weight.requires_grad and weight.grad is None]
    assert without == []


def test_a_new_head() -> None:
    torch.manual_seed(0)
    head = TaskModel(shared("bert").model, "classification", 500).head
    assert head.weight.std().item() == pytest.approx(0.2, rel=0.05)
    assert not head.bias.any()


def test_unknown_choices() -> None:
    with pytest.raises(ValueError, match="kind='regression' is unknown"):
        TaskModel(shared("bert").model, "regression", 2)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="pooling='max' is unknown"):
        TaskModel(shared("bert").model, "classification", 2, pooling="max")


# -- export --------------------------------------------------------------------------------------------------

CLASSES = {
    "classification": MosaicBertForSequenceClassification,
    "tagging": MosaicBertForTokenClassification,
    "question_answering": MosaicBertForQuestionAnswering,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["mosaicbert", "public_mosaicbert"])
def test_export(tmp_path: Path, family: str, kind: str) -> None:
    levels = 2 if kind == "tagging" else 1
    model = task_model(family, kind, 3, levels=levels, dropout=0.25, pooling="first")
    labels = [] if kind == "question_answering" else ["O", "B-Ort", "I-Ort"]
    before = json.dumps(model.encoder.config.to_dict(), default=str)
    folder = export_finetuned(model, shared(family), str(tmp_path / "hf"), labels)
    assert json.dumps(model.encoder.config.to_dict(), default=str) == before

    exported, report = CLASSES[kind].from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    batch = padded(family, (4, 9), 9)
    with torch.no_grad():
        found, expected = exported(**batch), model(batch)
    attended = batch["attention_mask"] == 1
    if kind == "question_answering":
        torch.testing.assert_close(found.start_logits[attended], expected["start_logits"][attended])
        torch.testing.assert_close(found.end_logits[attended], expected["end_logits"][attended])
    elif kind == "tagging":
        torch.testing.assert_close(found.logits[attended], expected["logits"][attended][:, 0])
    else:
        torch.testing.assert_close(found.logits, expected["logits"])
    if labels:
        assert exported.config.id2label == dict(enumerate(labels))
        assert exported.config.classifier_dropout == 0.25

    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config["architectures"] == [CLASSES[kind].__name__]
    assert config["model_type"] == "mosaicbert"
    for reference in config["auto_map"].values():
        assert (tmp_path / "hf" / f"{reference.partition('.')[0]}.py").is_file()
    loaded = load_encoder(config_of(folder))  # and it can be fine-tuned again
    assert all(torch.equal(a, b) for a, b in zip(loaded.model.parameters(), model.encoder.parameters(), strict=True))
    text = "Der Hund von Köln."
    assert AutoTokenizer.from_pretrained(folder)(text)["input_ids"] == shared(family).tokenizer(text)["input_ids"]


def test_other_architectures_are_not_exported(tmp_path: Path) -> None:
    model = task_model("bert", "classification")
    assert export_finetuned(model, shared("bert"), str(tmp_path / "hf"), ["a", "b", "c"]) is None
    assert not (tmp_path / "hf").exists()


def test_export_refuses(tmp_path: Path) -> None:
    model = task_model("mosaicbert", "classification")
    with pytest.raises(UserError, match="2 names for 3 labels"):
        export_finetuned(model, shared("mosaicbert"), str(tmp_path / "hf"), ["a", "b"])
    with pytest.raises(UserError, match="is not empty"):
        export_finetuned(model, shared("mosaicbert"), str(folder_of("mosaicbert")), ["a", "b", "c"])

"""Reading checkpoints: the same weights and tokenizer, the facts, and every file that is none."""

from __future__ import annotations

import builtins
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_checkpoint import MANIFEST, RUN, TEXTS, Checkpoint

from bertchen.errors import UserError
from bertchen.export import load_checkpoint_model
from bertchen.export.facts import read_validation


@pytest.fixture
def altered(checkpoint: Checkpoint, tmp_path: Path) -> Callable[[Callable[[dict[str, Any]], Any]], str]:
    """Saves the checkpoint again after a function has changed it in place or returned something else."""

    def alter(change: Callable[[dict[str, Any]], Any]) -> str:
        content = torch.load(checkpoint.path, weights_only=False)
        changed = change(content)
        torch.save(content if changed is None else changed, tmp_path / "altered.pt")
        return str(tmp_path / "altered.pt")

    return alter


def hf(content: dict[str, Any]) -> dict[str, Any]:
    return content["state"]["integrations"]["huggingface"]


def test_weights_configuration_and_tokenizer_are_those_of_training(checkpoint: Checkpoint) -> None:
    model, tokenizer, _ = load_checkpoint_model(str(checkpoint.path))
    trained = checkpoint.model.state_dict()
    loaded = model.state_dict()
    assert loaded.keys() == trained.keys()
    assert all(torch.equal(loaded[name], trained[name]) for name in trained)
    ours, theirs = model.config.to_dict(), checkpoint.model.config.to_dict()
    assert {name: value for name, value in ours.items() if theirs[name] != value} == {}
    assert model.cls.predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight
    assert not model.training
    assert tokenizer(TEXTS)["input_ids"] == checkpoint.tokenizer(TEXTS)["input_ids"]
    assert tokenizer.special_tokens_map == checkpoint.tokenizer.special_tokens_map


def test_the_model_outlives_the_file(checkpoint: Checkpoint, tmp_path: Path) -> None:
    copy = tmp_path / "copy.pt"
    copy.write_bytes(checkpoint.path.read_bytes())
    model, _, _ = load_checkpoint_model(str(copy))
    copy.write_bytes(b"\0" * copy.stat().st_size)
    assert torch.equal(
        model.bert.embeddings.word_embeddings.weight, checkpoint.model.bert.embeddings.word_embeddings.weight
    )


def test_facts(checkpoint: Checkpoint) -> None:
    _, _, facts = load_checkpoint_model(str(checkpoint.path))
    assert (facts.steps, facts.tokens, facts.parameters) == (2, 2 * 8 * 32, 98765)
    assert facts.config == RUN
    assert facts.manifest == MANIFEST
    assert facts.seconds is not None
    assert facts.seconds > 0
    assert facts.precision == "fp32"
    assert facts.hardware == f"{os.cpu_count()} CPU cores"
    # Those of step 2, not of the later model that step 3 was measured on.
    assert facts.validation_step == 2
    assert facts.validation == {
        "eval_64": {"MaskedCrossEntropy": 3.25, "MaskedAccuracy": 0.375},
        "eval_512": {"MaskedCrossEntropy": 2.5},
    }


def test_a_checkpoint_without_our_facts_and_metrics_counts_its_parameters(altered: Any) -> None:
    path = altered(lambda content: hf(content).pop("bertchen") and None)
    model, _, facts = load_checkpoint_model(path)
    unique = {id(parameter): parameter.numel() for parameter in model.parameters()}
    assert facts.parameters == sum(unique.values())
    assert (facts.config, facts.manifest, facts.validation, facts.validation_step) == ({}, {}, {}, None)


@pytest.mark.parametrize("content", ["", "\n\n", "[1]\nnull\n", '{"step": 1, "metrics/train/Loss": 1}\n', "\0\xff"])
def test_a_metrics_file_without_validation(tmp_path: Path, content: str) -> None:
    (tmp_path / "metrics.jsonl").write_text(content, encoding="latin-1")
    assert read_validation(tmp_path / "metrics.jsonl") == (None, {})


def test_metrics_without_steps_or_numbers(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"metrics/eval_64/A": 1}\n{"metrics/eval/A": 2, "metrics/eval/B": null, "metrics/eval_64/B": 3}\n')
    assert read_validation(path) == (None, {"eval": {"A": 2.0}, "eval_64": {"B": 3.0}})


# -- files that can't be read -------------------------------------------------------------------------------


def error_of(path: str | os.PathLike[str], **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        load_checkpoint_model(str(path), **options)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_missing_files_name_those_that_are_there(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = checkpoint.path.parent
    assert "no such file" in error_of(folder / "latest.pt")
    assert "latest-rank0.pt" in error_of(folder / "latest.pt")
    assert "is a folder" in error_of(folder)
    assert "latest-rank0.pt" in error_of(folder)
    assert "no such file" in error_of(tmp_path / "nowhere" / "latest.pt")
    (tmp_path / "dangling.pt").symlink_to(tmp_path / "gone.pt")
    assert "no such file" in error_of(tmp_path / "dangling.pt")


def test_files_of_another_kind(tmp_path: Path) -> None:
    for number, content in enumerate((b"", b"# not a checkpoint", pickle.dumps({"state": {}}))):
        path = tmp_path / f"{number}.pt"
        path.write_bytes(content)
        assert "no checkpoint" in error_of(path)
    with zipfile.ZipFile(tmp_path / "archive.pt", "w") as archive:
        archive.writestr("readme.txt", "a zip file without a pickle")
    assert "can't be read" in error_of(tmp_path / "archive.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    assert "holds a list" in error_of(tmp_path / "list.pt")
    torch.save({"a": torch.zeros(1)}, tmp_path / "dict.pt")
    assert "has no state" in error_of(tmp_path / "dict.pt")


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_file_cut_off_anywhere(checkpoint: Checkpoint, tmp_path: Path, share: float) -> None:
    whole = checkpoint.path.read_bytes()
    path = tmp_path / "cut.pt"
    path.write_bytes(whole[: int(share * len(whole))])
    error_of(path)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 1, exclude_max=True), bits=st.integers(1, 255))
def test_a_damaged_byte_is_an_error_or_changes_nothing(
    checkpoint: Checkpoint, tmp_path: Path, share: float, bits: int
) -> None:
    content = bytearray(checkpoint.path.read_bytes())
    content[int(share * len(content))] ^= bits
    path = tmp_path / "damaged.pt"
    path.write_bytes(content)
    try:
        model, _, _ = load_checkpoint_model(str(path))
    except UserError:
        return
    trained = checkpoint.model.state_dict()
    assert all(torch.equal(weight, trained[name]) for name, weight in model.state_dict().items())


# -- checkpoints that aren't ours ---------------------------------------------------------------------------


def test_checkpoints_of_other_models(altered: Any) -> None:
    def of_roberta(content: dict[str, Any]) -> None:
        hf(content)["model"]["config"]["content"]["model_type"] = "roberta"
        hf(content)["model"]["config"]["class"] = "transformers.models.roberta.modeling_roberta.RobertaForMaskedLM"

    message = error_of(altered(of_roberta))
    assert "holds a RobertaForMaskedLM of type roberta" in message
    assert "MosaicBertForMaskedLM or BertForMaskedLM" in message

    def classifier(content: dict[str, Any]) -> None:
        hf(content)["model"]["config"]["class"] = "bertchen.model.MosaicBertForSequenceClassification"

    assert "MosaicBertForSequenceClassification" in error_of(altered(classifier))
    assert "integrations" in error_of(altered(lambda content: content["state"].pop("integrations") and None))
    assert "tokenizer" in error_of(altered(lambda content: hf(content)["tokenizer"].clear()))


def test_weights_that_do_not_fit(altered: Any) -> None:
    name = "model.bert.encoder.layer.1.attention.self.Wqkv.weight"
    assert "Wqkv" in error_of(altered(lambda content: content["state"]["model"].__delitem__(name)))

    def narrower(content: dict[str, Any]) -> None:
        hf(content)["model"]["config"]["content"]["hidden_size"] = 48

    assert "disagree" in error_of(altered(narrower))

    def impossible(content: dict[str, Any]) -> None:
        hf(content)["model"]["config"]["content"]["num_attention_heads"] = 7

    assert "hidden_size=96" in error_of(altered(impossible))


@pytest.mark.parametrize("name", ["../evil.json", "/tmp/evil.json", "code.py", "sub/x.json"])
def test_tokenizer_files_stay_in_their_folder_and_hold_no_code(altered: Any, name: str) -> None:
    def add(content: dict[str, Any]) -> None:
        hf(content)["tokenizer"][name] = {"file_extension": Path(name).suffix, "content": "x"}

    assert repr(name) in error_of(altered(add))


class Payload:
    """What an attacker would put into a pickle: a call, here one that only leaves a mark."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return builtins.exec, ("import builtins; builtins.checkpoint_ran_code = True",)


def test_code_in_a_checkpoint_runs_only_where_it_is_trusted(altered: Any, checkpoint: Checkpoint) -> None:
    path = altered(lambda content: content.update(payload=Payload()))
    try:
        message = error_of(path)
        assert not hasattr(builtins, "checkpoint_ran_code")
        assert "exec" in message
        assert "trust_checkpoint=true" in message
        model, _, _ = load_checkpoint_model(path, trust_checkpoint=True)
        assert hasattr(builtins, "checkpoint_ran_code")
    finally:
        if hasattr(builtins, "checkpoint_ran_code"):
            del builtins.checkpoint_ran_code
    assert torch.equal(model.cls.predictions.decoder.bias, checkpoint.model.cls.predictions.decoder.bias)


class Missing:
    """Its class is gone when the checkpoint is read."""


def test_a_trusted_checkpoint_that_cannot_be_unpickled(altered: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = altered(lambda content: content.update(extra=Missing()))
    monkeypatch.delitem(globals(), "Missing")
    assert "Missing" in error_of(path)
    assert "Missing" in error_of(path, trust_checkpoint=True)

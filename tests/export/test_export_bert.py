"""A checkpoint of a plain BERT becomes a folder that Transformers loads by itself, without code of ours."""

from __future__ import annotations

import ast
import json
import os
import re
from pathlib import Path

import pytest
import safetensors.torch
import torch
from huggingface_hub import ModelCard
from tiny_checkpoint import SIZES, Checkpoint, train_tiny
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer, BertConfig, BertForMaskedLM, pipeline

from bertchen.errors import UserError
from bertchen.export import export_checkpoint
from bertchen.train.plain_bert import PlainBertForMaskedLM

TEXTS = ["Der faule Hund.", "Die Hauptstadt von Deutschland ist [MASK]."]


def tiny_bert() -> PlainBertForMaskedLM:
    return PlainBertForMaskedLM(BertConfig(**SIZES, max_position_embeddings=48))


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return train_tiny(tmp_path_factory.mktemp("run"), tiny_bert)


@pytest.fixture(scope="module")
def exported(bert: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "model"
    export_checkpoint(str(bert.path), str(folder), name="someone/bert")
    return folder


def test_there_is_no_code_in_the_folder(exported: Path) -> None:
    assert not list(exported.rglob("*.py"))
    config = json.loads((exported / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("bert", ["BertForMaskedLM"])
    assert "auto_map" not in config
    assert config["dtype"] == "float32"


@torch.no_grad()
def test_transformers_loads_the_same_model(bert: Checkpoint, exported: Path) -> None:
    loaded, info = AutoModelForMaskedLM.from_pretrained(exported, trust_remote_code=False, output_loading_info=True)
    assert type(loaded) is BertForMaskedLM
    assert not any(info.values())
    trained = bert.model.state_dict()
    assert loaded.state_dict().keys() == trained.keys()
    assert all(torch.equal(weight, trained[name]) for name, weight in loaded.state_dict().items())
    tokenizer = AutoTokenizer.from_pretrained(exported, trust_remote_code=False)
    for text in TEXTS:
        batch = tokenizer(text, return_tensors="pt")
        expected = bert.model(input_ids=batch["input_ids"]).logits
        torch.testing.assert_close(loaded(**batch).logits, expected, rtol=0, atol=1e-5)
    encoder = AutoModel.from_pretrained(exported, add_pooling_layer=False)
    assert torch.equal(
        encoder.embeddings.position_embeddings.weight, trained["bert.embeddings.position_embeddings.weight"]
    )
    assert pipeline("fill-mask", model=str(exported))(TEXTS[1])


def test_each_weight_is_written_once(bert: Checkpoint, exported: Path) -> None:
    written = safetensors.torch.load_file(exported / "model.safetensors")
    tied = {"cls.predictions.decoder.weight", "cls.predictions.decoder.bias"}
    assert bert.model.state_dict().keys() - written.keys() == tied


def test_longer_texts_are_cut_to_its_positions(exported: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(exported)
    assert tokenizer.model_max_length == 48
    assert len(tokenizer("Hund " * 100, truncation=True)["input_ids"]) == 48


def test_the_card_speaks_of_bert(exported: Path) -> None:
    card = (exported / "README.md").read_text(encoding="utf-8")
    assert "trust_remote_code" not in card
    assert "| positions | learned, 48 |" in card
    assert "ALiBi" not in card
    assert "Mosaic" not in card
    assert "{" not in re.sub(r"```.*?```", "", card, flags=re.DOTALL)
    assert {"bert", "german"} <= set(ModelCard(card).data.tags)
    assert "custom_code" not in ModelCard(card).data.tags
    for block in re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL):
        ast.parse(block)


def test_an_earlier_export_is_replaced_and_nothing_else(
    bert: Checkpoint, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """One of MosaicBERT too, with the code that lies in it."""
    folder = tmp_path / "model"
    export_checkpoint(str(checkpoint.path), str(folder))
    export_checkpoint(str(bert.path), str(folder), overwrite=True)
    assert not list(folder.rglob("*.py"))
    export_checkpoint(str(checkpoint.path), str(folder), overwrite=True)
    assert (folder / "modeling_mosaicbert.py").exists()
    foreign = tmp_path / "foreign"
    bert.model.save_pretrained(foreign)
    before = sorted(os.listdir(foreign))
    with pytest.raises(UserError, match="not replaced"):
        export_checkpoint(str(bert.path), str(foreign), overwrite=True)
    assert sorted(os.listdir(foreign)) == before

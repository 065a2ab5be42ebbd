"""The model card: front matter as the Hub reads it, the facts, nothing private, nothing made up."""

from __future__ import annotations

import ast
import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from tiny_checkpoint import Checkpoint

from bertchen.export import CardFacts, export_model, load_checkpoint_model
from bertchen.export.model_card import model_card


@pytest.fixture(scope="module")
def card(checkpoint: Checkpoint) -> str:
    model, tokenizer, facts = load_checkpoint_model(str(checkpoint.path))
    return model_card(replace(facts, name="someone/bertchen"), model.config, tokenizer, 256)


def tables(card: str) -> dict[str, list[list[str]]]:
    """Section to the rows of its first table."""
    found = {}
    for section in re.split(r"(?m)^#+ ", card)[1:]:
        title = section.splitlines()[0]
        lines = [line for line in section.splitlines() if line.startswith("|")]
        found[title] = [[cell.strip() for cell in line[1:-1].split("|")] for line in lines]
    return found


def test_front_matter_as_the_hub_reads_it(card: str) -> None:
    data = ModelCard(card).data
    assert data.language == "de"
    assert data.license == "other"
    assert data.library_name == "transformers"
    assert data.pipeline_tag == "fill-mask"
    assert data.to_dict()["mask_token"] == "[MASK]"
    assert "[MASK]" in data.to_dict()["widget"][0]["text"]
    assert {"mosaicbert", "sentence-transformers", "custom_code"} <= set(data.tags)


def test_facts_of_the_run(card: str) -> None:
    found = tables(card)
    training = dict(found["Training"])
    assert training["steps"] == "2"
    assert training["tokens read"] == "512"
    assert training["optimizer"] == "adamw, lr 0.0005, betas 0.9 / 0.98"
    assert training["sequence length"] == "256"
    assert training["batch"] == "8 blocks of 512: 4,096 tokens a step"
    assert "limit of wall-clock time" not in training  # null in the run
    data = dict(found["Data"])
    assert data["source"] == "path …/*.jsonl", "what isn't set isn't told"
    assert data["documents"] == "1,234,567"
    assert data["training tokens"] == "3,584"
    assert data["validation blocks"] == "1"
    tokenizer = dict(found["Tokenizer"])
    assert tokenizer["special tokens"] == "`[PAD]` 0, `[UNK]` 1, `[SEP]` 2, `[MASK]` 3"
    assert tokenizer["a pair of texts"] == "`A[SEP]B`"
    assert tokenizer["fingerprint"] == "f1n9e2"
    assert dict(found["someone/bertchen"])["parameters"] == "98,765"


def test_validation_by_length(card: str) -> None:
    assert "15% of the tokens masked, after step 2:" in card
    assert tables(card)["Validation"] == [
        ["input", "cross entropy [nats]", "masked accuracy"],
        ["---", "---", "---"],
        ["64 tokens", "3.25", "0.375"],
        ["512 tokens", "2.5", ""],
    ]


def test_the_configuration_is_there_without_paths_and_loggers(card: str) -> None:
    blocks = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", card, flags=re.DOTALL)]
    assert blocks[0]["source"]["path"] == "…/*.jsonl"
    assert blocks[1]["data"] == {"local": "…/mds"}
    assert blocks[1]["seed"] == 42
    assert "/home" not in card
    assert "wandb" not in card


def test_every_way_to_load_is_valid_python_and_names_the_model(card: str) -> None:
    blocks = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    names = {node.id for block in blocks for node in ast.walk(ast.parse(block)) if isinstance(node, ast.Name)}
    assert {
        "pipeline",
        "AutoTokenizer",
        "AutoModel",
        "AutoModelForMaskedLM",
        "AutoModelForSequenceClassification",
        "AutoModelForTokenClassification",
        "AutoModelForQuestionAnswering",
        "SentenceTransformer",
    } <= names
    assert all('"someone/bertchen"' in block for block in blocks)


def test_a_card_without_facts_says_nothing_of_them(checkpoint: Checkpoint, tmp_path: Path) -> None:
    export_model(checkpoint.model, checkpoint.tokenizer, str(tmp_path / 'mo"del'), CardFacts())
    card = (tmp_path / 'mo"del' / "README.md").read_text(encoding="utf-8")
    assert not {"Data", "Training", "Validation"} & tables(card).keys()
    assert "None" not in card
    assert ModelCard(card).data.language == "de"
    for block in re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL):
        ast.parse(block)

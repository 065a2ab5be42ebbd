"""The paper's experiments: each YAML loads over yamls/pretrain.yaml, says what differs alone, and holds its facts."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from bertchen.config import Config, load_config
from bertchen.config.schema_convert import ConvertConfig
from bertchen.config.schema_train import TrainConfig
from bertchen.train.curriculum import check_curriculum

ROOT = Path(__file__).resolve().parents[2]
PAPER = ROOT / "yamls/paper"
PRETRAIN = ROOT / "yamls/pretrain.yaml"
LENGTHS = [64, 128, 256, 512]
DATA = {  # the paper's table 2, and the YAML that makes each
    "data_wiki": "wikipedia",
    "data_books": "books",
    "data_wiki_books": "wiki_books",
    "data_c4": "c4",
    "data_oscar": "oscar",
    "data_culturax": "culturax",
}
HYBRID = ("hybrid", "hybrid_sorted", "hybrid_mask", "hybrid_mask_double")
NAMES = [*(f"length_{length}" for length in LENGTHS), *HYBRID, "dynamic", "static", "bert_tokenizer", "bert", *DATA]


def config_of(*names: str) -> Config[TrainConfig]:
    """The configuration of a run with these YAMLs, `x` for what the command line has to say besides."""
    files = [str(PRETRAIN), *(str(PAPER / f"{name}.yaml") for name in names)]
    said = {key for name in names for key in said_by(name)}
    needed = [f"{key}=x" for key in ("save_folder", "tokenizer", "data.local") if key not in said]
    return load_config(TrainConfig, [*files, *needed], "usage")


def loaded(*names: str) -> dict[str, Any]:
    return config_of(*names).to_dict()


def said_by(name: str) -> dict[str, Any]:
    """Dotted key to value of what stands in a YAML."""
    content = yaml.safe_load((PAPER / f"{name}.yaml").read_text())
    return leaves(content) if content else {}


def curriculum_of(name: str) -> dict[str, Any]:
    """Name to arguments of the curriculum, if there is one."""
    return {kind: arguments for kind, arguments in loaded(name)["curriculum"].items() if arguments is not None}


def leaves(node: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(node, dict) or not node:
        return {prefix.removesuffix("."): node}
    found: dict[str, Any] = {}
    for key, value in node.items():
        found |= leaves(value, f"{prefix}{key}.")
    return found


def head(name: str) -> list[str]:
    """The lines of comment that a YAML begins with."""
    lines = (PAPER / f"{name}.yaml").read_text().splitlines()
    comment = [line.startswith("#") for line in lines]
    return lines[: comment.index(False) if False in comment else len(lines)]


def data_of(name: str) -> dict[str, Any]:
    """The conversion that the head names: a YAML of yamls/data/ and what is set besides."""
    line = head(name)[1]
    overrides = re.findall(r"[\w.]+=(?:\{.*?\}|[^\s,]*[^\s,.])", line)
    (path,) = re.findall(r"yamls/data/\w+\.yaml", line)
    needed = [f"{key}=x" for key in ("tokenizer", "out") if not any(item.startswith(f"{key}=") for item in overrides)]
    return load_config(ConvertConfig, [str(ROOT / path), *needed, *overrides], "usage").to_dict()


def test_each_experiment_has_its_yaml() -> None:
    assert sorted(path.name for path in PAPER.iterdir()) == sorted(f"{name}.yaml" for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_only_what_differs_is_said(name: str) -> None:
    """Nothing that the baseline has already; what it doesn't say keeps its defaults."""
    said, merged, baseline = said_by(name), leaves(loaded(name)), leaves(loaded())
    for key, value in said.items():
        assert merged[key] == value, key
        assert key not in baseline or baseline[key] != value, f"{key} is the baseline's already"
    unsaid = {key for key in merged if key not in said and merged[key] != baseline.get(key, ...)}
    assert all(baseline[key.rpartition(".")[0]] is None for key in unsaid), "other arguments of what is named here"


@pytest.mark.parametrize("name", NAMES)
def test_training_accepts_its_curriculum(name: str) -> None:
    curriculum = check_curriculum(config_of(name), block_size=512, steps_an_epoch=2000)
    assert [curriculum.name] == (list(curriculum_of(name)) or ["sequence_length"])


@pytest.mark.parametrize("name", NAMES)
def test_the_head_says_which_table_and_which_data(name: str) -> None:
    first, second = head(name)
    assert first.startswith("# Over yamls/pretrain.yaml: ")
    assert re.search(r"\b(table [1-5]|no table)\b", first)
    assert second.startswith("# data.local: ")
    assert data_of(name)["source"]["hub"] == "uonlp/CulturaX" or name in DATA


@pytest.mark.parametrize("length", LENGTHS)
def test_table_1(length: int) -> None:
    config = loaded(f"length_{length}")
    assert config["sequence_length"] == length
    assert config["eval"]["interval"] == "100ba"
    assert config["eval"]["lengths"] == LENGTHS
    assert config["global_train_batch_size"] * 512 == 524_288
    assert loaded("length_512", "data_culturax") == loaded("data_culturax"), "the baseline"


@pytest.mark.parametrize(("name", "made_by"), DATA.items())
def test_table_2(name: str, made_by: str) -> None:
    """`data.local` is where the example of the data's own YAML writes."""
    example = (ROOT / f"yamls/data/{made_by}.yaml").read_text()
    (out,) = set(re.findall(r"\bout=(\S+)", example))
    assert loaded(name)["data"]["local"] == out == data_of(name)["out"]
    assert f"yamls/data/{made_by}.yaml" in head(name)[1]


@pytest.mark.parametrize("name", HYBRID)
def test_table_3(name: str) -> None:
    config, data = loaded(name), data_of(name)
    assert curriculum_of(name) == {
        "hybrid": {"lengths": LENGTHS, "patience": 2, "delta": 1.0, "metric": None, "max_steps": None}
    }
    assert config["eval"]["interval"] == "50ba"
    assert config["eval"]["lengths"][-1] == 512, "whose loss is watched"
    assert data["stages"] == {64: 0.15, 128: 0.15, 256: 0.15, 512: 0.55}
    assert config["data"]["stage_splits"] == [f"train_{length}" for length in data["stages"]]
    is_sorted = name == "hybrid_sorted"
    assert data["strategy"] == ("sorted" if is_sorted else "naive")
    assert config["data"]["shuffle"] is not is_sorted
    assert config["masking"]["eval_mlm_probability"] == 0.3


def test_rates_of_masking_by_length() -> None:
    rates = {name: loaded(name)["masking"]["stage_rates"] for name in HYBRID}
    assert rates["hybrid_mask"] == [0.30, 0.25, 0.20, 0.15]
    assert rates["hybrid_mask_double"] == [0.6, 0.5, 0.4, 0.3]
    assert not rates["hybrid"]
    assert not rates["hybrid_sorted"]


def test_table_4() -> None:
    """The English tokenizer of 30,522 entries; the model's vocabulary follows from it."""
    config = loaded("bert_tokenizer")
    assert config["tokenizer"] == data_of("bert_tokenizer")["tokenizer"] == "google-bert/bert-base-uncased"
    assert config["model"]["vocab_size"] is None
    assert 30_528 == -(-30_522 // 64) * 64
    assert "30,528" in head("bert_tokenizer")[0]


def test_other_curricula() -> None:
    static = curriculum_of("static")["static"]
    assert static["lengths"] == LENGTHS
    begins = [int(re.fullmatch(r"(\d+)ba", begin)[1]) for begin in static["begins"]]  # type: ignore[index]
    assert begins[0] == 0
    assert len({after - before for before, after in pairwise(begins)}) == 1, "every n steps"
    assert curriculum_of("dynamic")["dynamic"]["lengths"] == [64, 512]
    named = {name for name in NAMES if curriculum_of(name)}
    assert named == {*HYBRID, "static", "dynamic"}


def test_plain_bert() -> None:
    assert loaded("bert")["model"]["architecture"] == "bert"
    assert loaded()["model"]["architecture"] == "mosaicbert"

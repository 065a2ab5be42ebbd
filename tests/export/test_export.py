"""The exported folder: its files, that it holds the same model, that it is written whole or not at all."""

from __future__ import annotations

import errno
import filecmp
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from tiny_checkpoint import Checkpoint
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import bertchen.model
from bertchen.errors import UserError
from bertchen.export import CardFacts, export_checkpoint, export_model
from bertchen.model import MosaicBertConfig, MosaicBertForMaskedLM

ROOT = Path(__file__).resolve().parents[2]
CODE = sorted(path.name for path in Path(bertchen.model.__file__).parent.glob("*.py"))
OTHERS = [
    "1_Pooling",
    "README.md",
    "config.json",
    "model.safetensors",
    "modules.json",
    "sentence_bert_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
]


@pytest.fixture(scope="module")
def exported(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "deep" / "model"
    export_checkpoint(str(checkpoint.path), str(folder))
    return folder


def command(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    script = str(ROOT / "scripts" / "export_hf.py")
    return subprocess.run([sys.executable, script, *arguments], cwd=cwd, capture_output=True, text=True, timeout=300)


def test_what_is_in_the_folder(exported: Path) -> None:
    assert sorted(os.listdir(exported)) == sorted(OTHERS + CODE)
    for name in CODE:
        assert filecmp.cmp(exported / name, Path(bertchen.model.__file__).with_name(name), shallow=False)
    assert os.listdir(exported.parent) == [exported.name]


def test_the_weights_are_the_checkpoint_s_and_each_is_written_once(checkpoint: Checkpoint, exported: Path) -> None:
    written = safetensors.torch.load_file(exported / "model.safetensors")
    trained = checkpoint.model.state_dict()
    assert trained.keys() - written.keys() == {"cls.predictions.decoder.weight"}
    assert all(torch.equal(weight, trained[name]) for name, weight in written.items())
    with safetensors.safe_open(exported / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_configuration(checkpoint: Checkpoint, exported: Path) -> None:
    config = json.loads((exported / "config.json").read_text())
    assert config["model_type"] == "mosaicbert"
    assert config["architectures"] == ["MosaicBertForMaskedLM"]
    assert config["dtype"] == "float32"
    assert config["attention_backend"] == "auto"  # the run had sdpa
    for target in config["auto_map"].values():
        file, name = target.split(".")
        assert f"{file}.py" in CODE
        assert hasattr(bertchen.model, name)
    trained, loaded = checkpoint.model.config, MosaicBertConfig.from_pretrained(exported)
    for name in (
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
    ):
        assert getattr(loaded, name) == getattr(trained, name)


@torch.no_grad()
def test_logits_equal_the_checkpoint_s_bit_by_bit(checkpoint: Checkpoint, exported: Path) -> None:
    loaded, info = MosaicBertForMaskedLM.from_pretrained(exported, output_loading_info=True)
    assert not any(info.values())
    batch = AutoTokenizer.from_pretrained(exported)(
        ["Der faule Hund.", "Die Hauptstadt von Deutschland ist [MASK]."], padding=True, return_tensors="pt"
    )
    assert torch.equal(loaded(**batch).logits, checkpoint.model(**batch).logits)


@torch.no_grad()
def test_bfloat16(checkpoint: Checkpoint, tmp_path: Path) -> None:
    export_checkpoint(str(checkpoint.path), str(tmp_path / "model"), dtype="bfloat16")
    written = safetensors.torch.load_file(tmp_path / "model" / "model.safetensors")
    trained = checkpoint.model.state_dict()
    assert all(torch.equal(weight, trained[name].bfloat16()) for name, weight in written.items())
    assert json.loads((tmp_path / "model" / "config.json").read_text())["dtype"] == "bfloat16"


def test_sentence_transformers_files(exported: Path) -> None:
    modules = json.loads((exported / "modules.json").read_text())
    assert [module["path"] for module in modules] == ["", "1_Pooling"]
    pooling = json.loads((exported / "1_Pooling" / "config.json").read_text())
    assert pooling["word_embedding_dimension"] == 96
    assert [name for name, value in pooling.items() if value is True] == ["pooling_mode_mean_tokens"]
    # The run's sequence length, not the 512 of its data.
    assert json.loads((exported / "sentence_bert_config.json").read_text())["max_seq_length"] == 256


def test_exporting_changes_neither_model_nor_configuration(checkpoint: Checkpoint, tmp_path: Path) -> None:
    model = checkpoint.model
    before = model.config.to_dict(), {name: weight.clone() for name, weight in model.state_dict().items()}
    export_model(model, checkpoint.tokenizer, str(tmp_path / "model"), CardFacts(), dtype="bfloat16")
    assert model.config.to_dict() == before[0]
    assert all(torch.equal(weight, before[1][name]) for name, weight in model.state_dict().items())
    assert model.config.attention_backend == "sdpa"
    assert "# model\n" in (tmp_path / "model" / "README.md").read_text()


def test_an_untied_decoder_is_written_too(tmp_path: Path, checkpoint: Checkpoint) -> None:
    config = MosaicBertConfig(**{**checkpoint.model.config.to_dict(), "tie_word_embeddings": False})
    model = MosaicBertForMaskedLM(config).eval()
    export_model(model, checkpoint.tokenizer, str(tmp_path / "model"), CardFacts())
    loaded = MosaicBertForMaskedLM.from_pretrained(tmp_path / "model")
    assert torch.equal(loaded.cls.predictions.decoder.weight, model.cls.predictions.decoder.weight)
    assert not torch.equal(loaded.cls.predictions.decoder.weight, loaded.bert.embeddings.word_embeddings.weight)


# -- whole or not at all ------------------------------------------------------------------------------------


def test_an_existing_folder_is_replaced_only_on_request_and_only_if_it_is_an_export(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    export_checkpoint(str(checkpoint.path), str(folder))  # an empty one is fine
    (folder / "stale.txt").write_text("of the earlier export")
    with pytest.raises(UserError, match="overwrite=true"):
        export_checkpoint(str(checkpoint.path), str(folder))
    assert (folder / "stale.txt").exists()
    export_checkpoint(str(checkpoint.path), str(folder), overwrite=True)
    assert sorted(os.listdir(folder)) == sorted(OTHERS + CODE)

    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="not replaced"):
        export_checkpoint(str(checkpoint.path), str(precious), overwrite=True)
    assert os.listdir(precious) == ["thesis.txt"]
    assert sorted(os.listdir(tmp_path)) == ["model", "precious"]


def full_disk(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def full_disk_in_rust(*_: Any, **__: Any) -> None:
    raise Exception("No space left on device (os error 28)")  # what tokenizers raises


@pytest.mark.parametrize(
    ("target", "failure"),
    [
        ((Path, "write_bytes"), full_disk),
        ((Path, "write_text"), full_disk),
        ((PreTrainedTokenizerFast, "save_pretrained"), full_disk_in_rust),
    ],
)
def test_a_full_disk_leaves_nothing_and_keeps_the_earlier_export(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: Any, failure: Any
) -> None:
    folder = tmp_path / "model"
    model, tokenizer = checkpoint.model, checkpoint.tokenizer
    export_model(model, tokenizer, str(folder), CardFacts(name="earlier"))
    monkeypatch.setattr(*target, failure)
    for where, overwrite in ((folder, True), (tmp_path / "new", False)):
        with pytest.raises(UserError, match="no space left"):
            export_model(model, tokenizer, str(where), CardFacts(), overwrite=overwrite)
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["model"]
    assert "# earlier\n" in (folder / "README.md").read_text()


def test_a_tokenizer_that_does_not_suit_the_model(checkpoint: Checkpoint, tmp_path: Path) -> None:
    config = {**checkpoint.model.config.to_dict(), "vocab_size": 64}
    with pytest.raises(UserError, match="64"):
        export_model(
            MosaicBertForMaskedLM(MosaicBertConfig(**config)),
            checkpoint.tokenizer,
            str(tmp_path / "model"),
            CardFacts(),
        )
    without_mask = PreTrainedTokenizerFast(tokenizer_object=checkpoint.tokenizer.backend_tokenizer)
    with pytest.raises(UserError, match="mask token"):
        export_model(checkpoint.model, without_mask, str(tmp_path / "model"), CardFacts())
    assert os.listdir(tmp_path) == []


# -- the command --------------------------------------------------------------------------------------------


def test_the_command_exports(checkpoint: Checkpoint, tmp_path: Path) -> None:
    strange = tmp_path / "lr=5e-4" / "[1]"
    strange.mkdir(parents=True)
    (strange / "latest.pt").write_bytes(checkpoint.path.read_bytes())
    done = command("./lr=5e-4/[1]/latest.pt", "123", "name=someone/bertchen", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "written to 123" in done.stdout
    assert sorted(os.listdir(tmp_path / "123")) == sorted(OTHERS + CODE)
    assert 'model="someone/bertchen"' in (tmp_path / "123" / "README.md").read_text()


@pytest.mark.slow
def test_the_command_ends_with_one_line_and_code_2(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path, out = str(checkpoint.path), str(tmp_path / "model")
    cases = {
        (): "checkpoint is not set",
        (path,): "out is not set",
        (path, out, "third"): "third: one argument too many",
        (path, out, "dtype=int8"): "dtype=int8 (from the command line): should be float32 or bfloat16",
        (path, out, "overwite=true"): "did you mean overwrite?",
        (path, out, "--overwrite"): "options are written key=value",
        (str(tmp_path / "gone.pt"), out): "no such file",
    }
    for arguments, message in cases.items():
        done = command(*arguments)
        assert done.returncode == 2, (arguments, done.stderr)
        assert message in done.stderr
        assert done.stderr.count("\n") == 1, done.stderr
    assert os.listdir(tmp_path) == []

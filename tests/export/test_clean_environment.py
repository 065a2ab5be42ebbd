"""Exported models load with PyTorch and transformers alone: with this project's 4.57 and with the newest 5.

`requirements-transformers5.txt` is compiled, without PyTorch, by:

    (echo "transformers>=5,<6"; echo sentence-transformers) > in.txt
    echo "torch ; python_version < '0'" > without.txt
    uv pip compile --universal --python-version 3.10 --no-header --no-annotate --override without.txt in.txt
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from clean_environment import install, link_packages
from tiny_checkpoint import TEXTS, Checkpoint

from bertchen.export import CardFacts, export_checkpoint, export_model
from bertchen.model import MosaicBertConfig, MosaicBertForMaskedLM

HERE = Path(__file__).resolve().parent
FIXTURE = HERE.parents[2] / "shared" / "fixtures" / "mosaicbert_tiny"
NAME = "someone/bertchen"
SENTENCE = "Die Hauptstadt von [MASK] ist Berlin."
CHECKS = [
    "nothing_of_the_project_is_installed",
    "masked_lm",
    "encoder",
    "configuration",
    "tokenizer",
    "fill_mask",
    "saved_again",
    "bfloat16",
    "sequence_classification",
    "token_classification",
    "question_answering",
    "model_card",
]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def spec(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """An exported checkpoint and what its own model says here, in the parent environment."""
    folder = tmp_path_factory.mktemp("clean")
    export_checkpoint(str(checkpoint.path), str(folder / "model"), name=NAME)
    tokenizer = checkpoint.tokenizer
    texts = ["Grüße aus Köln – für 5 €! 🦊", TEXTS[0].strip(), TEXTS[1].strip()]
    np.savez(folder / "expected.npz", **expected(checkpoint, texts))
    pair = tokenizer("Wer?", "Der Fuchs.")
    return {
        "folder": str(folder / "model"),
        "name": NAME,
        "expected": str(folder / "expected.npz"),
        "texts": [(text, tokenizer(text)["input_ids"]) for text in texts],
        "pair": [["Wer?", "Der Fuchs."], pair["input_ids"], pair["token_type_ids"]],
        "special": ["[PAD]", "[UNK]", "[SEP]", "[MASK]"],
        "sentence": SENTENCE,
        "sentence_ids": tokenizer(SENTENCE)["input_ids"],
        "max_seq_length": 256,
        "sentence_transformers": False,
        "checks": CHECKS,
        **reference(checkpoint, folder / "reference"),
    }


@torch.no_grad()
def expected(checkpoint: Checkpoint, texts: list[str]) -> dict[str, np.ndarray]:
    model, tokenizer = checkpoint.model, checkpoint.tokenizer
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        inputs = tokenizer(texts, padding=True, return_tensors="pt", return_token_type_ids=False)
        hidden = model.bert(**inputs).last_hidden_state
        attended = inputs["attention_mask"].bool()
        masked = tokenizer(SENTENCE, return_tensors="pt")
        at = masked["input_ids"][0].tolist().index(tokenizer.mask_token_id)
        return {
            **{name: tensor.numpy() for name, tensor in inputs.items()},
            "logits": model(**inputs).logits.numpy(),
            "hidden": hidden.numpy(),
            "means": torch.stack([row[mask].mean(0) for row, mask in zip(hidden, attended, strict=True)]).numpy(),
            "fill_probabilities": model(**masked).logits[0, at].softmax(-1).numpy(),
        }
    finally:
        torch.set_num_threads(threads)


def reference(checkpoint: Checkpoint, folder: Path) -> dict[str, Any]:
    """A model of the public family, exported; nothing where the shared files aren't there."""
    if not FIXTURE.is_dir():
        return {}
    model = MosaicBertForMaskedLM(MosaicBertConfig(**json.loads((FIXTURE / "config.json").read_text()))).eval()
    model.load_state_dict(safetensors.torch.load_file(FIXTURE / "model.safetensors"), strict=False)
    model.tie_weights()
    export_model(model, checkpoint.tokenizer, str(folder), CardFacts())
    return {"reference": str(FIXTURE / "io.npz"), "reference_folder": str(folder)}


def run(spec: dict[str, Any], folder: Path, packages: list[Path], version: str, *more: str) -> dict[str, str | None]:
    """Check to traceback or None, from an interpreter that knows `packages` alone."""
    checks = [*CHECKS, *more, *(["reference"] if "reference" in spec else [])]
    content = {
        **spec,
        "packages": [str(path) for path in packages],
        "transformers": version,
        "checks": checks,
    }
    content["sentence_transformers"] = "sentence_embeddings" in more
    content["results"] = str(folder / "results.json")
    (folder / "spec.json").write_text(json.dumps(content), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(HERE / "load_exported.py"), str(folder / "spec.json")],
        cwd=folder,
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "HF_HOME": str(folder / "hf"),
            "HF_HUB_OFFLINE": "1",
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert "[y/N]" not in done.stdout  # asked whether to trust the code, in spite of `trust_remote_code`
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def transformers4(spec: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str | None]:
    folder = tmp_path_factory.mktemp("transformers4")
    return run(spec, folder, [link_packages(["torch", "transformers"], folder / "packages")], "4.57.")


@pytest.fixture(scope="module")
def transformers5(
    spec: dict[str, Any], tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config
) -> dict[str, str | None]:
    try:
        own = install(HERE / "requirements-transformers5.txt", pytestconfig.cache.mkdir("clean-environments"))
    except subprocess.CalledProcessError as error:
        pytest.skip(f"transformers 5 can't be installed here: {error.stdout.strip()[-300:]}")
    folder = tmp_path_factory.mktemp("transformers5")
    # What was installed comes first, PyTorch and what only it needs from here.
    packages = [own, link_packages(["torch"], folder / "packages")]
    return run(spec, folder, packages, "5.", "sentence_embeddings")


@pytest.mark.parametrize("check", CHECKS)
def test_transformers_4(transformers4: dict[str, str | None], check: str) -> None:
    assert transformers4[check] is None, transformers4[check]


@pytest.mark.parametrize("check", [*CHECKS, "sentence_embeddings"])
def test_transformers_5(transformers5: dict[str, str | None], check: str) -> None:
    assert transformers5[check] is None, transformers5[check]


@pytest.mark.skipif(not FIXTURE.is_dir(), reason=f"{FIXTURE} isn't there")
@pytest.mark.parametrize("version", ["transformers4", "transformers5"])
def test_the_public_reference(version: str, request: pytest.FixtureRequest) -> None:
    results = request.getfixturevalue(version)
    assert results["reference"] is None, results["reference"]

"""Loads exported folders where nothing of this project is installed; started by test_clean_environment.py.

`python -I -S load_exported.py SPEC` with a JSON file that says where packages lie and what is expected. Writes
one JSON object: the name of each check to its traceback, or to null where it passed.
"""

from __future__ import annotations

import importlib
import json
import logging
import re
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

spec = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
sys.path += spec["packages"]

import numpy as np  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from transformers import (  # noqa: E402
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    pipeline,
)

torch.set_num_threads(1)  # as in the process that computed what is expected
FOLDER, TRUST = spec["folder"], {"trust_remote_code": True}
EXPECTED = dict(np.load(spec["expected"]))


def batch() -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(EXPECTED[name]) for name in ("input_ids", "attention_mask")}


def expected(name: str) -> torch.Tensor:
    return torch.from_numpy(EXPECTED[name])


@contextmanager
def no_warnings() -> Iterator[None]:
    """Fails for what transformers logs as a warning, and for warnings about the model."""
    records: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: records.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            yield
    finally:
        logger.removeHandler(handler)
    # transformers 4 logs the pipeline's device as a warning.
    assert not [record for record in records if not record.startswith("Device set to")], records


def nothing_of_the_project_is_installed() -> None:
    for name in ("bertchen", "flash_attn", "composer", "streaming", "omegaconf", "einops"):
        try:
            importlib.import_module(name)
        except ModuleNotFoundError:
            continue
        raise AssertionError(f"{name} can be imported")
    assert transformers.__version__.startswith(spec["transformers"]), transformers.__version__


@torch.no_grad()
def masked_lm() -> None:
    with no_warnings():
        model, info = AutoModelForMaskedLM.from_pretrained(FOLDER, output_loading_info=True, **TRUST)
        logits = model(**batch()).logits
    assert not any(info.values()), info
    assert type(model).__module__.startswith("transformers_modules."), type(model)
    assert not model.training
    assert model.cls.predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight
    assert torch.equal(logits, expected("logits"))
    unpadded = {name: tensor[:1, : EXPECTED["attention_mask"][0].sum()] for name, tensor in batch().items()}
    torch.testing.assert_close(
        model(**unpadded).logits[0],
        expected("logits")[0, : EXPECTED["attention_mask"][0].sum()],
        rtol=0,
        atol=1e-4,
    )


@torch.no_grad()
def encoder() -> None:
    model = AutoModel.from_pretrained(FOLDER, **TRUST)
    assert torch.equal(model(**batch()).last_hidden_state, expected("hidden"))
    assert model.config.attention_backend == "auto"


def configuration() -> None:
    config = AutoConfig.from_pretrained(FOLDER, **TRUST)
    assert config.model_type == "mosaicbert"
    assert config.dtype == torch.float32, config.dtype
    with torch.device("meta"):
        AutoModelForMaskedLM.from_config(config, **TRUST)


def tokenizer() -> None:
    with no_warnings():
        loaded = AutoTokenizer.from_pretrained(FOLDER, **TRUST)
    for text, ids in spec["texts"]:
        assert loaded(text)["input_ids"] == ids, text
        assert loaded.decode(ids) == text
    pair, ids, types = spec["pair"]
    assert dict(loaded(*pair)) == {
        "input_ids": ids,
        "token_type_ids": types,
        "attention_mask": [1] * len(ids),
    }
    assert (loaded.pad_token, loaded.unk_token, loaded.sep_token, loaded.mask_token) == tuple(spec["special"])
    assert loaded.cls_token is None


def fill_mask() -> None:
    with no_warnings():
        filler = pipeline("fill-mask", model=FOLDER, device="cpu", **TRUST)
        found = filler(spec["sentence"])
    best = EXPECTED["fill_probabilities"].argsort()[::-1][: len(found)]
    assert [answer["token"] for answer in found] == best.tolist()
    scores = [answer["score"] for answer in found]
    np.testing.assert_allclose(scores, EXPECTED["fill_probabilities"][best], rtol=1e-4)


@torch.no_grad()
def saved_again() -> None:
    with tempfile.TemporaryDirectory() as folder:
        AutoModelForMaskedLM.from_pretrained(FOLDER, **TRUST).save_pretrained(folder)
        AutoTokenizer.from_pretrained(FOLDER, **TRUST).save_pretrained(folder)
        with no_warnings():
            model = AutoModelForMaskedLM.from_pretrained(folder, **TRUST)
        assert torch.equal(model(**batch()).logits, expected("logits"))
        assert torch.equal(AutoModel.from_pretrained(folder, **TRUST)(**batch()).last_hidden_state, expected("hidden"))
        assert AutoTokenizer.from_pretrained(folder, **TRUST)(spec["sentence"])["input_ids"] == spec["sentence_ids"]


@torch.no_grad()
def bfloat16() -> None:
    model = AutoModelForMaskedLM.from_pretrained(FOLDER, dtype=torch.bfloat16, **TRUST)
    logits = model(**batch()).logits
    assert logits.dtype == torch.bfloat16
    difference = (logits.float() - expected("logits")).std() / expected("logits").std()
    assert difference < 0.05, difference


def trains(model: torch.nn.Module, head: torch.nn.Linear, **labels: torch.Tensor) -> None:
    """One step: the head is new, the encoder is the checkpoint's, and gradients reach all of it."""
    with torch.no_grad():
        assert torch.equal(model.bert(**batch()).last_hidden_state, expected("hidden"))
    spread = model.config.initializer_range
    assert 0.5 * spread < head.weight.std().item() < 2 * spread, head.weight.std()
    assert not head.bias.any()
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss = model(**batch(), **labels).loss
    assert loss.isfinite()
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any() or "token_type" in name, name
    before = head.weight.detach().clone()
    optimizer.step()
    assert not torch.equal(before, head.weight)


def sequence_classification() -> None:
    model = AutoModelForSequenceClassification.from_pretrained(FOLDER, num_labels=3, **TRUST)
    trains(model, model.classifier, labels=torch.arange(len(EXPECTED["input_ids"])) % 3)


def token_classification() -> None:
    model = AutoModelForTokenClassification.from_pretrained(FOLDER, num_labels=5, **TRUST)
    labels = batch()["input_ids"] % 5
    trains(model, model.classifier, labels=labels.masked_fill(batch()["attention_mask"] == 0, -100))


def question_answering() -> None:
    model = AutoModelForQuestionAnswering.from_pretrained(FOLDER, **TRUST)
    rows = len(EXPECTED["input_ids"])
    trains(
        model,
        model.qa_outputs,
        start_positions=torch.zeros(rows).long(),
        end_positions=torch.ones(rows).long(),
    )


def model_card() -> None:
    card = (Path(FOLDER) / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    ran = 0
    for block in blocks:
        if "sentence_transformers" not in block or spec["sentence_transformers"]:
            exec(block.replace(f'"{spec["name"]}"', repr(FOLDER)), {})
            ran += 1
    assert ran >= 4, ran


@torch.no_grad()
def reference() -> None:
    """The public implementation's outputs for a model of the public family, at attended positions.

    Hidden states and logits were recorded with the mask given as token types and every position attended, the
    loss with the mask as a mask.
    """
    io = dict(np.load(spec["reference"]))
    ids, mask, labels = (torch.from_numpy(io[name]).long() for name in ("input_ids", "attention_mask", "labels"))
    model = AutoModelForMaskedLM.from_pretrained(spec["reference_folder"], **TRUST)
    output = model(ids, token_type_ids=mask, output_hidden_states=True)
    for found, name in ((output.logits, "logits"), (output.hidden_states[-1], "last_hidden_state")):
        np.testing.assert_allclose(found[mask == 1], io[name][mask == 1], rtol=0, atol=1e-4, err_msg=name)
    np.testing.assert_allclose(model(ids, attention_mask=mask, labels=labels).loss, io["loss"], rtol=0, atol=1e-5)


def sentence_embeddings() -> None:
    from sentence_transformers import SentenceTransformer

    texts = [text for text, _ in spec["texts"]]
    loaded = SentenceTransformer(FOLDER, device="cpu", **TRUST)
    embeddings = loaded.encode(texts)
    np.testing.assert_allclose(embeddings, EXPECTED["means"], rtol=0, atol=1e-5)
    assert loaded.max_seq_length == spec["max_seq_length"]
    with tempfile.TemporaryDirectory() as folder:
        loaded.save_pretrained(folder)
        again = SentenceTransformer(folder, device="cpu", **TRUST).encode(texts)
    np.testing.assert_array_equal(again, embeddings)


CHECKS: dict[str, Callable[[], None]] = {
    check.__name__: check
    for check in (
        nothing_of_the_project_is_installed,
        masked_lm,
        encoder,
        configuration,
        tokenizer,
        fill_mask,
        saved_again,
        bfloat16,
        sequence_classification,
        token_classification,
        question_answering,
        model_card,
        reference,
        sentence_embeddings,
    )
}


def main() -> None:
    results: dict[str, Any] = {}
    for name in spec["checks"]:
        try:
            CHECKS[name]()
            results[name] = None
        except Exception:
            results[name] = traceback.format_exc()
    Path(spec["results"]).write_text(json.dumps(results), encoding="utf-8")


if __name__ == "__main__":
    main()

"""Writes a model as a Hugging Face folder: weights, configuration, tokenizer, code and card.

Notable: for MosaicBERT the files of `bertchen/model/` are copied as they stand and `auto_map` points to them, so
that the folder loads anywhere and needs nothing of this project; Transformers knows BERT itself.
SentenceTransformers' files make either a sentence encoder with mean pooling too.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from transformers import BertForMaskedLM, PreTrainedTokenizerBase

import bertchen.model
from bertchen.config import Config
from bertchen.config.schema_export import ExportConfig
from bertchen.errors import UserError
from bertchen.export.checkpoint import Model, load_checkpoint_model
from bertchen.export.facts import CardFacts
from bertchen.export.model_card import model_card
from bertchen.model import MosaicBertConfig, MosaicBertForMaskedLM
from bertchen.text.staging import staged_folder
from bertchen.tokenizer.loading import require_mask_token

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

_MODELING = "modeling_mosaicbert"
_AUTO_MAP = {
    "AutoConfig": "configuration_mosaicbert.MosaicBertConfig",
    "AutoModel": f"{_MODELING}.MosaicBertModel",
    "AutoModelForMaskedLM": f"{_MODELING}.MosaicBertForMaskedLM",
    "AutoModelForQuestionAnswering": f"{_MODELING}.MosaicBertForQuestionAnswering",
    "AutoModelForSequenceClassification": f"{_MODELING}.MosaicBertForSequenceClassification",
    "AutoModelForTokenClassification": f"{_MODELING}.MosaicBertForTokenClassification",
}
_SEQUENCE_LENGTH = 512
# In every export, and hardly in a folder of anything else: tells that a folder may be replaced.
_MARK = "sentence_bert_config.json"


def export_from_config(config: Config[ExportConfig]) -> str:
    """The work of scripts/export_hf.py. Returns the folder written; raises as that does."""
    settings = config.value
    if settings.dtype not in DTYPES:
        config.fail("dtype", f"should be {' or '.join(DTYPES)}")
    export_checkpoint(
        settings.checkpoint,
        settings.out,
        name=settings.name,
        dtype=settings.dtype,
        overwrite=settings.overwrite,
        trust_checkpoint=settings.trust_checkpoint,
    )
    return settings.out


def export_checkpoint(
    path: str,
    folder: str,
    *,
    name: str | None = None,
    dtype: str = "float32",
    overwrite: bool = False,
    trust_checkpoint: bool = False,
) -> None:
    """Writes the model of a Composer checkpoint into `folder`.

    Args:
        path: the checkpoint.
        folder: missing or empty, unless `overwrite`.
        name: of the model in its card; by default the folder's.
        dtype: of the written weights, a key of `DTYPES`.
        overwrite: replace what an earlier export wrote.
        trust_checkpoint: unpickle the checkpoint wholly, which can run any code that is in it.

    Raises:
        UserError: the checkpoint can't be read, or the folder can't be written; then nothing is left behind.
    """
    with staged_folder(folder, holds=_MARK, overwrite=overwrite) as temporary:
        model, tokenizer, facts = load_checkpoint_model(path, trust_checkpoint)
        _write(temporary, folder, model, tokenizer, replace(facts, name=name), DTYPES[dtype])


def export_model(
    model: Model,
    tokenizer: PreTrainedTokenizerBase,
    folder: str,
    card: CardFacts,
    overwrite: bool = False,
    dtype: str = "float32",
) -> None:
    """Writes a model that is at hand into `folder`; neither it nor its configuration is changed.

    Args:
        model: on any device.
        folder: missing or empty, unless `overwrite`.
        card: what the card says of the training.
        overwrite: replace what an earlier export wrote.
        dtype: of the written weights, a key of `DTYPES`.

    Raises:
        UserError: the tokenizer doesn't suit the model, or the folder can't be written; then nothing is left.
    """
    with staged_folder(folder, holds=_MARK, overwrite=overwrite) as temporary:
        _write(temporary, folder, model, tokenizer, card, DTYPES[dtype])


def _write(
    temporary: Path,
    folder: str,
    model: Model,
    tokenizer: PreTrainedTokenizerBase,
    facts: CardFacts,
    dtype: torch.dtype,
) -> None:
    require_mask_token(tokenizer)
    rows = model.config.vocab_size
    if len(tokenizer) > rows:
        raise UserError(f"the tokenizer has {len(tokenizer)} entries, the model only {rows}: no match")
    name = facts.name or Path(os.path.abspath(folder)).name
    _write_weights(temporary / "model.safetensors", model, dtype)
    config = copy.deepcopy(model.config)
    config.dtype = dtype
    if isinstance(model, MosaicBertForMaskedLM):
        add_code(temporary, config)
    else:
        config.architectures = [BertForMaskedLM.__name__]
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.model_max_length = config.max_position_embeddings
    config.save_pretrained(temporary)
    tokenizer.save_pretrained(temporary)
    _write_sentence_transformers(temporary, model.config.hidden_size, _trained_length(facts))
    card = model_card(replace(facts, name=name), model.config, tokenizer, _trained_length(facts))
    (temporary / "README.md").write_text(card, encoding="utf-8")


def _write_weights(path: Path, model: Model, dtype: torch.dtype) -> None:
    # Tied ones come once, under the first of their names.
    weights = {name: weight.detach().to("cpu", dtype).contiguous() for name, weight in model.named_parameters()}
    # Written here and not by safetensors, whose error of its own would hide a full disk.
    path.write_bytes(safetensors.torch.save(weights, metadata={"format": "pt"}))


def add_code(temporary: Path, config: MosaicBertConfig) -> None:
    """Copies the model's code and names it in the configuration."""
    for file in Path(bertchen.model.__file__).parent.glob("*.py"):
        shutil.copyfile(file, temporary / file.name)
    config.architectures = [MosaicBertForMaskedLM.__name__]
    config.auto_map = dict(_AUTO_MAP)
    # The run's backend and kernels may need a GPU; who loads the model elsewhere gets what can serve there.
    config.attention_backend = config.kernels = "auto"
    config.float8 = False


def _write_sentence_transformers(temporary: Path, hidden_size: int, max_seq_length: int) -> None:
    kinds = (("", "Transformer"), ("1_Pooling", "Pooling"))
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (path, kind) in enumerate(kinds)
    ]
    pooling = {
        "word_embedding_dimension": hidden_size,
        "pooling_mode_cls_token": False,
        "pooling_mode_mean_tokens": True,
    }
    (temporary / "1_Pooling").mkdir()
    _write_json(temporary / "modules.json", modules)
    _write_json(temporary / "1_Pooling" / "config.json", pooling)
    _write_json(temporary / "sentence_bert_config.json", {"max_seq_length": max_seq_length, "do_lower_case": False})


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _trained_length(facts: CardFacts) -> int:
    """The longest input of the training, in tokens."""
    return int(facts.config.get("sequence_length") or facts.manifest.get("block_size") or _SEQUENCE_LENGTH)

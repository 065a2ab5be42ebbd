"""What `model.architecture` names: MosaicBERT, or a plain BERT to compare with. Checks and builds their configurations.

A configuration of either is enough to build the model: its `model_type` is the architecture's name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import BertConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.activations import ACT2FN

from bertchen.config import Config
from bertchen.config.load import nearest
from bertchen.config.schema_train import TrainConfig
from bertchen.errors import UserError
from bertchen.model import MosaicBertConfig, MosaicBertForMaskedLM
from bertchen.model.modeling_mosaicbert import VOCABULARY_MULTIPLE
from bertchen.train.plain_bert import PlainBertForMaskedLM

ModelConfig = MosaicBertConfig | BertConfig

_ARCHITECTURE = "architecture"
# What a YAML can set of BERT; the rest of BertConfig is for decoders and other positions than learned ones.
_BERT_FIELDS = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "max_position_embeddings",
    "type_vocab_size",
    "initializer_range",
    "layer_norm_eps",
    "pad_token_id",
    "classifier_dropout",
)
_BERT_BACKENDS = ("auto", "sdpa")
_BERT_KERNELS = ("auto", "torch")


@dataclass(frozen=True)
class Architecture:
    """A model that can be pretrained.

    Attributes:
        label: its name in messages.
        model_class: takes what `ComposerMaskedLM` gives.
        defaults: the fields that a YAML can set; their values say of which kind each should be.
        follow: the fields whose null means that they follow from tokenizer, data or other fields.
        complete: the whole configuration, from the fields that are set and the data's block size.
    """

    label: str
    model_class: type[PreTrainedModel]
    defaults: Mapping[str, Any]
    follow: tuple[str, ...]
    complete: Callable[[Config[TrainConfig], dict[str, Any], int], ModelConfig]


def _mosaicbert(config: Config[TrainConfig], given: dict[str, Any], block_size: int) -> ModelConfig:
    return MosaicBertConfig(**given)


def _bert(config: Config[TrainConfig], given: dict[str, Any], block_size: int) -> ModelConfig:
    """BERT's defaults but for attention's dropout, which is 0 as MosaicBERT's is."""
    if given.pop("attention_backend", "auto") not in _BERT_BACKENDS:
        config.fail("model.attention_backend", f"{_ARCHITECTURE}=bert has sdpa alone; take auto or sdpa")
    if given.pop("kernels", "auto") not in _BERT_KERNELS:
        config.fail("model.kernels", f"{_ARCHITECTURE}=bert has PyTorch's alone; take auto or torch")
    if given.pop("float8", False):
        config.fail("model.float8", f"{_ARCHITECTURE}=bert has no 8-bit matrix products; leave it out")
    if given.setdefault("max_position_embeddings", block_size) < block_size:
        config.fail("model.max_position_embeddings", f"the data's blocks have {block_size} tokens: give that, or null")
    given.setdefault("attention_probs_dropout_prob", 0.0)
    hidden_size = given.setdefault("hidden_size", BertConfig().hidden_size)
    given.setdefault("intermediate_size", 4 * hidden_size)
    heads = given.get("num_attention_heads", BertConfig().num_attention_heads)
    if hidden_size % heads:
        raise ValueError(f"{hidden_size=} is not divisible by num_attention_heads={heads}")
    return BertConfig(**given, attn_implementation="sdpa")


ARCHITECTURES = {
    "mosaicbert": Architecture(
        "MosaicBERT",
        MosaicBertForMaskedLM,
        {name: value for name, value in vars(MosaicBertConfig()).items() if not name.startswith("_")},
        ("vocab_size",),
        _mosaicbert,
    ),
    "bert": Architecture(
        "BERT",
        PlainBertForMaskedLM,
        {
            **{name: getattr(BertConfig(), name) for name in _BERT_FIELDS},
            "attention_backend": "auto",
            "kernels": "auto",
            "float8": False,
        },
        ("vocab_size", "intermediate_size", "max_position_embeddings"),
        _bert,
    ),
}


def architecture_of(model_config: ModelConfig) -> Architecture:
    """The architecture that a configuration belongs to."""
    return ARCHITECTURES[model_config.model_type]


def build_model_config(config: Config[TrainConfig], tokenizer: PreTrainedTokenizerBase, block_size: int) -> ModelConfig:
    """The model's configuration; its vocabulary is the tokenizer's, rounded up to a multiple of 64, unless it is set.

    Args:
        block_size: tokens of the data's blocks; a plain BERT gets so many positions.

    Raises:
        UserError: an unknown architecture or field, a value of the wrong kind, a vocabulary that is too small.
    """
    fields = dict(config.value.model)
    name = fields.pop(_ARCHITECTURE, "mosaicbert")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        config.fail(f"model.{_ARCHITECTURE}", f"unknown; {nearest(str(name), ARCHITECTURES)}", name)
    architecture = ARCHITECTURES[name]
    given = {name: value for name, value in fields.items() if name not in architecture.follow or value is not None}
    for field, value in given.items():
        _check_field(config, architecture, field, value)
    _add_vocabulary(config, given, tokenizer)
    try:
        return architecture.complete(config, given, block_size)
    except (ValueError, ZeroDivisionError) as error:
        raise UserError(f"model (from {config.source('model')}): {error}") from None


def count_parameters(model_config: ModelConfig) -> int:
    """Parameters of the model, tied weights once, without memory for them."""
    with torch.device("meta"):
        model = architecture_of(model_config).model_class(model_config)
    return sum(parameter.numel() for parameter in model.parameters())


def load_weights(config: Config[TrainConfig], model_config: ModelConfig, block_size: int) -> PreTrainedModel:
    """The model in `init_from`, with its vocabulary made as large as `model_config` says.

    The YAML's fields replace its own. A head that isn't there is new.

    Raises:
        UserError: it can't be loaded, is of another architecture, or has fewer positions than the data's blocks.
    """
    architecture = architecture_of(model_config)
    choices = {
        name: value
        for name, value in config.value.model.items()
        if name != "vocab_size" and value is not None and hasattr(model_config, name)
    }
    try:
        model, info = architecture.model_class.from_pretrained(
            config.value.init_from, output_loading_info=True, **choices
        )
    except (OSError, RuntimeError, ValueError) as error:
        config.fail("init_from", f"can't be loaded as {architecture.label}: {str(error).splitlines()[0]}")
    missing = sorted(name for name in info["missing_keys"] if name.startswith("bert."))
    if missing:
        config.fail("init_from", f"can't be loaded as {architecture.label}: it has no {missing[0]}")
    if "max_position_embeddings" in architecture.defaults and model.config.max_position_embeddings < block_size:
        positions = model.config.max_position_embeddings
        config.fail("init_from", f"has {positions} positions, the data's blocks {block_size} tokens: make shorter ones")
    model.resize_token_embeddings(model_config.vocab_size, pad_to_multiple_of=VOCABULARY_MULTIPLE, mean_resizing=False)
    return model


def _check_field(config: Config[TrainConfig], architecture: Architecture, field: str, value: Any) -> None:
    key = f"model.{field}"
    if field not in architecture.defaults:
        known = nearest(field, architecture.defaults)
        raise UserError(f"{key} (from {config.source(key)}): unknown field of {architecture.label}; {known}")
    default = architecture.defaults[field]
    if isinstance(default, bool) or default is None:
        return
    if isinstance(default, (int, float)):
        _check_number(config, key, value, default)
    elif isinstance(default, str) and not isinstance(value, str):
        config.fail(key, "should be text", value)
    if field == "hidden_act" and value not in ACT2FN:
        config.fail(key, f"unknown; {nearest(value, ACT2FN)}", value)


def _check_number(config: Config[TrainConfig], key: str, value: Any, default: int | float) -> None:
    wanted: tuple[type, ...] = (int,) if isinstance(default, int) else (int, float)
    if isinstance(value, bool) or not isinstance(value, wanted):
        config.fail(key, f"should be {'a whole number' if isinstance(default, int) else 'a number'}", value)
    if key.endswith("_prob") and not 0 <= value <= 1:
        config.fail(key, "should be a share between 0 and 1", value)
    if value < 0 or (isinstance(default, int) and value == 0 and key != "model.pad_token_id"):
        config.fail(key, "should be positive", value)


def _add_vocabulary(config: Config[TrainConfig], given: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> None:
    needed = len(tokenizer)
    given.setdefault("vocab_size", -(-needed // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE)
    if given["vocab_size"] < needed:
        config.fail(
            "model.vocab_size",
            f"the tokenizer {config.value.tokenizer} has {needed} entries: give at least that, or null",
        )
    if tokenizer.pad_token_id is not None:
        given.setdefault("pad_token_id", tokenizer.pad_token_id)
    if given.get("pad_token_id", 0) >= given["vocab_size"]:
        config.fail("model.pad_token_id", f"should be below the vocabulary's size, {given['vocab_size']}")

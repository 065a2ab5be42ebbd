"""Any pretrained encoder with its own tokenizer: our checkpoints and exports, and what `AutoModel` loads.

Notable: models of the public MosaicBERT family are loaded into our class, which needs none of the code that they bring
along; a model of another family that brings code is refused unless `trust_remote_code` allows it. A model whose
weights aren't all there is refused too: Transformers would fill the gaps with random ones.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
from torch import nn
from transformers import (
    MODEL_MAPPING,
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from bertchen.config import Config
from bertchen.config.schema_finetune import FinetuneConfig
from bertchen.errors import UserError
from bertchen.export import load_checkpoint_model
from bertchen.model import MosaicBertConfig, MosaicBertModel
from bertchen.tokenizer import load_tokenizer

# What a run folder has in it.
_CHECKPOINT, _EXPORT = "latest-rank0.pt", "hf"
_CONFIG = "config.json"
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
# In the configuration of every public MosaicBERT, whatever model_type it gives.
_FAMILY_KEY = "alibi_starting_size"
_HUB_SECONDS = 10


@dataclass
class Encoder:
    """A model without a head, and what is needed to feed it.

    Attributes:
        name: as the configuration named it.
        model: called with `input_ids`, `attention_mask` and perhaps `token_type_ids`, (batch, seq_len), it returns an
            object with `last_hidden_state`, (batch, seq_len, hidden). Float32, on the CPU.
        tokenizer: a fast one.
        max_length: tokens of an input, special ones counted; None where nothing limits them (ALiBi).
        parameters: their number, each counted once.
        fingerprint: tells models apart in results: a hash of the configuration and of which weights these are.
        token_types: whether the model is given token types for pairs. Ours isn't: in pretraining all are 0.
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    max_length: int | None
    parameters: int
    fingerprint: str
    token_types: bool = False

    @property
    def pad_id(self) -> int:
        """Id that fills rows up. RoBERTa counts its positions by it."""
        for token_id in (self.tokenizer.pad_token_id, getattr(self.model.config, "pad_token_id", None)):
            if token_id is not None:
                return int(token_id)
        return 0


@dataclass(frozen=True)
class _Loaded:
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    identity: str
    pretrained_types: bool


def load_encoder(config: Config[FinetuneConfig]) -> Encoder:
    """The encoder that `model` names, with fresh weights by `seed` where `random_weights` is set.

    A name is, in this order: a checkpoint file, a folder in Hugging Face's format, a run folder (its last checkpoint,
    else its export), a name on the Hub.

    Raises:
        UserError: there is no such model, it can't be read, has no fast tokenizer or one that is too large, lacks
            weights, is no encoder, or needs code of its own that isn't allowed.
    """
    path, is_checkpoint = _find(config)
    loaded = (_from_checkpoint if is_checkpoint else _from_hugging_face)(config, path)
    model, tokenizer = loaded.model, loaded.tokenizer
    _check_tokenizer(config, model, tokenizer)
    if isinstance(model, MosaicBertModel):
        # A run's backend and kernels may need another device than this one has.
        model.config.attention_backend = model.config.kernels = "auto"
        model.config.float8 = False
    return Encoder(
        name=config.value.model,
        model=model.eval(),
        tokenizer=tokenizer,
        max_length=_max_length(model),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        fingerprint=_fingerprint(model.config, loaded.identity),
        token_types=loaded.pretrained_types and _has_token_types(model, tokenizer),
    )


# -- where it is ---------------------------------------------------------------------------------------------


def _find(config: Config[FinetuneConfig]) -> tuple[str, bool]:
    """Path or hub name, and whether it is a checkpoint."""
    name = os.path.expanduser(config.value.model)
    if not name:
        config.fail("model", "name a checkpoint, a folder or a model on the Hugging Face Hub")
    if os.path.isfile(name):
        if not name.endswith(".pt"):
            config.fail("model", "is a file, but no checkpoint (*.pt): name the folder that it lies in")
        return name, True
    if os.path.isdir(name):
        return _find_in_folder(config, Path(name))
    # What isn't owner/name can't be on the Hub.
    if os.path.isabs(name) or name.startswith(".") or name.endswith(("/", ".pt")) or name.count("/") > 1:
        config.fail("model", "no such file or folder")
    return name, False


def _find_in_folder(config: Config[FinetuneConfig], folder: Path) -> tuple[str, bool]:
    if (folder / _CONFIG).is_file():
        return str(folder), False
    if (folder / _CHECKPOINT).exists():
        return str(folder / _CHECKPOINT), True
    if not (folder / _EXPORT / _CONFIG).is_file():
        config.fail("model", f"the folder holds no model: neither {_CONFIG} nor {_CHECKPOINT} is in it")
    return str(folder / _EXPORT), False


# -- our checkpoints -----------------------------------------------------------------------------------------


def _from_checkpoint(config: Config[FinetuneConfig], path: str) -> _Loaded:
    if config.value.tokenizer is not None:
        config.fail("tokenizer", f"the checkpoint {path} holds the one that it was trained with: leave this key out")
    masked_lm, tokenizer, _ = load_checkpoint_model(path)
    model = masked_lm.bert
    identity = _identity_of_files([Path(path)])
    if config.value.random_weights:
        options = _without_pooler(type(model))
        model = _fresh(config, lambda: type(model)(masked_lm.config, **options))
        identity = _identity_of_fresh(config)
    return _Loaded(model.float(), tokenizer, identity, pretrained_types=False)


# -- Hugging Face's format -----------------------------------------------------------------------------------


def _from_hugging_face(config: Config[FinetuneConfig], name: str) -> _Loaded:
    is_folder = os.path.isdir(name)
    options = {} if is_folder else _hub_options(config, name)
    raw = _read_config(config, name, options)
    if raw.get("model_type") == MosaicBertConfig.model_type or _FAMILY_KEY in raw:
        tokenizer = _tokenizer(config, name)
        model, commit = _load_ours(config, name, options)
    else:
        _check_code(config, raw)
        tokenizer = _tokenizer(config, name)
        model, commit = _load_other(config, name, options)
    if config.value.random_weights:
        identity = _identity_of_fresh(config)
    elif is_folder:
        identity = _identity_of_files([file for pattern in _WEIGHTS for file in Path(name).glob(pattern)])
    else:
        identity = f"{name}@{commit}"
    return _Loaded(model, tokenizer, identity, pretrained_types=True)


def _hub_options(config: Config[FinetuneConfig], name: str) -> dict[str, Any]:
    """Asks the Hub whether it knows the name; where it can't be reached, what was downloaded before serves.

    Transformers would retry for most of a minute before it says that a misspelt folder is no name on the Hub either.
    """
    try:
        HfApi().model_info(name, timeout=_HUB_SECONDS)
    except (RepositoryNotFoundError, HFValidationError):
        config.fail("model", "no such file or folder here, and no such name on the Hugging Face Hub")
    except Exception:  # requests' or httpx's, by the version of huggingface_hub
        return {"local_files_only": True}
    return {}


def _read_config(config: Config[FinetuneConfig], name: str, options: dict[str, Any]) -> dict[str, Any]:
    with _loading_errors(config, "its configuration can't be read"):
        return PretrainedConfig.get_config_dict(name, **options)[0]


def _check_code(config: Config[FinetuneConfig], raw: dict[str, Any]) -> None:
    code = raw.get("auto_map") or {}
    if not config.value.trust_remote_code and any(key in code for key in ("AutoConfig", "AutoModel")):
        config.fail(
            "model",
            f"needs code that it brings along ({next(iter(code.values()))}). trust_remote_code=true runs it: do so "
            "only with models whose code you have read",
        )


def _load_ours(
    config: Config[FinetuneConfig], name: str, options: dict[str, Any]
) -> tuple[PreTrainedModel, str | None]:
    with _loading_errors(config, "can't be loaded as a MosaicBERT"):
        if config.value.random_weights:
            model_config = MosaicBertConfig.from_pretrained(name, **options)
            return _fresh(config, lambda: MosaicBertModel(model_config)), None
        model, info = MosaicBertModel.from_pretrained(name, dtype=torch.float32, output_loading_info=True, **options)
    _check_complete(config, model, info)
    return model, getattr(model.config, "_commit_hash", None)


def _load_other(
    config: Config[FinetuneConfig], name: str, options: dict[str, Any]
) -> tuple[PreTrainedModel, str | None]:
    trust = config.value.trust_remote_code
    with _loading_errors(config, "can't be loaded"):
        model_config = AutoConfig.from_pretrained(name, trust_remote_code=trust, **options)
        if model_config.is_encoder_decoder:
            raise ValueError("it is an encoder with a decoder, and an encoder alone is wanted")
        if hasattr(model_config, "reference_compile"):
            # ModernBERT's own compilation: every batch here has a length of its own.
            model_config.reference_compile = False
        for_class = {} if getattr(model_config, "auto_map", None) else _without_pooler(_class_of(model_config))
        if config.value.random_weights:
            build = lambda: AutoModel.from_config(model_config, trust_remote_code=trust, **for_class)  # noqa: E731
            return _frozen_pooler(_fresh(config, build)), None
        model, info = AutoModel.from_pretrained(
            name, config=model_config, trust_remote_code=trust, dtype=torch.float32, output_loading_info=True,
            **options, **for_class,
        )  # fmt: skip
    _check_complete(config, model, info)
    return _frozen_pooler(model), getattr(model_config, "_commit_hash", None)


def _class_of(model_config: PretrainedConfig) -> type | None:
    found = MODEL_MAPPING.get(type(model_config), None)
    return found[0] if isinstance(found, tuple) else found


def _without_pooler(model_class: type | None) -> dict[str, bool]:
    """A pooler would be weights that no gradient reaches, which distributed training refuses."""
    takes_it = model_class is not None and "add_pooling_layer" in inspect.signature(model_class.__init__).parameters
    return {"add_pooling_layer": False} if takes_it else {}


def _frozen_pooler(model: PreTrainedModel) -> PreTrainedModel:
    pooler = getattr(model, "pooler", None)
    if isinstance(pooler, nn.Module):
        pooler.requires_grad_(False)
    return model


def _check_complete(config: Config[FinetuneConfig], model: PreTrainedModel, info: dict[str, Any]) -> None:
    missing = sorted(name for name in info["missing_keys"] if "pooler" not in name)
    if missing:
        config.fail(
            "model",
            f"its weights are no whole {type(model).__name__}: {missing[0]} and {len(missing) - 1} more are missing",
        )


@contextmanager
def _loading_errors(config: Config[FinetuneConfig], what: str) -> Iterator[None]:
    """Turns what Transformers raises for an unusable model into the message for `model`."""
    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError, RuntimeError, KeyError, ImportError, AttributeError, TypeError) as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        try:
            config.fail("model", f"{what}: {reason}")
        except UserError as failure:
            raise failure from error


# -- fresh weights -------------------------------------------------------------------------------------------


def _fresh(config: Config[FinetuneConfig], build: Any) -> PreTrainedModel:
    """A new model whose weights depend on `seed` alone; the random state of the rest of the run stays as it is."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.value.seed)
        return build().float()


# -- tokenizer -----------------------------------------------------------------------------------------------


def _tokenizer(config: Config[FinetuneConfig], name: str) -> PreTrainedTokenizerBase:
    """The one that `tokenizer` names, else the one that lies beside the model."""
    if config.value.tokenizer is not None:
        return load_tokenizer(config.value.tokenizer)
    try:
        if config.value.trust_remote_code:
            return AutoTokenizer.from_pretrained(name, trust_remote_code=True)
        return load_tokenizer(name)
    except Exception as error:  # of many kinds, down to a bare Exception from Rust
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"model={config.value.model} (from {config.source('model')}): it has no tokenizer that can be loaded "
            f"({reason}). Name the one that it was trained with: tokenizer=…"
        ) from error


def _check_tokenizer(
    config: Config[FinetuneConfig], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    if not tokenizer.is_fast:
        config.fail("model", f"its tokenizer ({type(tokenizer).__name__}) has no fast form, which is needed")
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        config.fail("model", f"its tokenizer has {len(tokenizer)} entries, the model only {rows}: no match")


def _has_token_types(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> bool:
    return (
        "token_type_ids" in tokenizer.model_input_names
        and not isinstance(model, MosaicBertModel)
        and getattr(model.config, "type_vocab_size", 0) > 1
        # A tokenizer of ours, with a plain BERT: pretrained without types.
        and tokenizer.cls_token_id is not None
    )


# -- facts ---------------------------------------------------------------------------------------------------


def _max_length(model: PreTrainedModel) -> int | None:
    """The most tokens that positions are there for.

    RoBERTa and its kin count positions from the padding's id + 1 on, so that 514 are enough for 512 tokens.
    """
    if isinstance(model, MosaicBertModel):
        return None
    learned = getattr(getattr(model, "embeddings", None), "position_embeddings", None)
    if isinstance(learned, nn.Embedding):
        before = 0 if learned.padding_idx is None else learned.padding_idx + 1
        return learned.num_embeddings - before
    limit = getattr(model.config, "max_position_embeddings", None)
    return limit if isinstance(limit, int) and limit > 0 else None


def _identity_of_files(files: list[Path]) -> str:
    """By name, size and time of change: reading gigabytes would take longer than many a task."""
    facts = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in sorted(files)]
    return json.dumps(facts)


def _identity_of_fresh(config: Config[FinetuneConfig]) -> str:
    return f"random weights by seed {config.value.seed}"


def _fingerprint(model_config: PretrainedConfig, identity: str) -> str:
    content = model_config.to_dict()
    for key in ("_name_or_path", "transformers_version", "attention_backend", "kernels", "float8"):
        content.pop(key, None)
    canonical = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(f"{canonical}\n{identity}".encode()).hexdigest()[:16]

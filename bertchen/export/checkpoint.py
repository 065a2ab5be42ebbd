"""Reads the model out of a Composer checkpoint without running what may be in it.

Notable: a checkpoint is a pickle, and unpickling can run code. So PyTorch's weights-only unpickler reads it,
which builds nothing but tensors, plain containers and the few types of `_ALLOWED`; `trust_checkpoint` goes
past that.
"""

from __future__ import annotations

import datetime
import json
import os
import pickle
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.torch_version import TorchVersion
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM, PreTrainedTokenizerBase

from bertchen.errors import UserError
from bertchen.export.facts import CardFacts, read_validation
from bertchen.model import MosaicBertConfig, MosaicBertForMaskedLM

Model = MosaicBertForMaskedLM | BertForMaskedLM
ModelConfig = MosaicBertConfig | BertConfig

# Composer puts clock times, PyTorch's version and NumPy's random state into a checkpoint. NumPy's array
# constructor has another name in NumPy 1 than in 2, and the file has that of the NumPy which wrote it.
_RECONSTRUCT = np.zeros(0).__reduce__()[0]
_ALLOWED: list[Any] = [
    datetime.timedelta,
    TorchVersion,
    np.ndarray,
    np.dtype,
    type(np.dtype(np.uint32)),
    (_RECONSTRUCT, "numpy.core.multiarray._reconstruct"),
    (_RECONSTRUCT, "numpy._core.multiarray._reconstruct"),
]
# What can be exported, by the `model_type` in its configuration.
_MODELS: dict[str, tuple[type[ModelConfig], type[Model]]] = {
    "mosaicbert": (MosaicBertConfig, MosaicBertForMaskedLM),
    "bert": (BertConfig, BertForMaskedLM),
}
_PREFIX = "model."
_METRICS = "metrics.jsonl"


def load_checkpoint_model(
    path: str, trust_checkpoint: bool = False
) -> tuple[Model, PreTrainedTokenizerBase, CardFacts]:
    """The model, its tokenizer and what is known of its training.

    Args:
        path: a checkpoint of Composer. Validation results come from a `metrics.jsonl` beside it, if any.
        trust_checkpoint: unpickle it wholly, which can run any code that is in it.

    Returns:
        The model on the CPU, in evaluation mode and in the checkpoint's dtype; the tokenizer; the facts.

    Raises:
        UserError: the file is missing, damaged, no checkpoint, one of another model, or holds what isn't
            allowed.
    """
    checkpoint = _read(path, trust_checkpoint)
    state = _part(path, checkpoint, "state")
    saved = _part(path, state, "integrations", "huggingface")
    config = _config(path, _part(path, saved, "model", "config"))
    model = _model(path, config, _part(path, state, "model"))
    tokenizer = _tokenizer(path, _part(path, saved, "tokenizer"))
    return model, tokenizer, _facts(path, state, saved, model)


# -- the file ------------------------------------------------------------------------------------------------


def _read(path: str, trust_checkpoint: bool) -> dict[str, Any]:
    _check_file(path)
    try:
        with torch.serialization.safe_globals(_ALLOWED):
            loaded = torch.load(path, map_location="cpu", mmap=True, weights_only=not trust_checkpoint)
    except pickle.UnpicklingError as error:
        found = _not_allowed(path)
        reason = f"it holds {', '.join(found)}" if found else _one_line(error)
        raise UserError(
            f"checkpoint {path} can't be read as weights alone: {reason}. trust_checkpoint=true unpickles it "
            "wholly, which runs any code that is in it: do so only with files of your own"
        ) from error
    except Exception as error:  # what a pickle raises depends on what is in it
        raise UserError(f"checkpoint {path} can't be read: {_one_line(error)}") from error
    if not isinstance(loaded, dict):
        raise _foreign(path, f"holds a {type(loaded).__name__}")
    return loaded


def _check_file(path: str) -> None:
    file = Path(path)
    if file.is_dir():
        raise UserError(f"checkpoint {path} is a folder: name a file{_names_in(file)}")
    if not file.exists():
        raise UserError(f"checkpoint {path}: no such file{_names_in(file.parent)}")
    try:
        is_whole = zipfile.is_zipfile(path)
        damaged = _first_damaged(path) if is_whole else None
    except OSError as error:
        raise UserError(f"checkpoint {path} can't be read: {error.strerror or error}") from error
    except Exception as error:  # what a damaged zip file raises depends on where the damage is
        raise UserError(f"checkpoint {path} is damaged: {_one_line(error)}") from error
    if not is_whole:
        raise UserError(f"checkpoint {path} is no checkpoint, or was cut off in writing")
    if damaged:
        raise UserError(f"checkpoint {path} is damaged: {damaged} in it doesn't have its checksum")


def _first_damaged(path: str) -> str | None:
    """The first part of the file that doesn't have its checksum. PyTorch itself doesn't compare them."""
    with zipfile.ZipFile(path) as archive:
        return archive.testzip()


def _names_in(folder: Path) -> str:
    try:
        names = sorted(name for name in os.listdir(folder) if name.endswith(".pt"))
    except OSError:
        return ""
    return f"; {folder} holds {', '.join(names[-5:])}" if names else ""


def _not_allowed(path: str) -> list[str]:
    """Names in the pickle that are neither PyTorch's own nor allowed here."""
    with torch.serialization.safe_globals(_ALLOWED):
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))


def _part(path: str, tree: dict[str, Any], *names: str) -> dict[str, Any]:
    for depth, name in enumerate(names):
        tree = tree.get(name)  # type: ignore[assignment]
        if not isinstance(tree, dict):
            raise _foreign(path, f"has no {'.'.join(names[: depth + 1])}")
    return tree


def _foreign(path: str, finding: str) -> UserError:
    return UserError(f"checkpoint {path} {finding}: it isn't one that main.py wrote")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


# -- what is in it -------------------------------------------------------------------------------------------


def _config(path: str, saved: dict[str, Any]) -> ModelConfig:
    content, kind = saved.get("content"), str(saved.get("class", "")).rpartition(".")[2]
    if not isinstance(content, dict):
        raise _foreign(path, "has no configuration of its model")
    model_type = content.get("model_type")
    config_class, model_class = _MODELS.get(model_type, (None, None))
    # Training adapts Transformers' class, so that the name of its own stands before it.
    if config_class is None or not kind.endswith(model_class.__name__):
        known = " or ".join(other.__name__ for _, other in _MODELS.values())
        raise UserError(
            f"checkpoint {path} holds a {kind or 'model'} of type {model_type}; what can be exported is a {known}"
        )
    try:
        return config_class.from_dict(content)
    except (TypeError, ValueError) as error:
        raise UserError(f"checkpoint {path}: its configuration isn't one of {model_type}: {error}") from error


def _model(path: str, config: ModelConfig, saved: dict[str, Any]) -> Model:
    ours = {name: tensor for name, tensor in saved.items() if name.startswith(_PREFIX)}
    # Copies, because the tensors read are views of the file.
    weights = {name.removeprefix(_PREFIX): tensor.clone() for name, tensor in ours.items()}
    _, model_class = _MODELS[config.model_type]
    try:
        model = model_class(config)
        model.load_state_dict(weights, assign=True)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"checkpoint {path}: weights and configuration disagree: {_one_line(error)}") from error
    model.tie_weights()
    return model.eval()


def _tokenizer(path: str, files: dict[str, Any]) -> PreTrainedTokenizerBase:
    if not files:
        raise _foreign(path, "has no tokenizer in it")
    with tempfile.TemporaryDirectory() as folder:
        for name, file in files.items():
            _write_tokenizer_file(path, Path(folder), name, file)
        try:
            return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        except Exception as error:  # tokenizers raises bare Exception
            raise UserError(f"checkpoint {path}: its tokenizer can't be loaded: {_one_line(error)}") from error


def _write_tokenizer_file(path: str, folder: Path, name: str, file: dict[str, Any]) -> None:
    """Undoes what Composer's `HuggingFaceModel.get_metadata` did with the file."""
    content, extension = file["content"], file["file_extension"]
    writers = {
        ".json": lambda: json.dumps(content, ensure_ascii=False).encode(),
        ".txt": lambda: "\n".join(content).encode(),
        ".jinja": lambda: content.encode(),
        ".model": lambda: content,
    }
    if name != os.path.basename(name) or extension not in writers:
        raise UserError(f"checkpoint {path}: a tokenizer with the file {name!r} can't be exported")
    (folder / name).write_bytes(writers[extension]())


def _facts(path: str, state: dict[str, Any], saved: dict[str, Any], model: Model) -> CardFacts:
    time = (state.get("timestamp") or {}).get("Timestamp", {})
    metadata = state.get("metadata") or {}
    ours = saved.get("bertchen") or {}
    steps, clock = time.get("batch"), time.get("total_wct")
    step, validation = read_validation(Path(path).parent / _METRICS, up_to=steps)
    return CardFacts(
        parameters=ours.get("parameters") or sum(weight.numel() for weight in model.parameters()),
        steps=steps,
        tokens=time.get("token") or None,
        seconds=clock.total_seconds() if clock else None,
        hardware=_hardware(metadata),
        precision=metadata.get("precision"),
        config=ours.get("config") or {},
        manifest=ours.get("manifest") or {},
        validation=validation,
        validation_step=step,
    )


def _hardware(metadata: dict[str, Any]) -> str | None:
    machine = metadata.get("composer_env_info") or {}
    if metadata.get("device") == "gpu":
        return f"{metadata.get('world_size', 1)} x {machine.get('gpu_model', 'GPU')}"
    return f"{machine.get('cpu_count')} CPU cores" if machine.get("cpu_count") else None

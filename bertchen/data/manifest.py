"""What a folder of converted data says about itself: `manifest.json`, beside the folders of the splits."""

from __future__ import annotations

import json
import os
import platform
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase

import bertchen
from bertchen.data.pack import Split
from bertchen.data.tokens import TokenFile
from bertchen.errors import UserError
from bertchen.tokenizer import separator_id, tokenizer_fingerprint

MANIFEST = "manifest.json"
VERSION = 1

_REQUIRED = ("block_size", "token_dtype", "tokenizer", "splits")
_LIBRARIES = ("mosaicml-streaming", "tokenizers", "transformers", "numpy")
_PERCENTILES = {"min": 0, "p10": 10, "p50": 50, "p90": 90, "p99": 99, "max": 100}


def read_manifest(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The manifest of a folder that scripts/convert_dataset.py wrote; `build_manifest` makes it.

    Raises:
        UserError: there is none, it can't be read, or it is of another version.
    """
    path = Path(folder) / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{path} is missing: {folder} is no converted data set; make one with scripts/convert_dataset.py"
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} can't be read ({error}): convert the data again") from None
    found = manifest.get("version") if isinstance(manifest, dict) else None
    if found != VERSION:
        raise UserError(f"{path} is of version {found}, this code reads version {VERSION}: convert the data again")
    missing = [key for key in _REQUIRED if key not in manifest]
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)}: convert the data again")
    return manifest


def build_manifest(
    config: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    tokens: TokenFile,
    splits: dict[str, Split],
    train_counts: npt.NDArray[np.int64],
    seconds: float,
) -> dict[str, Any]:
    """The manifest as plain containers.

    Args:
        config: the resolved configuration of the conversion.
        train_counts: (ids,) how often each token occurs in the training blocks.
        seconds: how long the conversion took.
    """
    block_size = config["block_size"]
    in_file = int(tokens.lengths.sum())
    written = sum(len(split.order) for split in splits.values()) * block_size
    remainder = splits["train"].stream.tokens % block_size
    text_tokens = tokens.lengths - 1  # without the separator
    percentiles = np.percentile(text_tokens, list(_PERCENTILES.values()))
    return {
        "version": VERSION,
        "block_size": block_size,
        "token_dtype": tokens.dtype.name,
        "tokenizer": {
            "name": config["tokenizer"],
            "fingerprint": tokenizer_fingerprint(tokenizer),
            "vocab_size": len(tokenizer),
            "separator_id": separator_id(tokenizer),
            "special_ids": _special_ids(tokenizer),
        },
        "splits": {
            name: {
                "blocks": len(split.order),
                "tokens": len(split.order) * block_size,
                "documents": split.documents(block_size),
            }
            for name, split in splits.items()
        },
        "documents": tokens.documents,
        "empty_documents": tokens.empty_documents,
        "documents_by_file": tokens.by_file,
        "characters": tokens.characters,
        "tokens": {"in_documents": int(text_tokens.sum()), "separators": len(tokens.lengths)},
        "dropped_tokens": {"remainder": remainder, "validation_documents": in_file - written - remainder},
        "tokens_per_document": {
            "mean": round(float(text_tokens.mean()), 2),
            **{name: float(value) for name, value in zip(_PERCENTILES, percentiles, strict=True)},
        },
        "characters_per_token": tokens.characters / int(text_tokens.sum()),
        "unigram_entropy_nats": entropy(train_counts),
        "seed": config["seed"],
        "config": config,
        "versions": {
            "bertchen": bertchen.__version__,
            "python": platform.python_version(),
            **{name: version(name) for name in _LIBRARIES},
        },
        "seconds": round(seconds, 1),
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Writes it as indented JSON."""
    with open(folder / MANIFEST, "w", encoding="utf-8") as file:
        json.dump(manifest, file, ensure_ascii=False, indent=2)
        file.write("\n")


def entropy(counts: npt.NDArray[np.int64]) -> float:
    """Entropy in nats of the distribution with these counts: -sum p ln p.

    Of the training tokens it is the loss of a model that knows how frequent each token is and nothing else.
    """
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())


def _special_ids(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    ids = {role: getattr(tokenizer, f"{role}_token_id") for role in ("pad", "unk", "bos", "eos", "cls", "sep", "mask")}
    return {role: int(token_id) for role, token_id in ids.items() if token_id is not None}

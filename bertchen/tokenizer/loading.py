"""Loading any Hugging Face tokenizer, and what the rest of the project needs to know of it."""

from __future__ import annotations

import fnmatch
import os
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from bertchen.errors import UserError

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab*", "*.model")
_HUB_SECONDS = 10


def load_tokenizer(name_or_path: str) -> PreTrainedTokenizerBase:
    """Loads a tokenizer from a folder, or from the Hugging Face Hub by name.

    A folder of that name comes first. Where the Hub can't be reached, what was downloaded before serves.
    Tokenizers that bring their own code are refused.

    Raises:
        UserError: no such folder and no such name on the Hub, the Hub can't be reached, or what is there is
            no tokenizer.
    """
    name = os.path.expanduser(str(name_or_path))
    if not name:
        raise UserError("the name of the tokenizer is empty: give a folder or a name on the Hugging Face Hub")
    if os.path.isdir(name):
        return _load_folder(name)
    if os.path.isfile(name):
        raise UserError(f"tokenizer {name} is a file: give the folder that it lies in")
    if _is_path(name):
        raise UserError(f"tokenizer {name}: no such folder")
    return _load_from_hub(name)


def separator_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Id of the token that ends a document: `[SEP]`, or else the end-of-sequence token.

    Raises:
        UserError: the tokenizer has neither.
    """
    for token_id in (tokenizer.sep_token_id, tokenizer.eos_token_id):
        if token_id is not None:
            return int(token_id)
    raise UserError(
        f"tokenizer {_name(tokenizer)} has neither a separator nor an end-of-sequence token, one of "
        "which ends each document: choose another tokenizer or set its sep_token"
    )


def require_mask_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """Id of the mask token.

    Raises:
        UserError: the tokenizer has none.
    """
    if tokenizer.mask_token_id is None:
        raise UserError(
            f"tokenizer {_name(tokenizer)} has no mask token, which masked language modelling needs: choose "
            "another tokenizer or set its mask_token"
        )
    return int(tokenizer.mask_token_id)


def special_token_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids that masking must never choose, ascending: padding, unknown, separator, mask, `[CLS]`, …"""
    return sorted({int(token_id) for token_id in tokenizer.all_special_ids})


def _load_folder(folder: str) -> PreTrainedTokenizerBase:
    names = sorted(os.listdir(folder))
    if not any(fnmatch.filter(names, pattern) for pattern in _TOKENIZER_FILES):
        raise UserError(f"tokenizer {folder}: the folder holds no tokenizer (tokenizer.json, vocab.txt, …)")
    try:
        return _from_pretrained(folder)
    except Exception as error:  # of many kinds, down to a bare Exception from Rust
        raise UserError(f"tokenizer {folder}: can't be loaded: {_reason(error)}") from error


def _load_from_hub(name: str) -> PreTrainedTokenizerBase:
    """From the Hub, or from its cache.

    The Hub is asked first whether it knows the name: transformers would retry for most of a minute before it
    says that a misspelt folder is no name on the Hub either.
    """
    problem = None
    try:
        HfApi().model_info(name, timeout=_HUB_SECONDS)
    except (RepositoryNotFoundError, HFValidationError):
        raise UserError(f"tokenizer {name}: no such folder here and no such name on the Hugging Face Hub") from None
    except Exception as error:  # requests' or httpx's, by the version of huggingface_hub
        problem = error
    try:
        return _from_pretrained(name, local_files_only=problem is not None)
    except Exception as error:
        if problem is None:
            raise UserError(f"tokenizer {name}: can't be loaded from the Hugging Face Hub: {_reason(error)}") from error
        raise UserError(
            f"tokenizer {name}: no such folder here, the Hugging Face Hub can't be reached "
            f"({type(problem).__name__}), and it was not downloaded before"
        ) from error


def _from_pretrained(name: str, **options: Any) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False, **options)
    except ValueError as error:
        # transformers 5 saves fast tokenizers under a class name that transformers 4 doesn't know.
        if "TokenizersBackend" not in str(error):
            raise
        return PreTrainedTokenizerFast.from_pretrained(name, **options)


def _is_path(name: str) -> bool:
    """Whether `name` can't be a name on the Hub (`name` or `owner/name`)."""
    return os.path.isabs(name) or name.startswith(".") or name.endswith("/") or name.count("/") > 1


def _name(tokenizer: PreTrainedTokenizerBase) -> str:
    return tokenizer.name_or_path or type(tokenizer).__name__


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__

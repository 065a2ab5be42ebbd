"""A tokenizer by name → what a conversion must know of it. Imports Transformers, which takes half a gigabyte."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizerBase

from bertchen.conversion.tokens import Recipe
from bertchen.tokenizer import load_tokenizer, separator_id, tokenizer_fingerprint
from bertchen.tokenizer.bpe import cuts_at_spaces

_ROLES = ("pad", "unk", "bos", "eos", "cls", "sep", "mask")


def load_recipe(name: str, seed: int, clean: dict[str, Any], bands: int) -> tuple[Recipe, dict[str, Any]]:
    """Loads a tokenizer and gives the recipe and what the manifest says of it.

    Raises:
        UserError: it can't be loaded, or has no separator.
    """
    tokenizer = load_tokenizer(name)
    return make_recipe(name, tokenizer, seed, clean, bands), describe_tokenizer(name, tokenizer)


def make_recipe(
    name: str, tokenizer: PreTrainedTokenizerBase, seed: int, clean: dict[str, Any] | None = None, bands: int = 0
) -> Recipe:
    """How a tokenizer, loaded by `name`, and the cleaners make tokens of text.

    Raises:
        UserError: the tokenizer has no separator.
    """
    as_json = tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else None
    return Recipe(
        name=name,
        tokenizer=as_json,
        separator=separator_id(tokenizer),
        ids=max(len(tokenizer), 1 + max(tokenizer.get_vocab().values())),
        seed=seed,
        clean=clean or {},
        bands=bands,
        by_words=as_json is not None and cuts_at_spaces(as_json),
    )


def describe_tokenizer(name: str, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What a manifest says of a tokenizer that was loaded by `name`."""
    ids = {role: getattr(tokenizer, f"{role}_token_id") for role in _ROLES}
    return {
        "name": name,
        "fingerprint": tokenizer_fingerprint(tokenizer),
        "vocab_size": len(tokenizer),
        "separator_id": separator_id(tokenizer),
        "special_ids": {role: int(token_id) for role, token_id in ids.items() if token_id is not None},
    }

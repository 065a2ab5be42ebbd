"""A short hash that tells whether two tokenizers turn text into the same ids.

It stands in the manifest of converted data, so that training refuses data of another tokenizer. It must
therefore not change when a tokenizer is saved and loaded, nor with the version of transformers.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from transformers import PreTrainedTokenizerBase

_COMPONENTS = ("normalizer", "pre_tokenizer", "post_processor")
_ROLES = ("pad", "unk", "bos", "eos", "cls", "sep", "mask")


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """First 16 hexadecimal digits of the SHA-256 of what decides about the ids.

    For a fast tokenizer: the model with vocabulary and merges, normalizer, pre-tokenizer, post-processor,
    added tokens and the special tokens' ids. Not: truncation and padding (settings of a call), the decoder,
    names and versions. For a slow one: vocabulary and special tokens' ids.
    """
    content: dict[str, Any] = {role: getattr(tokenizer, f"{role}_token_id") for role in _ROLES}
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        content["vocab"] = tokenizer.get_vocab()
    else:
        state = json.loads(backend.to_str())
        content["model"] = state["model"] | {"merges": _pairs(state["model"].get("merges"))}
        content["added_tokens"] = sorted(state["added_tokens"], key=lambda token: token["id"])
        content |= {name: state[name] for name in _COMPONENTS}
    canonical = json.dumps(_without_defaults(content), sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def _pairs(merges: list[Any] | None) -> list[list[str]] | None:
    """Merges as pairs; tokenizers before 0.20 wrote them as `"a b"`."""
    return merges and [pair.split(" ") if isinstance(pair, str) else list(pair) for pair in merges]


def _without_defaults(value: Any) -> Any:
    """Drops keys that are null or false: a later version may add such a key without a change of meaning."""
    if isinstance(value, dict):
        kept = {key: _without_defaults(item) for key, item in value.items()}
        return {key: item for key, item in kept.items() if item is not None and item is not False}
    if isinstance(value, list):
        return [_without_defaults(item) for item in value]
    return value

"""Tokenizers: a BPE trained on German text, and any other from Hugging Face in its place."""

from bertchen.tokenizer.bpe import train_tokenizer
from bertchen.tokenizer.fingerprint import tokenizer_fingerprint
from bertchen.tokenizer.loading import load_tokenizer, require_mask_token, separator_id, special_token_ids

__all__ = [
    "load_tokenizer",
    "require_mask_token",
    "separator_id",
    "special_token_ids",
    "tokenizer_fingerprint",
    "train_tokenizer",
]

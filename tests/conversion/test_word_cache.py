"""Remembered words: the tokens are those of the tokenizers library for any text, however little is remembered."""

from __future__ import annotations

import itertools
import json
import sys
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, pre_tokenizers
from transformers import PreTrainedTokenizerBase

from bertchen.conversion import word_cache
from bertchen.conversion.recipes import make_recipe
from bertchen.conversion.tokens import make_encoder
from bertchen.conversion.word_cache import WordCache
from bertchen.tokenizer.bpe import cuts_at_spaces

CORPUS = Path(__file__).resolve().parents[3] / "shared/data/corpus"
EVERY = [chr(code) for code in range(sys.maxunicode + 1) if not 0xD800 <= code <= 0xDFFF]
SPACES = [one for one in EVERY if one.isspace()] + ["\u200b", "\u180e", "\ufeff"]
SNIPPETS = st.sampled_from(
    [
        *SPACES, " ", "  ", "   ", "\n ", " \n", "\n\n", " \t", "[SEP]", "[MASK]", " [SEP]", "Wort", "Straße,", "»so«",
        "§12", "1990", "½", "e\u0301", "\u0301", "ÅÅ", "\u212b", "한", "\u1100\u1161", "Ελλη\u0301νικα", "🙂",
        "👩\u200d🔬", "–", "…", "a.b", "'",
    ]
)  # fmt: skip
TEXTS = st.lists(SNIPPETS, max_size=14).map("".join) | st.text(max_size=40)
RELAXED = settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


class Library:
    """The tokenizers library's own encoding, of the whole text at once."""

    def __init__(self, as_json: str) -> None:
        self._backend = Tokenizer.from_str(as_json)
        self._backend.encode_special_tokens = True

    def __call__(self, texts: list[str]) -> list[list[int]]:
        return [each.ids for each in self._backend.encode_batch_fast(texts, add_special_tokens=False)]


@pytest.fixture(scope="module")
def as_json(loaded_tokenizer: PreTrainedTokenizerBase) -> str:
    return loaded_tokenizer.backend_tokenizer.to_str()


def assert_same(as_json: str, texts: list[str], **options: Any) -> None:
    found = WordCache(as_json, np.dtype(np.uint16), **options)(texts)
    for text, ids, expected in zip(texts, found, Library(as_json)(texts), strict=True):
        assert ids.dtype == np.uint16
        assert ids.tolist() == expected, repr(text)


@RELAXED
@given(texts=st.lists(TEXTS, max_size=4), max_words=st.sampled_from([0, 1, 5, 1000]))
def test_as_the_library_encodes(as_json: str, texts: list[str], max_words: int) -> None:
    assert_same(as_json, texts, max_words=max_words)


@RELAXED
@given(text=st.lists(SNIPPETS, min_size=3, max_size=30).map("".join), characters=st.integers(1, 9))
def test_long_texts_are_cut_at_spaces(as_json: str, text: str, characters: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(word_cache, "PART_CHARACTERS", characters)
        assert "".join(word_cache._parts(text)) == text
        assert_same(as_json, [text])


def test_every_character_in_every_place(as_json: str) -> None:
    """Alone, in a word, before, behind and between spaces, and at the beginning of a line."""
    known = [one for one in EVERY if unicodedata.category(one) not in ("Cn", "Lo")]
    for start in range(0, len(known), 500):
        assert_same(as_json, ["".join(f"{one} a{one}b {one}\n{one} \n" for one in known[start : start + 500])])


def test_a_character_that_the_normal_form_changes_is_never_taken_for_safe() -> None:
    """Marks that combine with what stands before them aren't safe, and what is safe stays as it is."""
    safe = [one for one in EVERY if not word_cache._UNSAFE.search(one)]
    assert not [one for one in safe if unicodedata.combining(one)]
    assert [unicodedata.normalize("NFC", f"{one}e{one}") for one in safe] == [f"{one}e{one}" for one in safe]


def test_a_very_long_word_is_not_kept(as_json: str) -> None:
    cache = WordCache(as_json, np.dtype(np.uint16))
    text = "x" * 100_000
    (ids,) = cache([f"{text} und {text}"])
    assert ids.tolist() == Library(as_json)([f"{text} und {text}"])[0]
    assert set(cache._words) == {"und"}


@pytest.mark.skipif(not CORPUS.is_dir(), reason="needs shared/data/corpus")
def test_on_real_text(as_json: str) -> None:
    for path in sorted(CORPUS.glob("*.jsonl.zst")):
        with zstandard.open(path, "rt", encoding="utf-8") as lines:
            assert_same(as_json, [json.loads(line)["text"] for line in itertools.islice(lines, 3)])


def changed(as_json: str, **parts: Any) -> str:
    return json.dumps({**json.loads(as_json), **parts})


def test_other_tokenizers_are_left_to_the_library(as_json: str, loaded_tokenizer: PreTrainedTokenizerBase) -> None:
    assert cuts_at_spaces(as_json)
    assert make_recipe("x", loaded_tokenizer, 0).by_words
    described = json.loads(as_json)
    other = json.loads(pre_tokenizers.Whitespace().__getstate__())
    extra = {**described["added_tokens"][0], "id": 330, "content": "zwei Worte", "special": False}
    for parts in (
        {"normalizer": None},
        {"pre_tokenizer": other},
        {"model": {**described["model"], "dropout": 0.1}},
        {"added_tokens": [*described["added_tokens"], extra]},
    ):
        assert not cuts_at_spaces(changed(as_json, **parts))


def test_the_encoder_of_a_conversion(loaded_tokenizer: PreTrainedTokenizerBase) -> None:
    recipe = make_recipe("x", loaded_tokenizer, 0)
    encode = make_encoder(recipe)
    assert isinstance(encode, WordCache)
    texts = ["Über allen Gipfeln ist Ruh.", "[SEP] ist hier Text", ""]
    assert [ids.tolist() for ids in encode(texts)] == Library(recipe.tokenizer or "")(texts)

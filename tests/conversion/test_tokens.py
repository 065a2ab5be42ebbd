"""A chunk's tokens: Hugging Face's own of each document, in order, a separator behind each."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from transformers import BertTokenizer, PreTrainedTokenizerBase

from bertchen.conversion import tokens as tokens_module
from bertchen.conversion.recipes import make_recipe
from bertchen.conversion.tokens import ChunkTokenizer, Tokenized, document_key
from bertchen.errors import UserError
from bertchen.text.documents import RowRules
from bertchen.text.readers import read_chunks
from bertchen.tokenizer import load_tokenizer, separator_id

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
HYPOTHESIS = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def reference(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    """Tokens by Hugging Face's public call, one text at a time; of no text where it is blank."""
    return [
        tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
        for text in texts
        if text.strip()
    ]


def joined(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[int]:
    separator = separator_id(tokenizer)
    return [token for ids in reference(tokenizer, texts) if ids for token in [*ids, separator]]


def tokenize(
    folder: Path, name: str, texts: list[str], tokenizer: PreTrainedTokenizerBase | None = None, **options: int
) -> Tokenized:
    """The texts as one chunk of JSON lines, by a recipe that went to another process and back."""
    path = folder / "a.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (chunk,) = read_chunks(str(path), RowRules())
    recipe = make_recipe(name, tokenizer or load_tokenizer(name), seed=42)
    return ChunkTokenizer(pickle.loads(pickle.dumps(recipe)))(chunk, **options)


@given(st.lists(TEXT, min_size=1))
@example(["", "[SEP] und [MASK][PAD] sind Text", "", "e\u0301 \u2028 \x00"])
@HYPOTHESIS
def test_tokens_are_those_of_each_document(tmp_path: Path, tokenizer_folder: str, texts: list[str]) -> None:
    tokenizer = load_tokenizer(tokenizer_folder)
    expected = joined(tokenizer, texts)
    found = tokenize(tmp_path, tokenizer_folder, texts)
    assert found.tokens.tolist() == expected
    assert found.documents["length"].tolist() == [len(ids) + 1 for ids in reference(tokenizer, texts) if ids]
    assert expected.count(tokenizer.sep_token_id) == len(found.documents)
    assert found.read == len(texts)
    assert found.bad.total() == len(texts) - len(found.documents)
    assert found.characters == sum(len(text) for text in texts if text.strip())
    assert found.by_file.total() == len(found.documents)


def test_long_documents_and_many_batches(
    tmp_path: Path, tokenizer_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens_module, "BATCH_CHARACTERS", 128)
    texts = ["über allen Gipfeln " * (number % 7) for number in range(300)]
    texts[100] = "Warte nur, balde ruhest du auch!\n" * 20_000
    found = tokenize(tmp_path, tokenizer_folder, texts)
    assert found.tokens.tolist() == joined(load_tokenizer(tokenizer_folder), texts)


def test_special_tokens_around_a_text_and_saved_truncation_are_left_out(
    tmp_path: Path, cls_tokenizer_folder: str
) -> None:
    found = tokenize(tmp_path, cls_tokenizer_folder, ["Über allen Gipfeln ist Ruh ist Ruh", "Ruh"])
    assert found.tokens.tolist() == [5, 6, 7, 8, 9, 8, 9, 2, 9, 2]


def test_slow_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "ruh", "##e"]))
    slow = BertTokenizer(str(tmp_path / "vocab.txt"))
    if slow.is_fast:
        pytest.skip("this version of transformers has no slow BertTokenizer")
    recipe = make_recipe("slow", slow, seed=42)
    assert recipe.tokenizer is None


def test_type_follows_the_vocabulary(tmp_path: Path, tokenizer_folder: str, large_tokenizer_folder: str) -> None:
    assert tokenize(tmp_path, tokenizer_folder, ["a"]).tokens.dtype == np.uint16
    large = tokenize(tmp_path, large_tokenizer_folder, ["w69997 w0"]).tokens
    assert large.dtype == np.uint32
    assert large.tolist() == [69_998, 1, 69_999]


def test_keys_depend_on_seed_and_text_alone(tmp_path: Path, tokenizer_folder: str) -> None:
    first = tokenize(tmp_path, tokenizer_folder, ["a", "b", "a"]).documents["key"]
    assert first[0] == first[2] != first[1]
    assert tokenize(tmp_path, tokenizer_folder, ["c", "b", "", "a"]).documents["key"][1:].tolist() == [
        first[1],
        first[0],
    ]
    assert document_key("a", 43) != document_key("a", 42) == first[0]


def test_keys_are_even() -> None:
    """Chi-square of the upper and of the lower four bits: 15 degrees of freedom, 37.7 is exceeded once in 1,000."""
    keys = np.array([document_key(f"Satz {number}", 42) for number in range(16_000)], dtype=np.uint64)
    for bits in (keys >> np.uint64(60), keys & np.uint64(15)):
        counts = np.bincount(bits.astype(np.int64), minlength=16)
        assert ((counts - 1000) ** 2 / 1000).sum() < 37.7


def test_documents_are_left_out_by_key(tmp_path: Path, tokenizer_folder: str) -> None:
    texts = [f"Satz {number}" for number in range(50)]
    keys = {text: document_key(text, 42) for text in texts}
    limit = sorted(keys.values())[20]
    for option, kept in (("below", 20), ("at_most", 21)):
        found = tokenize(tmp_path, tokenizer_folder, texts, **{option: limit})
        assert found.documents["key"].tolist() == [
            key for key in keys.values() if key < limit or (option == "at_most" and key == limit)
        ]
        assert found.dropped == {"not sampled": 50 - kept}
        assert found.read == 50


def test_a_document_without_a_token_is_bad(tmp_path: Path, cls_tokenizer_folder: str) -> None:
    """A tokenizer may make nothing of a text that is there."""
    found = tokenize(tmp_path, cls_tokenizer_folder, ["Ruh", "\u0301\u200b", "\u0007"])
    assert found.bad["empty"] + len(found.documents) == 3
    if found.bad:
        assert "a.jsonl" in (found.error or "")


def test_tokenizer_without_separator(tokenizer_folder: str) -> None:
    tokenizer = load_tokenizer(tokenizer_folder)
    tokenizer.sep_token = None
    with pytest.raises(UserError, match="separator"):
        make_recipe("x", tokenizer, seed=42)

"""The token file: Hugging Face's own tokens of each document, in order, a separator behind each."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from transformers import BertTokenizer, PreTrainedTokenizerBase

from bertchen.data import tokens as tokens_module
from bertchen.data.tokens import TokenFile, tokenize_documents
from bertchen.errors import UserError, is_disk_full
from bertchen.text.readers import Document
from bertchen.tokenizer import load_tokenizer, separator_id

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
HYPOTHESIS = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def documents_of(texts: list[str]) -> list[Document]:
    return [Document(text, f"{row % 2}.jsonl", row) for row, text in enumerate(texts)]


def reference(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    """Tokens by Hugging Face's public call, one text at a time."""
    return [
        tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
        for text in texts
    ]


def joined(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[int]:
    separator = separator_id(tokenizer)
    return [token for ids in reference(tokenizer, texts) if ids for token in [*ids, separator]]


def tokenize(folder: Path, tokenizer: PreTrainedTokenizerBase, texts: list[str], workers: int = 2) -> TokenFile:
    return tokenize_documents(documents_of(texts), tokenizer, folder / "tokens", seed=42, workers=workers)


@given(st.lists(TEXT, min_size=1))
@example(["", "[SEP] und [MASK][PAD] sind Text", "", "e\u0301 \u2028 \x00"])
@HYPOTHESIS
def test_tokens_are_those_of_each_document(tmp_path: Path, tokenizer_folder: str, texts: list[str]) -> None:
    tokenizer = load_tokenizer(tokenizer_folder)
    expected = joined(tokenizer, texts)
    found = tokenize(tmp_path, tokenizer, texts)
    assert np.fromfile(found.path, found.dtype).tolist() == expected
    assert found.lengths.tolist() == [len(ids) + 1 for ids in reference(tokenizer, texts) if ids]
    assert expected.count(tokenizer.sep_token_id) == len(found.lengths)
    assert (found.documents, found.empty_documents) == (len(texts), sum(not text for text in texts))
    assert found.characters == sum(map(len, texts))
    assert sum(found.by_file.values()) == len(texts)


def test_long_documents_and_many_batches_for_any_number_of_workers(
    tmp_path: Path, tokenizer_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens_module, "BATCH_CHARACTERS", 128)
    tokenizer = load_tokenizer(tokenizer_folder)
    texts = ["über allen Gipfeln " * (number % 7) for number in range(300)]
    texts[100] = "Warte nur, balde ruhest du auch!\n" * 20_000
    expected = joined(tokenizer, texts)
    for workers in (1, 2, 5):
        found = tokenize(tmp_path, tokenizer, texts, workers)
        assert np.fromfile(found.path, found.dtype).tolist() == expected


def test_special_tokens_around_a_text_and_saved_truncation_are_left_out(
    tmp_path: Path, cls_tokenizer_folder: str
) -> None:
    tokenizer = load_tokenizer(cls_tokenizer_folder)
    found = tokenize(tmp_path, tokenizer, ["Über allen Gipfeln ist Ruh ist Ruh", "Ruh"])
    assert found.open().tolist() == [5, 6, 7, 8, 9, 8, 9, 2, 9, 2]


def test_slow_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "ruh", "##e"]))
    tokenizer = BertTokenizer(str(tmp_path / "vocab.txt"))
    if tokenizer.is_fast:
        pytest.skip("this version of transformers has no slow BertTokenizer")
    assert tokenize(tmp_path, tokenizer, ["Ruhe ruh", "", "xyz"]).open().tolist() == [5, 6, 5, 3, 1, 3]


def test_type_follows_the_vocabulary(tmp_path: Path, tokenizer_folder: str, large_tokenizer_folder: str) -> None:
    assert tokenize(tmp_path, load_tokenizer(tokenizer_folder), ["a"]).dtype == np.uint16
    large = tokenize(tmp_path, load_tokenizer(large_tokenizer_folder), ["w69997 w0"])
    assert large.dtype == np.uint32
    assert large.open().tolist() == [69_998, 1, 69_999]


def test_keys_depend_on_seed_and_text_alone(tmp_path: Path, tokenizer_folder: str) -> None:
    tokenizer = load_tokenizer(tokenizer_folder)
    first = tokenize(tmp_path, tokenizer, ["a", "b", "a"]).keys
    assert first[0] == first[2] != first[1]
    assert tokenize(tmp_path, tokenizer, ["c", "b", "", "a"]).keys[1:].tolist() == [first[1], first[0]]
    other = tokenize_documents(documents_of(["a"]), tokenizer, tmp_path / "tokens", seed=43, workers=1).keys
    assert other[0] != first[0]


def test_parallelism_of_the_library_is_put_back(
    tmp_path: Path, tokenizer_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = load_tokenizer(tokenizer_folder)
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    tokenize(tmp_path, tokenizer, ["a"])
    assert os.environ["TOKENIZERS_PARALLELISM"] == "true"
    monkeypatch.delenv("TOKENIZERS_PARALLELISM")
    tokenize(tmp_path, tokenizer, ["a"])
    assert "TOKENIZERS_PARALLELISM" not in os.environ


def test_full_disk_is_told_as_such(tokenizer_folder: str) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("/dev/full is not here")
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)) as caught:
        tokenize_documents(documents_of(["a" * 100_000]), load_tokenizer(tokenizer_folder), Path("/dev/full"), 42, 2)
    assert is_disk_full(caught.value)


def test_tokenizer_without_separator(tmp_path: Path, tokenizer_folder: str) -> None:
    tokenizer = load_tokenizer(tokenizer_folder)
    tokenizer.sep_token = None
    with pytest.raises(UserError, match="separator"):
        tokenize(tmp_path, tokenizer, ["a"])

"""Any Hugging Face tokenizer: with and without `[CLS]`, fast and slow; what is missing is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from bertchen.errors import UserError
from bertchen.tokenizer import (
    load_tokenizer,
    require_mask_token,
    separator_id,
    special_token_ids,
    tokenizer_fingerprint,
    train_tokenizer,
)

TEXT = "Die alte Brücke am Fluss"
BERT_VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "die", "alte", "brücke", "am", "fluss", "##en"]


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    train_tokenizer([TEXT] * 3, vocab_size=300).save_pretrained(tmp_path / "ours")
    return tmp_path / "ours"


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    """The files of a BERT tokenizer: WordPiece with `[CLS]`."""
    folder = tmp_path / "bert"
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(BERT_VOCAB), encoding="utf-8")
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "strip_accents": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture
def gpt(tmp_path: Path) -> Path:
    """A tokenizer with nothing but an end-of-sequence token."""
    backend = Tokenizer(models.BPE(vocab={"a": 0, "b": 1, "ab": 2, "<|end|>": 3}, merges=[("a", "b")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>").save_pretrained(tmp_path / "gpt")
    return tmp_path / "gpt"


def test_loads_a_tokenizer_without_cls(ours: Path) -> None:
    tokenizer = load_tokenizer(str(ours))
    assert (separator_id(tokenizer), require_mask_token(tokenizer)) == (2, 3)
    assert special_token_ids(tokenizer) == [0, 1, 2, 3]
    assert tokenizer.cls_token_id is None


def test_loads_a_tokenizer_with_cls(bert: Path) -> None:
    tokenizer = load_tokenizer(str(bert))
    assert tokenizer(TEXT)["input_ids"] == [2, 5, 6, 7, 8, 9, 3]
    assert (separator_id(tokenizer), require_mask_token(tokenizer)) == (3, 4)
    assert special_token_ids(tokenizer) == [0, 1, 2, 3, 4]


def test_end_of_sequence_separates_where_there_is_no_separator(gpt: Path) -> None:
    tokenizer = load_tokenizer(str(gpt))
    assert separator_id(tokenizer) == 3
    assert special_token_ids(tokenizer) == [3]
    with pytest.raises(UserError, match="gpt has no mask token"):
        require_mask_token(tokenizer)


def test_no_separator_at_all(gpt: Path) -> None:
    tokenizer = load_tokenizer(str(gpt))
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="neither a separator nor an end-of-sequence"):
        separator_id(tokenizer)


def test_loads_what_transformers_5_saved(ours: Path) -> None:
    before = load_tokenizer(str(ours))
    path = ours / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer_class": "TokenizersBackend"}))
    after = load_tokenizer(str(ours))
    assert after(TEXT)["input_ids"] == before(TEXT)["input_ids"]
    assert tokenizer_fingerprint(after) == tokenizer_fingerprint(before)


@pytest.mark.parametrize("name", ["missing/", "./missing", "a/b/missing", "/missing/folder"])
def test_missing_folder_is_named(name: str) -> None:
    with pytest.raises(UserError, match=f"{name}: no such folder"):
        load_tokenizer(name)


def test_name_that_the_hub_cannot_give(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", unreachable)
    with pytest.raises(UserError, match=r"bertchen-test/no-such-name.*can't be reached"):
        load_tokenizer("bertchen-test/no-such-name")


def test_name_that_no_repository_can_have() -> None:
    with pytest.raises(UserError, match="not a name: no such folder here and no such name on the Hugging Face"):
        load_tokenizer("not a name")


def test_folder_without_a_tokenizer_or_with_a_damaged_one(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="holds no tokenizer"):
        load_tokenizer(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match=f"{tmp_path.name}: can't be loaded"):
        load_tokenizer(str(tmp_path))
    with pytest.raises(UserError, match="is a file"):
        load_tokenizer(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match="empty"):
        load_tokenizer("")


@pytest.mark.parametrize("kind", ["ours", "bert", "gpt"])
def test_fingerprint_survives_saving_and_use(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(request.getfixturevalue(kind)))
    before = tokenizer_fingerprint(tokenizer)
    tokenizer.save_pretrained(tmp_path / "copy")
    tokenizer("ab " * 50, truncation=True, max_length=4)
    copy = load_tokenizer(str(tmp_path / "copy"))
    copy.model_max_length = 7
    assert tokenizer_fingerprint(tokenizer) == tokenizer_fingerprint(copy) == before
    assert len(before) == 16
    assert int(before, 16) >= 0


def test_fingerprint_of_a_slow_tokenizer(bert: Path, tmp_path: Path) -> None:
    slow = AutoTokenizer.from_pretrained(bert, use_fast=False)
    slow.save_pretrained(tmp_path / "slow")
    again = AutoTokenizer.from_pretrained(tmp_path / "slow", use_fast=False)
    assert tokenizer_fingerprint(slow) == tokenizer_fingerprint(again)
    (bert / "vocab.txt").write_text("\n".join([*BERT_VOCAB, "neu"]), encoding="utf-8")
    other = AutoTokenizer.from_pretrained(bert, use_fast=False)
    assert tokenizer_fingerprint(slow) != tokenizer_fingerprint(other)


def test_fingerprint_tells_apart_what_gives_other_ids() -> None:
    prints = {tokenizer_fingerprint(small_bpe(**change)) for change in CHANGES}
    assert len(prints) == len(CHANGES)


CHANGES: list[dict] = [
    {},
    {"vocab": {"[SEP]": 0, "b": 1, "a": 2, "ab": 3, "bb": 4}},
    {"merges": [("b", "b"), ("a", "b")]},
    {"normalizer": normalizers.Lowercase()},
    {"pre_tokenizer": pre_tokenizers.Whitespace()},
    {"post_processor": processors.TemplateProcessing(single="$A [SEP]", special_tokens=[("[SEP]", 0)])},
    {"roles": {"eos_token": "[SEP]"}},
    {"roles": {"sep_token": "[SEP]", "additional_special_tokens": ["b"]}},
]


def small_bpe(
    vocab: dict[str, int] | None = None,
    merges: list[tuple[str, str]] | None = None,
    roles: dict | None = None,
    **components: object,
) -> PreTrainedTokenizerBase:
    vocab = vocab or {"[SEP]": 0, "a": 1, "b": 2, "ab": 3, "bb": 4}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=merges or [("a", "b"), ("b", "b")]))
    for name, component in components.items():
        setattr(backend, name, component)
    return PreTrainedTokenizerFast(tokenizer_object=backend, **(roles or {"sep_token": "[SEP]"}))

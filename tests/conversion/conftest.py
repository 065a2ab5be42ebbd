"""Tiny tokenizers, made here, so that the tests of the data need no training and no network."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

if TYPE_CHECKING:
    from s3_store import Store

SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
SAMPLE = ["Über allen Gipfeln ist Ruh, in allen Wipfeln spürest du kaum einen Hauch.", "Warte nur, balde"] * 5


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A byte-level BPE of 400 entries, which has a token for every text and no `[CLS]`."""
    backend = Tokenizer(models.BPE(unk_token="[UNK]"))
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=list(SPECIAL.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(SAMPLE, trainer)
    return _saved(backend, tmp_path_factory, **SPECIAL)


@pytest.fixture(scope="session")
def cls_tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A word tokenizer in BERT's manner: adds `[CLS]` and `[SEP]`; saved with truncation to 4 tokens."""
    words = ["[PAD]", "[UNK]", "[SEP]", "[MASK]", "[CLS]", "über", "allen", "gipfeln", "ist", "ruh"]
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 4), ("[SEP]", 2)]
    )
    backend.enable_truncation(4)
    return _saved(backend, tmp_path_factory, cls_token="[CLS]", **SPECIAL)


@pytest.fixture(scope="session")
def large_tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A word tokenizer of 70,000 entries (`w0` …), too many for 16 bits, that ends a text with `</s>`."""
    vocab = {"[UNK]": 0, "</s>": 69_999, **{f"w{number}": number + 1 for number in range(69_998)}}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return _saved(backend, tmp_path_factory, unk_token="[UNK]", eos_token="</s>")


def _saved(backend: Tokenizer, factory: pytest.TempPathFactory, **special: str) -> str:
    folder: Path = factory.mktemp("tokenizer")
    tokenizer: PreTrainedTokenizerBase = PreTrainedTokenizerFast(tokenizer_object=backend, **special)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets a small corpus be divided as a large one is: into many chunks, units and segments."""
    monkeypatch.setattr("bertchen.text.readers.CHUNK_BYTES", 512)
    monkeypatch.setattr("bertchen.conversion.work._MIN_UNIT_BYTES", 4000)
    monkeypatch.setattr("bertchen.conversion.work._MIN_SEGMENT_CHARACTERS", 2000)


@pytest.fixture
def s3_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """See `s3_store.isolate`."""
    from s3_store import isolate  # brings moto, which takes a second

    isolate(tmp_path, monkeypatch)


@pytest.fixture
def store(s3_environment: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """One with an empty bucket `bucket`."""
    from s3_store import Store

    store = Store(monkeypatch)
    store.start()
    store.client.create_bucket(Bucket="bucket")
    yield store
    for name in store.objects(""):
        store.client.delete_object(Bucket="bucket", Key=name)
    store.stop()

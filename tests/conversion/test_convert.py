"""The whole conversion: what goes in comes out, the same each time, and the manifest says what there is."""

from __future__ import annotations

import gzip
import json
import math
import os
import string
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from converting import (
    BLOCK,
    ROOT,
    blocks_of,
    converted,
    cut,
    reference,
    run,
    some_texts,
    write_corpus,
)
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from streaming import StreamingDataset

from bertchen.data.manifest import VERSION, read_manifest
from bertchen.data.shards import check_shards
from bertchen.tokenizer import load_tokenizer, tokenizer_fingerprint

LONG = "Über allen Gipfeln ist Ruh. " * 700
MILLION = "".join(chr(0x61 + number * number % 26) + " " * (number % 5 == 0) for number in range(900_000))

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


@given(st.lists(TEXT, min_size=1, max_size=20))
@example(["", "[SEP] ist Text", LONG, " \n", "e\u0301 \u2028"])
@example([MILLION, "", MILLION[::-1], "kurz"])
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.parametrize("strategy", [pytest.param("naive", marks=pytest.mark.slow), "sorted"])
def test_what_goes_in_comes_out(
    tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: str, strategy: str, texts: list[str]
) -> None:
    """Each token of each document once, up to the remainder; rows without text are counted."""
    folder = tmp_path_factory.mktemp("conversion")
    texts = [*texts, LONG]
    manifest = run(
        write_corpus(folder / "a.jsonl", texts), tokenizer_folder, folder / "out",
        "split_by=block", "on_bad_rows=skip", f"strategy={strategy}",
    )  # fmt: skip
    with_text = [text for text in texts if text.strip()]
    if strategy == "sorted":
        lengths = {text: len(reference(tokenizer_folder, [text])) for text in set(with_text)}
        with_text.sort(key=lengths.__getitem__, reverse=True)
    tokens = reference(tokenizer_folder, with_text)
    train, val = blocks_of(folder / "out/train"), blocks_of(folder / "out/val")
    assert Counter(train) + Counter(val) == cut(tokens)
    if strategy == "sorted":  # blocks keep their order
        places = iter(list(cut_in_order(tokens)))
        assert all(block in places for block in train)
    assert len(val) == 3
    assert sum(manifest["dropped_tokens"].values()) == len(tokens) % BLOCK
    assert manifest["documents"]["read"] == len(texts)
    assert sum(manifest["bad_rows"].values()) == len(texts) - len(with_text)


def cut_in_order(tokens: list[int]) -> list[tuple[int, ...]]:
    return [tuple(tokens[at : at + BLOCK]) for at in range(0, len(tokens) - BLOCK + 1, BLOCK)]


@given(st.lists(st.integers(0, 200), min_size=1, max_size=50), st.integers(0, 3))
@example([0, 5, 9000, 0, 40, 40], 0)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_split_by_document_has_no_document_on_both_sides(
    tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: str, lengths: list[int], seed: int
) -> None:
    """Each document is a character of its own, repeated, so that a block tells of which documents it is."""
    folder = tmp_path_factory.mktemp("conversion")
    tokenizer = load_tokenizer(tokenizer_folder)
    letters = string.ascii_letters + string.digits
    texts = [character * length for character, length in zip(letters, [*lengths, 90, 90, 90], strict=False)]
    manifest = run(
        write_corpus(folder / "a.jsonl", texts), tokenizer_folder, folder / "out", f"seed={seed}", "on_bad_rows=skip"
    )
    train, val = blocks_of(folder / "out/train"), blocks_of(folder / "out/val")
    in_val = set("".join(tokenizer.decode(block, skip_special_tokens=True) for block in val))
    kept = [text for text in texts if not set(text) & in_val]
    assert Counter(train) == cut(reference(tokenizer_folder, kept))
    assert len(val) == 3
    assert manifest["splits"]["val"]["documents"] == len(in_val)


def test_same_bytes_for_any_number_of_workers_and_again(
    tmp_path: Path, tokenizer_folder: str, small_parts: None
) -> None:
    source = write_corpus(tmp_path / "a.jsonl", some_texts(200))
    outs = {}
    for name, workers in [("one", 1), ("two", 2), ("four", 4), ("again", 1), ("all", 0)]:
        run(source, tokenizer_folder, tmp_path / name, f"workers={workers}", "shard_size=1152")
        outs[name] = converted(tmp_path / name)
    assert len([name for name in outs["one"] if name.startswith("train/0000")]) > 15
    assert outs["one"] == outs["two"] == outs["four"] == outs["again"] == outs["all"]


def test_validation_does_not_depend_on_files_and_their_order(tmp_path: Path, tokenizer_folder: str) -> None:
    texts = some_texts(100)
    one = write_corpus(tmp_path / "one.jsonl", texts)
    (tmp_path / "many").mkdir()
    for number in range(10):
        raw = "".join(json.dumps({"text": text}) + "\n" for text in texts[number::10]).encode()
        (tmp_path / f"many/{number}.jsonl.gz").write_bytes(gzip.compress(raw))
    run(one, tokenizer_folder, tmp_path / "a")
    manifest = run(tmp_path / "many", tokenizer_folder, tmp_path / "b")
    assert blocks_of(tmp_path / "a/val") == blocks_of(tmp_path / "b/val")
    assert sum(manifest["documents_by_file"].values()) == 100
    assert len(manifest["documents_by_file"]) == 10


@pytest.mark.parametrize("split_by", ["block", "document"])
def test_another_seed_is_another_order(tmp_path: Path, tokenizer_folder: str, split_by: str) -> None:
    source = write_corpus(tmp_path / "a.jsonl", some_texts(100))
    found = []
    for seed in (1, 2):
        run(source, tokenizer_folder, tmp_path / str(seed), f"seed={seed}", f"split_by={split_by}")
        found.append([blocks_of(tmp_path / str(seed) / split) for split in ("train", "val")])
    (train_1, val_1), (train_2, val_2) = found
    assert train_1 != train_2
    assert val_1 != val_2
    if split_by == "block":
        assert Counter(train_1 + val_1) == Counter(train_2 + val_2)


def test_manifest_says_what_is_there(tmp_path: Path, tokenizer_folder: str) -> None:
    texts = [*some_texts(150), "", "  "]
    source = write_corpus(tmp_path / "a.jsonl", texts)
    run(source, tokenizer_folder, tmp_path / "out", "val_blocks=5", "on_bad_rows=skip")
    manifest = read_manifest(tmp_path / "out")
    tokenizer = load_tokenizer(tokenizer_folder)
    described = manifest["tokenizer"]
    assert {name: described[name] for name in ("name", "fingerprint", "vocab_size", "separator_id", "special_ids")} == {
        "name": tokenizer_folder,
        "fingerprint": tokenizer_fingerprint(tokenizer),
        "vocab_size": len(tokenizer),
        "separator_id": 2,
        "special_ids": {"pad": 0, "unk": 1, "sep": 2, "mask": 3},
    }
    assert (manifest["version"], manifest["block_size"], manifest["token_dtype"]) == (VERSION, BLOCK, "uint16")
    assert manifest["documents"]["read"] == 152
    assert manifest["bad_rows"] == {"empty": 2}
    assert manifest["documents_by_file"] == {str(source): 150}
    assert manifest["characters"] == sum(map(len, texts[:150]))
    assert manifest["config"]["val_blocks"] == 5
    assert manifest["seed"] == 42

    tokens = reference(tokenizer_folder, texts[:150])
    train = blocks_of(tmp_path / "out/train")
    splits = manifest["splits"]
    assert (splits["train"]["blocks"], splits["train"]["tokens"]) == (len(train), len(train) * BLOCK)
    assert (splits["val"]["blocks"], splits["val"]["tokens"]) == (5, 5 * BLOCK)
    assert manifest["tokens"] == sum(split["tokens"] for split in splits.values())
    copies = 150 - len(set(texts[:150]))
    assert copies == 0
    assert manifest["tokens"] + sum(manifest["dropped_tokens"].values()) == len(tokens)

    # A document of which all is in the remainder is not kept; at most the last one can be.
    lengths = [len(reference(tokenizer_folder, [text])) - 1 for text in texts[:150]]
    if manifest["documents"]["kept"] == 150:
        assert manifest["tokens_per_document"]["p50"] == pytest.approx(float(np.median(lengths)))
        assert manifest["tokens_per_document"]["mean"] == pytest.approx(float(np.mean(lengths)), abs=0.01)
    assert manifest["tokens_per_document"]["max"] == max(lengths)
    counts = Counter(token for block in train for token in block)
    shares = [count / counts.total() for count in counts.values()]
    assert manifest["unigram_entropy_nats"] == pytest.approx(-sum(share * math.log(share) for share in shares))
    for split in ("train", "val"):
        check_shards(tmp_path / "out" / split, hashes=True)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["manifest.json", "train", "val"]


@pytest.mark.parametrize("compression", ["null", "zstd"])
@pytest.mark.usefixtures("shared_memory_given_back")
def test_shards_of_a_large_vocabulary(tmp_path: Path, large_tokenizer_folder: str, compression: str) -> None:
    texts = [" ".join(f"w{(170 * number + word) % 69_998}" for word in range(50)) for number in range(500)]
    source = write_corpus(tmp_path / "a.jsonl", texts)
    options = ["split_by=block", f"compression={compression}", "shard_size=200000"]
    manifest = run(source, large_tokenizer_folder, tmp_path / "out", *options)
    assert manifest["token_dtype"] == "uint32"
    if compression == "zstd":
        assert (tmp_path / "out/train/00000/shard.00000.mds.zstd").exists()
    found = Counter()
    for split in ("train", "val"):
        check_shards(tmp_path / "out" / split, hashes=True)
        dataset = StreamingDataset(local=str(tmp_path / "out"), split=split, shuffle=False, batch_size=1)
        found.update(tuple(sample["input_ids"].tolist()) for sample in dataset)
    assert found == cut(reference(large_tokenizer_folder, texts))


def test_tokenizer_with_cls(tmp_path: Path, cls_tokenizer_folder: str) -> None:
    source = write_corpus(tmp_path / "a.jsonl", ["Über allen Gipfeln ist Ruh"] * 30)
    run(source, cls_tokenizer_folder, tmp_path / "out", "split_by=block")
    found = {token for block in blocks_of(tmp_path / "out/train") for token in block}
    assert found == {5, 6, 7, 8, 9, 2}


# What heavy libraries a process of the command has imported in the end, a line for each process.
NOTE_IMPORTS = """
import atexit, os, sys

def note():
    heavy = [name for name in ("torch", "transformers", "pyarrow", "datasets") if sys.modules.get(name)]
    full = ["streaming.base.dataset"] if "streaming.base.dataset" in sys.modules else []
    is_command = sys.argv[0].endswith("convert_dataset.py") and os.getppid() == int(os.environ["TEST_PROCESS"])
    with open(os.environ["NOTES"], "a") as file:
        file.write(f"{'command' if is_command else 'other'} {heavy + full}\\n")

atexit.register(note)
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_the_command_and_what_it_imports(
    tmp_path: Path, tokenizer_folder: str, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    """From the root of the checkout. Half a gigabyte of libraries in each process would be for nothing."""
    source = write_corpus(tmp_path / "a.jsonl", some_texts(200))
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook/sitecustomize.py").write_text(NOTE_IMPORTS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "hook"))
    monkeypatch.setenv("NOTES", str(tmp_path / "notes"))
    monkeypatch.setenv("TEST_PROCESS", str(os.getpid()))
    arguments = [
        f"source.path={source}", f"tokenizer={tokenizer_folder}", f"out={tmp_path / 'mds'}", "val_blocks=2",
        f"workers={workers}",
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "scripts/convert_dataset.py", "yamls/data/local.yaml", *arguments],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "val: 2 blocks of 512, 1,024 tokens" in done.stdout
    assert read_manifest(tmp_path / "mds")["block_size"] == 512
    notes = (tmp_path / "notes").read_text().splitlines()
    assert "command []" in notes
    assert sum("torch" in note for note in notes) == 0
    assert sum("transformers" in note for note in notes) <= 1  # who loads the tokenizer, for a moment

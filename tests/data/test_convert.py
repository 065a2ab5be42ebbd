"""The whole conversion: what goes in comes out, the same each time; what fails leaves nothing behind."""

from __future__ import annotations

import errno
import gzip
import json
import math
import os
import random
import re
import runpy
import string
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from streaming import MDSWriter
from streaming.base.format import reader_from_json

from bertchen.config import load_config
from bertchen.config.schema_convert import ConvertConfig
from bertchen.data import convert as convert_module
from bertchen.data.convert import convert
from bertchen.data.manifest import read_manifest
from bertchen.data.shards import check_shards
from bertchen.errors import UserError
from bertchen.tokenizer import load_tokenizer, separator_id, tokenizer_fingerprint

ROOT = Path(__file__).resolve().parents[2]
SCRIPT, YAML = ROOT / "scripts/convert_dataset.py", ROOT / "yamls/data/local.yaml"
BLOCK = 16
LONG = "Über allen Gipfeln ist Ruh. " * 700

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


def write_corpus(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


def some_texts(count: int, seed: int = 0) -> list[str]:
    words = re.findall(r"\w+", "Über allen Gipfeln ist Ruh, in allen Wipfeln spürest du kaum einen Hauch")
    numbers = random.Random(seed)
    return [" ".join(numbers.choices(words, k=numbers.randint(1, 60))) for _ in range(count)]


def run(source: Path, tokenizer: str, out: Path, *overrides: str) -> dict[str, Any]:
    arguments = [f"source.path={source}", f"tokenizer={tokenizer}", f"out={out}", *overrides]
    defaults = [f"block_size={BLOCK}", "val_blocks=3", "workers=2"]
    return convert(load_config(ConvertConfig, [str(YAML), *defaults, *arguments], "usage"))


def blocks_of(folder: Path) -> list[tuple[int, ...]]:
    """The blocks of a split, by Streaming's own reader, in the order in which they are written."""
    index = json.loads((folder / "index.json").read_text())
    readers = [reader_from_json(str(folder), None, shard) for shard in index["shards"]]
    return [tuple(reader[row]["input_ids"].tolist()) for reader in readers for row in range(reader.samples)]


def reference(tokenizer_folder: str, texts: list[str]) -> list[int]:
    """Hugging Face's tokens of each text and the separator, joined."""
    tokenizer = load_tokenizer(tokenizer_folder)
    encoded = [tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids for text in texts]
    return [token for ids in encoded if ids for token in [*ids, separator_id(tokenizer)]]


def cut(tokens: list[int]) -> Counter[tuple[int, ...]]:
    return Counter(tuple(tokens[at : at + BLOCK]) for at in range(0, len(tokens) // BLOCK * BLOCK, BLOCK))


def everything_in(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too, with its content."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def shards_in(out: Path) -> dict[str, bytes]:
    return {name: raw for name, raw in everything_in(out).items() if name != "manifest.json"}


@given(st.lists(TEXT, min_size=1, max_size=20))
@example(["", "[SEP] ist Text", LONG, "", "e\u0301 \u2028"])
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_split_by_block_gives_what_went_in(
    tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: str, texts: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("conversion")
    texts = [*texts, LONG]
    manifest = run(write_corpus(folder / "a.jsonl", texts), tokenizer_folder, folder / "out", "split_by=block")
    tokens = reference(tokenizer_folder, texts)
    train, val = blocks_of(folder / "out/train"), blocks_of(folder / "out/val")
    assert Counter(train) + Counter(val) == cut(tokens)
    assert len(val) == 3
    assert manifest["dropped_tokens"] == {"remainder": len(tokens) % BLOCK, "validation_documents": 0}


@given(st.lists(st.integers(0, 200), min_size=1, max_size=50), st.integers(0, 3))
@example([0, 5, 9000, 0, 40, 40], 0)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_split_by_document_has_no_document_on_both_sides(
    tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: str, lengths: list[int], seed: int
) -> None:
    """Each document is a character of its own, repeated, so that a block tells of which documents it is."""
    folder = tmp_path_factory.mktemp("conversion")
    tokenizer = load_tokenizer(tokenizer_folder)
    texts = [character * length for character, length in zip(string.printable, [*lengths, 90, 90, 90], strict=False)]
    manifest = run(write_corpus(folder / "a.jsonl", texts), tokenizer_folder, folder / "out", f"seed={seed}")
    train, val = blocks_of(folder / "out/train"), blocks_of(folder / "out/val")
    in_val = set("".join(tokenizer.decode(block, skip_special_tokens=True) for block in val))
    kept = [text for text in texts if not set(text) & in_val]
    assert Counter(train) == cut(reference(tokenizer_folder, kept))
    assert len(val) == 3
    assert manifest["splits"]["val"]["documents"] == len(in_val)


def test_same_bytes_for_any_number_of_workers_and_again(tmp_path: Path, tokenizer_folder: str) -> None:
    source = write_corpus(tmp_path / "a.jsonl", some_texts(200))
    outs = {}
    for name, workers in [("one", 1), ("two", 2), ("again", 2), ("all", 0)]:
        run(source, tokenizer_folder, tmp_path / name, f"workers={workers}", "shard_size=4000")
        outs[name] = shards_in(tmp_path / name)
    assert len(outs["one"]) > 4
    assert outs["one"] == outs["two"] == outs["again"] == outs["all"]


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
    texts = [*some_texts(150), "", ""]
    run(write_corpus(tmp_path / "a.jsonl", texts), tokenizer_folder, tmp_path / "out", "val_blocks=5")
    manifest = read_manifest(tmp_path / "out")
    tokenizer = load_tokenizer(tokenizer_folder)
    assert manifest["tokenizer"] == {
        "name": tokenizer_folder,
        "fingerprint": tokenizer_fingerprint(tokenizer),
        "vocab_size": len(tokenizer),
        "separator_id": 2,
        "special_ids": {"pad": 0, "unk": 1, "sep": 2, "mask": 3},
    }
    assert (manifest["version"], manifest["block_size"], manifest["token_dtype"]) == (1, BLOCK, "uint16")
    assert (manifest["documents"], manifest["empty_documents"]) == (152, 2)
    assert manifest["documents_by_file"] == {str(tmp_path / "a.jsonl"): 152}
    assert manifest["characters"] == sum(map(len, texts))
    assert manifest["config"]["val_blocks"] == 5
    assert manifest["seed"] == 42

    tokens = reference(tokenizer_folder, texts)
    train = blocks_of(tmp_path / "out/train")
    splits = manifest["splits"]
    assert (splits["train"]["blocks"], splits["train"]["tokens"]) == (len(train), len(train) * BLOCK)
    assert (splits["val"]["blocks"], splits["val"]["tokens"]) == (5, 5 * BLOCK)
    assert manifest["tokens"] == {"in_documents": len(tokens) - 150, "separators": 150}
    written = sum(split["tokens"] for split in manifest["splits"].values())
    assert written + sum(manifest["dropped_tokens"].values()) == len(tokens)
    assert manifest["characters_per_token"] == pytest.approx(manifest["characters"] / (len(tokens) - 150))

    lengths = [len(reference(tokenizer_folder, [text])) - 1 for text in texts if text]
    assert manifest["tokens_per_document"]["p50"] == pytest.approx(float(np.median(lengths)))
    assert manifest["tokens_per_document"]["max"] == max(lengths)
    counts = Counter(token for block in train for token in block)
    shares = [count / counts.total() for count in counts.values()]
    assert manifest["unigram_entropy_nats"] == pytest.approx(-sum(share * math.log(share) for share in shares))
    for split in ("train", "val"):
        check_shards(tmp_path / "out" / split, hashes=True)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["manifest.json", "train", "val"]


@pytest.mark.parametrize("compression", ["null", "zstd"])
def test_shards_of_a_large_vocabulary(tmp_path: Path, large_tokenizer_folder: str, compression: str) -> None:
    texts = [" ".join(f"w{(17 * number + word) % 69_998}" for word in range(50)) for number in range(4000)]
    source = write_corpus(tmp_path / "a.jsonl", texts)
    options = ["split_by=block", f"compression={compression}"]
    manifest = run(source, large_tokenizer_folder, tmp_path / "out", *options)
    assert manifest["token_dtype"] == "uint32"
    if compression == "null":
        found = Counter(blocks_of(tmp_path / "out/train") + blocks_of(tmp_path / "out/val"))
        assert found == cut(reference(large_tokenizer_folder, texts))
    else:
        assert (tmp_path / "out/train/shard.00000.mds.zstd").exists()
        check_shards(tmp_path / "out/train", hashes=True)


def test_tokenizer_with_cls(tmp_path: Path, cls_tokenizer_folder: str) -> None:
    source = write_corpus(tmp_path / "a.jsonl", ["Über allen Gipfeln ist Ruh"] * 30)
    run(source, cls_tokenizer_folder, tmp_path / "out", "split_by=block")
    found = {token for block in blocks_of(tmp_path / "out/train") for token in block}
    assert found == {5, 6, 7, 8, 9, 2}


def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Runs the command in this process; its exit code and the error that it printed."""
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
    capsys.readouterr()
    try:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    except SystemExit as ending:
        errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1
        return int(ending.code or 0), errors[0]
    return 0, ""


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["source.path=missing"], "missing: matches no file"),
        (["source.path=empty.jsonl"], "source.path=empty.jsonl: there is no text in 2 documents"),
        (["source.path=cut.jsonl.gz"], "cut.jsonl.gz: cut off"),
        (["source.path=7"], "source.path=7 (from the command line): should be a file, a folder, a glob"),
        (["source.text_column=body"], "no column body; columns there: text"),
        (["tokenizer=./missing"], "tokenizer ./missing: no such folder"),
        (["out=full"], "out=full is not empty"),
        (["val_blocks=100000"], "val_blocks=100000: the corpus has "),
        (["val_blocks=0"], "val_blocks=0 (from the command line): should be at least 1"),
        (["val_blocks=-3"], "val_blocks=-3 (from the command line): should be at least 1"),
        (["block_size=0"], "block_size=0 (from the command line): should be at least 2"),
        (["block_size=-512"], "block_size=-512"),
        (["block_size=1.5"], "block_size=1.5 (from the command line): wrong type"),
        (["workers=-1"], "workers=-1"),
        (["seed=-1"], "seed=-1"),
        (["shard_size=100"], "shard_size=100"),
        (["strategy=greedy"], "strategy=greedy (from the command line): unknown, should be one of: naive"),
        (
            ["split_by=file"],
            "split_by=file (from the command line): unknown, should be one of: document, block",
        ),
        (["compression=rar"], "compression=rar (from the command line): should be null or zstd"),
        (["val_block=3"], "val_block (from the command line): unknown key; did you mean val_blocks?"),
        (["out=.", "overwrite=true"], "out=. has no manifest.json in it"),
    ],
)
def test_errors_end_with_code_2_and_leave_nothing(
    tmp_path: Path,
    tokenizer_folder: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    overrides: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_corpus(tmp_path / "a.jsonl", some_texts(50))
    write_corpus(tmp_path / "empty.jsonl", ["", ""])
    raw = gzip.compress((tmp_path / "a.jsonl").read_bytes())
    (tmp_path / "cut.jsonl.gz").write_bytes(raw[:-20])
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    before = everything_in(tmp_path)
    arguments = [
        "source.path=a.jsonl",
        f"tokenizer={tokenizer_folder}",
        "out=out",
        f"block_size={BLOCK}",
        "val_blocks=3",
    ]
    code, error = command(monkeypatch, capsys, str(YAML), *arguments, *overrides)
    assert code == 2
    assert message in error
    assert everything_in(tmp_path) == before
    assert not (tmp_path / "out").exists()


def test_what_must_be_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, error = command(monkeypatch, capsys, str(YAML), "tokenizer=x", "source.path=y")
    assert code == 2
    assert "out is not set" in error


def write_fails(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(self: MDSWriter, sample: dict[str, Any]) -> None:
        if len(self.new_samples) > 10:
            raise error
        original(self, sample)

    original = MDSWriter.write
    monkeypatch.setattr(MDSWriter, "write", write)


@pytest.mark.parametrize("replaces", [False, True])
def test_full_disk_while_writing_shards(
    tmp_path: Path, tokenizer_folder: str, monkeypatch: pytest.MonkeyPatch, replaces: bool
) -> None:
    source = write_corpus(tmp_path / "a.jsonl", some_texts(100))
    if replaces:
        run(source, tokenizer_folder, tmp_path / "out")
    before = everything_in(tmp_path)
    write_fails(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), monkeypatch)
    with pytest.raises(UserError, match=r"no space left on the device while writing .*out"):
        run(source, tokenizer_folder, tmp_path / "out", f"overwrite={replaces}")
    assert everything_in(tmp_path) == before


def test_full_disk_while_tokenizing(tmp_path: Path, tokenizer_folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("/dev/full is not here")
    source = write_corpus(tmp_path / "a.jsonl", some_texts(100))
    original = convert_module.tokenize_documents
    monkeypatch.setattr(
        convert_module,
        "tokenize_documents",
        lambda documents, tokenizer, path, *rest: original(documents, tokenizer, Path("/dev/full"), *rest),
    )
    before = everything_in(tmp_path)
    with pytest.raises(UserError, match=r"no space left on the device while writing .*out"):
        run(source, tokenizer_folder, tmp_path / "out")
    assert everything_in(tmp_path) == before


def test_interrupt_leaves_nothing(tmp_path: Path, tokenizer_folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_corpus(tmp_path / "a.jsonl", some_texts(100))
    before = everything_in(tmp_path)
    write_fails(KeyboardInterrupt(), monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        run(source, tokenizer_folder, tmp_path / "out")
    assert everything_in(tmp_path) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl"]


def test_overwrite_replaces_a_data_set(tmp_path: Path, tokenizer_folder: str) -> None:
    source = write_corpus(tmp_path / "a.jsonl", some_texts(100))
    run(source, tokenizer_folder, tmp_path / "out", "seed=1", "shard_size=4000")
    run(source, tokenizer_folder, tmp_path / "fresh", "seed=2")
    run(source, tokenizer_folder, tmp_path / "out", "seed=2", "overwrite=true")
    assert shards_in(tmp_path / "out") == shards_in(tmp_path / "fresh")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "fresh", "out"]


def test_overwrite_does_not_remove_its_own_input(tmp_path: Path, tokenizer_folder: str) -> None:
    source = write_corpus(tmp_path / "a.jsonl", some_texts(100))
    run(source, tokenizer_folder, tmp_path / "out")
    inside = write_corpus(tmp_path / "out/b.jsonl", some_texts(100))
    before = everything_in(tmp_path)
    with pytest.raises(UserError, match=r"source\.path=.*lies in out="):
        run(inside, tokenizer_folder, tmp_path / "out", "overwrite=true")
    assert everything_in(tmp_path) == before


def test_the_command_from_the_root_of_the_checkout(tmp_path: Path, tokenizer_folder: str) -> None:
    source = write_corpus(tmp_path / "a.jsonl", some_texts(200))
    arguments = [
        f"source.path={source}",
        f"tokenizer={tokenizer_folder}",
        f"out={tmp_path / 'mds'}",
        "val_blocks=2",
    ]
    done = subprocess.run(
        [sys.executable, "scripts/convert_dataset.py", "yamls/data/local.yaml", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "val: 2 blocks of 512, 1,024 tokens" in done.stdout
    assert read_manifest(tmp_path / "mds")["block_size"] == 512

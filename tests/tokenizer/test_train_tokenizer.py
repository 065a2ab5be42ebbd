"""scripts/train_tokenizer.py: kinds of input, held-out documents, comparison, errors that leave nothing."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from bertchen.config import load_config
from bertchen.config.schema_tokenizer import TokenizerConfig
from bertchen.errors import UserError
from bertchen.tokenizer import load_tokenizer, tokenizer_fingerprint
from bertchen.tokenizer.training import show_report, train_from_files

ROOT = Path(__file__).resolve().parents[2]
SENTENCES = ["Der Fluss fließt durch die Stadt.", "Über den Fluss führt eine alte Brücke.", "Grüße aus Köln!"]
TEXTS = [f"{SENTENCES[number % 3]}\n{SENTENCES[number % 2]} {number}" for number in range(60)]


def json_lines(texts: list[str], key: str = "text") -> bytes:
    return "".join(json.dumps({key: text}, ensure_ascii=False) + "\n" for text in texts).encode()


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "a.jsonl.zst").write_bytes(zstandard.ZstdCompressor().compress(json_lines(TEXTS[:30])))
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(json_lines(TEXTS[30:])))
    return folder


def train(*overrides: str) -> dict:
    return train_from_files(load_config(TokenizerConfig, [str(ROOT / "yamls/tokenizer.yaml"), *overrides], ""))


def test_writes_a_tokenizer_and_its_report(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "tokenizer"
    report = train(f"input={corpus}/*.jsonl.*", f"out={out}", "vocab_size=330", "held_out=0.1")
    tokenizer = load_tokenizer(str(out))
    assert len(tokenizer) == 330
    assert json.loads((out / "report.json").read_text(encoding="utf-8")) == report
    assert report["fingerprint"] == tokenizer_fingerprint(tokenizer)
    assert report["training"]["documents"] + report["measured_on"]["documents"] == len(TEXTS)
    assert report["measured_on"]["text"] == "held-out documents"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus", "new"]


def test_every_kind_of_file_gives_the_same_tokenizer(corpus: Path, tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"body": TEXTS}), tmp_path / "all.parquet")
    (tmp_path / "all.jsonl").write_bytes(json_lines(TEXTS))
    (tmp_path / "list").mkdir()
    for number, text in enumerate(TEXTS):
        (tmp_path / "list" / f"{number:02}.txt").write_text(text, encoding="utf-8")
    sources = {
        "zst_gz": [f"input={corpus}"],
        "jsonl": [f"input={tmp_path}/all.jsonl"],
        "parquet": [f"input=[{tmp_path}/all.parquet]", "text_column=body"],
        "txt": [f"input={tmp_path}/list/*.txt"],
    }
    for name, overrides in sources.items():
        train(*overrides, f"out={tmp_path}/{name}", "vocab_size=330")
    written = {(tmp_path / name / "tokenizer.json").read_bytes() for name in sources}
    assert len(written) == 1


def test_held_out_documents_are_not_trained_on(tmp_path: Path) -> None:
    """Each document is written in a letter of its own, so the vocabulary tells which were read."""
    letters = [chr(0x4E00 + number) for number in range(200)]
    (tmp_path / "a.jsonl").write_bytes(json_lines([letter * 20 + " xy" * 3 for letter in letters]))
    left_out = {}
    for name, seed in {"first": 1, "again": 1, "other": 2}.items():
        report = train(
            f"input={tmp_path}/a.jsonl",
            f"out={tmp_path}/{name}",
            "held_out=0.2",
            f"seed={seed}",
            "vocab_size=9999",
        )
        vocab = load_tokenizer(str(tmp_path / name)).get_vocab()
        left_out[name] = {letter for letter in letters if letter not in vocab}
        assert len(left_out[name]) == report["measured_on"]["documents"]
        assert report["tokenizers"][0]["byte_share"] > 0.5
    assert 15 < len(left_out["first"]) < 70  # 40 are expected, with a standard deviation of 6
    assert left_out["first"] == left_out["again"] != left_out["other"]


def test_limits(corpus: Path, tmp_path: Path) -> None:
    options = [f"input={corpus}", "vocab_size=330", "held_out=0"]
    report = train(*options, f"out={tmp_path}/x", "max_documents=20")
    assert report["training"]["documents"] == 20
    assert report["training"]["characters"] == sum(map(len, TEXTS[:20]))
    assert report["measured_on"]["text"] == "training documents"
    report = train(*options, f"out={tmp_path}/y", "max_characters=1001")
    assert report["training"]["characters"] == 1001


def test_comparison(corpus: Path, tmp_path: Path) -> None:
    train(f"input={corpus}", f"out={tmp_path}/small", "vocab_size=310")
    report = train(f"input={corpus}", f"out={tmp_path}/large", "vocab_size=350", f"compare_to=[{tmp_path}/small]")
    large, small = report["tokenizers"]
    assert small["name"].endswith("small")
    assert (small["vocab_size"], large["vocab_size"]) == (310, 350)
    assert small["tokens_per_word"] > large["tokens_per_word"] > 1
    table = show_report(report).splitlines()[-3:]
    assert table[0].split() == ["tokenizer", "entries", "tokens/word", "characters/token", "bytes", "unknown"]
    assert len({len(line) for line in table}) == 1


def test_overwriting(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "tokenizer"
    options = [f"input={corpus}", f"out={out}"]
    train(*options, "vocab_size=310")
    (out / "old").touch()
    with pytest.raises(UserError, match=r"is not empty.*overwrite=true"):
        train(*options, "vocab_size=320")
    assert len(load_tokenizer(str(out))) == 310
    train(*options, "vocab_size=320", "overwrite=true")
    assert len(load_tokenizer(str(out))) == 320
    assert not (out / "old").exists()


ERRORS = {
    "matches nothing": (["input={dir}/nothing/*.jsonl"], "nothing"),
    "input of a wrong type": (["input=3"], "input=3 .*should be a file"),
    "input not given": ([], "input is not set"),
    "no documents": (["input={dir}/empty.jsonl"], "no text to train on"),
    "blank documents": (["input={dir}/blank.jsonl"], "no text to train on"),
    "missing column": (
        ["input={dir}/corpus", "text_column=content"],
        "no column content; columns there: text",
    ),
    "damaged file": (["input={dir}/damaged.jsonl.gz"], "damaged.jsonl.gz.*cut off"),
    "out is a file": (["input={dir}/corpus", "out={dir}/blank.jsonl"], "is a file"),
    "out below a file": (["input={dir}/corpus", "out={dir}/blank.jsonl/x"], "can't be written"),
    "misspelt key": (["input={dir}/corpus", "vocabsize=300"], "vocabsize .*did you mean vocab_size"),
    "tiny vocabulary": (["input={dir}/corpus", "vocab_size=280"], "vocab_size=280 is too small"),
    "held_out": (["input={dir}/corpus", "held_out=1"], "held_out=1.*0 to 0.5"),
    "max_documents": (["input={dir}/corpus", "max_documents=0"], "max_documents=0.*at least 1"),
    "compare_to": (
        ["input={dir}/corpus", "compare_to=[{dir}/no/tokenizer/]"],
        "no/tokenizer/: no such folder",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors_name_the_cause_and_leave_nothing(case: str, corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "blank.jsonl").write_bytes(json_lines(["", " \n"]))
    (tmp_path / "damaged.jsonl.gz").write_bytes(gzip.compress(json_lines(TEXTS))[:-20])
    before = sorted(tmp_path.rglob("*"))
    overrides, message = ERRORS[case]
    with pytest.raises(UserError, match=message):
        train(f"out={tmp_path}/out", *(item.format(dir=tmp_path) for item in overrides))
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(("override", "code"), [("vocab_size=330", 0), ("out_folder=x", 2)])
def test_command(override: str, code: int, corpus: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "scripts/train_tokenizer.py"), str(ROOT / "yamls/tokenizer.yaml")]
    result = subprocess.run(
        [*command, f"input={corpus}/*.jsonl.zst", f"out={tmp_path}/out", override],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert result.returncode == code, result.stderr
    assert (tmp_path / "out" / "tokenizer.json").exists() == (code == 0)
    assert ("tokens/word" in result.stdout) == (code == 0)
    assert not code or len(result.stderr.splitlines()) == 1, result.stderr

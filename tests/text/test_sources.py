"""Sources: what the keys of a YAML give, and the message for each that is wrong."""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertchen.config.load import load_config
from bertchen.config.schema_convert import ConvertConfig
from bertchen.errors import UserError
from bertchen.text.documents import RowRules
from bertchen.text.sources import Source, SourceFile, choose_files, resolve_sources

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with files below `corpus/`."""
    monkeypatch.chdir(tmp_path)
    for name in ("a.jsonl", "b/c.jsonl", "b/d.jsonl"):
        (tmp_path / "corpus" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "corpus" / name).write_text(json.dumps({"text": name, "meta": {"warnings": ["tiny"]}}) + "\n")
    (tmp_path / "books").mkdir()
    (tmp_path / "books/e.txt").write_text("ein Buch")
    return tmp_path


def resolve(*argv: str) -> list[Source]:
    return resolve_sources(load_config(ConvertConfig, [*argv, "tokenizer=t", "out=o"], ""))


def test_a_single_source(corpus: Path) -> None:
    (source,) = resolve("source.path=corpus", "source.text_column=content", "source.group_rows=true")
    assert source.name == "source"
    assert [file.path for file in source.files] == ["corpus/a.jsonl", "corpus/b/c.jsonl", "corpus/b/d.jsonl"]
    assert [file.bytes for file in source.files] == [Path(file.path).stat().st_size for file in source.files]
    assert source.rules == RowRules("content", group_rows=True)
    assert (source.fraction, source.documents, source.tokens, source.weight, source.revision) == (None,) * 5


def test_a_list_of_paths(corpus: Path) -> None:
    (source,) = resolve("source.path=[corpus/b,books]")
    assert [file.path for file in source.files] == ["books/e.txt", "corpus/b/c.jsonl", "corpus/b/d.jsonl"]


def test_rows_to_drop(corpus: Path) -> None:
    (source,) = resolve(
        "source.path=corpus", "source.drop_rows.column=meta.warnings", "source.drop_rows.values=[tiny,3]"
    )
    assert source.rules == RowRules(drop_column="meta.warnings", drop_values=("tiny", "3"))


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [("fraction", 0.25, 0.25), ("fraction", 1, None), ("documents", 7, 7), ("tokens", 10**12, 10**12)],
)
def test_samples(corpus: Path, key: str, value: float, expected: float | None) -> None:
    (source,) = resolve("source.path=corpus", f"source.sample.{key}={value}")
    assert getattr(source, key) == expected
    assert len(source.files) == 3


def test_several_sources(corpus: Path) -> None:
    wiki, books = resolve(
        "sources.wiki.path=corpus", "sources.books.path=books", "sources.wiki.weight=3", "sources.books.weight=0.5"
    )
    assert [(source.name, source.weight) for source in (wiki, books)] == [("wiki", 3), ("books", 0.5)]
    assert [file.path for file in books.files] == ["books/e.txt"]


def test_a_local_yaml_beside_several_sources(corpus: Path) -> None:
    """What a YAML sets to the default doesn't make `source` used."""
    found = resolve(str(ROOT / "yamls/data/local.yaml"), "sources.a.path=corpus", "sources.b.path=books")
    assert [source.name for source in found] == ["a", "b"]


def test_a_folder_like_a_repository_gives_the_name(corpus: Path) -> None:
    (source,) = resolve("source.hub=corpus", "source.files=b/*.jsonl")
    assert source.name == "corpus"
    assert [file.path for file in source.files] == ["corpus/b/c.jsonl", "corpus/b/d.jsonl"]
    (corpus / "corpus").rename(corpus / "mein.korpus (1)")
    assert resolve("source.hub=./mein.korpus (1)/", "source.files=b")[0].name == "mein-korpus-1"


# --- whole files


def some_files(names: list[str]) -> list[SourceFile]:
    return [SourceFile(name, 1, "") for name in names]


@given(st.integers(1, 200), st.integers(1, 10_000), st.integers(0, 1 << 63))
def test_chosen_files_make_the_fraction(count: int, parts: int, seed: int) -> None:
    fraction = parts / 10_000
    files = some_files([f"corpus/{number:03d}.jsonl" for number in range(count)])
    chosen, left = choose_files(files, fraction, seed)
    exact = Fraction(parts, 10_000)
    assert len(chosen) == math.ceil(exact * count)
    assert 0 < left <= 1
    assert len(chosen) * left / count == pytest.approx(fraction)
    assert list(chosen) == [file for file in files if file in chosen]
    assert choose_files(files, fraction, seed) == (chosen, left)


@pytest.mark.parametrize("root", ["/data/", "hf://datasets/user/name@0123abc/", "s3://bucket/x/", ""])
def test_the_choice_is_the_same_wherever_the_source_lies(root: str) -> None:
    names = [f"de/{part}/{number}.jsonl" for part in "ab" for number in range(50)]
    chosen, _ = choose_files(some_files([root + name for name in names]), 0.1, 42)
    here, _ = choose_files(some_files(names), 0.1, 42)
    assert [file.path.removeprefix(root) for file in chosen] == [file.path for file in here]


def test_the_choice_depends_on_the_seed_and_is_even() -> None:
    files = some_files([f"{number}.jsonl" for number in range(20)])
    chosen = Counter(file.path for seed in range(2000) for file in choose_files(files, 0.1, seed)[0])
    assert len(chosen) == 20  # each of them 200 times of 2,000, more or less
    assert all(140 < times < 260 for times in chosen.values())


def test_a_fraction_of_files(corpus: Path) -> None:
    (source,) = resolve("source.path=corpus", "source.sample.fraction=0.5", "source.sample.by=file")
    assert len(source.files) == 2
    assert source.fraction == 0.75
    shutil.copytree(corpus / "corpus", corpus / "elsewhere")
    (copy,) = resolve(f"source.path={corpus}/elsewhere", "source.sample.fraction=0.5", "source.sample.by=file")
    assert [Path(file.path).name for file in copy.files] == [Path(file.path).name for file in source.files]
    (whole,) = resolve("source.path=corpus", "source.sample.fraction=1", "source.sample.by=file")
    assert (len(whole.files), whole.fraction) == (3, None)


# --- what is wrong

TWO = ["sources.a.path=corpus", "sources.b.path=books"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "no source: set source.path .* or source.hub .* sources"),
        (["source.path=nowhere"], "source.path: nowhere: matches no file"),
        (["source.path=[corpus,nowhere]"], "source.path: nowhere: matches no file"),
        (["source.path=3"], "source.path=3 .from the command line.: should be a file, a folder, a glob, a URL or a"),
        (["source.path=[]"], r"source.path=\[\] .*should be a file"),
        (["source.path=[corpus,3]"], r"source.path=\['corpus', 3\] .*should be a file"),
        (["source.path=corpus", "source.hub=user/name"], "exactly one of source.path and source.hub should be set"),
        ([*TWO, "sources.c.text_column=x"], "exactly one of sources.c.path and sources.c.hub should be set"),
        ([*TWO, "source.path=corpus"], "source.path=corpus .*sources is set, so source isn't read: use one of them"),
        ([*TWO, "source.group_rows=true"], "source.group_rows=True .*sources is set"),
        (["sources.mein korpus.path=corpus"], r"'mein korpus' should be of letters, digits, _ and -"),
        (["source.path=corpus", "source.config=de"], "source.config=de .*is for a source with `hub`"),
        (["source.path=corpus", "source.split=test"], "source.split=test .*is for a source with `hub`"),
        (["source.path=corpus", "source.revision=v1"], "source.revision=v1 .*is for a source with `hub`"),
        (["source.path=corpus", "source.files=b/*.jsonl"], r"source.files=b/\*.jsonl .*is for a source with `hub`"),
        (["source.hub=corpus", "source.files=b/*", "source.config=de"], "source.config=de .*`files` names the files"),
        (["source.hub=corpus", "source.files=b/*", "source.split=test"], "source.split=test .*leave one of the two"),
        (["source.hub=corpus", "source.files=5"], "source.files=5 .*should be a pattern of files in the repository"),
        (["source.hub=corpus", "source.files=b/*", "source.revision=v1"], "source.hub: corpus is a local folder"),
        (["source.hub=corpus", "source.files=b/*.parquet"], r"source.hub: corpus/b/\*.parquet: matches no file"),
        (["source.path=corpus", "source.text_column=''"], "source.text_column='' .*should be the name of a column"),
        (
            ["source.path=corpus", "source.drop_rows.column=x"],
            "source.drop_rows.values=.*takes a column and the values",
        ),
        (["source.path=corpus", "source.drop_rows.values=[x]"], "source.drop_rows.column=None .*takes a column and"),
        (["source.path=corpus", "source.sample.fraction=0"], "source.sample.fraction=0.0 .*above 0, at most 1"),
        (["source.path=corpus", "source.sample.fraction=1.5"], "source.sample.fraction=1.5 .*above 0, at most 1"),
        (["source.path=corpus", "source.sample.fraction=nan"], "source.sample.fraction=nan .*above 0, at most 1"),
        (["source.path=corpus", "source.sample.documents=0"], "source.sample.documents=0 .*at least 1"),
        (["source.path=corpus", "source.sample.tokens=-1"], "source.sample.tokens=-1 .*at least 1"),
        (
            ["source.path=corpus", "source.sample.tokens=5", "source.sample.fraction=0.1"],
            "source.sample.tokens=5 .*only one of fraction, documents, tokens can be set, and fraction is",
        ),
        (["source.path=corpus", "source.sample.by=row"], "source.sample.by=row .*one of: document, file"),
        (["source.path=corpus", "source.sample.by=file"], "source.sample.by=file .*for sample.fraction only"),
        (
            ["source.path=corpus", "source.sample.by=file", "source.sample.tokens=5"],
            "source.sample.by=file .*for sample.fraction only",
        ),
        (["source.path=corpus", "source.weight=1"], "source.weight=1.0 .*leave it out"),
        ([*TWO, "sources.b.weight=1"], "sources.a.weight=None .*either all sources have a weight or none has"),
        ([*TWO, "sources.a.weight=1", "sources.b.weight=0"], "sources.b.weight=0.0 .*should be a number above 0"),
        ([*TWO, "sources.a.weight=inf", "sources.b.weight=1"], "sources.a.weight=inf .*should be a number above 0"),
        (["source.path=corpus", "on_bad_rows=ignore"], "on_bad_rows=ignore .*one of: fail, skip"),
        ([*TWO, "sources.b.sample.fraction=2"], "sources.b.sample.fraction=2.0 "),
    ],
)
def test_wrong_keys(corpus: Path, argv: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        resolve(*argv)


def write_records(folder: Path, records: list[Any]) -> list[str]:
    (folder / "rows").mkdir()
    path = folder / "rows/a.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), path)
    lines = folder / "rows/a.jsonl"
    lines.write_text("".join(json.dumps(record) + "\n" for record in records))
    return [str(lines), str(path)]


def test_a_column_to_drop_by_that_no_row_has(corpus: Path) -> None:
    """A typing error there would drop nothing without a word."""
    records = [{"text": "a", "meta": {"warnings": None}}, {"text": "b", "meta": {"warnings": ["x"]}}]
    for path in write_records(corpus, records):
        argv = [f"source.path={path}", "source.drop_rows.values=[tiny]"]
        assert resolve(*argv, "source.drop_rows.column=meta.warnings")
        with pytest.raises(
            UserError, match=r"source.drop_rows.column=meta.warning .*: no column meta.warning; columns"
        ):
            resolve(*argv, "source.drop_rows.column=meta.warning")


def test_text_files_have_no_column_to_drop_by(corpus: Path) -> None:
    with pytest.raises(UserError, match=r"source.drop_rows.column=x .*books/e\.txt is a text file"):
        resolve("source.path=books", "source.drop_rows.column=x", "source.drop_rows.values=[y]")

"""Readers: what was written comes out, in every kind of file, and what can't be read is named."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bertchen.errors import UserError
from bertchen.text.documents import Document
from bertchen.text.files import resolve_paths, total_bytes
from bertchen.text.readers import read_documents

COMPRESS = {
    "": lambda raw: raw,
    ".gz": gzip.compress,
    ".zst": lambda raw: zstandard.ZstdCompressor().compress(raw),
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}
TEXTS = ["Grüße aus Köln", "", "zwei\nZeilen", "\u2028\x85 trennt\r\nnicht", "𝔄 \x00 \ufeff", "x" * 300_000]


def json_lines(texts: list[str], ascii_only: bool = False) -> bytes:
    return b"".join(json.dumps({"id": 1, "text": text}, ensure_ascii=ascii_only).encode() + b"\n" for text in texts)


def write(path: Path, raw: bytes) -> str:
    path.write_bytes(raw)
    return str(path)


def texts_of(path: str, **options: str) -> list[str]:
    return [document.text for document in read_documents([path], **options)]


@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize("kind", [".jsonl", ".json"])
def test_json_lines(tmp_path: Path, kind: str, compression: str) -> None:
    path = write(tmp_path / f"a{kind}{compression}", COMPRESS[compression](json_lines(TEXTS)))
    assert list(read_documents([path])) == [Document(text, path, row) for row, text in enumerate(TEXTS)]


@pytest.mark.parametrize("compression", COMPRESS)
def test_text_file_is_one_document(tmp_path: Path, compression: str) -> None:
    text = "Erste Zeile\r\n\n" + "Ärger " * 100_000
    path = write(tmp_path / f"a.txt{compression}", COMPRESS[compression](text.encode()))
    assert list(read_documents([path])) == [Document(text, path, 0)]


@pytest.mark.parametrize("kind", [pyarrow.string(), pyarrow.large_string()])
def test_parquet(tmp_path: Path, kind: pyarrow.DataType) -> None:
    texts = TEXTS + [str(number) for number in range(300)]
    table = pyarrow.table({"id": range(len(texts)), "content": pyarrow.array(texts, kind)})
    path = str(tmp_path / "a.parquet")
    pyarrow.parquet.write_table(table, path, row_group_size=100)
    documents = list(read_documents([path], text_column="content"))
    assert documents == [Document(text, path, row) for row, text in enumerate(texts)]


@given(
    st.lists(st.text(st.characters(exclude_categories=["Cs"]))),
    st.booleans(),
    st.sampled_from(sorted(COMPRESS)),
)
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_survives(tmp_path: Path, texts: list[str], ascii_only: bool, compression: str) -> None:
    path = write(tmp_path / f"a.jsonl{compression}", COMPRESS[compression](json_lines(texts, ascii_only)))
    assert texts_of(path) == texts


@pytest.mark.parametrize("compression", [".gz", ".zst", ".bz2", ".xz"])
def test_files_of_several_members(tmp_path: Path, compression: str) -> None:
    """Parallel compressors and `cat a.gz b.gz` write more than one gzip member or zstd frame."""
    members = [COMPRESS[compression](json_lines([text])) for text in ["eins", "zwei"]]
    path = write(tmp_path / f"a.jsonl{compression}", b"".join(members))
    assert texts_of(path) == ["eins", "zwei"]


def test_blank_lines_missing_last_line_feed_windows_and_byte_order_mark(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", b'\xef\xbb\xbf{"text": "a"}\r\n\r\n  \n{"text": "b"}')
    assert [(document.text, document.row) for document in read_documents([path])] == [("a", 0), ("b", 3)]


@pytest.mark.parametrize("compression", COMPRESS)
def test_on_bytes_adds_up_to_total_bytes(tmp_path: Path, compression: str) -> None:
    paths = [write(tmp_path / f"{name}.jsonl{compression}", COMPRESS[compression](json_lines(TEXTS))) for name in "ab"]
    table = pyarrow.table({"text": [str(number) for number in range(1000)]})
    pyarrow.parquet.write_table(table, tmp_path / "c.parquet")
    paths.append(str(tmp_path / "c.parquet"))
    seen: list[int] = []
    assert sum(1 for _ in read_documents(paths, on_bytes=seen.append)) == 2 * len(TEXTS) + 1000
    assert sum(seen) == total_bytes(paths) == sum(Path(path).stat().st_size for path in paths)


def test_memory_is_bound_by_a_document_not_by_the_file(tmp_path: Path) -> None:
    words = np.random.default_rng(0).integers(10**9, 10**10, (100, 40_000))
    raw = json_lines([" ".join(map(str, row)) for row in words])
    path = write(tmp_path / "a.jsonl.gz", gzip.compress(raw, compresslevel=1))
    tracemalloc.start()
    try:
        assert sum(len(document.text) for document in read_documents([path])) == 100 * (11 * 40_000 - 1)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < len(raw) / 4


def test_resolve_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [
        "b.jsonl",
        "a.txt.gz",
        "deep/er/c.parquet",
        "deep/notes.md",
        ".hidden/d.txt",
        "deep/._a.txt",
    ]:
        (tmp_path / "corpus" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "corpus" / name).touch()
    monkeypatch.chdir(tmp_path)
    everything = ["corpus/a.txt.gz", "corpus/b.jsonl", "corpus/deep/er/c.parquet"]
    assert resolve_paths("corpus") == everything
    assert resolve_paths("corpus/") == everything
    assert resolve_paths("corpus/**/*") == everything
    assert resolve_paths("corpus/*.jsonl") == ["corpus/b.jsonl"]
    assert resolve_paths("./corpus/b.jsonl") == ["corpus/b.jsonl"]
    assert resolve_paths(["corpus/b.jsonl", str(tmp_path / "corpus/b.jsonl"), "corpus/*.gz", "corpus"]) == everything
    assert resolve_paths(str(tmp_path / "corpus")) == [str(tmp_path / name) for name in everything]


@pytest.mark.parametrize("source", ["missing", "missing.jsonl", "*.parquet", "", [], ["a.txt", "missing"]])
def test_source_that_matches_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").touch()
    expected = "empty" if not source else "missing|parquet"
    with pytest.raises(UserError, match=expected):
        resolve_paths(source)


@pytest.mark.parametrize("source", ["a.csv", "*.csv", "folder", "a.parquet.gz"])
def test_unknown_kind_of_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    for name in ["a.csv", "folder/b.csv", "a.parquet.gz"]:
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=r"known: \.jsonl, \.json, \.txt, \.parquet"):
        resolve_paths(source)


def test_unknown_protocol() -> None:
    with pytest.raises(UserError, match=r"nosuch://bucket/a\.jsonl"):
        resolve_paths("nosuch://bucket/a.jsonl")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "b"', r"a\.jsonl, line 2: not JSON"),
        (b"[1]", r"a\.jsonl, line 2: JSON array"),
        (b'{"id": 1, "content": "b"}', r"a\.jsonl, line 2: no column text; columns there: id, content"),
        (b'{"text": null}', r"a\.jsonl, line 2: text is null, should be a string"),
        (b'{"text": 7}', r"a\.jsonl, line 2: text is number, should be a string"),
        (b'{"text": ["b"]}', r"a\.jsonl, line 2: text is array"),
        (b'{"text": "\xff"}', r"a\.jsonl, line 2: not UTF-8"),
        (b'{"text": "\\ud800"}', r"a\.jsonl, line 2: text is not valid Unicode"),
    ],
)
def test_bad_line_is_named(tmp_path: Path, line: bytes, message: str) -> None:
    path = write(tmp_path / "a.jsonl", b'{"text": "a"}\n' + line + b'\n{"text": "c"}\n')
    documents = read_documents([path])
    assert next(documents).text == "a"
    with pytest.raises(UserError, match=message):
        next(documents)


@pytest.mark.parametrize("compression", [".gz", ".zst", ".bz2", ".xz"])
@pytest.mark.parametrize("keep", [0.0, 0.5, 0.99])
def test_cut_off_file(tmp_path: Path, compression: str, keep: float) -> None:
    raw = COMPRESS[compression](json_lines([str(number**5) for number in range(20_000)]))
    path = write(tmp_path / f"a.jsonl{compression}", raw[: int(keep * len(raw))])
    with pytest.raises(UserError, match=rf"a\.jsonl\{compression}: cut off"):
        texts_of(path)


@pytest.mark.parametrize("compression", [".gz", ".zst", ".bz2", ".xz"])
def test_damaged_file(tmp_path: Path, compression: str) -> None:
    path = write(tmp_path / f"a.jsonl{compression}", json_lines(["not compressed at all"]))
    with pytest.raises(UserError, match=rf"a\.jsonl\{compression}: damaged"):
        texts_of(path)


def test_parquet_errors(tmp_path: Path) -> None:
    path = str(tmp_path / "a.parquet")
    pyarrow.parquet.write_table(pyarrow.table({"id": [1, 2], "text": ["a", None]}), path)
    with pytest.raises(UserError, match=r"a\.parquet, row 2: text is null"):
        texts_of(path)
    with pytest.raises(UserError, match=r"a\.parquet: no column body; columns there: id, text"):
        texts_of(path, text_column="body")
    with pytest.raises(UserError, match=r"a\.parquet: column id holds int64, should hold strings"):
        texts_of(path, text_column="id")
    whole = Path(path).read_bytes()
    with pytest.raises(UserError, match=r"b\.parquet: not a readable Parquet file"):
        texts_of(write(tmp_path / "b.parquet", whole[: len(whole) // 2]))


def test_file_that_vanished(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.jsonl: can't be read"):
        texts_of(str(tmp_path / "gone.jsonl"))


def test_real_corpus() -> None:
    corpus = Path(__file__).resolve().parents[3] / "shared/data/corpus"
    if not corpus.is_dir():
        pytest.skip("../shared/data/corpus is not here")
    documents = list(read_documents(resolve_paths(str(corpus))))
    assert len(documents) == 612 + 2222
    assert sum(len(document.text) for document in documents) == pytest.approx(58.8e6 + 61.9e6, rel=1e-3)

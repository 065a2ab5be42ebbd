"""Chunks: put together they are the file, wherever they are cut and from wherever reading goes on."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bertchen.text import files, parquet, readers
from bertchen.text.chunks import Chunk
from bertchen.text.documents import BAD_REASONS, Document, Rejected, RowRules
from bertchen.text.readers import read_chunks

COMPRESS = {
    "": lambda raw: raw,
    ".gz": gzip.compress,
    ".zst": lambda raw: zstandard.ZstdCompressor().compress(raw),
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}


def write(path: Path, raw: bytes) -> str:
    path.write_bytes(raw)
    return str(path)


def json_lines(records: list[Any]) -> bytes:
    return b"".join(json.dumps(record, ensure_ascii=False).encode() + b"\n" for record in records)


def write_json(folder: Path, texts: list[str]) -> str:
    return write(folder / "a.jsonl", json_lines([{"id": 1, "text": text} for text in texts]))


def write_json_gz(folder: Path, texts: list[str]) -> str:
    return write(folder / "a.jsonl.gz", gzip.compress(json_lines([{"text": text} for text in texts])))


def write_lines(folder: Path, texts: list[str]) -> str:
    return write(folder / "a.txt", "".join(f"{text}\n" for text in texts).encode())


def write_lines_zst(folder: Path, texts: list[str]) -> str:
    """The last line has no end."""
    return write(folder / "a.txt.zst", COMPRESS[".zst"]("\n".join(texts).encode()))


def write_parquet(folder: Path, texts: list[str]) -> str:
    table = pyarrow.table({"id": range(len(texts)), "text": pyarrow.array(texts, pyarrow.string())})
    pyarrow.parquet.write_table(table, folder / "a.parquet", row_group_size=7)
    return str(folder / "a.parquet")


def all_rows(chunks: list[Chunk]) -> list[Document | Rejected]:
    return [row for chunk in chunks for row in chunk.rows()]


def grouped(texts: list[str], path: str) -> list[Document]:
    """The groups between the blank rows, one row after the other."""
    found: list[Document] = []
    before_is_blank = True
    for row, text in enumerate(texts):
        if text.strip():
            if before_is_blank:
                found.append(Document(text, path, row))
            else:
                found[-1] = Document(f"{found[-1].text}\n{text}", path, found[-1].row)
        before_is_blank = not text.strip()
    return found


TEXT = st.one_of(st.just(""), st.just("  "), st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
# In a text file, these would end a line, or be taken off its end or the file's beginning.
LINE = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n\r\ufeff"), max_size=30)


@pytest.mark.parametrize("group_rows", [False, True])
@pytest.mark.parametrize("write_file", [write_json, write_json_gz, write_parquet, write_lines, write_lines_zst])
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), chunk_bytes=st.integers(1, 300), read_bytes=st.integers(1, 100))
def test_chunks_are_the_file(
    tmp_path: Path,
    write_file: Callable[[Path, list[str]], str],
    group_rows: bool,
    data: st.DataObject,
    chunk_bytes: int,
    read_bytes: int,
) -> None:
    as_lines = write_file in (write_lines, write_lines_zst)
    if as_lines and not group_rows:
        return  # a text file is then one row
    texts = data.draw(st.lists(LINE if as_lines else TEXT, max_size=30))
    if group_rows:  # one line feed at the end is taken off, so let there be none
        texts = [text.rstrip("\r\n") for text in texts]
    path = write_file(tmp_path, texts)
    rules = RowRules(group_rows=group_rows)
    with (
        mock.patch.object(readers, "CHUNK_BYTES", chunk_bytes),
        mock.patch.object(files, "READ_BYTES", read_bytes),
        mock.patch.object(parquet, "_BATCH_ROWS", 3),
    ):
        chunks = list(read_chunks(path, rules))
        check_chunks(chunks, path, rules)

    rows = all_rows(chunks)
    if group_rows:
        assert rows == grouped(texts, path)
        return
    assert [row.row for row in rows] == list(range(len(texts)))
    assert [row.text if isinstance(row, Document) else "" for row in rows] == [
        text if text.strip() else "" for text in texts
    ]
    assert all(row.reason == "empty" and row.is_bad for row in rows if isinstance(row, Rejected))


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    records=st.lists(
        st.tuples(st.sampled_from(["", "a", "b\u00fc"]), st.sampled_from(["de", "en", None])), max_size=30
    ),
    chunk_bytes=st.integers(1, 200),
)
def test_groups_without_the_rows_to_drop(
    tmp_path: Path, kind: str, records: list[tuple[str, str | None]], chunk_bytes: int
) -> None:
    """A row that is dropped doesn't end a document either."""
    path = tmp_path / f"a.{kind}"
    if kind == "jsonl":
        write(path, json_lines([{"text": text, "lang": lang} for text, lang in records]))
    else:
        texts, langs = ([record[column] for record in records] for column in (0, 1))
        columns = {"text": pyarrow.array(texts, pyarrow.string()), "lang": pyarrow.array(langs, pyarrow.string())}
        pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=5)
    rules = RowRules(group_rows=True, drop_column="lang", drop_values=("en",))
    with mock.patch.object(readers, "CHUNK_BYTES", chunk_bytes):
        chunks = list(read_chunks(str(path), rules))
        check_chunks(chunks, str(path), rules)
    rows = all_rows(chunks)
    kept = [row for row, (_, lang) in enumerate(records) if lang != "en"]
    expected = grouped([records[row][0] for row in kept], str(path))
    found = [row for row in rows if isinstance(row, Document)]
    assert [row.text for row in found] == [document.text for document in expected]
    assert [row.row for row in found] == [kept[document.row] for document in expected]
    assert [row.row for row in rows if isinstance(row, Rejected)] == sorted(set(range(len(records))) - set(kept))


def check_chunks(chunks: list[Chunk], path: str, rules: RowRules) -> None:
    """What holds for the chunks of every file."""
    assert sum(chunk.stored_bytes for chunk in chunks) == Path(path).stat().st_size
    assert min(chunk.stored_bytes for chunk in chunks) >= 0
    assert [chunk.first_row for chunk in chunks] == [0, *(chunk.next_row for chunk in chunks[:-1])]
    assert len(chunks) == 1 or all(chunk.next_row > chunk.first_row for chunk in chunks)
    for index, chunk in enumerate(chunks):
        assert list(read_chunks(path, rules, chunk.next_row)) == chunks[index + 1 :] or chunk.next_row == 0
        assert pickle.loads(pickle.dumps(chunk)) == chunk
        assert list(pickle.loads(pickle.dumps(chunk)).rows()) == list(chunk.rows())


@pytest.mark.parametrize("group_rows", [False, True])
def test_chunks_are_of_about_the_size_asked_for(tmp_path: Path, group_rows: bool) -> None:
    texts = ["" if number % 5 == 4 else f"Zeile {number}" * 4 for number in range(4000)]
    for path in (write_json(tmp_path, texts), write_parquet(tmp_path, texts)):
        with mock.patch.object(readers, "CHUNK_BYTES", 2000):
            sizes = [
                sum(len(text.encode()) for text in texts[chunk.first_row : chunk.next_row])
                for chunk in read_chunks(path, RowRules(group_rows=group_rows))
            ]
        assert len(sizes) > 15
        assert max(sizes) < 2500
        assert min(sizes[:-1]) > 800  # the rows weigh something besides their text


def test_a_text_file_is_one_chunk(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", ("Zeile\n\n" * 1000).encode())
    with mock.patch.object(readers, "CHUNK_BYTES", 10):
        chunks = list(read_chunks(path, RowRules()))
    check_chunks(chunks, path, RowRules())
    assert all_rows(chunks) == [Document("Zeile\n\n" * 1000, path, 0)]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.txt.xz", "a.parquet"])
def test_a_file_without_rows_is_one_chunk_without_rows(tmp_path: Path, name: str) -> None:
    path = str(tmp_path / name)
    if name == "a.parquet":
        path = write_parquet(tmp_path, [])
    else:
        write(tmp_path / name, COMPRESS[Path(name).suffix if name.count(".") > 1 else ""](b""))
    chunks = list(read_chunks(path, RowRules(group_rows=True)))
    check_chunks(chunks, path, RowRules(group_rows=True))
    assert [(chunk.next_row, list(chunk.rows())) for chunk in chunks] == [(0, [])]


def test_an_empty_text_file_is_an_empty_document(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", b"")
    (row,) = all_rows(list(read_chunks(path, RowRules())))
    assert (row.reason, row.row, row.message) == ("empty", 0, f"{path}: the text is empty")


@pytest.mark.parametrize("group_rows", [False, True])
@pytest.mark.parametrize("compression", [".gz", ".zst", ".bz2", ".xz"])
@pytest.mark.parametrize("damage", ["cut off", "damaged"])
def test_what_is_whole_before_the_damage_is_given(
    tmp_path: Path, compression: str, damage: str, group_rows: bool
) -> None:
    texts = ["" if number % 4 == 3 else str(number**5) for number in range(12_000)]
    halves = texts[:6000], texts[6000:]
    parts = [COMPRESS[compression](json_lines([{"text": text} for text in half])) for half in halves]
    parts[1] = parts[1][:-100] if damage == "cut off" else b"no compressed data"
    path = write(tmp_path / f"a.jsonl{compression}", b"".join(parts))
    rules = RowRules(group_rows=group_rows)
    with mock.patch.object(readers, "CHUNK_BYTES", 50_000):
        chunks = list(read_chunks(path, rules))
        check_chunks(chunks, path, rules)
    *whole, bad = all_rows(chunks)
    assert (bad.reason, bad.row, bad.is_bad) == ("damaged file", -1, True)
    assert bad.message.startswith(f"{path}: {damage}")
    expected = (
        grouped(texts, path) if group_rows else [Document(text, path, row) for row, text in enumerate(texts) if text]
    )
    whole = [row for row in whole if isinstance(row, Document)]
    assert whole == expected[: len(whole)]
    assert len(whole) >= (1499 if group_rows else 4499)


def test_damaged_text_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt.gz", gzip.compress(b"Text" * 1000)[:-10])
    chunks = list(read_chunks(path, RowRules()))
    check_chunks(chunks, path, RowRules())
    assert [row.reason for row in all_rows(chunks)] == ["damaged file"]


@pytest.mark.parametrize("group_rows", [False, True])
def test_damaged_parquet_page(tmp_path: Path, group_rows: bool) -> None:
    rng = np.random.default_rng(0)
    texts = ["" if row % 5 == 4 else rng.bytes(40).hex() for row in range(20_000)]
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(
        pyarrow.table({"text": texts}), path, compression="zstd", use_dictionary=False, data_page_size=20_000
    )
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2 : len(raw) // 2 + 30_000] = bytes(30_000)
    rules = RowRules(group_rows=group_rows)
    with mock.patch.object(readers, "CHUNK_BYTES", 100_000):
        chunks = list(read_chunks(write(path, bytes(raw)), rules))
        check_chunks(chunks, str(path), rules)
    *whole, bad = all_rows(chunks)
    assert bad.reason == "damaged file"
    assert "not a readable Parquet file" in bad.message
    expected = grouped(texts, str(path))
    if not group_rows:
        expected = [Document(text, str(path), row) for row, text in enumerate(texts) if text]
        whole = [row for row in whole if isinstance(row, Document)]
    assert len(expected) / 4 < len(whole) < len(expected)
    assert whole == expected[: len(whole)]


@pytest.mark.parametrize("keep", [0, 100, -1])
def test_parquet_without_its_footer(tmp_path: Path, keep: int) -> None:
    path = write_parquet(tmp_path, ["Text"] * 100)
    write(Path(path), Path(path).read_bytes()[:keep])
    chunks = list(read_chunks(path, RowRules()))
    check_chunks(chunks, path, RowRules())
    assert [row.reason for row in all_rows(chunks)] == ["damaged file"]


@pytest.mark.parametrize(
    ("column", "reason", "message"),
    [
        ("body", "no text column", "no column body; columns there: id, text, meta.a, meta.b"),
        ("meta", "not a string", "column meta holds struct<a: string, b: list<element: string>>, should hold strings"),
        ("meta.b", "not a string", "column meta.b holds list"),
        ("meta.c", "no text column", "no column meta.c"),
    ],
)
def test_parquet_without_the_text_column(tmp_path: Path, column: str, reason: str, message: str) -> None:
    table = pyarrow.table({"id": [1, 2], "text": ["a", "b"], "meta": [{"a": "x", "b": ["y"]}] * 2})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    path, rules = str(tmp_path / "a.parquet"), RowRules(column)
    chunks = list(read_chunks(path, rules))
    check_chunks(chunks, path, rules)
    (bad,) = all_rows(chunks)
    assert (bad.reason, bad.row) == (reason, -1)
    assert bad.message.startswith(f"{path}: {message}")


BAD_LINES = [
    (b'{"text": "b"', "not JSON"),
    (b"[1]", "not JSON"),
    (b'{"text": %s}' % (b"1" * 5000), "not JSON"),
    (b'{"content": "b"}', "no text column"),
    (b'{"text": null}', "not a string"),
    (b'{"text": ["b"]}', "not a string"),
    (b'{"text": "\xff"}', "not UTF-8"),
    (b'{"text": "\\ud800"}', "not UTF-8"),
    (b'{"text": "\\n"}', "empty"),
]


def test_bad_lines_are_named_and_the_others_read(tmp_path: Path) -> None:
    lines = [line for bad, _ in BAD_LINES for line in (bad, b'{"text": "gut"}')]
    path = write(tmp_path / "a.jsonl", b"\n".join(lines))
    rows = all_rows(list(read_chunks(path, RowRules())))
    assert rows[1::2] == [Document("gut", path, row) for row in range(1, len(lines), 2)]
    assert [row.reason for row in rows[::2]] == [reason for _, reason in BAD_LINES]
    assert {row.reason for row in rows[::2]} | {"damaged file"} == set(BAD_REASONS)
    assert all(row.message.startswith(f"{path}, line {row.row + 1}: ") and row.is_bad for row in rows[::2])


def test_bad_rows_of_parquet(tmp_path: Path) -> None:
    binary = pyarrow.array([b"a", None, b"\xff", b" "])
    table = pyarrow.table({"text": pyarrow.Array.from_buffers(pyarrow.string(), 4, binary.buffers())})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    path = str(tmp_path / "a.parquet")
    rows = all_rows(list(read_chunks(path, RowRules())))
    assert rows[0] == Document("a", path, 0)
    assert [(row.row, row.reason) for row in rows[1:]] == [(1, "not a string"), (2, "not UTF-8"), (3, "empty")]
    assert rows[1].message == f"{path}, row 2: text is null, should be a string"


def test_a_bad_row_in_a_group_is_left_out_of_it(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.jsonl", b'{"text": "a\\n"}\n{"text": 1}\n{"text": "b\\r\\n"}\n{"text": "\\n"}\n{"text": "c"}\n'
    )
    first, second, third = all_rows(list(read_chunks(path, RowRules(group_rows=True))))
    assert (first.reason, first.row) == ("not a string", 1)
    assert (second, third) == (Document("a\nb", path, 0), Document("c", path, 4))


def test_lines_of_windows_and_a_byte_order_mark(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "\ufeffeins\r\n\ufeffzwei\r\n \r\n\r\ndrei\r\n".encode())
    assert all_rows(list(read_chunks(path, RowRules(group_rows=True)))) == [
        Document("eins\n\ufeffzwei", path, 0),
        Document("drei", path, 4),
    ]


# What is nested in OSCAR, with every form that the column of drop_rows may have.
NESTED = [
    {"content": {"text": "a"}, "metadata": {"warnings": None}},
    {"content": {"text": "b"}, "metadata": {"warnings": ["tiny", "adult"]}},
    {"content": {"text": "c"}, "metadata": {"warnings": []}},
    {"content": {"text": "d"}, "metadata": None},
    {"content": {"text": "e"}, "metadata": {"warnings": ["fine"]}},
    {"content": None, "metadata": {"warnings": ["adult"]}},
    {"content": None, "metadata": {"warnings": None}},
]


def nested_json(folder: Path) -> str:
    return write(folder / "a.jsonl", json_lines(NESTED))


def nested_parquet(folder: Path) -> str:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(NESTED), folder / "a.parquet")
    return str(folder / "a.parquet")


@pytest.mark.parametrize("write_file", [nested_json, nested_parquet])
def test_nested_columns_and_rows_to_drop(tmp_path: Path, write_file: Callable[[Path], str]) -> None:
    path = write_file(tmp_path)
    rules = RowRules("content.text", drop_column="metadata.warnings", drop_values=("adult", "noisy"))
    rows = all_rows(list(read_chunks(path, rules)))
    assert [row.text for row in rows if isinstance(row, Document)] == ["a", "c", "d", "e"]
    dropped, also_dropped, bad = (row for row in rows if isinstance(row, Rejected))
    assert (dropped.row, dropped.reason, dropped.is_bad) == (1, "drop_rows: adult", False)
    assert (also_dropped.row, also_dropped.is_bad) == (5, False)
    assert (bad.row, bad.reason, bad.is_bad) == (6, "not a string", True)


def test_values_to_drop_may_be_numbers_and_truths(tmp_path: Path) -> None:
    records = [{"text": "a", "x": 3}, {"text": "b", "x": True}, {"text": "c", "x": "3"}, {"text": "d"}]
    path = write(tmp_path / "a.jsonl", json_lines(records))
    rows = all_rows(list(read_chunks(path, RowRules(drop_column="x", drop_values=("3", "True")))))
    assert [row.row for row in rows if isinstance(row, Document)] == [3]


@pytest.mark.parametrize("write_file", [nested_json, nested_parquet])
def test_a_column_that_bears_the_whole_name_comes_first(tmp_path: Path, write_file: Callable[[Path], str]) -> None:
    records = [{**NESTED[0], "content.text": "flach"}]
    with mock.patch.dict(globals(), NESTED=records):
        path = write_file(tmp_path)
    assert [row.text for row in all_rows(list(read_chunks(path, RowRules("content.text"))))] == ["flach"]


@pytest.mark.parametrize(
    "kind", [pyarrow.large_string(), pyarrow.dictionary(pyarrow.int32(), pyarrow.string()), pyarrow.string_view()]
)
def test_kinds_of_strings_in_parquet(tmp_path: Path, kind: pyarrow.DataType) -> None:
    table = pyarrow.table(
        {"text": pyarrow.array(["a", "b", "a"]).cast(kind), "lang": pyarrow.array(["x", "y", "x"]).cast(kind)}
    )
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    rules = RowRules(drop_column="lang", drop_values=("y",))
    rows = all_rows(list(read_chunks(str(tmp_path / "a.parquet"), rules)))
    assert [row.text if isinstance(row, Document) else row.reason for row in rows] == ["a", "drop_rows: y", "a"]


@pytest.fixture
def big_parquet(tmp_path: Path) -> Iterator[str]:
    """40 MB of text in one row group and then some small ones."""
    rng = np.random.default_rng(0)
    texts = [rng.bytes(1000).hex() for _ in range(22_000)]
    table = pyarrow.table({"text": texts, "lang": ["de"] * len(texts)})
    with pyarrow.parquet.ParquetWriter(tmp_path / "a.parquet", table.schema, use_dictionary=False) as writer:
        writer.write_table(table.slice(0, 20_000), row_group_size=20_000)
        writer.write_table(table.slice(20_000), row_group_size=500)
    yield str(tmp_path / "a.parquet")
    (tmp_path / "a.parquet").unlink()


def test_memory_is_bound_by_pages_not_by_row_groups(big_parquet: str) -> None:
    before, pool = pyarrow.default_memory_pool(), pyarrow.proxy_memory_pool(pyarrow.default_memory_pool())
    pyarrow.set_memory_pool(pool)
    try:
        rules = RowRules(drop_column="lang", drop_values=("en",))
        assert sum(1 for chunk in read_chunks(big_parquet, rules) for _ in chunk.rows()) == 22_000
    finally:
        pyarrow.set_memory_pool(before)
    assert 0 < pool.max_memory() < 16e6


def test_row_groups_before_the_start_are_not_read(big_parquet: str) -> None:
    read: list[int] = []

    class Counting(files.StoredFile):
        def read(self, size: int = -1) -> bytes:
            read.append(len(super().read(size)))
            self.seek(-read[-1], 1)
            return super().read(size)

    with mock.patch.object(parquet, "StoredFile", Counting):
        chunks = list(read_chunks(big_parquet, RowRules(), 20_000))
    assert sum(1 for _ in all_rows(chunks)) == 2000
    assert sum(read) < 6e6

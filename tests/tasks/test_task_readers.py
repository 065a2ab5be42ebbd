"""Files in the formats that tasks are published in, as readers give them; broken ones, and what is said of them."""

from __future__ import annotations

import bz2
import csv
import gzip
import json
import lzma
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from bertchen.errors import UserError
from bertchen.tasks.examples import Answer, Origin
from bertchen.tasks.readers import READERS
from bertchen.tasks.readers.germeval24 import majority
from bertchen.tasks.readers.rows import Skipped, fields, lines

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}


def write(path: Path, content: str | bytes) -> str:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def read(reader: str, path: str, **options: Any) -> list[Any]:
    return list(READERS[reader].read(path, **options))


def broken(reader: str, path: str, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        read(reader, path, **options)
    return str(caught.value)


# --- files


@pytest.mark.parametrize("compression", COMPRESS)
def test_compressed_file_of_two_parts(tmp_path: Path, compression: str) -> None:
    compress = COMPRESS[compression]
    path = write(tmp_path / f"a.tsv{compression}", compress("ä\nb\u2028c\r\n".encode()) + compress(b"d"))
    assert list(lines(path)) == [
        (Origin(path, 1), "ä"),
        (Origin(path, 2), "b\u2028c"),
        (Origin(path, 3), "d"),
    ]


@pytest.mark.parametrize("compression", COMPRESS)
def test_cut_off_file(tmp_path: Path, compression: str) -> None:
    whole = COMPRESS[compression]("".join(f"Zeile {number}\n" for number in range(5000)).encode())
    for length in (len(whole) - 5, len(whole) // 2):
        path = write(tmp_path / f"a.tsv{compression}", whole[:length])
        with pytest.raises(UserError, match=r"a\.tsv.*: damaged or cut off"):
            list(lines(path))


def test_bytes_that_are_not_utf8(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", b"gut\n" + "schön\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"a\.tsv:2: not UTF-8"):
        list(lines(path))


def test_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", "\ufeffeins\tzwei\n")
    assert [row for _, row in fields(path, "\t", None)] == [["eins", "zwei"]]


def test_empty_file_has_no_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", "")
    assert list(lines(path)) == []
    assert list(fields(path, ",", '"')) == []


TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)


@given(rows=st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=5))
def test_quoted_fields_come_back_as_written(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]
) -> None:
    path = tmp_path_factory.mktemp("quoted") / "a.csv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=";", quotechar="'").writerows(rows)
    content = path.read_bytes()
    if content.startswith("\ufeff".encode()):  # a file can't tell this character from a byte order mark
        return
    found = list(fields(str(path), ";", "'"))
    assert [tuple(row) for _, row in found] == rows
    begins = [1]
    for row in rows:
        begins.append(begins[-1] + 1 + sum(field.count("\n") for field in row))
    assert [origin.line for origin, _ in found] == begins[:-1]


# --- GermEval 2017

POST = 'http://a.de/1\tDie ""Bahn"" \u2028 kommt\ttrue\tnegative\tAllgemein#Haupt:negative'


def test_germeval17(tmp_path: Path) -> None:
    rows = [
        POST,
        "http://a.de/2\tOhne Aspekte\tfalse\tneutral",
        "http://a.de/3\t\ttrue\tneutral\t",
        "http://a.de/4\tOhne Urteil",
        "",
        "http://a.de/5\tMit Tabulatoren dahinter\tfalse\tpositive\t\t",
        "http://a.de/6\tOhne Stimmung\ttrue\t\tAllgemein:neutral",
    ]
    path = write(tmp_path / "dev.tsv", "\n".join(rows) + "\n")
    found = read("germeval17", path)
    examples = [item for item in found if not isinstance(item, Skipped)]
    assert [(example.id, example.text, example.label, example.origin.line) for example in examples] == [
        ("http://a.de/1", 'Die ""Bahn"" \u2028 kommt', "negative", 1),
        ("http://a.de/2", "Ohne Aspekte", "neutral", 2),
        ("http://a.de/5", "Mit Tabulatoren dahinter", "positive", 6),
    ]
    assert [item.origin.line for item in found if isinstance(item, Skipped)] == [3, 4, 5, 7]


def test_germeval17_by_relevance_and_without_ids(tmp_path: Path) -> None:
    path = write(tmp_path / "dev.tsv", f"{POST}\n")
    (example,) = read("germeval17", path, label="relevance", ids=False)
    assert (example.id, example.label) == ("", "true")
    assert "germeval17 has relevance and sentiment" in broken("germeval17", path, label="aspects")


def test_germeval17_row_with_a_tab_in_its_text(tmp_path: Path) -> None:
    path = write(tmp_path / "dev.tsv", f"{POST}\nhttp://a.de/2\tzwei\tTeile\ttrue\tneutral\tAllgemein:neutral\n")
    assert f"{path}:2: 6 fields, should be 5 at most" in broken("germeval17", path)


# --- GermEval 2018

TWEETS = '@user "Das" ist |LBR| gut\tOTHER\tOTHER\nSo ein Mist\tOFFENSE\tPROFANITY\n'


def test_germeval18(tmp_path: Path) -> None:
    path = write(tmp_path / "germeval2018.training.txt", TWEETS)
    coarse, fine = (read("germeval18", path, label=label) for label in ("coarse", "fine"))
    assert [example.text for example in coarse] == ['@user "Das" ist |LBR| gut', "So ein Mist"]
    assert [example.label for example in coarse] == ["OTHER", "OFFENSE"]
    assert [example.label for example in fine] == ["OTHER", "PROFANITY"]
    assert "germeval18 has coarse and fine" in broken("germeval18", path, label="middle")


@pytest.mark.parametrize("row", ["nur Text", "", "\tOTHER\tOTHER", "Text\tOTHER\tOTHER\tOTHER"])
def test_germeval18_broken_row(tmp_path: Path, row: str) -> None:
    path = write(tmp_path / "germeval2018.training.txt", f"{TWEETS}{row}\n")
    assert f"{path}:3: " in broken("germeval18", path)


# --- GermEval 2024

RANKS = ["0-Kein", "1-Gering", "2-Vorhanden", "3-Stark", "4-Extrem"]


def comment(id: str | None, *labels: str, **more: Any) -> str:
    annotations = [{"user": f"A{number:03}", "label": label} for number, label in enumerate(labels)]
    return json.dumps({"id": id, "text": f"Text {id}", "annotations": annotations, **more}) + "\n"


def test_germeval24_takes_the_label_of_most(tmp_path: Path) -> None:
    rows = [comment("a", RANKS[2], RANKS[0], RANKS[2]), "\n", comment("b", RANKS[3], RANKS[1], RANKS[1], RANKS[3])]
    found = read("germeval24", write(tmp_path / "train.jsonl", "".join(rows)))
    assert [(example.id, example.label, example.origin.line) for example in found] == [
        ("a", "2-Vorhanden", 1),
        ("b", "1-Gering", 3),
    ]


@given(st.lists(st.sampled_from(RANKS), min_size=1))
def test_majority_is_the_lowest_mode(labels: list[str]) -> None:
    assert majority(labels, Origin("", 1)) == min(statistics.multimode(labels))


def test_germeval24_labels_in_a_file_of_their_own(tmp_path: Path) -> None:
    row = {"id": "a", "text": "Text", "annotators": ["A1", "A2", "A3"]}
    path = write(tmp_path / "test.jsonl", json.dumps(row) + "\n")
    assert f"{path}:1: no annotations; data.options.targets names the file" in broken("germeval24", path)
    write(tmp_path / "targets.json", json.dumps([{"id": "a", "labels": [RANKS[4], RANKS[0], RANKS[4]]}]))
    (example,) = read("germeval24", path, targets="targets.json")
    assert example.label == "4-Extrem"

    write(tmp_path / "targets.json", json.dumps([{"id": "b", "labels": [RANKS[4]]}]))
    assert "targets.json has no labels of a" in broken("germeval24", path, targets="targets.json")
    write(tmp_path / "targets.json", json.dumps({"a": RANKS[4]}))
    assert "should be a JSON array of objects with id and labels" in broken("germeval24", path, targets="targets.json")
    assert "missing.json: no such file (data.options.targets" in broken("germeval24", path, targets="missing.json")


@pytest.mark.parametrize(
    ("row", "told"),
    [
        (comment("b"), "no annotator has labelled it"),
        (comment("b", annotations=None), "annotations is null"),
        (comment("b", annotations=[{"user": "A001"}]), "has no label"),
        (comment("b", annotations=[{"user": "A001", "label": 1}]), "a label is number"),
        (comment("b", RANKS[0], text=None), "text is null, should be a string"),
        (comment("b", RANKS[0], text=" "), "text is empty"),
        (comment(None, RANKS[0]), "id is null"),
        ('{"id": "b", "text": "abgeschn\n', "not JSON"),
        ("[]\n", "a JSON array, should be an object"),
        ('{"text": "b"}\n', "no column id; columns there: text"),
    ],
)
def test_germeval24_broken_row(tmp_path: Path, row: str, told: str) -> None:
    path = write(tmp_path / "train.jsonl", comment("a", RANKS[0]) + row)
    message = broken("germeval24", path)
    assert message.startswith(f"{path}:2: ")
    assert told in message


# --- GermEval 2014

SENTENCES = """#\thttp://de.wikipedia.org/wiki/Manfred_Korfmann\t[2009-10-17]
1\tAufgrund\tO\tO
2\t\u201e\tO\tO
3\tTroia\tB-OTH\tB-LOC
4\t-\tI-OTH\tO
5\t"\tO\tO

#\thttp://de.wikipedia.org/wiki/Bonn\t[2009-10-17]
1\tBonn\tB-LOC\tO
"""


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_germeval14(tmp_path: Path, end: str) -> None:
    path = write(tmp_path / "NER-de-train.tsv", SENTENCES.replace("\n", end))
    first, second = read("germeval14", path)
    assert first.words == ("Aufgrund", "\u201e", "Troia", "-", '"')
    assert first.tags == (("O", "O", "B-OTH", "I-OTH", "O"), ("O", "O", "B-LOC", "O", "O"))
    assert (first.origin.line, second.origin.line) == (2, 9)
    assert (second.words, second.tags) == (("Bonn",), (("B-LOC",), ("O",)))
    assert [example.tags for example in read("germeval14", path, levels=1)] == [first.tags[:1], second.tags[:1]]
    assert "germeval14 has 1 or 2" in broken("germeval14", path, levels=3)


@pytest.mark.parametrize(
    ("row", "told"),
    [("2\tBonn\tB-LOC", "3 fields, should be 4"), ("2\t\tO\tO", "no word"), ("2\tBonn\tB-LOC\t", "no inner tag")],
)
def test_germeval14_broken_row(tmp_path: Path, row: str, told: str) -> None:
    path = write(tmp_path / "NER-de-train.tsv", f"{SENTENCES}{row}\n")
    assert f"{path}:10: {told}" in broken("germeval14", path)


# --- 10kGNAD


def test_gnad10(tmp_path: Path) -> None:
    articles = [("Sport", "21-Jähriger fällt wohl bis Saisonende aus; wie's scheint."), ("Web", 'Ein "Zitat"')]
    with open(tmp_path / "train.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=";", quotechar="'").writerows(articles)
    found = read("gnad10", str(tmp_path / "train.csv"))
    assert [(example.label, example.text) for example in found] == articles


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ("Sport;zwei;drei", "3 fields, should be 2"),
        ("Sport", "1 fields, should be 2"),
        ("Sport;", "2 is empty"),
        ("Sport;'nie\ngeschlossen", "not a row of fields with ';' between"),
    ],
)
def test_gnad10_broken_row(tmp_path: Path, row: str, told: str) -> None:
    path = write(tmp_path / "train.csv", f"Web;Ein Text\n{row}\n")
    assert f"{path}:2: {told}" in broken("gnad10", path)


# --- SQuAD

CONTEXT = 'Käse "Gouda" \U0001f9c0 ist\nalt.'


def question(id: Any, *answers: tuple[str, int], **more: Any) -> dict[str, Any]:
    found = [{"text": text, "answer_start": start, "answer_id": 7} for text, start in answers]
    return {"id": id, "question": 'Was ist "id": 2?', "answers": found, **more}


def squad(*questions: dict[str, Any]) -> dict[str, Any]:
    return {"version": "1", "data": [{"paragraphs": [{"context": CONTEXT, "qas": list(questions)}], "document_id": 1}]}


QUESTIONS = [question(1, ("Gouda", 6), ("alt", 19)), question("2"), question(3, is_impossible=True)]
ANSWERS = [(Answer("Gouda", 6), Answer("alt", 19)), (), ()]


@pytest.mark.parametrize("ascii", [True, False])
def test_squad(tmp_path: Path, ascii: bool) -> None:
    text = json.dumps(squad(*QUESTIONS), indent=1, ensure_ascii=ascii)
    path = write(tmp_path / "GermanQuAD_train.json", text)
    found = read("squad", path)
    assert [example.id for example in found] == ["1", "2", "3"]
    assert [example.answers for example in found] == ANSWERS
    assert {example.context for example in found} == {CONTEXT}
    shown = text.split("\n")
    keys = ['"id": 1', '"id": "2"', '"id": 3']
    for example, key in zip(found, keys, strict=True):
        assert shown[example.origin.line - 1].strip().startswith(key)


def test_squad_on_one_line(tmp_path: Path) -> None:
    path = write(tmp_path / "dev.json", json.dumps(squad(*QUESTIONS)))
    assert [example.origin for example in read("squad", path)] == [Origin(path, 1)] * 3


def rows_of_the_hub(by_column: bool) -> list[dict[str, Any]]:
    rows = []
    for one, answers in zip(QUESTIONS, ANSWERS, strict=True):
        pairs = [{"text": answer.text, "answer_start": answer.start} for answer in answers]
        columns = {name: [pair[name] for pair in pairs] for name in ("text", "answer_start")}
        row = {"id": int(one["id"]), "context": CONTEXT, "question": one["question"]}
        rows.append({**row, "answers": columns if by_column else pairs})
    return rows


@pytest.mark.parametrize("by_column", [True, False])
@pytest.mark.parametrize("kind", [".parquet", ".jsonl"])
def test_squad_in_the_hubs_rows(tmp_path: Path, kind: str, by_column: bool) -> None:
    path, rows = tmp_path / f"0000{kind}", rows_of_the_hub(by_column)
    if kind == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        write(path, "".join(json.dumps(row) + "\n" for row in rows))
    found = read("squad", str(path))
    assert [(example.id, example.context, example.answers) for example in found] == [
        (str(number), CONTEXT, answers) for number, answers in enumerate(ANSWERS, 1)
    ]
    assert [example.origin.line for example in found] == [1, 2, 3]


@pytest.mark.parametrize(
    ("document", "told"),
    [
        ('{"data": [\n{"paragraphs": ', ":2: not JSON"),
        ("[]", "not SQuAD's format"),
        ('{"data": [{"paragraphs": [{"context": "a"}]}]}', "not SQuAD's format"),
        ('{"data": [{"paragraphs": [{"qas": [3]}]}]}', "a question is an object"),
        (json.dumps(squad(question(1, ("Gouda", 6), question=None))), ":1: question is null"),
        (json.dumps(squad({"question": "Wer?", "answers": []})), ":1: no column id"),
        (json.dumps(squad(question(1, answers=None))), ":1: question 1: answers is null"),
        (json.dumps(squad(question(1, answers=[{"text": "Gouda"}]))), ':1: question 1: answers is [{"text": "Gouda"}]'),
        (json.dumps(squad(question(1, ("", 6)))), ":1: question 1: an answer with text ''"),
        (json.dumps(squad(question(1, ("Gouda", "6")))), "answer_start '6'"),  # type: ignore[arg-type]
    ],
)
def test_squad_broken(tmp_path: Path, document: str, told: str) -> None:
    message = broken("squad", write(tmp_path / "dev.json", document))
    assert str(tmp_path / "dev.json") in message
    assert told in message


def test_damaged_parquet(tmp_path: Path) -> None:
    path = tmp_path / "0000.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows_of_the_hub(True)), path)
    path.write_bytes(path.read_bytes()[:-20])
    assert "not a readable Parquet file" in broken("squad", str(path))


# --- any table


def test_table_with_a_header(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", 'id,text,label\n7,"Ein ""Text"", lang\nund breit",gut\n8,Kurz,schlecht\n')
    found = read("table", path, id="id")
    assert [(example.id, example.text, example.label, example.origin.line) for example in found] == [
        ("7", 'Ein "Text", lang\nund breit', "gut", 2),
        ("8", "Kurz", "schlecht", 4),
    ]


def test_table_by_number_of_the_column(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", 'gut\t"Frage"\tAntwort\n')
    (example,) = read("table", path, text=2, label=1, pair=3, header=False)
    assert (example.text, example.pair, example.label) == ('"Frage"', "Antwort", "gut")
    assert "no column 4; columns there: 1, 2, 3" in broken("table", path, text=4, label=1, header=False)


def test_table_of_json_lines(tmp_path: Path) -> None:
    rows = [{"post": {"body": "Ein Text"}, "label": 1}, {"post": {"body": "Ein Text"}, "label": 2}]
    path = write(tmp_path / "a.jsonl.gz", gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    assert [example.label for example in read("table", path, text="post.body")] == ["1", "2"]
    message = broken("table", path, text="post.body", names=["schlecht", "gut"])
    assert message == f"{path}:2: label is 2, should be a number from 0 to 1, a place in names"


def test_table_of_parquet_with_numbered_labels(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a", "b"], "label": [1, 0]}), tmp_path / "a.parquet")
    found = read("table", str(tmp_path / "a.parquet"), names=["schlecht", "gut"])
    assert [example.label for example in found] == ["gut", "schlecht"]


@pytest.mark.parametrize("row", ["Kurz", "Kurz,", ",gut", "Kurz,gut,mehr", '"offen,gut'])
def test_table_broken_row(tmp_path: Path, row: str) -> None:
    path = write(tmp_path / "a.csv", f"text,label\nLang,gut\n{row}\n")
    assert f"{path}:3: " in broken("table", path)

"""From a task's YAML to its examples: splits, the checks of examples, and dividing a training set."""

from __future__ import annotations

import gzip
import json
import logging
import random
import re
from collections.abc import Sequence
from pathlib import Path
from statistics import multimode
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from bertchen.config import load_config
from bertchen.config.schema_finetune import FinetuneConfig
from bertchen.errors import UserError
from bertchen.tasks.data import TaskData, divide, load_task_data
from bertchen.tasks.examples import Origin, SpanExample, TextExample
from bertchen.tasks.readers import READERS

ROOT = Path(__file__).resolve().parents[2]
YAMLS = sorted((ROOT / "yamls/finetune").glob("*.yaml"))
SHARED = ROOT.parent / "shared/data/tasks"


def load(*arguments: str) -> TaskData:
    return load_task_data(load_config(FinetuneConfig, ["model=any", "name=any", *arguments], "usage"))


def message(*arguments: str) -> str:
    with pytest.raises(UserError) as caught:
        load(*arguments)
    return str(caught.value)


def table(folder: Path, **splits: Sequence[tuple[str, str, str]]) -> list[str]:
    """Writes (id, text, label) as JSON lines, a file for each split; the arguments that name them."""
    for split, rows in splits.items():
        records = [dict(zip(("id", "text", "label"), row, strict=True)) for row in rows]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    files = [f"data.splits.{split}={split}.jsonl" for split in splits]
    return ["task=classification", "data.reader=table", f"data.folder={folder}", "labels=[gut,schlecht]", *files]


def squad(*paragraphs: tuple[str, list[tuple[str, str, int]]]) -> str:
    """SQuAD's JSON of (context, [(id, answer, start)]), a line for each question."""
    found = []
    for context, questions in paragraphs:
        qas = [
            {"id": id, "question": f"Frage {id}?", "answers": [{"text": text, "answer_start": start}]}
            for id, text, start in questions
        ]
        found.append({"context": context, "qas": qas})
    return json.dumps({"data": [{"paragraphs": found}]}, ensure_ascii=False).replace('{"id"', '\n{"id"')


SQUAD = ["task=question_answering", "data.reader=squad"]
ROWS = [("a", "Ein Text", "gut"), ("b", "Noch einer", "schlecht"), ("c", "Der dritte", "gut")]


# --- splits


def test_splits_in_order_and_those_that_are_null(tmp_path: Path) -> None:
    arguments = table(tmp_path, test_b=ROWS[2:], dev=ROWS[1:2], test_a=ROWS[2:], train=ROWS[:1])
    assert list(load(*arguments, "data.splits.test_b=null").splits) == ["train", "dev", "test_a"]
    data = load(*arguments, "data.splits.test_a=null", "data.splits.dev=null")
    assert {name: [example.text for example in examples] for name, examples in data.splits.items()} == {
        "train": ["Ein Text"],
        "test_b": ["Der dritte"],
    }
    assert (data.kind, data.labels, data.levels) == ("classification", ["gut", "schlecht"], 1)


def test_compressed_file_is_found_under_its_plain_name(tmp_path: Path) -> None:
    arguments = table(tmp_path, train=ROWS)
    plain = load(*arguments)
    raw = (tmp_path / "train.jsonl").read_bytes()
    (tmp_path / "train.jsonl").unlink()
    (tmp_path / "train.jsonl.gz").write_bytes(gzip.compress(raw))
    found = load(*arguments)
    assert [example.id for example in found.splits["train"]] == [example.id for example in plain.splits["train"]]


def test_ids_from_texts(tmp_path: Path) -> None:
    rows = [("a", "gleich", "gut"), ("b", "anders", "gut"), ("c", "gleich", "gut")]
    first, second, third = [example.id for example in load(*table(tmp_path, train=rows)).splits["train"]]
    assert first != second
    assert third == f"{first}-2"
    reordered = load(*table(tmp_path, train=rows[::-1])).splits["train"]
    assert {example.id for example in reordered} == {first, second, third}
    named = load(*table(tmp_path, train=rows), "data.options.id=id").splits["train"]
    assert [example.id for example in named] == ["a", "b", "c"]


def test_texts_in_two_splits_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        load(*table(tmp_path, train=ROWS, test=[*ROWS[:2], ("d", "Neu", "gut")]))
    assert caplog.messages == ["test: the texts of 2 of 3 examples are in train too"]


def test_rows_that_lack_something_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "dev.tsv").write_text("u1\tText\ttrue\tneutral\nu2\t\ttrue\tneutral\n\nu3\tText\n")
    with caplog.at_level(logging.WARNING):
        data = load(
            "task=classification",
            "data.reader=germeval17",
            f"data.folder={tmp_path}",
            "data.splits.train=dev.tsv",
            "labels=[negative,neutral,positive]",
        )
    assert len(data.splits["train"]) == 1
    assert caplog.messages == ["train: 3 of 4 rows lack address, text or sentiment and are left out"]


def test_tags_and_levels(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("1\tTroia\tB-OTH\tB-LOC\n2\tTraum\tI-OTH\tO\n")
    arguments = ["task=tagging", "data.reader=germeval14", f"data.folder={tmp_path}", "data.splits.train=a.tsv"]
    data = load(*arguments, "labels=[LOC,OTH]")
    assert (data.levels, data.tags) == (2, ["O", "B-LOC", "I-LOC", "B-OTH", "I-OTH"])
    assert load(*arguments, "labels=[LOC,OTH]", "data.options.levels=1").levels == 1
    found = message(*arguments, "labels=[LOC,PER]")
    assert found.startswith(f"{tmp_path / 'a.tsv'}:1: the tag B-OTH of 'Troia'")


# --- errors


def test_label_that_is_not_in_the_list(tmp_path: Path) -> None:
    found = message(*table(tmp_path, train=[*ROWS, ("d", "Text", "Gut")]))
    assert found == f"{tmp_path / 'train.jsonl'}:4: the label Gut isn't in labels; did you mean gut?"


@pytest.mark.parametrize(
    ("text", "start"), [("Käse", 5), ("käse", 4), ("Käse", -4), ("gut\U0001f9c0", 13), ("Käse", 99)]
)
def test_answer_that_is_not_where_it_says(tmp_path: Path, text: str, start: int) -> None:
    context = "Der Käse ist gut"
    (tmp_path / "a.json").write_text(squad((context, [("q1", "Käse", 4), ("q2", text, start)])))
    found = message(*SQUAD, f"data.folder={tmp_path}", "data.splits.train=a.json")
    assert found.startswith(f"{tmp_path / 'a.json'}:3: question q2: the answer {text!r} should be at character {start}")


def test_id_that_is_there_twice(tmp_path: Path) -> None:
    arguments = [*table(tmp_path, train=ROWS, test=[("d", "x", "gut"), ("b", "y", "gut")]), "data.options.id=id"]
    first, second = tmp_path / "train.jsonl", tmp_path / "test.jsonl"
    assert message(*arguments) == f"{second}:2: the id b is there twice, first in {first}:2"
    arguments = [*table(tmp_path, train=[*ROWS, ROWS[0]]), "data.options.id=id"]
    assert message(*arguments, "data.dev_size=1") == f"{first}:4: the id a is there twice, first in {first}:1"


def test_empty_split(tmp_path: Path) -> None:
    arguments = table(tmp_path, train=ROWS, dev=[])
    assert message(*arguments) == f"{tmp_path / 'dev.jsonl'}: no examples in the split dev"


def test_text_that_is_not_unicode(tmp_path: Path) -> None:
    arguments = table(tmp_path, train=[("a", "Text", "gut"), ("b", "halb \ud800", "gut")])
    assert message(*arguments).startswith(f"{tmp_path / 'train.jsonl'}:2: not valid Unicode")


def test_file_in_two_splits(tmp_path: Path) -> None:
    arguments = table(tmp_path, train=ROWS)
    assert "the files of train too" in message(*arguments, "data.splits.test=train.jsonl")


@pytest.mark.parametrize("yaml", YAMLS, ids=lambda path: path.stem)
def test_missing_file_with_advice(yaml: Path, tmp_path: Path) -> None:
    config = load_config(FinetuneConfig, [str(yaml), "model=any"], "usage").value
    found = message(str(yaml), "data.hub=null", f"data.folder={tmp_path}")
    assert f"{tmp_path / config.data.splits['train']}: no such file (data.splits.train, from {yaml})" in found
    assert READERS[config.data.reader].advice in found
    assert "https://" in found or "http://" in found


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("data.reader=tabel", "did you mean table?"),
        ("task=tagging", "the examples that the reader table gives are for classification"),
        ("data.options={txt: a}", "data.options.txt=a (from the command line): no option of the reader table"),
        ("labels=[gut]", "classification needs at least 2"),
        ("labels=[gut,gut]", "gut is there 2 times"),
        ("data.splits.validation=a.tsv", "the splits are train, dev, and names that begin with test"),
        ("data.splits.test=[a,b]", "should be a file"),
        ("data.splits.train=null", "data.splits"),
        ("data.folder=null", "should be the folder of the task's files"),
        ("data.hub=user/name", "data.folder is set too"),
        ("data.dev_size=0", "should be at least 1"),
        ("data.dev_size=3", "should be less than the 3 examples of train that are left"),
        ("data.test_size=4", "should be less than the 3 examples of train that are left"),
    ],
)
def test_wrong_key(tmp_path: Path, override: str, told: str) -> None:
    found = message(*table(tmp_path, train=ROWS), override)
    assert told in found
    assert "(from the command line)" in found


def test_question_answering_has_no_labels(tmp_path: Path) -> None:
    arguments = [*SQUAD, f"data.folder={tmp_path}", "data.splits.train=a.json"]
    assert "question answering has no labels" in message(*arguments, "labels=[a,b]")


# --- dividing a training set


def texts(count: int) -> list[tuple[str, str, str]]:
    return [(f"id{number}", f"Text {number}", "gut") for number in range(count)]


def ids(data: TaskData) -> dict[str, set[str]]:
    return {split: {example.id for example in examples} for split, examples in data.splits.items()}


def test_divided_by_id_alone(tmp_path: Path) -> None:
    rows = texts(100)
    sizes = ["data.options.id=id", "data.dev_size=20", "data.test_size=10"]
    found = ids(load(*table(tmp_path, train=rows), *sizes))
    assert {split: len(chosen) for split, chosen in found.items()} == {"train": 70, "dev": 20, "test": 10}
    assert set.union(*found.values()) == {row[0] for row in rows}
    random.Random(0).shuffle(rows)
    assert ids(load(*table(tmp_path, train=rows), *sizes, "seed=7")) == found
    assert ids(load(*table(tmp_path, train=rows), *sizes, "data.split_seed=7"))["dev"] != found["dev"]
    assert ids(load(*table(tmp_path, train=rows), *sizes, "data.dev_size=30"))["test"] == found["test"]
    # With fewer examples, those that are left stay where they are or take a place that became free.
    fewer = ids(load(*table(tmp_path, train=[row for row in rows if row[0] not in found["dev"]]), *sizes))
    assert fewer["test"] == found["test"]


def test_given_splits_are_not_replaced(tmp_path: Path) -> None:
    arguments = table(tmp_path, train=texts(10), test_a=[("t", "anders", "gut")])
    data = load(*arguments, "data.test_size=3", "data.dev_size=2")
    assert {split: len(examples) for split, examples in data.splits.items()} == {"train": 8, "dev": 2, "test_a": 1}


def test_every_example_is_as_likely() -> None:
    examples = [TextExample(str(number), f"t{number}", "a", Origin("f", number)) for number in range(20)]
    counts = dict.fromkeys((example.id for example in examples), 0)
    for seed in range(400):
        for example in divide(examples, 5, str(seed))[0]:
            counts[example.id] += 1
    assert sum(counts.values()) == 400 * 5
    assert all(60 < count < 140 for count in counts.values())  # 100 expected, standard deviation 8.7


def test_same_texts_are_on_one_side() -> None:
    examples = [TextExample(str(number), f"t{number // 3}", "a", Origin("f", number)) for number in range(90)]
    for seed in range(20):
        chosen, rest = divide(examples, 30, str(seed))
        assert len(chosen) == 30
        assert not {example.text for example in chosen} & {example.text for example in rest}


def test_contexts_are_on_one_side() -> None:
    sizes = random.Random(0)
    examples = [
        SpanExample(f"{number}.{place}", f"Frage {place}", f"Text {number}", (), Origin("f", 1))
        for number in range(60)
        for place in range(sizes.randint(1, 5))
    ]
    for seed in range(20):
        chosen, rest = divide(examples, 40, str(seed))
        assert 36 <= len(chosen) <= 40
        assert len(chosen) + len(rest) == len(examples)
        assert not {example.context for example in chosen} & {example.context for example in rest}


def test_examples_that_cannot_be_divided(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(squad(("Der Käse", [(str(number), "Käse", 4) for number in range(5)])))
    arguments = [*SQUAD, f"data.folder={tmp_path}", "data.splits.train=a.json"]
    assert "its examples belong together" in message(*arguments, "data.test_size=2")


# --- data sets of the Hub, in local folders like them


def germanquad(folder: Path) -> Path:
    """deepset/germanquad as the Hub's Parquet branch has it."""
    for split, numbers in (("train", range(4)), ("test", range(4, 6))):
        rows: list[dict[str, Any]] = [
            {
                "id": number,
                "context": f"Antwort {number} steht hier.",
                "question": "Wo?",
                "answers": {"text": [f"{number}", "hier"], "answer_start": [8, 16]},
            }
            for number in numbers
        ]
        (folder / "plain_text" / split).mkdir(parents=True)
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "plain_text" / split / "0000.parquet")
    return folder


def test_germanquad_of_the_hub(tmp_path: Path) -> None:
    folder = germanquad(tmp_path / "germanquad")
    yaml = str(ROOT / "yamls/finetune/germanquad.yaml")
    data = load(yaml, f"data.hub={folder}", "data.revision=null")
    assert ids(data) == {"train": {"0", "1", "2", "3"}, "test": {"4", "5"}}
    assert [answer.text for answer in data.splits["test"][0].answers] == ["4", "hier"]  # type: ignore[union-attr]
    by_split = load(
        yaml, f"data.hub={folder}", "data.revision=null", "data.splits.train=train", "data.splits.test=test"
    )
    assert by_split == data
    assert "has no revision" in message(yaml, f"data.hub={folder}")


def test_json_lines_of_the_hub(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for split, label in (("train", 1), ("test", 0)):
        row = {"sentence": f"Text für {split}", "label": label}
        (tmp_path / "data" / f"{split}-00000-of-00001.jsonl").write_text(json.dumps(row) + "\n")
    data = load(
        "task=classification",
        "data.reader=table",
        f"data.hub={tmp_path}",
        "data.splits={train: train, test: test}",
        "data.options={text: sentence, names: [schlecht, gut]}",
        "labels=[gut,schlecht]",
    )
    assert [example.label for examples in data.splits.values() for example in examples] == ["gut", "schlecht"]  # type: ignore[union-attr]


# --- the YAMLs


def published(split: str) -> dict[str, str]:
    """A file of each reader's format, with other texts for each split."""
    tweet = {"coarse": "OTHER", "fine": "OTHER"}
    comment = {"id": split, "text": split, "annotations": [{"user": "A", "label": "0-Kein"}] * 2}
    return {
        "germeval17": f"http://{split}\t{split}\tfalse\tneutral\t\n",
        "germeval18": f"{split}\t{tweet['coarse']}\t{tweet['fine']}\n",
        "germeval24": "".join(
            json.dumps(comment | {"id": f"{split}{n}", "text": f"{split}{n}"}) + "\n" for n in range(1002)
        ),
        "germeval14": f"#\thttp://{split}\n1\t{split}\tB-PERpart\tB-LOC\n\n",
        "gnad10": f"Web;'{split}; ''so'''\n",
        "squad": squad(*((f"{split} {n}", [(f"{split}{n}", split, 0)]) for n in range(200))),
    }


@pytest.mark.parametrize("yaml", YAMLS, ids=lambda path: path.stem)
def test_yaml_reads_the_published_files(yaml: Path, tmp_path: Path) -> None:
    config = load_config(FinetuneConfig, [str(yaml), "model=any"], "usage").value
    assert config.name == yaml.stem
    overrides = []
    for split, name in config.data.splits.items():
        if "*" in name:
            name = f"GermanQuAD_{split}.json"
            overrides.append(f"data.splits.{split}={name}")
        (tmp_path / name).write_text(published(split)[config.data.reader])
    data = load(str(yaml), "data.hub=null", f"data.folder={tmp_path}", f"name={config.name}", *overrides)
    expected = set(config.data.splits) | ({"dev"} if config.data.dev_size else set())
    assert set(data.splits) == expected | ({"test"} if config.data.test_size else set())
    assert data.kind == config.task


@pytest.mark.parametrize(
    ("name", "lr", "weight_decay", "epochs"),
    [("germeval17", 3e-5, 3e-6, 3), ("germeval24", 3e-5, 3e-6, 3), ("germanquad", 1e-5, 1e-6, 20)],
)
def test_hyperparameters_of_the_paper(name: str, lr: float, weight_decay: float, epochs: int) -> None:
    config = load_config(FinetuneConfig, [str(ROOT / f"yamls/finetune/{name}.yaml"), "model=any"], "usage").value
    assert (config.optimizer.lr, config.optimizer.weight_decay, config.max_duration) == (
        lr,
        weight_decay,
        f"{epochs}ep",
    )
    assert (config.global_train_batch_size, config.seed, config.dropout, config.pooling) == (16, 42, 0.1, "mean")
    assert (config.optimizer.betas, config.optimizer.eps) == ([0.9, 0.98], 1e-6)
    assert (config.scheduler.name, config.scheduler.t_warmup) == ("linear_with_warmup", "0.06dur")
    assert (config.answers.n_best, config.answers.max_answer_tokens) == (20, 100)


# --- the real files

needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data/tasks is missing")


@needs_shared
def test_real_germeval17(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        data = load(
            str(ROOT / "yamls/finetune/germeval17.yaml"),
            f"data.folder={SHARED / 'germeval17'}",
            "data.splits={train: dev.tsv, dev: null, test_synchronic: test.tsv, test_diachronic: null}",
        )
    train, test = data.splits["train"], data.splits["test_synchronic"]
    assert (len(train), len(test)) == (2584, 2566)
    neutral = sum(example.label == "neutral" for example in train)  # type: ignore[union-attr]
    assert round(neutral / len(train), 2) == 0.70
    assert "train: 1 of 2585 rows lack address, text or sentiment and are left out" in caplog.messages
    assert re.search(r"test_synchronic: the texts of \d+ of 2566 examples are in train too", caplog.text)
    raw = gzip.decompress((SHARED / "germeval17/test.tsv.gz").read_bytes()).decode().split("\n")
    for example in test:
        row = raw[example.origin.line - 1].split("\t")
        assert (example.id, example.text, example.label) == (row[0], row[1], row[3])  # type: ignore[union-attr]


@needs_shared
def test_real_germeval24() -> None:
    arguments = [str(ROOT / "yamls/finetune/germeval24.yaml"), f"data.folder={SHARED / 'germeval24'}"]
    data = load(*arguments, "data.splits.test=null", "data.dev_size=null")
    (examples,) = data.splits.values()
    assert len(examples) == 5998
    raw = [
        json.loads(line)
        for line in gzip.decompress(next((SHARED / "germeval24").glob("*.jsonl.gz")).read_bytes()).splitlines()
    ]
    lowest = {row["id"]: min(multimode(one["label"] for one in row["annotations"])) for row in raw}
    assert {example.id: example.label for example in examples} == lowest  # type: ignore[union-attr]
    assert sum(label == "0-Kein" for label in lowest.values()) == 4385  # 73.1 %, the majority class
    divided = load(*arguments, "data.splits.test=null", "data.test_size=1000")
    assert {split: len(found) for split, found in divided.splits.items()} == {"train": 3998, "dev": 1000, "test": 1000}


@needs_shared
def test_real_mlqa() -> None:
    data = load(str(ROOT / "yamls/finetune/mlqa_de.yaml"), f"data.folder={SHARED / 'mlqa_de'}")
    sides = list(data.splits.values())
    assert sum(map(len, sides)) == 512
    assert 120 <= len(data.splits["test"]) <= 128
    train, test = ({example.context for example in side} for side in sides)  # type: ignore[union-attr]
    assert not train & test
    assert len(train | test) == 456

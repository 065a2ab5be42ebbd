"""results.jsonl and predictions: every line is kept, whatever is killed, and nothing is overwritten."""

from __future__ import annotations

import errno
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bertchen.errors import UserError
from bertchen.tasks import results
from bertchen.tasks.examples import Answer, Origin, SpanExample, TagExample, TextExample
from bertchen.tasks.results import (
    append_result,
    find_done,
    prediction_row,
    predictions_name,
    read_predictions,
    read_results,
    write_predictions,
)

ORIGIN = Origin("file", 1)


def record(seed: int, **more: object) -> dict[str, object]:
    return {"task": "gnad10", "split": "test", "seed": seed, "metrics": {"accuracy": 0.5}, **more}


def test_records_are_read_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "results.jsonl"
    odd = "Größe\u2028\u0085\r\n„x“ 🙂"  # some of these end a line elsewhere
    for seed in range(3):
        append_result(path, record(seed, model=odd))
    assert [line["seed"] for line in read_results(path)] == [0, 1, 2]
    assert read_results(path)[0]["model"] == odd
    assert path.read_bytes().count(b"\n") == 3


def test_what_json_has_not_becomes_what_it_has(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    metrics = {"nan": float("nan"), "inf": np.inf, "numpy": np.float32(0.5), "counts": np.arange(2), "path": Path("a")}
    append_result(path, {"task": "t", "metrics": metrics, "half": "\ud800"})
    json.loads(path.read_text(encoding="utf-8"), parse_constant=pytest.fail)
    (read,) = read_results(path)
    assert read["metrics"] == {"nan": None, "inf": None, "numpy": 0.5, "counts": [0, 1], "path": "a"}
    assert read["half"] == "\ud800"


@pytest.mark.parametrize("kept", [1, 10, 40])
def test_a_line_that_was_cut_off_is_reported_and_stays_apart(
    kept: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "results.jsonl"
    append_result(path, record(1))
    append_result(path, record(2, model="ü"))
    whole = path.read_bytes()
    end = whole.index(b"\n") + 1
    path.write_bytes(whole[: end + kept])
    with caplog.at_level(logging.WARNING):
        assert [line["seed"] for line in read_results(path)] == [1]
    assert "results.jsonl, line 2: cut off" in caplog.text
    append_result(path, record(3))
    append_result(path, record(4))
    assert [line["seed"] for line in read_results(path)] == [1, 3, 4]
    assert path.read_bytes().startswith(whole[: end + kept] + b"\n")


def test_a_line_that_lacks_its_end_alone_counts(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    append_result(path, record(1))
    path.write_bytes(path.read_bytes()[:-1])
    append_result(path, record(2))
    assert [line["seed"] for line in read_results(path)] == [1, 2]


@pytest.mark.parametrize("content", ['["a"]\n', "task,metrics\n", '{"step": 1}\n', "1\n"])
def test_another_file_is_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "other.jsonl"
    path.write_text(content)
    with pytest.raises(UserError, match=r"other.jsonl, line 1: no record"):
        read_results(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        read_results(tmp_path / "none.jsonl")


APPEND = """
import sys
from bertchen.tasks.results import append_result
for number in range(40):
    append_result(sys.argv[1], {"task": "t", "metrics": {}, "by": sys.argv[2], "number": number, "long": "x" * 20000})
"""


def test_processes_that_append_at_once(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    processes = [subprocess.Popen([sys.executable, "-c", APPEND, str(path), name]) for name in "ab"]
    assert [process.wait(60) for process in processes] == [0, 0]
    found = read_results(path)
    for name in "ab":
        assert [line["number"] for line in found if line["by"] == name] == list(range(40))


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "results.jsonl"
    append_result(path, record(1))
    before = path.read_bytes()
    write = os.write
    calls = []

    def fills(descriptor: int, data: bytes) -> int:
        calls.append(data)
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, data[:7])

    monkeypatch.setattr(results.os, "write", fills)
    with pytest.raises(UserError, match="no space left"):
        append_result(path, record(2))
    assert path.read_bytes() == before


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="can't be written"):
        append_result(tmp_path / "file" / "results.jsonl", record(1))
    with pytest.raises(UserError, match="can't be written"):
        write_predictions(tmp_path / "file" / "predictions", "name", [])


def test_what_was_done_is_found() -> None:
    done = [record(1, config_hash="a"), record(2, config_hash="b", config={"optimizer": {"lr": 1e-5}}), record(2)]
    assert find_done(done, {"seed": 2}) == done[1:]
    assert find_done(done, {"seed": 2, "config_hash": "b"}) == [done[1]]
    assert find_done(done, {"config.optimizer.lr": 1e-5, "metrics.accuracy": 0.5}) == [done[1]]
    assert find_done(done, {"seed": 3}) == find_done(done, {"config.optimizer.lr": 1}) == []


def test_predictions_are_never_overwritten(tmp_path: Path) -> None:
    name = predictions_name("gnad10", "test", "/data/runs/first/", 42, "abc")
    assert name == "gnad10-test-data_runs_first-42-abc"
    paths = [write_predictions(tmp_path / "predictions", name, [{"id": place, "gold": "a", "predicted": "b"}])
             for place in range(3)]  # fmt: skip
    assert [path.name for path in paths] == [f"{name}.jsonl", f"{name}.2.jsonl", f"{name}.3.jsonl"]
    assert [read_predictions(path)[0]["id"] for path in paths] == [0, 1, 2]
    assert sorted(os.listdir(tmp_path / "predictions")) == sorted(path.name for path in paths)


def test_a_failure_leaves_no_predictions(tmp_path: Path) -> None:
    def rows():
        yield {"id": 1, "gold": "a", "predicted": "a"}
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        write_predictions(tmp_path, "name", rows())
    assert os.listdir(tmp_path) == []


def test_names_of_models_are_names_of_files() -> None:
    names = {predictions_name("t", "test", model, 1, "h") for model in ("a/b", "../a/b.pt", "hub/ä-b", "x" * 300)}
    assert len(names) == 4
    assert all("/" not in name and len(name) < 120 for name in names)


def test_rows_of_each_kind(tmp_path: Path) -> None:
    tags = (("B-PER", "O"), ("O", "O"))
    rows = [
        prediction_row(TextExample("1", "Text", "neutral", ORIGIN), "positive", scores=[0.1, 0.9]),
        prediction_row(TagExample("2", ("Anna", "geht"), tags, ORIGIN), (("O", "O"), ("O", "O"))),
        prediction_row(SpanExample("3", "?", "ein Haus", (Answer("Haus", 4), Answer("ein Haus", 0)), ORIGIN), "ein"),
        prediction_row(SpanExample("4", "?", "ein Haus", (), ORIGIN), ""),
    ]
    read = read_predictions(write_predictions(tmp_path, "rows", rows))
    assert read == rows
    assert read[0] == {"id": "1", "gold": "neutral", "predicted": "positive", "scores": [0.1, 0.9]}
    assert read[1]["gold"] == [["B-PER", "O"], ["O", "O"]]
    assert [row["gold"] for row in read[2:]] == [["Haus", "ein Haus"], []]


def test_a_damaged_predictions_file(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"id": 1, "gold": "a", "predicted": "b"}\n{"id": 2')
    with pytest.raises(UserError, match=r"p\.jsonl, line 2: not a prediction"):
        read_predictions(path)

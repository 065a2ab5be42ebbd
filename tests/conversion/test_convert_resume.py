"""Conversions that are interrupted go on where they were, and come to the same bytes; changed ones are refused."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from converting import converted, everything_in, run, some_texts, write_corpus
from filelock import FileLock

from bertchen.conversion import tokenizing
from bertchen.conversion.work import LOCK, PLAN
from bertchen.errors import UserError

# What makes a file appear or vanish under its name.
CHANGES = ("replace", "rename", "unlink", "remove", "rmdir", "mkdir")

Convert = Callable[..., dict[str, Any]]


class Killed(BaseException):
    """As if the process were killed: nothing that comes after it changes a file's name any more."""


@contextmanager
def killed_at(change: int, folder: Path) -> Iterator[Callable[[], int]]:
    """Lets the n-th change of a name below a folder, counted from 0, and all after it fail; tells how many were."""
    count = 0

    def fail_late(original: Callable[..., None]) -> Callable[..., None]:
        def checked(path: Any, *rest: Any, dir_fd: int | None = None, **options: Any) -> None:
            nonlocal count
            above = os.readlink(f"/proc/self/fd/{dir_fd}") if dir_fd is not None else ""
            if Path(above, path).is_relative_to(folder):
                if count >= change:
                    raise Killed
                count += 1
            original(path, *rest, **options, **({} if dir_fd is None else {"dir_fd": dir_fd}))

        return checked

    with pytest.MonkeyPatch.context() as patch:
        for name in CHANGES:
            patch.setattr(os, name, fail_late(getattr(os, name)))
        yield lambda: count


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A folder with two files, of several segments with `small_parts`."""
    write_corpus(tmp_path / "in/a.jsonl", some_texts(60))
    write_corpus(tmp_path / "in/b.jsonl", some_texts(30, seed=1))
    return tmp_path / "in"


@pytest.fixture
def convert(tmp_path: Path, corpus: Path, tokenizer_folder: str, monkeypatch: pytest.MonkeyPatch) -> Convert:
    """Converts the corpus to `out` in the test's folder."""
    monkeypatch.setattr(os, "fsync", lambda _: None)  # the disk is slow, and only a loss of power needs it

    def start(*overrides: str, source: Path = corpus, out: str = "out", tokenizer: str = "") -> dict[str, Any]:
        return run(source, tokenizer or tokenizer_folder, tmp_path / out, "shard_size=1152", *overrides)

    return start


@pytest.fixture
def interrupted(convert: Convert, monkeypatch: pytest.MonkeyPatch, small_parts: None) -> Convert:
    """Converts until the fourth segment is written, and is then interrupted."""

    def start(*overrides: str) -> None:
        original, written = tokenizing.write_segment, 0

        def write_segment(*arguments: Any) -> None:
            nonlocal written
            original(*arguments)
            written += 1
            if written == 4:
                raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(tokenizing, "write_segment", write_segment)
            with pytest.raises(
                KeyboardInterrupt, match=r"what is done is kept in .*out\.partial, and the command goes"
            ):
                convert(*overrides)

    return start


def test_killed_before_each_change_of_a_name(tmp_path: Path, convert: Convert, monkeypatch: pytest.MonkeyPatch) -> None:
    """In every phase; each time the same command then comes to the same bytes and leaves nothing else."""
    source = write_corpus(tmp_path / "a.jsonl", some_texts(12))
    monkeypatch.setattr("bertchen.text.readers.CHUNK_BYTES", 1024)
    monkeypatch.setattr("bertchen.conversion.work._MIN_SEGMENT_CHARACTERS", 2000)
    convert(out="whole", source=source)
    expected = converted(tmp_path / "whole")
    for change in range(10**6):
        try:
            with killed_at(change, tmp_path):
                convert(source=source)
            break
        except Killed:
            pass
        if (tmp_path / "out").exists():
            assert converted(tmp_path / "out") == expected
        convert(source=source)
        assert converted(tmp_path / "out") == expected
        assert not (tmp_path / "out.partial").exists()
        shutil.rmtree(tmp_path / "out")
    assert change > 40


@pytest.mark.slow
def test_killed_while_it_replaces(tmp_path: Path, convert: Convert) -> None:
    """Before each change of a name near the end, with an old data set in `out`, which is there until the new one is."""
    source = write_corpus(tmp_path / "a.jsonl", some_texts(12))
    convert("seed=1", out="old", source=source)
    convert("seed=2", out="new", source=source)
    old, new = converted(tmp_path / "old"), converted(tmp_path / "new")
    shutil.copytree(tmp_path / "old", tmp_path / "out")
    with killed_at(10**6, tmp_path) as count:
        convert("seed=2", "overwrite=true", source=source)
    change, seen = count() - 40, []
    while True:
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        shutil.copytree(tmp_path / "old", tmp_path / "out")
        try:
            with killed_at(change, tmp_path):
                convert("seed=2", "overwrite=true", source=source)
            break
        except Killed:
            pass
        there = converted(tmp_path / "out") if (tmp_path / "out").exists() else None
        assert there in (old, new, None)
        seen.append({str(old): "old", str(new): "new"}.get(str(there), "none"))
        convert("seed=2", "overwrite=true", source=source)
        assert converted(tmp_path / "out") == new
        assert not (tmp_path / "out.partial").exists()
        change += 1
    assert seen[0] == "old"
    assert seen[-1] == "new"
    assert seen.count("none") == 1, "between two renames"


def test_killed_again_and_again(tmp_path: Path, convert: Convert, small_parts: None) -> None:
    """Goes on however little is done each time."""
    convert(out="whole")
    numbers, runs = random.Random(1), 0
    while True:
        runs += 1
        try:
            with killed_at(numbers.randint(5, 45), tmp_path):
                convert()
            break
        except Killed:
            assert runs < 100
    assert runs > 5
    assert converted(tmp_path / "out") == converted(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out", "whole"]


def test_goes_on_where_it_was(tmp_path: Path, convert: Convert, interrupted: Convert) -> None:
    """And with other workers; documents that are tokenized aren't tokenized again."""
    interrupted()
    assert len(list((tmp_path / "out.partial/segments").glob("*.json"))) == 4
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out.partial/segments").iterdir()}
    seen: dict[str, int] = {}
    original = shutil.rmtree

    def rmtree(path: Any, *rest: Any, **options: Any) -> None:
        seen.update({each.name: each.stat().st_mtime_ns for each in Path(path).glob("*-*")})
        original(path, *rest, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shutil, "rmtree", rmtree)
        manifest = convert("workers=2")
    assert kept.items() <= seen.items()
    assert len(seen) > len(kept)
    convert(out="whole")
    assert converted(tmp_path / "out") == converted(tmp_path / "whole")
    assert manifest["documents"]["read"] == 90


def test_what_may_change_meanwhile(
    tmp_path: Path, convert: Convert, interrupted: Convert, tokenizer_folder: str
) -> None:
    """Where it goes, who does it, and what is not yet decided."""
    interrupted("work=" + str(tmp_path / "out.partial"))
    moved = shutil.copytree(tokenizer_folder, tmp_path / "tokenizer")
    manifest = convert(
        f"work={tmp_path / 'out.partial'}", "val_blocks=2", "strategy=sorted", "on_bad_rows=skip", "workers=2",
        out="elsewhere/mds", tokenizer=str(moved),
    )  # fmt: skip
    assert manifest["tokenizer"]["name"] == str(moved)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "in", "tokenizer"]
    convert("val_blocks=2", "strategy=sorted", out="whole")
    assert converted(tmp_path / "elsewhere/mds").keys() == converted(tmp_path / "whole").keys()
    for name, raw in converted(tmp_path / "whole").items():
        assert name == "manifest.json" or converted(tmp_path / "elsewhere/mds")[name] == raw


@pytest.mark.parametrize(
    ("begun", "changed", "message"),
    [
        (["seed=1"], ["seed=2"], "in which seed=1, not 2: run it with the settings and the input that it began with"),
        (["source.text_column=text"], ["source.group_rows=true"], "source.group_rows=False, not True"),
        (["clean.length.min_words=1"], [], "clean.length.min_words=1, which is not set now"),
        ([], ["clean.length.min_words=1"], "clean.length.min_words was not set (now it is 1)"),
        (["clean.length.min_words=1"], ["clean.length.min_words=2"], "clean.length.min_words=1, not 2"),
        (["source.sample.fraction=0.99"], [], "source.sample.fraction=0.99, not null"),
        (["on_bad_rows=skip"], [], "on_bad_rows=skip, not fail"),
    ],
)
def test_a_changed_setting_is_named(
    tmp_path: Path, convert: Convert, interrupted: Convert, begun: list[str], changed: list[str], message: str
) -> None:
    interrupted(*begun)
    before = everything_in(tmp_path)
    with pytest.raises(UserError) as failure:
        convert(*changed)
    assert message in str(failure.value)
    assert "restart=true" in str(failure.value)
    assert "goes on" not in str(failure.value)
    assert everything_in(tmp_path) == before
    convert(*changed, "restart=true")
    convert(*changed, out="whole")
    assert converted(tmp_path / "out") == converted(tmp_path / "whole")


def test_what_is_decided_may_not_change(
    tmp_path: Path, convert: Convert, interrupted: Convert, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_groups(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("bertchen.conversion.phases.write_groups", write_groups)
        with pytest.raises(KeyboardInterrupt):
            convert()
    with pytest.raises(UserError, match="val_blocks=3, not 4"):
        convert("val_blocks=4")
    convert()


@pytest.mark.parametrize("change", ["content", "time", "more", "fewer"])
def test_a_changed_input_is_named(
    tmp_path: Path, corpus: Path, convert: Convert, interrupted: Convert, change: str
) -> None:
    interrupted()
    file = corpus / "b.jsonl"
    message = {
        "content": f"{file} was another one: it has been changed since",
        "time": f"{file} was another one: it has been changed since",
        "more": f"the input lacked {corpus}/c.jsonl",
        "fewer": f"the input had {file}",
    }[change]
    if change == "content":
        file.write_text(file.read_text() + '{"text": "mehr"}\n')
    elif change == "time":
        os.utime(file, ns=(0, 0))
    elif change == "more":
        write_corpus(corpus / "c.jsonl", ["mehr"])
    else:
        file.unlink()
    with pytest.raises(UserError) as failure:
        convert()
    assert message in str(failure.value)
    convert("restart=true")
    convert(out="whole")
    assert converted(tmp_path / "out") == converted(tmp_path / "whole")


def test_another_tokenizer_is_named(
    tmp_path: Path, convert: Convert, interrupted: Convert, tokenizer_folder: str, cls_tokenizer_folder: str
) -> None:
    interrupted()
    with pytest.raises(UserError) as failure:
        convert(tokenizer=cls_tokenizer_folder)
    assert f"in which the tokenizer was another one ({tokenizer_folder}): " in str(failure.value)
    manifest = convert("restart=true", tokenizer=cls_tokenizer_folder)
    assert manifest["tokenizer"]["name"] == cls_tokenizer_folder


def test_a_bad_row_can_be_skipped_afterwards(tmp_path: Path, corpus: Path, convert: Convert, small_parts: None) -> None:
    lines = (corpus / "b.jsonl").read_text().splitlines()
    (corpus / "b.jsonl").write_text("\n".join([*lines[:8], '{"text": 3}', *lines[8:]]))
    with pytest.raises(UserError) as failure:
        convert()
    assert f"{corpus}/b.jsonl, line 9: text is number, should be a string" in str(failure.value)
    assert str(failure.value).count("goes on") == 1
    assert f"(what is done is kept in {tmp_path / 'out.partial'}, and the command goes on from there)" in str(
        failure.value
    )
    kept = everything_in(tmp_path / "out.partial/segments")
    assert kept
    assert convert("on_bad_rows=skip")["bad_rows"] == {"not a string": 1}
    convert("on_bad_rows=skip", out="whole")
    assert converted(tmp_path / "out") == converted(tmp_path / "whole")


def test_without_progress_nothing_is_left(tmp_path: Path, convert: Convert, monkeypatch: pytest.MonkeyPatch) -> None:
    def write_segment(*_: Any) -> None:
        raise KeyboardInterrupt

    before = everything_in(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(tokenizing, "write_segment", write_segment)
        with pytest.raises(KeyboardInterrupt) as interruption:
            convert()
    assert str(interruption.value) == ""
    assert everything_in(tmp_path) == before
    assert not (tmp_path / "out.partial").exists()


def test_a_plan_without_progress_binds_nobody(tmp_path: Path, convert: Convert) -> None:
    """A process that was killed right after it had begun."""
    with pytest.raises(Killed), killed_at(5, tmp_path):
        convert("seed=1")
    assert (tmp_path / "out.partial" / PLAN).exists()
    assert convert("seed=2")["seed"] == 2


def test_a_broken_plan(tmp_path: Path, convert: Convert, interrupted: Convert) -> None:
    interrupted()
    plan = tmp_path / "out.partial" / PLAN
    for content in ("{", "[]", json.dumps({**json.loads(plan.read_text()), "units": [{"size": 3}]})):
        plan.write_text(content)
        with pytest.raises(UserError, match=r"plan\.json can't be read as the plan of a conversion .*restart=true"):
            convert()
    convert("restart=true")


@pytest.mark.parametrize("name", ["segments/000000-000001.tokens", "segments/000000-000001.docs.npy"])
def test_a_segment_that_lost_a_part(tmp_path: Path, convert: Convert, interrupted: Convert, name: str) -> None:
    interrupted()
    (tmp_path / "out.partial" / name).unlink()
    with pytest.raises(UserError, match=r"000000-000001\S* is missing.*: throw the .* away with restart=true$"):
        convert()
    convert("restart=true")


def test_two_processes_at_once(tmp_path: Path, convert: Convert, interrupted: Convert) -> None:
    interrupted()
    before = everything_in(tmp_path)
    with FileLock(tmp_path / "out.partial" / LOCK):
        for options in ([], ["restart=true"], ["seed=3"]):
            with pytest.raises(
                UserError, match=r"another process is converting into .*out\.partial: wait for it or ch"
            ):
                convert(*options)
    assert everything_in(tmp_path) == before
    convert()


def test_killed_while_it_removed_its_work(tmp_path: Path, convert: Convert, interrupted: Convert) -> None:
    """The work of another conversion stays."""
    convert("seed=1")
    expected = converted(tmp_path / "out")
    (tmp_path / "out").rename(tmp_path / "kept")
    interrupted("seed=2")
    (tmp_path / "kept").rename(tmp_path / "out")
    before = everything_in(tmp_path)
    convert("seed=1")
    assert everything_in(tmp_path) == before
    convert("seed=2", "overwrite=true")
    assert converted(tmp_path / "out") != expected


def test_the_time_of_all_runs_counts(tmp_path: Path, convert: Convert, interrupted: Convert) -> None:
    interrupted()
    note = next((tmp_path / "out.partial").glob("run-*.json"))
    note.unlink()
    note.with_name("run-1-1.json").write_text(json.dumps({"seconds": 5000.0}))
    assert 5000 < convert()["seconds"] < 5300

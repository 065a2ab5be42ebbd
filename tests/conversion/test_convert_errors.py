"""Conversions that can't be done: one message that says why, and nothing that was there is lost."""

from __future__ import annotations

import errno
import gzip
import json
import os
import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from converting import BLOCK, SCRIPT, YAML, converted, everything_in, run, some_texts, write_corpus

from bertchen.errors import UserError

Command = Callable[..., tuple[int, str]]


@pytest.fixture
def command(
    tmp_path: Path, tokenizer_folder: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    """Runs the command in this process and in a folder with some files; its exit code and the error that it printed."""
    monkeypatch.chdir(tmp_path)
    write_corpus(tmp_path / "a.jsonl", some_texts(50))
    defaults = [
        "source.path=a.jsonl",
        f"tokenizer={tokenizer_folder}",
        "out=out",
        f"block_size={BLOCK}",
        "val_blocks=3",
    ]

    def start(*arguments: str, without: str = "") -> tuple[int, str]:
        given = [item for item in defaults if item.partition("=")[0] != without]
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), str(YAML), *given, "workers=1", *arguments])
        capsys.readouterr()
        try:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        except SystemExit as ending:
            errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
            assert len(errors) == 1
            return int(ending.code or 0), errors[0]
        return 0, ""

    return start


def make_files(folder: Path) -> None:
    """What the cases below name."""
    write_corpus(folder / "empty.jsonl", ["", ""])
    (folder / "nothing.jsonl").write_text("")
    raw = gzip.compress((folder / "a.jsonl").read_bytes())
    (folder / "cut.jsonl.gz").write_bytes(raw[:-20])
    (folder / "late.jsonl").write_text((folder / "a.jsonl").read_text() + '{"text": 3}\n')
    (folder / "full").mkdir()
    (folder / "full/file").touch()
    write_corpus(folder / "corpus/b.jsonl", some_texts(9))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["source.path=missing"], "missing: matches no file"),
        (["source.path=empty.jsonl"], "empty.jsonl, line 1: the text is empty"),
        (["source.path=empty.jsonl", "on_bad_rows=skip"], "no document is left of the 2 that were read (empty: 2)"),
        (["source.path=nothing.jsonl"], "no document is left of the 0 that were read: there is no text"),
        (["source.path=cut.jsonl.gz"], "cut.jsonl.gz: cut off"),
        (["source.path=late.jsonl"], "late.jsonl, line 51: text is number, should be a string"),
        (["source.path=7"], "source.path=7 (from the command line): should be a file, a folder, a glob"),
        (["source.text_column=body"], "no column body; columns there: text"),
        (["source.text_column=body", "on_bad_rows=skip"], "no column body; columns there: text"),
        (["tokenizer=./missing"], "tokenizer ./missing: no such folder"),
        (["out=full"], "full is not empty"),
        (["out=a.jsonl"], "a.jsonl is a file"),
        (["out=a.jsonl/out"], "a.jsonl/out.partial can't be written (Not a directory): choose another out or work"),
        (["source.path=corpus", "out=corpus/mds"], "/corpus/mds.partial lies in source.path=corpus, all of whose"),
        (["source.path=[corpus,a.jsonl]", "out=corpus"], "lies in source.path=corpus"),
        (["work=corpus"], "/corpus holds b.jsonl and no interrupted conversion: choose another folder for it"),
        (["work=out"], "lie in one another: choose another work"),
        (["work=out/work"], "lie in one another: choose another work"),
        (["work=corpus", "source.path=corpus/*.jsonl"], "source: corpus/b.jsonl lies in work="),
        (["val_blocks=0"], "val_blocks=0 (from the command line): should be at least 1"),
        (["val_blocks=-3"], "val_blocks=-3 (from the command line): should be at least 1"),
        (["block_size=0"], "block_size=0 (from the command line): should be at least 2"),
        (["block_size=-512"], "block_size=-512"),
        (["block_size=1.5"], "block_size=1.5 (from the command line): wrong type"),
        (["workers=-1"], "workers=-1"),
        (["seed=-1"], "seed=-1"),
        (["shard_size=100"], "shard_size=100"),
        (["strategy=greedy"], "strategy=greedy (from the command line): unknown, should be one of: naive"),
        (["split_by=file"], "split_by=file (from the command line): unknown, should be one of: document, block"),
        (["compression=rar"], "compression=rar (from the command line): should be null or zstd"),
        (["val_block=3"], "val_block (from the command line): unknown key; did you mean val_blocks?"),
        (["out=.", "overwrite=true"], "has no manifest.json in it"),
        (["stages={3: 1.0}"], "3 doesn't divide the blocks of block_size=16 tokens"),
        (["stages={4: 0.5, 8: 0.6}"], "the shares should be positive and sum to 1"),
        (["strategy=not_packed", "lengths=[]"], "name each once"),
        (["strategy=not_packed", "lengths=[8]", "stages={8: 1.0}"], "leave it out"),
        (["keep_local=false"], "keep_local=False (from the command line): out=out is local"),
        (["out=s3://bucket/x", "overwrite=true"], "out=s3://bucket/x is remote, where nothing is replaced"),
        (["clean.lenght={}"], "clean.lenght (from the command line): unknown; did you mean length"),
        (["clean.length.min_words=-1"], "clean.length.min_words=-1"),
    ],
)  # fmt: skip
def test_one_message_and_nothing_left(tmp_path: Path, command: Command, overrides: list[str], message: str) -> None:
    make_files(tmp_path)
    before = everything_in(tmp_path)
    code, error = command(*overrides)
    assert code == 2
    assert message in error
    assert everything_in(tmp_path) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted({name.partition("/")[0] for name in before})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("out", "out is not set"),
        ("tokenizer", "tokenizer is not set"),
        ("source.path", "no source: set source.path (a"),
    ],
)
def test_what_must_be_given(command: Command, name: str, message: str) -> None:
    code, error = command(without=name)
    assert code == 2
    assert message in error


@pytest.mark.parametrize(
    ("overrides", "message", "mended"),
    [
        (["val_blocks=100000"], "val_blocks=100000: the corpus has ", ["val_blocks=3"]),
        (["stages={4: 0.001, 8: 0.999}"], "is no block for 4", ["strategy=sorted", "interleave=true"]),
        (["source.sample.documents=51"], "sample.documents=51: the source has 50 documents", ["restart=true"]),
    ],
)
def test_too_little_text_is_known_when_all_is_tokenized(
    tmp_path: Path,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
    overrides: list[str],
    message: str,
    mended: list[str],
) -> None:
    """Then that is kept: keys that the later phases alone use may change."""
    code, error = command(*overrides)
    assert code == 2
    assert message in error
    assert f"(what is done is kept in {tmp_path / 'out.partial'}, and the command goes on from there)" in error
    assert not (tmp_path / "out").exists()
    if "restart=true" not in mended:
        monkeypatch.setattr("bertchen.conversion.tokens.make_encoder", lambda _: pytest.fail("tokenizes again"))
    else:
        assert "sample.documents=51, not null" in command()[1]
    assert command(*mended) == (0, "")
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert command(*mended, "out=plain") == (0, "")
    assert converted(tmp_path / "out") == converted(tmp_path / "plain")


def test_folders_above_out_are_made_and_removed_again(tmp_path: Path, command: Command) -> None:
    make_files(tmp_path)
    code, error = command("out=x/y/mds", "source.path=late.jsonl")
    assert (code, "goes on" in error) == (2, False)
    assert not (tmp_path / "x").exists()
    assert command("out=x/y/mds") == (0, "")
    assert [path.name for path in (tmp_path / "x/y").iterdir()] == ["mds"]


def test_work_in_another_place(tmp_path: Path, command: Command) -> None:
    make_files(tmp_path)
    (tmp_path / "there").mkdir()
    assert command("work=there/a/b", "source.path=late.jsonl")[0] == 2
    assert list((tmp_path / "there").iterdir()) == []
    assert command("work=there/a/b") == (0, "")
    assert list((tmp_path / "there").iterdir()) == []
    assert command("out=plain") == (0, "")
    assert converted(tmp_path / "out") == converted(tmp_path / "plain")


@pytest.mark.parametrize("finished", [False, True])
def test_a_work_folder_with_files_of_the_user_s_is_not_touched(
    tmp_path: Path, command: Command, finished: bool
) -> None:
    """Whatever they are called."""
    if finished:
        assert command() == (0, "")
    for name in ("data/thesis.tex", "segments/000000-000000.json", "lock"):
        (tmp_path / "mine" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mine" / name).write_text("years of work")
    before = everything_in(tmp_path)
    code, error = command("work=mine")
    assert (code, "mine holds data" in error) == ((0, False) if finished else (2, True))
    assert everything_in(tmp_path) == before


def test_folder_of_another_device_is_copied(tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what a process that was killed over it had left is removed."""
    work = tmp_path / "out.partial"
    assert command("out=plain") == (0, "")
    for name in (".out.tmp", ".out.tmp.old"):
        write_corpus(tmp_path / name / "train/shard", ["half"])
    stat = os.stat

    class Elsewhere:
        def __init__(self, *arguments: Any, **options: Any) -> None:
            self._found = stat(*arguments, **options)
            self.st_dev = 99

        def __getattr__(self, name: str) -> Any:
            return getattr(self._found, name)

    with monkeypatch.context() as patched:
        patched.setattr(os, "stat", lambda path, **rest: (Elsewhere if path == work / "data" else stat)(path, **rest))
        assert command() == (0, "")
    assert converted(tmp_path / "out") == converted(tmp_path / "plain")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "out", "plain"]


@pytest.mark.parametrize("replaces", [False, True])
def test_full_disk_whatever_is_written(
    tmp_path: Path, tokenizer_folder: str, monkeypatch: pytest.MonkeyPatch, small_parts: None, replaces: bool
) -> None:
    """Each file is written to the disk by fsync: when that fails, one after the other, and then no more."""
    source = write_corpus(tmp_path / "a.jsonl", some_texts(40))
    run(source, tokenizer_folder, tmp_path / "whole", "seed=2")
    if replaces:
        run(source, tokenizer_folder, tmp_path / "out", "seed=1")
    before = everything_in(tmp_path)
    sync, written = os.fsync, set()

    def no_space(file: int) -> None:
        path = os.readlink(f"/proc/self/fd/{file}")
        if path not in written:
            written.add(path)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(file)

    monkeypatch.setattr(os, "fsync", no_space)
    arguments = (source, tokenizer_folder, tmp_path / "out", "seed=2", f"overwrite={replaces}")
    failures = 0
    while (
        manifest := attempt(*arguments, f"no space left on the device while writing {tmp_path}/out.partial")
    ) is None:
        failures += 1
        there = everything_in(tmp_path)
        assert {name: raw for name, raw in there.items() if not name.startswith("out.partial")} == before
    names = {Path(path).name for path in written}
    assert failures == len(written) > 15
    assert {"plan.json.tmp", "train.npy", "arrangement.json.tmp", "shard.00000.mds", "manifest.json"} <= names
    assert manifest["documents"]["read"] == 40
    assert converted(tmp_path / "out") == converted(tmp_path / "whole")


def attempt(source: Path, tokenizer: str, out: Path, *arguments: str) -> dict[str, Any] | None:
    """Converts; None if that fails with the message that comes last."""
    *overrides, message = arguments
    try:
        return run(source, tokenizer, out, *overrides)
    except UserError as error:
        said = str(error)
    assert message in said
    assert ("the command goes on from there" in said) == out.with_name(f"{out.name}.partial").exists()
    return None


def test_overwrite_replaces_a_data_set(tmp_path: Path, tokenizer_folder: str) -> None:
    source = write_corpus(tmp_path / "a.jsonl", some_texts(100))
    run(source, tokenizer_folder, tmp_path / "out", "seed=1", "shard_size=2000")
    with pytest.raises(UserError, match=r"out is not empty: choose another folder, or replace it with overwrite=true"):
        run(source, tokenizer_folder, tmp_path / "out", "seed=2")
    run(source, tokenizer_folder, tmp_path / "fresh", "seed=2")
    run(source, tokenizer_folder, tmp_path / "out", "seed=2", "overwrite=true")
    assert converted(tmp_path / "out") == converted(tmp_path / "fresh")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "fresh", "out"]


def test_overwrite_replaces_a_data_set_of_another_version(tmp_path: Path, tokenizer_folder: str) -> None:
    source = write_corpus(tmp_path / "a.jsonl", some_texts(100))
    run(source, tokenizer_folder, tmp_path / "out")
    expected = converted(tmp_path / "out")
    (tmp_path / "out/manifest.json").write_text('{"version": 1}')
    run(source, tokenizer_folder, tmp_path / "out", "overwrite=true")
    assert converted(tmp_path / "out") == expected


def test_overwrite_does_not_remove_its_own_input(tmp_path: Path, tokenizer_folder: str) -> None:
    source = write_corpus(tmp_path / "a.jsonl", some_texts(100))
    out = tmp_path / "out"
    run(source, tokenizer_folder, out)
    inside = write_corpus(out / "b.jsonl", some_texts(100))
    shutil.copytree(tokenizer_folder, out / "tokenizer")
    before = everything_in(tmp_path)
    for path, tokenizer, message in (
        (inside, tokenizer_folder, r"source: .*out/b\.jsonl lies in out=.*out, which is removed: choose another out"),
        (source, str(out / "tokenizer"), r"tokenizer: .*out/tokenizer lies in out=.*choose another out"),
    ):
        with pytest.raises(UserError, match=message):
            run(path, tokenizer, out, "overwrite=true")
        assert everything_in(tmp_path) == before


def test_repeated_when_it_is_finished(tmp_path: Path, command: Command, tokenizer_folder: str) -> None:
    assert command() == (0, "")
    before = everything_in(tmp_path)
    modified = (tmp_path / "out/manifest.json").stat().st_mtime_ns
    assert command() == (0, "")
    assert command("workers=2", "on_bad_rows=skip") == (0, "")
    assert everything_in(tmp_path) == before
    assert (tmp_path / "out/manifest.json").stat().st_mtime_ns == modified
    assert run(Path("a.jsonl"), tokenizer_folder, "out") == json.loads(before["out/manifest.json"])
    # With anything else than before it is another conversion.
    for change in ("seed=1", "val_blocks=4", "compression=zstd"):
        code, error = command(change)
        assert code == 2
        assert "out is not empty" in error
    write_corpus(tmp_path / "a.jsonl", some_texts(51))
    assert "out is not empty" in command()[1]
    assert command("overwrite=true") == (0, "")
    assert command() == (0, "")


def test_what_is_finished_but_damaged_is_not_taken_for_complete(tmp_path: Path, command: Command) -> None:
    assert command() == (0, "")
    expected = converted(tmp_path / "out")
    shard = tmp_path / "out/train/00000/shard.00000.mds"
    shard.write_bytes(shard.read_bytes()[:-1])
    code, error = command()
    assert code == 2
    assert "out is not empty: choose another folder, or replace it with overwrite=true" in error
    assert command("overwrite=true") == (0, "")
    assert converted(tmp_path / "out") == expected


def test_overwrite_makes_it_anew(tmp_path: Path, command: Command) -> None:
    """Even if it looks complete: the damage may be one that only hashes show."""
    assert command() == (0, "")
    expected = converted(tmp_path / "out")
    shard = tmp_path / "out/train/00000/shard.00000.mds"
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    assert command("overwrite=true") == (0, "")
    assert converted(tmp_path / "out") == expected


def test_bad_rows_that_were_skipped_are_not_fine_later(tmp_path: Path, command: Command) -> None:
    make_files(tmp_path)
    assert command("source.path=late.jsonl", "on_bad_rows=skip") == (0, "")
    code, error = command("source.path=late.jsonl")
    assert code == 2
    assert "out is not empty" in error


def test_bad_rows_are_skipped_and_counted(tmp_path: Path, command: Command) -> None:
    """By reason; a file with nothing but bad rows among others is no reason to stop."""
    good = [json.dumps({"text": text}) for text in some_texts(50)]
    bad = ["{", "[1]", '{"body": "x"}', '{"text": null}', '{"text": 3}', '{"text": ""}', '{"text": " \\n"}']
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.jsonl").write_text('{"body": "x"}\n' * 3)
    (tmp_path / "in/b.jsonl").write_text("\n".join([*bad, *good, "", *bad]))
    (tmp_path / "in/c.jsonl").write_bytes(b'{"text": "\xff"}\n')
    (tmp_path / "in/d.jsonl.gz").write_bytes(gzip.compress("\n".join(good).encode())[:-9])
    (tmp_path / "in/e.parquet").write_bytes(b"PAR1 and no footer")
    assert command("source.path=in", "on_bad_rows=skip") == (0, "")
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["bad_rows"] == {
        "not JSON": 4, "no text column": 5, "not a string": 4, "empty": 4, "not UTF-8": 1, "damaged file": 2,
    }  # fmt: skip
    read, kept = manifest["documents"]["read"], manifest["documents"]["kept"]
    assert read == kept + sum(manifest["bad_rows"].values()) + sum(manifest["dropped_documents"].values())
    for name, number in (("b", 1), ("c", 1)):
        code, error = command(f"source.path=in/{name}.jsonl", "out=other")
        assert code == 2
        assert f"in/{name}.jsonl, line {number}: " in error
    for name, message in (("d.jsonl.gz", "cut off"), ("e.parquet", "")):
        code, error = command(f"source.path=in/{name}", "out=other")
        assert code == 2
        assert f"in/{name}: " in error
        assert message in error

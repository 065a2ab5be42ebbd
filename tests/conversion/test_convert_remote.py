"""Conversions into a store, a server that speaks S3: complete in the end, whenever it was gone."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from converting import converted, run, some_texts, told_apart, write_corpus
from s3_store import REMOTE, Store
from streaming import StreamingDataset
from streaming.base.storage.upload import S3Uploader

from bertchen.errors import UserError

NOTE = "README.txt"

Convert = Callable[..., dict[str, Any]]


@pytest.fixture
def convert(
    tmp_path: Path, tokenizer_folder: str, monkeypatch: pytest.MonkeyPatch, store: Store, small_parts: None
) -> Convert:
    """Converts a corpus in the test's folder, which is the working one, to a store."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "fsync", lambda _: None)
    source = write_corpus(tmp_path / "a.jsonl", some_texts(90))

    def start(*overrides: str, out: str = REMOTE) -> dict[str, Any]:
        return run(source, tokenizer_folder, out, "shard_size=1500", *overrides)

    return start


@pytest.fixture
def expected(tmp_path: Path, convert: Convert) -> dict[str, Any]:
    """What the conversion into a folder gives."""
    convert(out="plain")
    return converted(tmp_path / "plain")


def stored(store: Store, prefix: str = "corpora/one/") -> dict[str, Any]:
    files = store.objects(prefix)
    assert b"complete when there is a manifest.json" in files.pop(NOTE)
    return told_apart(files) if "manifest.json" in files else files


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def go_away_at(upload: int, store: Store, patch: pytest.MonkeyPatch) -> None:
    """Stops the server before the n-th upload behind the first, which is of a note, counted from 0."""
    count, original = -1, S3Uploader.upload_file

    def upload_file(self: S3Uploader, name: str) -> None:
        nonlocal count
        if count == upload:
            store.stop()
        count += 1
        original(self, name)

    patch.setattr(S3Uploader, "upload_file", upload_file)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("keep_local", ["true", "false"])
def test_what_is_in_the_store_is_what_a_folder_would_hold(
    tmp_path: Path, convert: Convert, store: Store, expected: dict[str, Any], keep_local: str, workers: int
) -> None:
    convert(f"keep_local={keep_local}", f"workers={workers}")
    assert stored(store) == expected
    if keep_local == "true":
        assert converted(tmp_path / "one") == expected
    assert names_in(tmp_path) == ["a.jsonl", *(["one"] if keep_local == "true" else []), "plain"]


@pytest.mark.usefixtures("shared_memory_given_back")
def test_streaming_reads_it_from_there(tmp_path: Path, convert: Convert, store: Store) -> None:
    manifest = convert("keep_local=false", "shard_size=20000", "compression=zstd")
    for split, figures in manifest["splits"].items():
        dataset = StreamingDataset(
            remote=f"{REMOTE}/{split}", local=str(tmp_path / "cache" / split), shuffle=False, batch_size=1
        )
        assert len([sample["input_ids"] for sample in dataset]) == figures["blocks"]


@pytest.mark.parametrize("keep_local", ["true", pytest.param("false", marks=pytest.mark.slow)])
def test_the_server_goes_away_before_each_kind_of_upload(
    tmp_path: Path, convert: Convert, store: Store, expected: dict[str, Any], keep_local: str
) -> None:
    """Before the first and the last, and some between; then the same command again."""
    last = len(expected) - 1
    for at in {"true": (5, last), "false": (0, last // 2, last - 2, last - 1, last)}[keep_local]:
        with pytest.MonkeyPatch.context() as patched:
            go_away_at(at, store, patched)
            with pytest.raises(UserError) as failure:
                convert(f"keep_local={keep_local}")
        assert f"{REMOTE}/" in str(failure.value)
        assert ": the upload failed: " in str(failure.value)
        assert str(failure.value).endswith(
            f" (what is done is kept in {tmp_path / 'one.partial'}, and the command goes on from there)"
        )
        assert not (tmp_path / "one").exists()
        store.start()
        assert "manifest.json" not in store.objects()
        convert(f"keep_local={keep_local}")
        assert stored(store) == expected
        assert names_in(tmp_path) == ["a.jsonl", *(["one"] if keep_local == "true" else []), "plain"]
        for name in store.objects(""):
            store.client.delete_object(Bucket="bucket", Key=name)
        if keep_local == "true":
            (tmp_path / "one").rename(tmp_path.parent / f"{tmp_path.name}-{at}")


def test_the_server_goes_away_from_two_workers(
    tmp_path: Path, convert: Convert, store: Store, expected: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which are processes of their own, so it goes when they begin."""
    with monkeypatch.context() as patched:
        patched.setattr("bertchen.conversion.phases.arrange_work", with_server_stopped(store))
        with pytest.raises(UserError, match=rf"{REMOTE}\S*: the upload failed: .* goes on from there\)"):
            convert("workers=2", "keep_local=false")
    store.start()
    convert("workers=2", "keep_local=false")
    assert stored(store) == expected


def with_server_stopped(store: Store) -> Callable[..., Any]:
    from bertchen.conversion import phases

    original, is_stopped = phases.arrange_work, False

    def arrange_work(*arguments: Any) -> Any:
        nonlocal is_stopped
        arrangement = original(*arguments)
        if not is_stopped:
            store.stop()
            is_stopped = True
        return arrangement

    return arrange_work


@pytest.mark.parametrize("keep_local", ["true", "false"])
def test_repeated_when_it_is_finished(
    tmp_path: Path, convert: Convert, store: Store, keep_local: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = convert(f"keep_local={keep_local}")
    before = store.objects()
    with monkeypatch.context() as patched:
        patched.setattr(S3Uploader, "upload_file", lambda *_: pytest.fail("uploads again"))
        assert convert(f"keep_local={keep_local}") == first
        with pytest.raises(UserError, match=rf"out={REMOTE} is not empty \(corpora/one/\S+\): nothing is replaced"):
            convert("keep_local=false", "seed=1")
    assert store.objects() == before
    assert names_in(tmp_path) == ["a.jsonl", *(["one"] if keep_local == "true" else [])]


def test_the_local_copy_was_made_before(tmp_path: Path, convert: Convert, store: Store) -> None:
    """A folder that is complete says nothing of the store."""
    convert(out="one")
    with pytest.raises(UserError, match="one is not empty: choose another folder"):
        convert()
    convert("keep_local=false")
    assert stored(store) == converted(tmp_path / "one")


def test_killed_when_only_the_work_folder_was_left(tmp_path: Path, convert: Convert, store: Store) -> None:
    first = convert("keep_local=false")
    (tmp_path / "one.partial").mkdir()
    (tmp_path / "one.partial/lock").touch()
    assert convert("keep_local=false") == first
    assert names_in(tmp_path) == ["a.jsonl"]


def test_places_that_refuse(tmp_path: Path, convert: Convert, store: Store) -> None:
    for out, message in (
        ("s3://no-such-bucket/x", "out=s3://no-such-bucket/x: nothing can be written there: "),
        ("s4://bucket/x", "s4: is no store"),
    ):
        with pytest.raises(UserError, match=message):
            convert(out=out)
        assert names_in(tmp_path) == ["a.jsonl"]
    store.stop()
    with pytest.raises(UserError, match=f"out={REMOTE}: nothing can be written there"):
        convert()
    store.start()
    assert names_in(tmp_path) == ["a.jsonl"]


def test_the_source_may_be_called_like_the_remote_folder(tmp_path: Path, convert: Convert, store: Store) -> None:
    """Nothing is removed here where no copy is kept."""
    write_corpus(tmp_path / "one/b.jsonl", some_texts(60))
    manifest = convert("keep_local=false", "source.path=one")
    assert manifest["documents"]["read"] == 60
    assert json.loads(store.objects()["manifest.json"])["plan"] == manifest["plan"]
    with pytest.raises(UserError, match=r"one lies in source\.path=one"):
        convert("source.path=one", out="s3://bucket/two/one")


def test_begun_for_a_folder_and_ended_in_the_store(
    tmp_path: Path, convert: Convert, store: Store, expected: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the other way round: what was written without being uploaded is uploaded."""
    work = f"work={tmp_path / 'work'}"

    def finish_split(*_: Any) -> None:
        raise KeyboardInterrupt

    for first, second in (("one", REMOTE), ("s3://bucket/other/two", "two")):
        with monkeypatch.context() as patched:
            patched.setattr("bertchen.conversion.phases.finish_split", finish_split)
            with pytest.raises(KeyboardInterrupt):
                convert(work, out=first)
        store.client.put_object(Bucket="bucket", Key="thesis.tex", Body=b"years of work")
        with pytest.raises(UserError, match=r"out=s3://bucket is not empty"):
            convert(work, "keep_local=false", out="s3://bucket")
        convert(work, out=second)
    assert stored(store) == expected
    assert converted(tmp_path / "two") == expected

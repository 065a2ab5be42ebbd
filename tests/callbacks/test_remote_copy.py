"""Copying to a store beside training: the newest counts, what is there is whole, and the end waits for it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from composer import Trainer
from faulty_store import BUCKET, FaultyStore

from bertchen.callbacks import Checkpoints, MetricsFile, RemoteCopy, remote_copy
from bertchen.callbacks.checkpoints import Saved
from bertchen.run_store import RunStore, content_of
from bertchen.stores import StoreError, StoreGone

URL = f"s3://{BUCKET}/run"


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore(str(tmp_path / "store"), patience=1.0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "run"
    path.mkdir()
    (path / "metrics.jsonl").write_bytes(b"a\n" * 100)
    return path


def copy(store: RunStore, folder: Path, keep: int = 2) -> RemoteCopy:
    return RemoteCopy(store, folder, keep, [folder / "metrics.jsonl", folder / "samples.jsonl"])


def saved(folder: Path, step: int) -> Saved:
    """A checkpoint with as many lines of metrics as it has steps."""
    path = folder / f"ep0-ba{step}-rank0.pt"
    path.write_bytes(b"weights" * step)
    return Saved(path, step, {folder / "metrics.jsonl": 2 * step})


def steps(store: RunStore) -> list[int]:
    return [each.step for each in store.checkpoints()]


@contextmanager
def held_up(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Uploads of checkpoints begin in the body, and end after it. Yields an event that says that one has begun."""
    begun, go_on, put = threading.Event(), threading.Event(), store.put

    def wait_and_put(path: Path, name: str, on_progress: Callable[[], None] = lambda: None) -> None:
        begun.set()
        assert go_on.wait(60)
        put(path, name, on_progress)

    monkeypatch.setattr(store, "put", wait_and_put)
    yield begun
    go_on.set()


def test_checkpoints_are_copied_and_old_ones_removed(store: RunStore, folder: Path) -> None:
    remote = copy(store, folder)
    for step in (4, 8, 12):
        remote.checkpoint_saved(saved(folder, step))
        remote.finish()
    assert steps(store) == [12, 8]
    assert store.names() == ["ep0-ba12-rank0.pt", "ep0-ba8-rank0.pt", "latest.json", "metrics.jsonl"]
    newest = store.checkpoints()[0]
    assert newest.content == content_of(folder / newest.name)
    assert newest.logs["metrics.jsonl"].bytes == 24
    assert list((folder / remote_copy.ASIDE).iterdir()) == []


def test_training_does_not_wait_and_the_newest_counts(
    store: RunStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = copy(store, folder)
    with held_up(store, monkeypatch) as begun:
        remote.checkpoint_saved(saved(folder, 4))
        assert begun.wait(60)
        for step in (8, 12, 16):
            remote.checkpoint_saved(saved(folder, step))
        for step in (4, 8, 12, 16):  # as retention removes them
            (folder / f"ep0-ba{step}-rank0.pt").unlink()
    remote.finish()
    assert steps(store) == [16, 4]
    assert (Path(store.root) / "ep0-ba4-rank0.pt").read_bytes() == b"weights" * 4
    assert list((folder / remote_copy.ASIDE).iterdir()) == []


def test_at_no_moment_is_the_store_without_a_whole_run(
    store: RunStore, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looked at before and after each single change, as a kill there would leave it."""
    looks: list[list[str | None]] = []

    def look() -> None:
        found, back = RunStore(store.url, patience=0.0), tmp_path / "back"
        listed = found.checkpoints()
        looks.append([found.fetch(each, back) or found.fetch_log(each, "metrics.jsonl", back) for each in listed])

    for name in ("_upload", "_write", "_remove"):
        change = getattr(store, name)

        def looked_at(*arguments, change=change):
            look()
            change(*arguments)
            look()

        monkeypatch.setattr(store, name, looked_at)
    remote = copy(store, folder)
    for step in (4, 8, 12):
        remote.checkpoint_saved(saved(folder, step))
        remote.finish()
    assert len(looks) > 20
    assert {reason for look in looks for reason in look} == {None}
    first = next(index for index, look in enumerate(looks) if look)
    assert all(looks[first:])
    assert max(map(len, looks)) == 2


def test_the_end_copies_what_is_named_and_the_logs_to_their_end(store: RunStore, folder: Path) -> None:
    (folder / "hf").mkdir()
    (folder / "hf/config.json").write_text("{}")
    remote = copy(store, folder)
    remote.checkpoint_saved(saved(folder, 4))
    remote.finish(["hf/config.json"])
    assert (Path(store.root) / "metrics.jsonl").read_bytes() == b"a\n" * 100
    assert "hf/config.json" in store.names()
    checkpoint = store.checkpoints()[0]
    assert store.fetch_log(checkpoint, "metrics.jsonl", folder / "back") is None, "its beginning is still the same"


def test_what_is_there_already_is_not_copied_again(
    store: RunStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = copy(store, folder)
    remote.checkpoint_saved(saved(folder, 4))
    remote.finish()
    monkeypatch.setattr(store, "put", lambda *arguments: pytest.fail("copied again"))
    monkeypatch.setattr(store, "put_bytes", lambda *arguments: pytest.fail("copied again"))
    again = copy(store, folder)
    again.checkpoint_saved(saved(folder, 4))
    while again._is_waiting():
        time.sleep(0.01)
    assert again._failed is None


def test_a_run_that_goes_on_from_earlier_replaces_what_came_later(store: RunStore, folder: Path) -> None:
    remote = copy(store, folder, keep=3)
    for step in (4, 8, 12):
        remote.checkpoint_saved(saved(folder, step))
        remote.finish()
    again = copy(store, folder, keep=3)
    again.checkpoint_saved(saved(folder, 10))
    again.finish()
    assert steps(store) == [10, 8, 4]
    assert "ep0-ba12-rank0.pt" not in store.names()


def test_without_hard_links_it_is_copied_from_its_place(
    store: RunStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_link(*arguments) -> None:
        raise OSError("not supported")

    monkeypatch.setattr(remote_copy.os, "link", no_link)
    remote = copy(store, folder)
    remote.checkpoint_saved(saved(folder, 4))
    remote.finish()
    assert steps(store) == [4]
    assert (folder / "ep0-ba4-rank0.pt").exists()


def test_what_a_killed_run_left_is_removed(store: RunStore, folder: Path) -> None:
    (folder / remote_copy.ASIDE).mkdir()
    (folder / remote_copy.ASIDE / "ep0-ba4-rank0.pt").write_bytes(b"x")
    copy(store, folder)
    assert not (folder / remote_copy.ASIDE).exists()


@pytest.mark.fault("the store of checkpoints is gone past the limit")
def test_a_store_that_is_gone_is_tried_with_the_next_checkpoint_and_at_the_end(
    faulty_store: FaultyStore, folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("s3fs.S3FileSystem.retries", 1)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    remote = copy(RunStore(URL, patience=0.0), folder)
    with faulty_store.gone(), caplog.at_level(logging.WARNING):
        remote.checkpoint_saved(saved(folder, 4))
        while not remote._failed:
            time.sleep(0.01)
        assert "training goes on, the next checkpoint will be tried" in caplog.text
        with pytest.raises(StoreGone, match=rf"all of the run lies in {folder}, and autoresume=true") as caught:
            remote.finish()
        assert caught.value.exit_code == 75
    remote.finish()
    assert steps(remote.store) == [4]
    remote.checkpoint_saved(saved(folder, 8))
    remote.finish()
    assert steps(remote.store) == [8, 4]


@pytest.mark.fault("credentials expired during training")
def test_credentials_that_expire_are_told_and_tried_at_the_end(
    faulty_store: FaultyStore, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    remote = copy(RunStore(URL, patience=30.0), folder)
    remote.checkpoint_saved(saved(folder, 4))
    remote.finish()
    faulty_store.expired = True
    with caplog.at_level(logging.WARNING):
        remote.checkpoint_saved(saved(folder, 8))
        with pytest.raises(StoreError, match=r"AWS_SESSION_TOKEN") as caught:
            remote.finish()
    assert not isinstance(caught.value, StoreGone), "to start the same command again would not help"
    assert "an-invented-secret" not in caplog.text
    faulty_store.expired = False
    assert steps(remote.store) == [4]
    remote.finish()
    assert steps(remote.store) == [8, 4]


def test_a_run_that_is_closed_early_waits_for_what_is_on_its_way(
    store: RunStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = copy(store, folder)
    with held_up(store, monkeypatch) as begun:
        remote.checkpoint_saved(saved(folder, 4))
        assert begun.wait(60)
        closing = threading.Thread(target=remote.post_close)
        closing.start()
        assert closing.is_alive()
    closing.join()
    assert steps(store) == [4]


def test_but_not_where_nothing_moves(
    store: RunStore, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(remote_copy, "GRACE_SECONDS", 0.2)
    remote = copy(store, folder)
    with held_up(store, monkeypatch) as begun, caplog.at_level(logging.WARNING):
        remote.checkpoint_saved(saved(folder, 4))
        assert begun.wait(60)
        remote.post_close()
        assert f"the last checkpoint isn't in {store.url}, but in {folder}" in caplog.text
    remote.finish()


def test_beside_training(make_trainer: Callable[..., Trainer], store: RunStore, tmp_path: Path) -> None:
    folder = tmp_path / "training"
    log = MetricsFile(folder / "metrics.jsonl")
    folder.mkdir()
    remote = RemoteCopy(store, folder, 2, [log.path])
    names = "ep{epoch}-ba{batch}-rank{rank}.pt", "latest-rank{rank}.pt"
    saver = Checkpoints(str(folder), *names, "4ba", 1, [log.path], remote.checkpoint_saved)
    trainer = make_trainer("10ba", callbacks=[saver, remote], loggers=[log])
    trainer.fit()
    trainer.close()
    remote.finish()
    assert steps(store)[0] == 10
    assert (Path(store.root) / "metrics.jsonl").read_bytes() == log.path.read_bytes()
    assert content_of(folder / "ep0-ba10-rank0.pt") == store.checkpoints()[0].content

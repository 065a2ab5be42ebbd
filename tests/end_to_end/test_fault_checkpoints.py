"""A run that is copied to a store while it trains: killed, cut short, refused, or without the store for a while.

The store is moto's S3 server over HTTP, behind a proxy that fails as it is told.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from faulty_store import BUCKET, SECRET, FaultyStore
from running import (
    LATEST,
    PATIENCE,
    Prepared,
    assert_same_state,
    checkpoints,
    exact,
    started,
)

from bertchen.callbacks import RemoteCopy
from bertchen.callbacks.checkpoints import Saved
from bertchen.run_store import RunStore

pytestmark = pytest.mark.slow

PREFIX = "runs/one"
REMOTE = f"s3://{BUCKET}/{PREFIX}"
STEPS = 18  # more than an epoch; checkpoints at 4, 8, 12, 16 and 18
LISTED = "latest.json"


def arguments(prepared: Prepared, folder: Path, *more: str) -> list[str]:
    return prepared.overrides(folder, f"max_duration={STEPS}ba", "optimizer.lr=5e-3", *more)


@pytest.fixture(scope="module")
def undisturbed(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory, in_process: Callable) -> Path:
    """A run that nothing disturbed, without a store."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    in_process(*arguments(prepared, folder))
    return folder


def listed(store: FaultyStore) -> list[int]:
    """Steps of the checkpoints that count in the store, newest first."""
    try:
        content = store.client.get_object(Bucket=BUCKET, Key=f"{PREFIX}/{LISTED}")["Body"].read()
    except store.client.exceptions.NoSuchKey:
        return []
    return [each["step"] for each in json.loads(content)["checkpoints"]]


def wait_for_checkpoint(store: FaultyStore, step: int) -> None:
    until = time.monotonic() + PATIENCE
    while max(listed(store), default=0) < step:
        assert time.monotonic() < until, f"no checkpoint of step {step} comes"
        time.sleep(0.05)


def at_step(monkeypatch: pytest.MonkeyPatch, actions: dict[int, Callable[[], Any]]) -> None:
    """Does something, once, when the checkpoint of a step has been written, before it is uploaded."""
    upload = RemoteCopy.checkpoint_saved

    def checkpoint_saved(self: RemoteCopy, saved: Saved) -> None:
        actions.pop(saved.step, lambda: None)()
        upload(self, saved)

    monkeypatch.setattr(RemoteCopy, "checkpoint_saved", checkpoint_saved)


def assert_equal(folder: Path, undisturbed: Path) -> None:
    assert exact(folder) == exact(undisturbed)
    assert checkpoints(folder)[-1] == checkpoints(undisturbed)[-1]
    assert_same_state(folder / LATEST, undisturbed / LATEST)


def assert_whole(store: FaultyStore, folder: Path, tmp_path: Path) -> None:
    """What lies in the store is the run at its end, and nothing else."""
    objects = store.objects(PREFIX)
    names = {f"ep1-ba{step}-rank0.pt" for step in (16, STEPS)}
    assert {name for name in objects if not name.startswith("hf/")} == names | {LISTED, "metrics.jsonl", "config.yaml"}
    assert objects["metrics.jsonl"] == (folder / "metrics.jsonl").read_bytes()
    remote, back = RunStore(REMOTE, patience=10), tmp_path / "back"
    back.mkdir(exist_ok=True)
    for checkpoint in remote.checkpoints():
        assert remote.fetch(checkpoint, back / checkpoint.name) is None
        assert remote.fetch_log(checkpoint, "metrics.jsonl", back / "metrics.jsonl") is None
    assert_same_state(back / f"ep1-ba{STEPS}-rank0.pt", folder / LATEST)


@pytest.mark.fault("killed (-9), and gone on with on a machine that has never seen the run")
def test_killed_and_gone_on_with_on_another_machine(
    prepared: Prepared, undisturbed: Path, faulty_store: FaultyStore, in_process: Callable, tmp_path: Path,
) -> None:  # fmt: skip
    log = tmp_path / "log"
    with started(arguments(prepared, tmp_path / "first", f"save_remote={REMOTE}"), log) as run:
        wait_for_checkpoint(faulty_store, 8)
        run.kill_all()
    shutil.rmtree(tmp_path / "first")
    other = tmp_path / "other"
    in_process(*arguments(prepared, other, f"save_remote={REMOTE}", "autoresume=true", "export=true"))
    assert_equal(other, undisturbed)
    assert_whole(faulty_store, other, tmp_path)
    objects = faulty_store.objects(PREFIX)
    assert objects["hf/model.safetensors"] == (other / "hf/model.safetensors").read_bytes()
    written = [path.read_bytes() for path in other.rglob("*") if path.is_file()]
    assert not [text for text in (*written, *objects.values(), log.read_bytes()) if SECRET.encode() in text]


@pytest.mark.fault("the store of checkpoints is gone, then back")
def test_store_gone_and_back(
    prepared: Prepared, undisturbed: Path, faulty_store: FaultyStore, in_process: Callable, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    at_step(monkeypatch, {4: faulty_store.leave, 12: faulty_store.listen})
    in_process(*arguments(prepared, tmp_path / "run", f"save_remote={REMOTE}"))
    assert_equal(tmp_path / "run", undisturbed)
    assert set(faulty_store.objects(PREFIX)) >= {LISTED, f"ep1-ba{STEPS}-rank0.pt"}
    assert listed(faulty_store)[0] == STEPS


@pytest.mark.fault("the store of checkpoints is gone past the limit")
def test_store_gone_at_the_end(
    prepared: Prepared, undisturbed: Path, faulty_store: FaultyStore, in_process: Callable, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    at_step(monkeypatch, {STEPS: faulty_store.leave})
    run = arguments(prepared, tmp_path / "run", f"save_remote={REMOTE}", "save_patience=0.5")
    with pytest.raises(SystemExit, match="75"):
        in_process(*run)
    told = capsys.readouterr().err
    assert f"all of the run lies in {tmp_path / 'run'}, and autoresume=true uploads what is missing" in told
    assert_equal(tmp_path / "run", undisturbed)
    assert listed(faulty_store) == [16, 12]
    faulty_store.listen()
    in_process(*run, "autoresume=true")
    assert_equal(tmp_path / "run", undisturbed)
    assert_whole(faulty_store, tmp_path / "run", tmp_path)


@pytest.mark.fault("credentials of the store of checkpoints are wrong")
def test_credentials_are_tried_before_the_run(
    prepared: Prepared, faulty_store: FaultyStore, in_process: Callable, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    faulty_store.secrets = {"AN-INVENTED-KEY-ID": SECRET}
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another-invented-secret")
    with pytest.raises(SystemExit, match="2"):
        in_process(*arguments(prepared, tmp_path / "run", f"save_remote={REMOTE}"))
    told = capsys.readouterr().err
    assert f"error: save_remote={REMOTE}: " in told
    assert "AWS_SECRET_ACCESS_KEY" in told
    assert "another-invented-secret" not in told
    assert not (tmp_path / "run").exists()


@pytest.mark.fault("a checkpoint was cut short")
@pytest.mark.parametrize("where", ["here", "in the store", "both"])
def test_a_checkpoint_cut_short_is_left_for_the_one_before(
    prepared: Prepared, undisturbed: Path, faulty_store: FaultyStore, in_process: Callable, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, where: str,
) -> None:  # fmt: skip
    folder = tmp_path / "run"
    shutil.copytree(undisturbed, folder, symlinks=True)
    newest = f"ep1-ba{STEPS}-rank0.pt"
    remote = [f"save_remote={REMOTE}"] if where != "here" else []
    if remote:  # what is gone on from is copied too
        (folder / newest).unlink()
        at_step(monkeypatch, {STEPS: lambda: wait_for_checkpoint(faulty_store, 16)})
        in_process(*arguments(prepared, folder, "autoresume=true", *remote))
        faulty_store.change(f"{PREFIX}/{newest}", lambda held: held[: len(held) // 2])
    if where == "in the store":
        shutil.rmtree(folder)
    else:
        (folder / newest).write_bytes((folder / newest).read_bytes()[:5000])
    caplog.clear()
    in_process(*arguments(prepared, folder, "autoresume=true", *remote))
    warnings = [record.getMessage() for record in caplog.records if "damaged" in record.getMessage()]
    assert len(warnings) == (2 if where == "both" else 1)
    assert all(newest in warning and "before" in warning for warning in warnings)
    assert_equal(folder, undisturbed)
    if remote:
        assert_whole(faulty_store, folder, tmp_path)


def test_a_store_that_holds_a_run_is_gone_on_with_or_overwritten(
    prepared: Prepared, faulty_store: FaultyStore, in_process: Callable, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    faulty_store.client.put_object(Bucket=BUCKET, Key=f"{PREFIX}/config.yaml", Body=b"a: 1")
    faulty_store.client.put_object(Bucket=BUCKET, Key=f"{PREFIX}/ep9-ba900-rank0.pt", Body=b"old")
    faulty_store.client.put_object(Bucket=BUCKET, Key=f"{PREFIX}/notes.txt", Body=b"mine")
    short = arguments(prepared, tmp_path / "run", f"save_remote={REMOTE}", "max_duration=4ba", "eval.interval=4ba")
    with pytest.raises(SystemExit, match="2"):
        in_process(*short)
    assert f"save_remote={REMOTE} holds a run already (config.yaml)" in capsys.readouterr().err
    in_process(*short, "overwrite=true")
    held = faulty_store.objects(PREFIX)
    assert set(held) == {LISTED, "metrics.jsonl", "config.yaml", "ep0-ba4-rank0.pt", "notes.txt"}
    assert f"copied to: {REMOTE}" in capsys.readouterr().out


def test_a_remote_save_folder_names_the_right_key(
    prepared: Prepared, in_process: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        in_process(*arguments(prepared, Path("x"), f"save_folder={REMOTE}"))
    assert "save_remote takes one in a store" in capsys.readouterr().err

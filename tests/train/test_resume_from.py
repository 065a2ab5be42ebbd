"""Which checkpoint a run goes on from: here or in the store, after a kill while fetching too, and on all nodes."""

from __future__ import annotations

import logging
import multiprocessing
import os
import queue
import socket
from pathlib import Path

import pytest
import torch

from bertchen.config.schema_train import TrainConfig
from bertchen.errors import UserError
from bertchen.run_store import Content, RunStore, StoredCheckpoint, content_of
from bertchen.train.resume import check_store, checkpoint_to_load, forget_fetched, prepare_store

LATEST = "latest-rank0.pt"


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore(str(tmp_path / "store"), patience=0.0)


@pytest.fixture
def cfg(tmp_path: Path) -> TrainConfig:
    return TrainConfig(save_folder=str(tmp_path / "run"), save_remote=str(tmp_path / "store"), autoresume=True)


def write(folder: Path, step: int, says: str) -> Path:
    path = folder / f"ep0-ba{step}-rank0.pt"
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"says": says}, path)
    (folder / LATEST).unlink(missing_ok=True)
    (folder / LATEST).symlink_to(path.name)
    return path


def put(store: RunStore, tmp_path: Path, *steps: int) -> None:
    """Checkpoints in the store, whose metrics are a line a step."""
    named: list[StoredCheckpoint] = []
    store.put_bytes("metrics.jsonl", b"line\n" * max(steps))
    for step in sorted(steps):
        path = write(tmp_path / "made", step, "the store")
        store.put(path, path.name)
        logs = {"metrics.jsonl": Content.of(b"line\n" * step)}
        named.insert(0, StoredCheckpoint(path.name, step, content_of(path), logs))
    store.name_checkpoints(named)


def says(path: str | None) -> str:
    assert path is not None
    return torch.load(path)["says"]


def test_nothing_anywhere(cfg: TrainConfig, store: RunStore) -> None:
    assert checkpoint_to_load(cfg, store) is None
    assert checkpoint_to_load(cfg, None) is None


def test_the_store_s_newest_is_fetched_with_its_metrics(cfg: TrainConfig, store: RunStore, tmp_path: Path) -> None:
    put(store, tmp_path, 4, 8)
    path = checkpoint_to_load(cfg, store)
    run = tmp_path / "run"
    assert says(path) == "the store"
    assert {entry.name for entry in run.iterdir()} == {"ep0-ba8-rank0.pt", LATEST, "metrics.jsonl"}
    assert (run / LATEST).resolve() == run / "ep0-ba8-rank0.pt"
    assert (run / "metrics.jsonl").read_bytes() == b"line\n" * 8
    again = checkpoint_to_load(cfg, None)
    assert os.path.samefile(str(again), str(path)), "it is a run as any other"


@pytest.mark.parametrize(("here", "there", "winner"), [(4, 8, "the store"), (8, 8, "here"), (12, 8, "here")])
def test_the_later_one_wins_and_is_told(
    cfg: TrainConfig, store: RunStore, tmp_path: Path, caplog: pytest.LogCaptureFixture, here: int, there: int,
    winner: str,
) -> None:  # fmt: skip
    put(store, tmp_path, there)
    write(tmp_path / "run", here, "here")
    (tmp_path / "run/metrics.jsonl").write_bytes(b"mine\n" * here)
    with caplog.at_level(logging.INFO, "bertchen"):
        assert says(checkpoint_to_load(cfg, store)) == winner
    line = "line" if winner == "the store" else "mine"
    assert (tmp_path / "run/metrics.jsonl").read_text().startswith(line)
    assert ("going on from step 8 of" in caplog.text) == (winner == "the store")
    assert "going on from" in caplog.text


def test_a_checkpoint_of_another_name_is_meant(cfg: TrainConfig, store: RunStore, tmp_path: Path) -> None:
    put(store, tmp_path, 8)
    mine = write(tmp_path / "run", 4, "here").rename(tmp_path / "run/mine.pt")
    (tmp_path / "run" / LATEST).unlink()
    (tmp_path / "run" / LATEST).symlink_to(mine.name)
    assert says(checkpoint_to_load(cfg, store)) == "here"


@pytest.mark.parametrize("at", ["metrics.jsonl", "ep0-ba8-rank0.pt", LATEST])
def test_a_kill_while_fetching_leaves_nothing_half(
    cfg: TrainConfig, store: RunStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    """Before each of the files gets its name."""
    put(store, tmp_path, 4, 8)
    write(tmp_path / "run", 4, "here")
    (tmp_path / "run/metrics.jsonl").write_bytes(b"line\n" * 4)
    replace = os.replace

    def killed(source, target) -> None:
        if Path(target).name == at:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        checkpoint_to_load(cfg, store)
    monkeypatch.undo()
    assert says(checkpoint_to_load(cfg, None)) in ("here", "the store"), "what is there is whole"
    assert len((tmp_path / "run/metrics.jsonl").read_bytes()) >= 5 * 4
    assert says(checkpoint_to_load(cfg, store)) == "the store"
    assert len((tmp_path / "run/metrics.jsonl").read_bytes()) == 5 * 8


@pytest.mark.fault("a checkpoint was cut short")
@pytest.mark.parametrize("name", ["ep0-ba8-rank0.pt", "metrics.jsonl"])
def test_what_is_damaged_in_the_store_is_left_for_the_one_before(
    cfg: TrainConfig, store: RunStore, tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    put(store, tmp_path, 4, 8)
    store.put_bytes(name, (Path(store.root) / name).read_bytes()[: 5 * 6])
    path = checkpoint_to_load(cfg, store)
    assert Path(str(path)).name == "ep0-ba4-rank0.pt"
    assert f"{name} is damaged" in caplog.text
    assert "trying the checkpoint before" in caplog.text


def test_none_is_whole(cfg: TrainConfig, store: RunStore, tmp_path: Path) -> None:
    put(store, tmp_path, 4, 8)
    for name in ("ep0-ba4-rank0.pt", "ep0-ba8-rank0.pt"):
        store.put_bytes(name, b"PK")
    with pytest.raises(UserError, match=r"none of its checkpoints is whole"):
        checkpoint_to_load(cfg, store)


def test_what_is_damaged_here_is_fetched(cfg: TrainConfig, store: RunStore, tmp_path: Path) -> None:
    put(store, tmp_path, 4)
    write(tmp_path / "run", 4, "here").write_bytes(b"PK")
    assert says(checkpoint_to_load(cfg, store)) == "the store"
    write(tmp_path / "run", 4, "here").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"damaged checkpoint"):
        checkpoint_to_load(cfg, None)


def test_a_dry_run_fetches_nothing(cfg: TrainConfig, store: RunStore, tmp_path: Path) -> None:
    put(store, tmp_path, 4)
    cfg.dry_run = True
    assert checkpoint_to_load(cfg, store) is None
    assert not (tmp_path / "run").exists()


def test_the_folder_itself_is_no_copy(cfg: TrainConfig, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is save_folder"):
        check_store(cfg, RunStore(str(tmp_path / "run"), patience=0.0))


def test_overwriting_removes_what_is_there(cfg: TrainConfig, store: RunStore, tmp_path: Path) -> None:
    put(store, tmp_path, 4)
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").write_text("a: 1")
    cfg.autoresume = False
    with pytest.raises(UserError, match=r"holds a run already"):
        check_store(cfg, store)
    cfg.overwrite = True
    check_store(cfg, store)
    assert store.names() != []
    prepare_store(cfg, store)
    assert store.names() == ["config.yaml"]


def _node(rank: int, port: int, folder: str, cfg: TrainConfig, has_store: bool, results) -> None:
    """One process, the only one of its node."""
    os.environ.update(
        RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK="0", LOCAL_WORLD_SIZE="1", NODE_RANK=str(rank),
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
    )  # fmt: skip
    from composer.utils import dist

    dist.initialize_dist("cpu", timeout=600)
    os.chdir(folder)
    store = RunStore(str(cfg.save_remote), patience=0.0) if has_store else None
    try:
        path = checkpoint_to_load(cfg, store)
        said = says(path) if path else "none"
        forget_fetched(cfg)
        results.put((rank, path, said, sorted(os.listdir(cfg.save_folder))))
    except UserError as error:
        results.put((rank, None, str(error), []))


def on_two_nodes(folders: tuple[Path, Path], cfg: TrainConfig, has_store: bool = True) -> list[tuple]:
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    nodes = []
    for rank, folder in enumerate(folders):
        folder.mkdir(exist_ok=True)
        nodes.append(context.Process(target=_node, args=(rank, port, str(folder), cfg, has_store, results)))
        nodes[-1].start()
    found = []
    while len(found) < len(nodes):
        try:
            found.append(results.get(timeout=1))
        except queue.Empty:
            assert not any(node.exitcode for node in nodes), "a node has failed: see its traceback"
    for node in nodes:
        node.join()
    return sorted(found)


@pytest.mark.slow
@pytest.mark.parametrize("newest", ["in the store", "on the first node"])
def test_nodes_without_a_shared_folder_load_the_same(tmp_path: Path, store: RunStore, newest: str) -> None:
    cfg = TrainConfig(save_folder="run", save_remote=str(tmp_path / "store"), autoresume=True)
    put(store, tmp_path, 4, 8)
    folders = tmp_path / "one", tmp_path / "two"
    if newest == "on the first node":
        write(folders[0] / "run", 12, "here")
        (folders[0] / "run" / LATEST).unlink()  # whose absolute path both would see here
        write(folders[1] / "run", 2, "of long ago")
    first, second = on_two_nodes(folders, cfg)
    assert first[1:3] == ("run/ep0-ba8-rank0.pt", "the store")
    assert second[1:3] == ("run/.fetched-ep0-ba8-rank0.pt", "the store")
    assert not [name for name in second[3] if name.startswith(".fetched")], "what it was loaded from is removed"


@pytest.mark.slow
def test_nodes_without_a_shared_folder_and_without_a_store_are_refused(tmp_path: Path) -> None:
    cfg = TrainConfig(save_folder="run", autoresume=True)
    folders = tmp_path / "one", tmp_path / "two"
    write(folders[0] / "run", 12, "here")
    (folders[0] / "run" / LATEST).unlink()
    first, second = on_two_nodes(folders, cfg, has_store=False)
    assert first[2] == second[2]
    assert "save_folder must be on a file system that all nodes share, or save_remote set" in first[2]

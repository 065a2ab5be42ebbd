"""The folder of a run: what it refuses, what overwriting removes, and which checkpoint a restart takes."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
import torch
from composer.callbacks import CheckpointSaver
from composer.core import Callback
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from bertchen.errors import UserError
from bertchen.train.run_folder import (
    adopt_checkpoints,
    check_run_folder,
    damage,
    find_checkpoint,
    prepare_run_folder,
    step_of,
)

LATEST = "latest-rank0.pt"
OURS = {
    "config.yaml",
    "metrics.jsonl",
    "ep0-ba10-rank0.pt",
    "ep12-ba3400-rank0.pt",
    "ep0-ba10-rank3.pt",
    LATEST,
    ".config.yaml.tmp",
    ".metrics.jsonl.tmp",
    ".metrics.jsonl.4711.tmp",
    ".ep0-ba20-rank0.pt.tmp",
    ".ep0-ba20-rank0.pt.4711.tmp",
    ".upload/ep0-ba20-rank0.pt",
    "hf/model.safetensors",
    ".hf.tmp-0a1b2c3d/config.json",
    "tensorboard/events",
    "wandb/run/log",
}
FOREIGN = {
    "notes.txt",
    "best.pt",
    "metrics.jsonl.bak",
    "latest-rank0.pt.bak",
    "ep0-ba10.pt",
    "config.yml",
    "my-config.yaml",
    "data/train/0.mds",
    ".hidden",
    ".notes.tmp",
    "hf2/x",
    "hf.tmp-1/x",
    "old/config.yaml",
    "tensorboard.txt",
}


def write(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}


def checkpoint(folder: Path, step: int, latest: bool = True, rank: int = 0) -> Path:
    path = folder / f"ep0-ba{step}-rank{rank}.pt"
    torch.save({"step": step, "weights": torch.arange(1000.0)}, path)
    if latest:
        (folder / LATEST).unlink(missing_ok=True)
        (folder / LATEST).symlink_to(path.name)
    return path


def cut(path: Path) -> None:
    """As a kill during writing leaves it."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def spoil(path: Path) -> None:
    """As a bad disk leaves it: one byte of a tensor is another."""
    content = bytearray(path.read_bytes())
    content[content.find(torch.arange(1000.0).numpy().tobytes()) + 100] ^= 0x10
    path.write_bytes(content)


@pytest.mark.parametrize(("autoresume", "overwrite"), [(False, False), (True, False), (False, True)])
def test_new_and_empty_folders_are_taken_and_not_made(tmp_path: Path, autoresume: bool, overwrite: bool) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("empty", "new", "deep/er/new"):
        check_run_folder(str(tmp_path / name), autoresume, overwrite)
    assert names(tmp_path) == set()
    assert not (tmp_path / "new").exists()


def test_a_folder_with_a_run_must_be_resumed_or_overwritten(tmp_path: Path) -> None:
    write(tmp_path, "config.yaml", "metrics.jsonl")
    with pytest.raises(UserError, match=r"isn't empty.*autoresume=true.*overwrite=true"):
        check_run_folder(str(tmp_path), False, False)
    check_run_folder(str(tmp_path), True, False)
    check_run_folder(str(tmp_path), False, True)


def test_a_folder_without_a_run_is_never_overwritten(tmp_path: Path) -> None:
    write(tmp_path, "thesis.tex")
    with pytest.raises(UserError, match=r"holds no run of ours"):
        check_run_folder(str(tmp_path), False, True)


def test_resuming_and_overwriting_contradict_each_other(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"autoresume=true and overwrite=true"):
        check_run_folder(str(tmp_path), True, True)


@pytest.mark.parametrize("below", ["", "/run", "/deep/run"])
def test_a_file_is_no_folder(tmp_path: Path, below: str) -> None:
    write(tmp_path, "file")
    with pytest.raises(UserError, match=r"file"):
        check_run_folder(f"{tmp_path}/file{below}", False, False)


@pytest.mark.parametrize("below", ["", "/new"])
def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, below: str) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(UserError, match=r"can't be written: no permission"):
        check_run_folder(f"{tmp_path}{below}", False, False)


def test_overwriting_removes_our_files_and_no_other(tmp_path: Path) -> None:
    write(tmp_path, *OURS, *FOREIGN)
    prepare_run_folder(str(tmp_path), True, {"a": 1})
    assert names(tmp_path) == FOREIGN | {"config.yaml"}


def test_links_are_removed_and_not_followed(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    write(folder, "config.yaml")
    write(elsewhere, "model.safetensors", "weights.pt")
    (folder / LATEST).symlink_to(elsewhere / "weights.pt")
    (folder / "latest-rank1.pt").symlink_to("gone.pt")
    (folder / "hf").symlink_to(elsewhere)
    prepare_run_folder(str(folder), True, {})
    assert os.listdir(folder) == ["config.yaml"]
    assert names(elsewhere) == {"model.safetensors", "weights.pt"}


def test_without_overwriting_everything_stays(tmp_path: Path) -> None:
    write(tmp_path, *OURS, *FOREIGN)
    prepare_run_folder(str(tmp_path), False, {"a": 1})
    assert names(tmp_path) == (OURS | FOREIGN) - {".config.yaml.tmp"}
    assert (tmp_path / "metrics.jsonl").read_text() == "metrics.jsonl"


def test_the_resolved_configuration_is_written(tmp_path: Path) -> None:
    config = {"seed": 42, "data": {"local": "mds", "remote": None}, "eval": {"lengths": [64, 512]}, "lr": 5e-4}
    prepare_run_folder(str(tmp_path / "deep/run"), False, config)
    assert OmegaConf.to_container(OmegaConf.load(tmp_path / "deep/run/config.yaml")) == config
    assert names(tmp_path / "deep/run") == {"config.yaml"}


def test_no_checkpoint(tmp_path: Path) -> None:
    assert find_checkpoint(str(tmp_path)) is None
    assert find_checkpoint(str(tmp_path / "missing")) is None
    write(tmp_path, "config.yaml")
    checkpoint(tmp_path, 10, latest=False, rank=1)
    assert find_checkpoint(str(tmp_path)) is None


def test_the_latest_is_taken(tmp_path: Path) -> None:
    for step in (100, 9, 20):
        path = checkpoint(tmp_path, step)
    assert find_checkpoint(str(tmp_path)) == str(path.resolve())


def test_a_partial_file_that_no_link_names_does_not_matter(tmp_path: Path) -> None:
    whole = checkpoint(tmp_path, 20)
    cut(checkpoint(tmp_path, 30, latest=False))
    assert find_checkpoint(str(tmp_path)) == str(whole.resolve())


@pytest.mark.parametrize("link", ["missing", "broken"])
def test_without_the_link_the_newest_complete_one_is_taken(tmp_path: Path, link: str) -> None:
    checkpoint(tmp_path, 9)
    whole = checkpoint(tmp_path, 100)
    cut(checkpoint(tmp_path, 110))
    (tmp_path / LATEST).unlink()
    if link == "broken":
        (tmp_path / LATEST).symlink_to("ep0-ba120-rank0.pt")
    assert find_checkpoint(str(tmp_path)) == str(whole)


@pytest.mark.fault("a checkpoint was cut short")
@pytest.mark.parametrize("harm", [cut, spoil])
def test_a_damaged_latest_is_left_for_the_one_before(tmp_path: Path, harm, caplog: pytest.LogCaptureFixture) -> None:
    older, newer = checkpoint(tmp_path, 10), checkpoint(tmp_path, 20)
    latest = checkpoint(tmp_path, 30)
    harm(latest)
    with caplog.at_level(logging.WARNING):
        assert find_checkpoint(str(tmp_path)) == str(newer)
    assert f"{latest}: damaged checkpoint" in caplog.text
    assert f"going on from the one before, {newer}" in caplog.text
    harm(newer)
    assert find_checkpoint(str(tmp_path)) == str(older)


def test_the_damaged_latest_is_removed_where_the_run_goes_on_from_the_one_before(tmp_path: Path) -> None:
    whole = checkpoint(tmp_path, 10)
    cut(checkpoint(tmp_path, 20))
    saver = CheckpointSaver(folder=str(tmp_path))
    adopt_checkpoints([saver], str(tmp_path), find_checkpoint(str(tmp_path)))
    assert saver.saved_checkpoints == [str(whole)]
    assert names(tmp_path) == {whole.name, LATEST}, "a link to nothing is as none"
    assert find_checkpoint(str(tmp_path)) == str(whole)


def test_damaged_ones_alone_ask_to_start_anew(tmp_path: Path) -> None:
    cut(checkpoint(tmp_path, 10))
    spoil(checkpoint(tmp_path, 20))
    with pytest.raises(UserError, match=r"there is no other one that is whole: .*overwrite=true"):
        find_checkpoint(str(tmp_path))


@pytest.mark.parametrize(
    ("path", "step"),
    [("runs/x/ep0-ba10-rank0.pt", 10), ("ep12-ba3400-rank0.pt", 3400), ("ep0-ba10-rank1.pt", None), ("mine.pt", None)],
)
def test_the_step_stands_in_the_name(path: str, step: int | None) -> None:
    assert step_of(path) == step


def test_without_the_link_the_newest_is_that_of_most_steps(tmp_path: Path) -> None:
    paths = {step: str(checkpoint(tmp_path, step, latest=False)) for step in (9, 100, 20, 1000)}
    for step in (1000, 100, 20, 9):
        assert find_checkpoint(str(tmp_path)) == paths[step]
        os.unlink(paths[step])


def test_a_restart_hands_older_checkpoints_over_and_removes_later_ones(tmp_path: Path) -> None:
    """So that the saver counts them among those that it keeps."""
    older, loaded = checkpoint(tmp_path, 9), checkpoint(tmp_path, 20)
    partial = checkpoint(tmp_path, 100, latest=False)
    cut(partial)
    write(tmp_path, "best.pt", "config.yaml", ".ep0-ba110-rank0.pt.tmp", ".ep0-ba110-rank0.pt.4711.tmp")
    saver = CheckpointSaver(folder=str(tmp_path))
    adopt_checkpoints([saver, Callback()], str(tmp_path), find_checkpoint(str(tmp_path)))
    assert saver.saved_checkpoints == [str(older), str(loaded)]
    assert names(tmp_path) == {older.name, loaded.name, LATEST, "best.pt", "config.yaml"}


def test_a_checkpoint_of_another_name_leaves_all_as_it_is(tmp_path: Path) -> None:
    other = checkpoint(tmp_path, 9).rename(tmp_path / "mine.pt")
    later = checkpoint(tmp_path, 20)
    saver = CheckpointSaver(folder=str(tmp_path))
    adopt_checkpoints([saver], str(tmp_path), str(other))
    assert saver.saved_checkpoints == []
    assert later.exists()


def test_whole_files_are_not_damaged(tmp_path: Path) -> None:
    assert damage(str(checkpoint(tmp_path, 1))) is None


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"not a checkpoint at all"])
def test_files_that_are_no_archive_are_damaged(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.pt").write_bytes(content)
    assert damage(str(tmp_path / "x.pt")) is not None
    assert damage(str(tmp_path)) is not None


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("archive"), 1)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_a_file_cut_anywhere_is_damaged(archive: Path, data: st.DataObject) -> None:
    path = archive.with_name("cut.pt")
    path.write_bytes(archive.read_bytes()[: data.draw(st.integers(0, archive.stat().st_size - 1))])
    assert damage(str(path)) is not None


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_no_changed_bit_goes_into_training(archive: Path, data: st.DataObject) -> None:
    """A file with a bit changed is called damaged, or PyTorch doesn't load it, or it loads as it was."""
    path = archive.with_name("spoilt.pt")
    content = bytearray(archive.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    if damage(str(path)) is None:
        try:
            loaded = torch.load(path, weights_only=True)
        except RuntimeError:
            return
        assert loaded["step"] == 1
        assert torch.equal(loaded["weights"], torch.arange(1000.0))

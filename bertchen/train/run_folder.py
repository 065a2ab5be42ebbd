"""The folder of a run: what may be written there, and the checkpoint to go on from."""

from __future__ import annotations

import os
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from bertchen.errors import UserError

CONFIG_FILE = "config.yaml"
METRICS_FILE = "metrics.jsonl"
CHECKPOINT_FILE = "ep{epoch}-ba{batch}-rank{rank}.pt"
LATEST_FILE = "latest-rank{rank}.pt"
EXPORT_FOLDER = "hf"
_CHECKPOINT = re.compile(r"ep\d+-ba(\d+)-rank0\.pt")
_OURS = re.compile(rf"({re.escape(CONFIG_FILE)}|{re.escape(METRICS_FILE)}|(ep\d+-ba\d+|latest)-rank\d+\.pt|\..*\.tmp)")
_OUR_FOLDERS = (EXPORT_FOLDER, "tensorboard", "wandb")


def is_remote(folder: str) -> bool:
    """Whether Composer writes to an object store instead of a folder."""
    return "://" in folder


def check_run_folder(folder: str, autoresume: bool, overwrite: bool) -> None:
    """Refuses a folder that holds something, unless it is to be resumed or overwritten.

    Raises:
        UserError: the folder isn't empty, is a file, or can't be written; or both keys are set.
    """
    if autoresume and overwrite:
        raise UserError("autoresume=true and overwrite=true contradict each other: set one of them")
    if is_remote(folder):
        return
    path = Path(folder)
    if path.exists() and not path.is_dir():
        raise UserError(f"save_folder={folder} is a file; give a folder")
    if path.is_dir() and any(path.iterdir()):
        if overwrite and not (path / CONFIG_FILE).exists():
            raise UserError(
                f"save_folder={folder} isn't empty and holds no run of ours (no {CONFIG_FILE}), so overwrite=true would "
                "remove foreign files; give another folder"
            )
        if not autoresume and not overwrite:
            raise UserError(
                f"save_folder={folder} isn't empty: go on with that run by autoresume=true, remove it by overwrite=true, "
                "or give another folder"
            )
    parent = next(above for above in (path, *path.resolve().parents) if above.exists())
    if not os.access(parent, os.W_OK):
        raise UserError(f"save_folder={folder} can't be written: no permission in {parent}")


def prepare_run_folder(folder: str, overwrite: bool, config: dict[str, Any]) -> None:
    """Makes the folder, removes an earlier run's files if asked to, and writes the resolved configuration."""
    if is_remote(folder):
        return
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    if overwrite:
        for entry in path.iterdir():
            if entry.is_dir() and entry.name in _OUR_FOLDERS:
                shutil.rmtree(entry)
            elif _OURS.fullmatch(entry.name):
                entry.unlink()
    temporary = path / f".{CONFIG_FILE}.tmp"
    temporary.write_text(OmegaConf.to_yaml(OmegaConf.create(config)))
    os.replace(temporary, path / CONFIG_FILE)


def find_checkpoint(folder: str) -> str | None:
    """The newest checkpoint of a run, checked for damage; None if there is none.

    The link to the latest is set after a checkpoint is complete, so a kill during saving leaves a partial file that
    no link names. Where the link itself was lost, the newest complete checkpoint counts.

    Raises:
        UserError: the newest complete checkpoint is damaged.
    """
    if is_remote(folder):
        return None
    latest = Path(folder) / LATEST_FILE.format(rank=0)
    if latest.exists():
        check_checkpoint(str(latest.resolve()), intact_checkpoints(folder))
        return str(latest.resolve())
    intact = intact_checkpoints(folder)
    return intact[0] if intact else None


def intact_checkpoints(folder: str) -> list[str]:
    """All undamaged checkpoints of a run, newest first."""
    steps = {entry: _CHECKPOINT.fullmatch(entry.name) for entry in Path(folder).glob("*.pt") if not entry.is_symlink()}
    ordered = sorted((int(found[1]), str(entry)) for entry, found in steps.items() if found)
    return [path for _, path in reversed(ordered) if damage(path) is None]


def check_checkpoint(path: str, others: list[str]) -> None:
    """Raises the `UserError` for a missing or damaged checkpoint; `others` are those that could serve."""
    if not os.path.exists(path):
        raise UserError(f"{path}: no such checkpoint")
    reason = damage(path)
    if reason:
        usable = [other for other in others if other != path]
        advice = (
            f"remove it to go on from {usable[0]}"
            if usable
            else "there is no other one: start anew with overwrite=true"
        )
        raise UserError(f"{path}: damaged checkpoint ({reason}); {advice}")


def damage(path: str) -> str | None:
    """What is wrong with a checkpoint, by the checksums of the archive that `torch.save` writes; None if nothing is."""
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except (zipfile.BadZipFile, OSError, EOFError) as error:
        return str(error) or type(error).__name__
    return f"checksum of {broken} is wrong" if broken else None

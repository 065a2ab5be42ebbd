"""The folder of a run: what may be written there, and the checkpoint to go on from."""

from __future__ import annotations

import logging
import os
import re
import shutil
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from composer.callbacks import CheckpointSaver
from composer.core import Callback
from omegaconf import OmegaConf

from bertchen.algorithms.loss_guard import BAD_BATCHES_FILE
from bertchen.callbacks.remote_copy import ASIDE
from bertchen.errors import UserError

log = logging.getLogger(__name__)

CONFIG_FILE = "config.yaml"
METRICS_FILE = "metrics.jsonl"
SAMPLES_FILE = "samples.jsonl"
CHECKPOINT_FILE = "ep{epoch}-ba{batch}-rank{rank}.pt"
LATEST_FILE = "latest-rank{rank}.pt"
EXPORT_FOLDER = "hf"
BEST_FILE = "best_weights.pt"
FINETUNE_FOLDER = "finetune"
_CHECKPOINT = re.compile(r"ep\d+-ba(\d+)-rank0\.pt")
_TEXT = "|".join(map(re.escape, (CONFIG_FILE, METRICS_FILE, SAMPLES_FILE, BAD_BATCHES_FILE, BEST_FILE)))
_WEIGHTS = r"(ep\d+-ba\d+|latest)-rank\d+\.pt"
_OURS = re.compile(rf"{_TEXT}|\.({_TEXT})(\.\d+)?\.tmp|{_WEIGHTS}|\.{_WEIGHTS}(\.\d+)?\.tmp")
_OUR_FOLDERS = re.compile(rf"{EXPORT_FOLDER}|\.{EXPORT_FOLDER}\.tmp-\w+|tensorboard|wandb|{FINETUNE_FOLDER}|{ASIDE}")


def check_run_folder(folder: str, autoresume: bool, overwrite: bool) -> None:
    """Refuses a folder that holds something, unless it is to be resumed or overwritten.

    Raises:
        UserError: the folder isn't empty, is a file, or can't be written; or both keys are set.
    """
    if autoresume and overwrite:
        raise UserError("autoresume=true and overwrite=true contradict each other: set one of them")
    path = Path(folder)
    if path.exists() and not path.is_dir():
        raise UserError(f"save_folder={folder} is a file; give a folder")
    if path.is_dir() and any(path.iterdir()):
        if overwrite and not (path / CONFIG_FILE).exists():
            raise UserError(
                f"save_folder={folder} isn't empty and holds no run of ours (no {CONFIG_FILE}), so overwrite=true "
                "would remove foreign files; give another folder"
            )
        if not autoresume and not overwrite:
            raise UserError(
                f"save_folder={folder} isn't empty: go on with that run by autoresume=true, remove it by "
                "overwrite=true, or give another folder"
            )
    parent = next(above for above in (path, *path.resolve().parents) if above.exists())
    if not parent.is_dir():
        raise UserError(f"save_folder={folder} can't be made: {parent} is a file; give another folder")
    if not os.access(parent, os.W_OK):
        raise UserError(f"save_folder={folder} can't be written: no permission in {parent}")


def prepare_run_folder(folder: str, overwrite: bool, config: dict[str, Any]) -> None:
    """Makes the folder, removes an earlier run's files if asked to, and writes the resolved configuration."""
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    if overwrite:
        for entry in path.iterdir():
            ours = (_OUR_FOLDERS if entry.is_dir() else _OURS).fullmatch(entry.name)
            if ours and entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            elif ours:
                entry.unlink()
    temporary = path / f".{CONFIG_FILE}.tmp"
    temporary.write_text(OmegaConf.to_yaml(OmegaConf.create(config)))
    os.replace(temporary, path / CONFIG_FILE)


def find_checkpoint(folder: str) -> str | None:
    """The newest checkpoint of a run that is whole; None if there is none at all.

    The link to the latest is set after a checkpoint is complete, so a kill during saving leaves a partial file that
    no link names. Where the link itself was lost, or what it names is damaged, the newest whole one counts.

    Raises:
        UserError: there are checkpoints, none of which is whole.
    """
    latest = Path(folder) / LATEST_FILE.format(rank=0)
    if not latest.exists():
        return next(_intact(folder), None)
    path = str(latest.resolve())
    reason = damage(path)
    if reason is None:
        return path
    before = next((other for other in _intact(folder) if other != path), None)
    if before is None:
        raise UserError(
            f"{path}: damaged checkpoint ({reason}); there is no other one that is whole: start anew with "
            "overwrite=true"
        )
    log.warning("%s: damaged checkpoint (%s); going on from the one before, %s", path, reason, before)
    return before


def step_of(checkpoint: str) -> int | None:
    """The step of a checkpoint, by its name; None for one of another name than ours."""
    found = _CHECKPOINT.fullmatch(Path(checkpoint).name)
    return int(found[1]) if found else None


def adopt_checkpoints(callbacks: Iterable[Callback], folder: str, load_path: str | None) -> None:
    """Hands the checkpoints that were there before a restart to Composer's saver, which removes old ones.

    Without it each restart would leave some for good. Those later than `load_path`, which were never finished or never
    linked, are removed: the run comes to their steps again.
    """
    for path in Path(folder).glob(".*-rank0.pt*.tmp"):  # those that a killed run was writing or fetching
        path.unlink()
    found = _checkpoints(folder)
    reached = (
        0 if load_path is None else next((step for step, path in found if os.path.samefile(path, load_path)), None)
    )
    if reached is None:  # a checkpoint of another name: whose, is for the user to know
        return
    for step, path in found:
        if step > reached:
            os.unlink(path)
    for callback in callbacks:
        if isinstance(callback, CheckpointSaver):
            callback.saved_checkpoints = [path for step, path in found if step <= reached]


def _checkpoints(folder: str) -> list[tuple[int, str]]:
    """(step, path) of a run's checkpoints, oldest first, damaged ones too."""
    steps = {entry: _CHECKPOINT.fullmatch(entry.name) for entry in Path(folder).glob("*.pt") if not entry.is_symlink()}
    return sorted((int(found[1]), str(entry)) for entry, found in steps.items() if found)


def _intact(folder: str) -> Iterator[str]:
    """The undamaged checkpoints of a run, newest first; each is read only when it is asked for."""
    return (path for _, path in reversed(_checkpoints(folder)) if damage(path) is None)


def damage(path: str) -> str | None:
    """What is wrong with a checkpoint, by the checksums of the archive that `torch.save` writes; None if nothing is."""
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except Exception as error:  # what a damaged archive raises depends on where the damage is
        return str(error) or type(error).__name__
    return f"checksum of {broken} is wrong" if broken else None

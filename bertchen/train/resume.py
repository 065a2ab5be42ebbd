"""Which checkpoint a run goes on from: the newest on this machine or in the store, the same for all processes."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from composer.utils import dist

from bertchen.config.schema_train import TrainConfig
from bertchen.data.together import gathered
from bertchen.errors import UserError, naming_full_disk
from bertchen.run_store import RunStore, StoredCheckpoint
from bertchen.stores import hidden
from bertchen.train.run_folder import CONFIG_FILE, LATEST_FILE, find_checkpoint, step_of

log = logging.getLogger(__name__)

T = TypeVar("T")

_FETCHED = ".fetched-"  # begins the name of a checkpoint that a node has for itself


def by_first(action: Callable[[], T]) -> T:
    """What `action` returns on the first process, on all of them; so what it raises, if it is for the user to mend."""
    result: T | None = None
    error: UserError | None = None
    if dist.get_global_rank() == 0:
        try:
            with naming_full_disk("save_folder"):
                result = action()
        except UserError as raised:
            error = raised
    result, error = gathered((result, error))[0]
    if error is not None:
        raise error
    return result  # type: ignore[return-value]


def check_store(cfg: TrainConfig, store: RunStore) -> None:
    """Refuses a store that can't be written, and one that holds a run, unless it is to be resumed or overwritten.

    Raises:
        UserError: on all processes.
    """
    by_first(lambda: _check_store(cfg, store))


def checkpoint_to_load(cfg: TrainConfig, store: RunStore | None) -> str | None:
    """The checkpoint to go on from, on this process's machine; None begins anew.

    The first process chooses the newest that is whole, and fetches it with its metrics if it is in the store only.
    Nodes that don't share its folder fetch it too.

    Raises:
        UserError: on all processes: there are checkpoints, none of which is whole; or a node can't come by it.
    """
    path, size = by_first(lambda: _choose(cfg, store))
    if path is None:
        return None
    if not (lacking := _lacking(path, size)):
        return path
    if store is None:
        raise UserError(
            f"{path} isn't there on {', '.join(lacking)}: save_folder must be on a file system that all nodes share, "
            "or save_remote set, from which each can fetch"
        )
    entry, path, size = by_first(lambda: _choose_stored(cfg, store, path))
    mine = path
    reason = None
    if dist.get_local_rank() == 0 and not _is_there(path, size):
        mine = str(Path(cfg.save_folder) / f"{_FETCHED}{Path(path).name}")
        Path(cfg.save_folder).mkdir(parents=True, exist_ok=True)
        reason = store.fetch(entry, Path(mine))
    if failed := [reason for reason in gathered(reason) if reason]:
        raise UserError(f"{hidden(store.url)}/{entry.name}: {failed[0]}")
    return gathered(mine)[dist.get_global_rank() - dist.get_local_rank()]  # that of this node


def prepare_store(cfg: TrainConfig, store: RunStore) -> None:
    """Removes an earlier run if asked to, and copies the configuration.

    Raises:
        UserError: on all processes.
    """

    def prepare() -> None:
        if cfg.overwrite:
            store.clear()
        store.put(Path(cfg.save_folder) / CONFIG_FILE, CONFIG_FILE)

    by_first(prepare)


def forget_fetched(cfg: TrainConfig) -> None:
    """Removes what a node fetched for itself, when all its processes have loaded it."""
    dist.barrier()
    if dist.get_local_rank() == 0:
        for path in Path(cfg.save_folder).glob(f"*{_FETCHED}*"):  # also what a killed run was fetching
            path.unlink(missing_ok=True)


def _check_store(cfg: TrainConfig, store: RunStore) -> None:
    shown = hidden(store.url)
    if Path(store.root) == Path(cfg.save_folder).resolve():
        raise UserError(f"save_remote={shown} is save_folder: give another folder")
    try:
        store.check()
        names = store.names()
    except UserError as error:
        raise type(error)(f"save_remote={shown}: {error}") from error
    if names and not (cfg.autoresume or cfg.overwrite or cfg.dry_run):
        raise UserError(
            f"save_remote={shown} holds a run already ({names[0]}): go on with it by autoresume=true, remove it by "
            "overwrite=true, or give another folder"
        )


def _choose(cfg: TrainConfig, store: RunStore | None) -> tuple[str | None, int]:
    """The path of the newest checkpoint that is whole, which is on this machine then, and its bytes."""
    try:
        path, error = find_checkpoint(cfg.save_folder), None
    except UserError as damaged:
        path, error = None, damaged
    if store is not None and not cfg.dry_run:
        path = _newer_stored(cfg, store, path) or path
    if path is None and error is not None:
        raise error
    return path, 0 if path is None else os.path.getsize(path)


def _newer_stored(cfg: TrainConfig, store: RunStore, path: str | None) -> str | None:
    """Fetches the newest checkpoint that is whole from the store, if it is later than `path`."""
    stored = store.checkpoints()
    reached = -1 if path is None else step_of(path)
    if reached is None:  # of another name: whoever put it there means it
        return None
    for entry in stored:
        if entry.step <= reached:
            log.info("going on from %s: %s has no later one", path, hidden(store.url))
            return None
        if fetched := _fetch(cfg, store, entry):
            log.info("going on from step %d of %s (here: %s)", entry.step, hidden(store.url), path or "none")
            return fetched
    if stored and path is None:
        raise UserError(f"{hidden(store.url)}: none of its checkpoints is whole: start anew with overwrite=true")
    return None


def _fetch(cfg: TrainConfig, store: RunStore, entry: StoredCheckpoint) -> str | None:
    """Logs first: a checkpoint that is there has its logs, whenever this is killed."""
    folder = Path(cfg.save_folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / entry.name
    for name in entry.logs:
        if reason := store.fetch_log(entry, name, folder / name):
            _warn(store, name, reason)
            return None
    if reason := store.fetch(entry, path):
        _warn(store, entry.name, reason)
        return None
    link = folder / LATEST_FILE.format(rank=0)
    temporary = link.with_name(f".{link.name}.tmp")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(entry.name)
    os.replace(temporary, link)
    return str(path)


def _warn(store: RunStore, name: str, reason: str) -> None:
    log.warning("%s/%s is damaged (%s); trying the checkpoint before", hidden(store.url), name, reason)


def _choose_stored(cfg: TrainConfig, store: RunStore, path: str) -> tuple[StoredCheckpoint, str, int]:
    """The newest that every node can have, at most as new as `path`, which some nodes don't see."""
    reached = step_of(path)
    for entry in store.checkpoints():
        if reached is None or entry.step > reached:
            continue
        found = path if entry.name == Path(path).name else _fetch(cfg, store, entry)
        if found is not None:
            if entry.step < reached:
                log.warning("%s is on one node only; going on from step %d of %s", path, entry.step, hidden(store.url))
            return entry, found, os.path.getsize(found)
    raise UserError(
        f"{path} isn't seen by every node, and {hidden(store.url)} has none for them: put save_folder on a file system "
        "that all nodes share"
    )


def _is_there(path: str, size: int) -> bool:
    return os.path.isfile(path) and os.path.getsize(path) == size


def _lacking(path: str, size: int) -> list[str]:
    """Hosts that don't have the file."""
    lacks = dist.get_local_rank() == 0 and not _is_there(path, size)
    return [host for host in gathered(socket.gethostname() if lacks else None) if host]

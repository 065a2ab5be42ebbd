"""A folder that a command writes whole or not at all."""

from __future__ import annotations

import fnmatch
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bertchen.errors import UserError, disk_full, is_disk_full


@contextmanager
def staged_folder(out: str, holds: str, overwrite: bool = False) -> Iterator[Path]:
    """Gives an empty temporary folder that becomes `out` when the body ends, and vanishes if it raises.

    The temporary folder is made at once, so that a place where nothing can be written is met before the work.
    It lies in the nearest folder above `out` that exists, because a rename must stay in one file system.

    Args:
        out: the folder to write; missing or empty, unless `overwrite`.
        holds: pattern of a file name that tells a folder of this kind (`tokenizer.json`). Only such a folder
            is ever overwritten: `out=.` or a mistyped path must not cost anyone their files.
        overwrite: replace a folder that is there.

    Raises:
        UserError: `out` is a file, is not empty, holds something else, or can't be written; the disk is full.
    """
    target = Path(os.path.abspath(os.path.expanduser(out)))
    check_target(target, out, holds, overwrite)
    above = next(parent for parent in target.parents if parent.exists())
    temporary = above / f".{target.name}.tmp-{uuid.uuid4().hex[:8]}"
    try:
        temporary.mkdir()
    except OSError as error:
        raise _unwritable(out, error) from None
    try:
        yield temporary
        put_in_place(temporary, target, out)
    except UserError:
        raise
    except Exception as error:
        if is_disk_full(error):
            raise disk_full(error, out) from error
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_target(target: Path, out: str, holds: str, overwrite: bool) -> None:
    if not out:
        raise UserError("out is empty: name the folder to write")
    if target.is_symlink() and not target.exists():
        raise UserError(f"out={out} is a link that leads nowhere: name another folder")
    if target.exists() and not target.is_dir():
        raise UserError(f"out={out} is a file: name a folder")
    names = os.listdir(target) if target.exists() else []
    if names and not overwrite:
        raise UserError(f"out={out} is not empty: choose another folder, or replace it with overwrite=true")
    if names and not fnmatch.filter(names, holds):
        raise UserError(f"out={out} has no {holds} in it, so it is not replaced: choose another folder")


def put_in_place(temporary: Path, target: Path, out: str) -> None:
    """Makes a complete folder `target`, in the place of one that may be there; copied first if it lies elsewhere.

    Raises:
        UserError: `target` can't be written.
    """
    target = target.resolve()
    copy: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if os.stat(temporary).st_dev != os.stat(target.parent).st_dev:
            copy = target.with_name(f".{target.name}.tmp")
            for left in (copy, _replaced(copy)):  # by a process that was killed
                shutil.rmtree(left, ignore_errors=True)
            shutil.copytree(temporary, copy)
        _exchange(copy or temporary, target)
    except OSError as error:
        raise _unwritable(out, error) from None
    finally:
        if copy is not None:
            shutil.rmtree(copy, ignore_errors=True)


def _exchange(new: Path, target: Path) -> None:
    replaced = _replaced(new)
    if target.exists():
        target.rename(replaced)
    try:
        new.rename(target)
    except OSError:
        if replaced.exists():
            replaced.rename(target)
        raise
    shutil.rmtree(replaced, ignore_errors=True)


def _replaced(new: Path) -> Path:
    """Where the folder that `new` replaces lies meanwhile."""
    return new.with_name(f"{new.name}.old")


def _unwritable(out: str, error: OSError) -> UserError:
    if is_disk_full(error):
        return disk_full(error, out)
    return UserError(f"out={out} can't be written: {error.strerror}: choose another folder")

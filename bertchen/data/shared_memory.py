"""How runs on one machine keep out of each other's way in Streaming's shared memory.

A StreamingDataset takes the lowest number that is free in `/dev/shm` for its segments (`000007_locals`, …), and notes
in `locals` which folder it uses. Three things aren't settled by that:

- It looks for a number and takes it in two steps: of two runs that start at the same moment one can fail.
- A run that is killed together with its helpers (a container, a job's time limit, the kernel short of memory) leaves
  its segments. A restart takes another number; but a cache of remote shards that such a `locals` names counts as in
  use. So each run notes its numbers, and the next one removes those whose process is gone.
- It opens the segments of all others on the machine, so that some runs at once, of several datasets each, need more
  open files than the usual limit of 1,024.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import re
import resource
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from glob import glob
from pathlib import Path

from composer.utils import dist

from bertchen.errors import UserError

log = logging.getLogger(__name__)

PATIENCE = 60.0  # seconds
_SHARED_MEMORY = "/dev/shm"
_NOTES = re.compile(r"bertchen-(\d+)-shm-(\d{6})")
_NO_FOLDERS = bytes(4)  # what Streaming itself writes over the length of `locals` when a dataset is given up

# Open as long as the process lives: closing one would release its lock.
_held: dict[str, int] = {}


def allow_open_files() -> None:
    """Raises this process's limit of open files to the highest that it may set itself."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


@contextmanager
def one_run_at_a_time(patience: float = PATIENCE) -> Iterator[None]:
    """Holds a lock of this user and machine in the first process of each node, and the others until it is held.

    After `patience` seconds it goes on without the lock: a run that hangs in its start mustn't hold up all others.
    """
    if dist.get_local_rank() != 0:
        dist.barrier()
        yield
        return
    lock = _open_lock("start")
    try:
        if not _locked_in_time(lock, patience):
            log.warning("another run has been starting for %.0f s; starting beside it", patience)
        remove_left_over()
        dist.barrier()
        yield
    finally:
        os.close(lock)


def _locked_in_time(lock: int, patience: float) -> bool:
    end = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= end:
                return False
            time.sleep(0.05)


def note_segments(number: int) -> None:
    """Notes that the segments of this number belong to this process, the first of its node."""
    if dist.get_local_rank() == 0:
        owner = f"{os.getpid()} {_begun(os.getpid())} {_inode(number)}"
        Path(tempfile.gettempdir(), f"bertchen-{os.getuid()}-shm-{number:06d}").write_text(owner)


def remove_left_over() -> None:
    """Removes the segments of this user's runs whose process is gone, and what was noted about them."""
    for note in Path(tempfile.gettempdir()).glob(f"bertchen-{os.getuid()}-shm-*"):
        found = _NOTES.fullmatch(note.name)
        with suppress(OSError, ValueError):  # gone meanwhile, or cut short
            process, begun, inode = map(int, note.read_text().split())
            if found is None or _begun(process) == begun:
                continue
            if _inode(int(found[2])) in (inode, 0):  # else the number is another's by now
                segments = glob(os.path.join(_SHARED_MEMORY, f"{found[2]}_*"))
                for left in (*segments, *glob(os.path.join(tempfile.gettempdir(), f"{found[2]}_*_filelock"))):
                    os.unlink(left)
                if segments:
                    log.info("removed the shared memory %s_* that a killed run had left", found[2])
            note.unlink()


def _begun(process: int) -> int:
    """When a process began [ticks since the machine did]: with its id, its name for good; 0 where there is none."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] == "Z" else int(fields[19])


def _inode(number: int) -> int:
    path = Path(_SHARED_MEMORY, f"{number:06d}_locals")
    return path.stat().st_ino if path.exists() else 0


def claim_cache(local: str, splits: Sequence[str]) -> None:
    """Makes a cache of remote shards this run's own, though a killed run's shared memory may still name it.

    Called in the first process of each node.

    Raises:
        UserError: another run uses it.
    """
    folder = os.path.abspath(local)
    if folder not in _held:
        lock = _open_lock(f"cache-{hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]}")
        try:
            # The process's, not its children's: loader workers outlive a killed run for some seconds.
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            raise UserError(
                f"data.local={local} is the cache of another run: give each run a folder of its own"
            ) from None
        _held[folder] = lock
    ours = {os.path.join(folder, split) for split in splits}
    for path in glob(os.path.join(_SHARED_MEMORY, "*_locals")):
        with suppress(OSError):  # another user's, or gone meanwhile
            if not ours.isdisjoint(_folders(Path(path).read_bytes())):
                with open(path, "r+b") as segment:
                    segment.write(_NO_FOLDERS)


def _open_lock(name: str) -> int:
    """A file to lock, of this user and, as shared memory is, of this machine."""
    path = os.path.join(tempfile.gettempdir(), f"bertchen-{os.getuid()}-{name}.lock")
    return os.open(path, os.O_CREAT | os.O_RDWR, 0o600)


def _folders(segment: bytes) -> list[str]:
    """The folders in a `locals` segment: its length in 4 bytes, then folders and its number, joined by NUL."""
    length = int.from_bytes(segment[:4], "little")
    return segment[4:length].decode("utf-8", "replace").split("\0")[:-1]

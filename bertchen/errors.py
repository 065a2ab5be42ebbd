"""Errors that a user can mend, and the one place where they end a command.

Anything that is the user's to mend (a key, a file, a folder, the disk) is raised as `UserError` with one
message that names it, the value found and what would be right. Every command runs inside `user_errors()`,
which prints that message alone and exits with code 2; any other exception is a bug and keeps its traceback.

Exit codes, which are the same on every process of a run:

| code | what happened | what to do |
| --- | --- | --- |
| 0 | done | |
| 1 | a bug, or another process of the run has died | read the traceback or the reason; `autoresume=true` goes on |
| 2 | a `UserError`, or training was stopped because of what it computes | mend what the message names |
| 75 | stopped by a signal, or a store was gone for too long; what was trained is saved | start the same command again |
| 130 | Ctrl-C | |

75 is `EX_TEMPFAIL`: a batch system may start the run again at once, with `autoresume=true`. The composer launcher
returns the code of the first of its processes, by rank, that has failed: so these codes too, and 247 (-9) for one that
was killed. `torchrun` returns 1 for any of them: where the code matters, take the composer launcher, or start
`python main.py` once a process.
"""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

FAILED_EXIT_CODE = 1
EXIT_CODE = 2
AGAIN_EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h
INTERRUPTED_EXIT_CODE = 130  # a shell's, for Ctrl-C
GRACE_SECONDS = 5.0
_FULL = (errno.ENOSPC, errno.EDQUOT)


class UserError(Exception):
    """Something that the user can mend; the message says what, where and how."""

    exit_code = EXIT_CODE


class Stop(Exception):
    """Raised by all processes at the same place between two steps, where what was trained so far is whole.

    Whoever has the Trainer saves it; `user_errors` prints the message, by the first process, and ends them all alike.

    Args:
        message: what happened, and where.
        exit_code: of the command.
        saves: whether a checkpoint is worth to be saved.
    """

    def __init__(self, message: str, exit_code: int, saves: bool = True) -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.saves = saves


def disk_full(error: BaseException, path: str | os.PathLike[str] | None = None) -> UserError:
    """The message for a write that found no space (`ENOSPC`) or met a quota (`EDQUOT`)."""
    where = path or getattr(error, "filename", None) or "the output folder"
    return UserError(f"no space left on the device while writing {where}: free some space or choose another folder")


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an exception, or one that it was raised in the handling of, says that the disk or a quota is full."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        if str(error).endswith(tuple(f"(os error {number})" for number in _FULL)):  # a library written in Rust
            return True
        error = error.__context__
    return False


@contextmanager
def naming_full_disk(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turns a full disk, met in the body, into a `UserError` that names the file, or `path` where that isn't known."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # torch.save hides the OSError behind a RuntimeError of its own
        if is_disk_full(error):
            raise disk_full(error, getattr(error, "filename", None) or path) from error
        raise


@contextmanager
def user_errors() -> Iterator[None]:
    """Ends the process with one line on stderr, and the exit code that goes with it, if the body raises `UserError`.

    `Stop` and a full disk, wherever it is met, end it so too. Ctrl-C ends it with code 130 and without a traceback;
    what a `KeyboardInterrupt` says is printed.
    """
    try:
        yield
    except KeyboardInterrupt as error:
        print(": ".join(filter(None, ("interrupted", str(error)))), file=sys.stderr, flush=True)
        sys.exit(INTERRUPTED_EXIT_CODE)
    except Stop as stop:
        exit_code = stop.exit_code
        if _is_first():
            _print_error(str(stop))
    except UserError as error:
        exit_code = error.exit_code
        _print_error(str(error))
    except Exception as error:
        if not is_disk_full(error):
            raise
        exit_code = EXIT_CODE
        _print_error(str(disk_full(error)))
    else:
        return
    if not _is_first():
        # The launcher ends all processes when one has ended: the first one's message and exit code must come first.
        time.sleep(GRACE_SECONDS)
    sys.exit(exit_code)


def _is_first() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _print_error(message: str) -> None:
    sys.stdout.flush()
    print(f"error: {message}", file=sys.stderr, flush=True)

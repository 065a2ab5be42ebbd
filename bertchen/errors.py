"""Errors that a user can mend, and the one place where they end a command.

Anything that is the user's to mend (a key, a file, a folder, the disk) is raised as `UserError` with one
message that names it, the value found and what would be right. Every command runs inside `user_errors()`,
which prints that message alone and exits with code 2; any other exception is a bug and keeps its traceback.
"""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

EXIT_CODE = 2
INTERRUPTED_EXIT_CODE = 130  # a shell's, for Ctrl-C
GRACE_SECONDS = 5.0
_FULL = (errno.ENOSPC, errno.EDQUOT)


class UserError(Exception):
    """Something that the user can mend; the message says what, where and how."""


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
    """Ends the process with exit code 2 and one line on stderr if the body raises `UserError`.

    A full disk counts as one too, wherever it is met. Ctrl-C ends it with code 130 and without a traceback; what a
    `KeyboardInterrupt` says is printed.
    """
    try:
        yield
    except KeyboardInterrupt as error:
        print(": ".join(filter(None, ("interrupted", str(error)))), file=sys.stderr, flush=True)
        sys.exit(INTERRUPTED_EXIT_CODE)
    except UserError as error:
        message = str(error)
    except Exception as error:
        if not is_disk_full(error):
            raise
        message = str(disk_full(error))
    else:
        return
    sys.stdout.flush()
    print(f"error: {message}", file=sys.stderr, flush=True)
    if os.environ.get("RANK", "0") != "0":
        # The launcher ends all processes when one has ended: the first one's message and exit code must come first.
        time.sleep(GRACE_SECONDS)
    sys.exit(EXIT_CODE)

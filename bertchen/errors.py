"""Errors that a user can mend, and the one place where they end a command.

Anything that is the user's to mend (a key, a file, a folder, the disk) is raised as `UserError` with one
message that names it, the value found and what would be right. Every command runs inside `user_errors()`,
which prints that message alone and exits with code 2; any other exception is a bug and keeps its traceback.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

EXIT_CODE = 2


class UserError(Exception):
    """Something that the user can mend; the message says what, where and how."""


def disk_full(error: OSError, path: str | os.PathLike[str] | None = None) -> UserError:
    """The message for a write that found no space (`ENOSPC`) or met a quota (`EDQUOT`)."""
    where = path or error.filename or "the output folder"
    return UserError(f"no space left on the device while writing {where}: free some space or choose another folder")


def is_disk_full(error: BaseException) -> bool:
    """Whether an exception says that the disk or a quota is full."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def user_errors() -> Iterator[None]:
    """Ends the process with exit code 2 and one line on stderr if the body raises `UserError`.

    A full disk counts as one too, wherever it is met.
    """
    try:
        yield
    except UserError as error:
        message = str(error)
    except OSError as error:
        if not is_disk_full(error):
            raise
        message = str(disk_full(error))
    else:
        return
    sys.stdout.flush()
    print(f"error: {message}", file=sys.stderr, flush=True)
    sys.exit(EXIT_CODE)

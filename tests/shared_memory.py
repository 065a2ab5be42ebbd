"""Gives Streaming's shared memory back before the process ends."""

from __future__ import annotations

import atexit
import gc
import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest


@contextmanager
def given_back() -> Iterator[None]:
    """For what makes StreamingDatasets: these keep their shared memory to the end of the process.

    And each opens that of all before it, so that a process with hundreds of them would run out of files. Tests that
    run beside others count from a number of their own, as Streaming looks for a free one and takes it in two steps.
    """
    from streaming.base.shared import prefix
    from streaming.base.shared.memory import SharedMemory

    first = 10_000 * (1 + int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")))

    taken: list[SharedMemory] = []
    take = SharedMemory.__init__

    def take_and_note(self: SharedMemory, *args: Any, **options: Any) -> None:
        take(self, *args, **options)
        taken.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SharedMemory, "__init__", take_and_note)
        patch.setattr(prefix, "_each_prefix_int", lambda: itertools.count(first))
        try:
            yield
        finally:
            if taken:
                gc.collect()
            for memory in taken:
                with suppress(BufferError):  # still in use by an object that a failed test's traceback holds
                    memory.cleanup()
                    atexit.unregister(memory.cleanup)

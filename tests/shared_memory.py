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
    """For what makes StreamingDatasets: these keep their shared memory and their threads to the end of the process.

    And each opens that of all before it, so that a process with hundreds of them would run out of files. Tests that
    run beside others count from a number of their own, as Streaming looks for a free one and takes it in two steps.
    """
    from streaming.base.dataset import _Iterator
    from streaming.base.shared import prefix
    from streaming.base.shared.memory import SharedMemory

    if not gc.get_freeze_count():
        gc.freeze()  # what is imported by now, which a collection would go through each time
    first = 10_000 * (1 + int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")))

    taken: list[SharedMemory] = []
    take = SharedMemory.__init__

    def take_and_note(self: SharedMemory, *args: Any, **options: Any) -> None:
        take(self, *args, **options)
        taken.append(self)

    iterators: list[_Iterator] = []
    begin = _Iterator.__init__

    def begin_and_note(self: _Iterator, *args: Any, **options: Any) -> None:
        begin(self, *args, **options)
        iterators.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_Iterator, "__init__", begin_and_note)
        patch.setattr(SharedMemory, "__init__", take_and_note)
        patch.setattr(prefix, "_each_prefix_int", lambda: itertools.count(first))
        try:
            yield
        finally:
            for iterator in iterators:  # of an epoch that wasn't read to its end: its threads look for more work
                iterator.non_blocking_exit()
            if taken:
                gc.collect()
            for memory in taken:
                with suppress(BufferError):  # still in use by an object that a failed test's traceback holds
                    memory.cleanup()
                    atexit.unregister(memory.cleanup)

"""Worker processes that end with the process that started them, however that ends."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import wait
from typing import Any, TypeVar

from bertchen.errors import UserError

T = TypeVar("T")


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class WorkerPool(ProcessPoolExecutor):
    """Begins its processes deaf to Ctrl-C, which reaches all of a terminal's processes: the parent ends its workers."""

    def submit(self, function: Callable[..., T], /, *args: Any, **options: Any) -> Future[T]:
        # Here, because a submission may begin a process, which has what is blocked from its parent.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            return super().submit(function, *args, **options)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def worker_pool(
    workers: int, initializer: Callable[..., None] | None = None, arguments: tuple[Any, ...] = ()
) -> Iterator[WorkerPool]:
    """A pool of fresh processes (not forked: threads and locks of this one are not theirs).

    On an error, what hasn't begun is given up; on Ctrl-C, what has begun too.

    Raises:
        UserError: a worker was killed; the rest ends too.
    """
    others = multiprocessing.active_children()
    pool = WorkerPool(
        workers, multiprocessing.get_context("spawn"), initializer=_begin, initargs=(initializer, arguments)
    )
    try:
        yield pool
    except BrokenProcessPool as error:
        raise UserError(
            "a worker process was killed, likely for want of memory"
            + (f": fewer than workers={workers} need less" if workers > 1 else "")
        ) from error
    except KeyboardInterrupt:
        for process in multiprocessing.active_children():
            if process not in others:
                process.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def in_own_process(function: Callable[..., T], *arguments: Any) -> T:
    """Calls a function that imports much in a process of its own, which gives the memory back.

    In this one where PyTorch, which is most of it, is imported anyway.
    """
    if "torch" in sys.modules:
        return function(*arguments)
    with worker_pool(1) as pool:
        return pool.submit(function, *arguments).result()


def hide_torch() -> None:
    """In a worker process, lets libraries that would import PyTorch do without: half a gigabyte, and seconds."""
    if multiprocessing.parent_process() is not None and "torch" not in sys.modules:
        sys.modules["torch"] = None  # type: ignore[assignment]
        os.environ["TRANSFORMERS_NO_ADVISORY_WARNINGS"] = "1"  # that there is no PyTorch


def end_with(parent: Any) -> None:
    """Ends this process when its parent, if any, has ended: one that was killed can't tell those that wait for it."""
    if parent is not None:
        threading.Thread(target=_end_after, args=(parent.sentinel,), daemon=True).start()


@contextmanager
def ending_soon(seconds: float = 10.0) -> Iterator[None]:
    """For the whole of a process: one that fails ends within `seconds`, whatever its threads still wait for.

    And with the code that it was about to end with, though a launcher ends it because another has ended.
    """
    try:
        yield
    except BaseException as error:
        code = error.code if isinstance(error, SystemExit) else 1
        if code:
            # Python takes its own handlers off before it ends, but leaves this.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            timer = threading.Timer(seconds, os._exit, (code if isinstance(code, int) else 1,))
            timer.daemon = True
            timer.start()
        raise


def _begin(initializer: Callable[..., None] | None, arguments: tuple[Any, ...]) -> None:
    end_with(multiprocessing.parent_process())
    if initializer is not None:
        initializer(*arguments)


def _end_after(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)

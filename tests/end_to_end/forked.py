"""Processes of one run, forked from one that has imported everything: they start in a moment, as under a launcher."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path

from running import PATIENCE, ROOT, environment

Fault = Callable[[], None]

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["main"])


class Forked:
    """The processes of a run, each with a log of its own."""

    def __init__(self, processes: Sequence[BaseProcess], logs: Sequence[Path]) -> None:
        self.processes = processes
        self.logs = logs

    def end(self, patience: float = PATIENCE) -> list[int | None]:
        """Waits until all have ended; their exit codes, None for one that hasn't in so many seconds."""
        until = time.monotonic() + patience
        for process in self.processes:
            process.join(max(0.0, until - time.monotonic()))
        return [process.exitcode for process in self.processes]

    def says(self, rank: int) -> str:
        return self.logs[rank].read_text()

    def errors(self, rank: int) -> list[str]:
        return [line for line in self.says(rank).splitlines() if line.startswith("error: ")]


@contextmanager
def forked(arguments: Sequence[Sequence[str]], log: Path, faults: Sequence[Fault | None]) -> Iterator[Forked]:
    """Starts a process for each list of arguments of main.py, and lets none outlive the test.

    Args:
        log: a folder for what they print.
        faults: a function of a module for each process, which it calls before it begins.
    """
    log.mkdir(parents=True, exist_ok=True)
    logs = [log / f"rank{rank}" for rank in range(len(arguments))]
    port = _free_port()
    processes = [
        _CONTEXT.Process(target=_run, args=(rank, len(arguments), port, list(given), logs[rank], faults[rank]))
        for rank, given in enumerate(arguments)
    ]
    for process in processes:
        process.start()
    try:
        yield Forked(processes, logs)
    finally:
        for process in processes:
            process.kill()
            process.join()


def _run(rank: int, world_size: int, port: int, arguments: list[str], log: Path, fault: Fault | None) -> None:
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    place = {"RANK": rank, "WORLD_SIZE": world_size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": world_size, "NODE_RANK": 0}
    given = {name: str(value) for name, value in place.items()}
    os.environ.clear()
    os.environ.update(environment(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), **given))
    os.chdir(ROOT)

    import torch

    import main
    from bertchen.errors import user_errors
    from bertchen.processes import ending_soon

    multiprocessing.set_start_method("fork", force=True)  # for loaders, as anywhere else
    torch.set_num_threads(1)
    if fault is not None:
        fault()
    try:
        with ending_soon(), user_errors():
            main.main(arguments)
    finally:
        atexit._run_exitfuncs()  # which a process of multiprocessing leaves out


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]

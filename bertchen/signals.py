"""SIGTERM and SIGUSR1 ask a run to end: in training at the next place where all is whole, elsewhere at once.

Both mean the same. A batch system sends the first when it takes the machine back, the second ahead of a time limit
(Slurm's `--signal=USR1@120`). Ctrl-C (SIGINT) isn't heard here. Notable: a handler runs in the main thread, between two
instructions of Python. While that thread waits in a collective, a signal waits too.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from types import FrameType

from bertchen.errors import AGAIN_EXIT_CODE

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Interrupted(BaseException):
    """A signal came while waiting for data; no `Exception`, so that nothing that tries again takes it for a failure."""


class StopSignals:
    """What has been heard, and what is done about it.

    Attributes:
        received: name of the first signal, None before; later ones change nothing.
        in_training: a signal is only noted, because somebody will look whether one came.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self.in_training = False
        self._waiting = False

    def listen(self) -> None:
        """From now on this process hears them; to be called in its main thread."""
        self.__init__()
        _shield_resource_tracker()
        for number in SIGNALS:
            signal.signal(number, self._hear)

    @contextmanager
    def interrupt_waiting(self) -> Iterator[None]:
        """In the body a signal raises `Interrupted`, one that came before it too."""
        self._waiting = True
        try:
            if self.received:
                raise Interrupted(self.received)
            yield
        finally:
            self._waiting = False

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self.received:
            return
        self.received = signal.Signals(number).name
        if self._waiting:
            raise Interrupted(self.received)
        if not self.in_training:
            print(f"stopped by {self.received}", file=sys.stderr, flush=True)
            sys.exit(AGAIN_EXIT_CODE)


stop_signals = StopSignals()


def _shield_resource_tracker() -> None:
    """Begins the process that gives shared memory back after all others, before a signal comes, and with it blocked.

    Slurm signals all processes of a step; this one is deaf to SIGTERM by itself, but would end of SIGUSR1.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    try:
        resource_tracker.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_to_parent() -> None:
    """Called in a process that works for another: only that one decides about signals, which often reach both.

    What SIGTERM does stays to the parent, who ends its workers with it.
    """
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        threading.Thread(target=_end_by_parent, daemon=True).start()


def _end_by_parent() -> None:
    while True:
        if signal.sigwaitinfo([signal.SIGTERM]).si_pid == os.getppid():
            os._exit(0)

"""Each process of a run knows whether the others live, and ends with the reason when one doesn't.

When a process dies its connections close, and collectives between CPUs fail at once. But those of NCCL may wait for
their time-out, and of a machine that is gone nothing is heard. So each process counts up a number in the store that
the process group was made with, and looks whether the next process's still moves. The first process holds that store:
where it can't be reached, that one is gone. With `torchrun` the agent of the first node holds it.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta

from composer.utils import dist
from torch.distributed import Store, TCPStore

from bertchen.errors import FAILED_EXIT_CODE, Stop, UserError
from bertchen.stores import said

log = logging.getLogger(__name__)

BEAT = 1.0  # seconds between two looks
SILENT_BEATS = 40  # looks without a sign of life, after which a process counts as dead
GRACE = 10.0  # seconds that a process has to end by itself when another has died
_STORE_TIMEOUT = timedelta(seconds=15)
_FAILED = "bertchen/failed"
_STORE_GONE = "process 0 has ended, or its machine can't be reached"
_OF_COLLECTIVES = ("gloo", "nccl", "connection", "socket", "store", "peer")


class PeerFailed(UserError):
    """Another process of the run has failed or died."""

    exit_code = FAILED_EXIT_CODE


class Peers:
    """The processes of a run, as seen by one of them.

    Args:
        store: shared by all; used by nobody else in this process, as a request may wait.
        rank, world_size: of this process.
        beat: seconds between two looks.
    """

    def __init__(self, store: Store, rank: int, world_size: int, beat: float = BEAT) -> None:
        self.store = store
        self.rank = rank
        self.world_size = world_size
        self.beat = beat
        self._over = threading.Event()
        self._using = threading.Lock()
        self._beats, self._looks = 0, 0
        self._failure: str | None = None
        self._parent = os.getppid()
        self._next, self._heard, self._silent = (rank + 1) % world_size, b"", 0
        store.set(f"bertchen/host/{rank}", socket.gethostname())
        store.set(_beat(rank), "0")  # one that dies before its first look is missed too

    def watch(self) -> list[threading.Thread]:
        """Looks after the others from now on, in threads: a request to a machine that is gone may never return."""
        threads = [threading.Thread(target=each, daemon=True) for each in (self._keep_looking, self._watch)]
        for thread in threads:
            thread.start()
        return threads

    def is_over(self) -> None:
        """What happens to the others doesn't matter any longer."""
        self._over.set()

    def tell(self, reason: str) -> None:
        """Lets the others know why this process ends, if nobody has told a reason before."""
        with suppress(RuntimeError), self._using:
            if not self.store.check([_FAILED]):
                self.store.set(_FAILED, f"{self._named(self.rank)} failed: {reason}")

    def look(self) -> str | None:
        """Gives a sign of life, and says what is known of a failure."""
        try:
            with self._using:
                return self._look()
        except RuntimeError:
            return _STORE_GONE

    def who_failed(self) -> str | None:
        """What another process told, or which don't give signs of life any more: it takes some seconds."""
        try:
            with self._using:
                before = self._all_beats()
            for _ in range(3):
                time.sleep(self.beat)
                if told := self.look():
                    return told
            with self._using:
                after = self._all_beats()
                dead = [self._named(rank) for rank in before if rank != self.rank and before[rank] == after[rank]]
        except RuntimeError:
            return self.look()
        return f"{' and '.join(dead)} died" if dead else None

    def _look(self) -> str | None:
        self._beats += 1
        self.store.set(_beat(self.rank), str(self._beats))
        if self.store.check([_FAILED]):
            return self.store.get(_FAILED).decode()
        heard = self.store.get(_beat(self._next)) if self.store.check([_beat(self._next)]) else b""
        # Looks are counted, not seconds: a process that was held up itself doesn't take the others for dead.
        self._silent = self._silent + 1 if heard == self._heard else 0
        self._heard = heard
        if self._silent < SILENT_BEATS:
            return None
        reason = f"{self._named(self._next)} has given no sign of life for {self._silent * self.beat:.0f} s"
        self.store.set(_FAILED, reason)
        return reason

    def _keep_looking(self) -> None:
        while self._failure is None and not self._over.wait(self.beat):
            self._failure = self.look()
            self._looks += 1

    def _watch(self) -> None:
        looks, waited = 0, 0
        while self._failure is None and not self._over.wait(self.beat):
            if os.getppid() != self._parent:
                log.warning("the launcher of process %d has died", self.rank)
                self._parent = os.getppid()
                os.kill(os.getpid(), signal.SIGTERM)
            looks, waited = self._looks, waited + 1 if looks == self._looks else 0
            if waited >= SILENT_BEATS:
                self._failure = _STORE_GONE
        if not self._over.wait(GRACE):  # it waits for the dead
            print(f"error: {self._failure}", file=sys.stderr, flush=True)
            os._exit(FAILED_EXIT_CODE)

    def _all_beats(self) -> dict[int, bytes]:
        ranks = [rank for rank in range(self.world_size) if self.store.check([_beat(rank)])]
        return dict(zip(ranks, self.store.multi_get([_beat(rank) for rank in ranks]), strict=True))

    def _named(self, rank: int) -> str:
        host = self.store.get(f"bertchen/host/{rank}").decode()
        return f"process {rank} on {host}"


@contextmanager
def watched_peers() -> Iterator[None]:
    """For all that the processes of a run do together: none waits for one that has died.

    Raises:
        PeerFailed: in the place of what a collective raises because another process has died.
    """
    if dist.get_world_size() == 1:
        yield
        return
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=_STORE_TIMEOUT)
    peers = Peers(store, dist.get_global_rank(), dist.get_world_size())
    peers.watch()
    try:
        yield
    except Stop:
        raise
    except Exception as error:
        if _is_of_a_collective(error) and (reason := peers.who_failed()):
            raise PeerFailed(reason) from error
        peers.tell(said(error))
        raise
    finally:
        peers.is_over()


def _is_of_a_collective(error: Exception) -> bool:
    """Whether it is what a collective raises whose other side is gone: neither gloo nor NCCL has a class for that."""
    text = f"{type(error).__name__} {error}".lower()
    return isinstance(error, RuntimeError) and any(word in text for word in _OF_COLLECTIVES)


def _beat(rank: int) -> str:
    return f"bertchen/beat/{rank}"

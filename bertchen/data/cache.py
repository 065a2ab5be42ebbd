"""A data set that is read through a cache, and what happens there when stores, disks or processes fail.

StreamingDataset keeps a state of each shard in shared memory: REMOTE, PREPARING, LOCAL. A fetch that fails leaves
PREPARING there, and holds a lock in some cases, so that others wait for ever; and a full disk ends the run. Here a
fetch that has failed for good is a state of its own, which ends all who wait for it, and a full disk makes room.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from time import monotonic, sleep, time_ns
from typing import Any
from weakref import WeakSet

import numpy as np
from filelock import FileLock
from streaming import StreamingDataset
from streaming.base.constant import TICK
from streaming.base.dataset import _ShardState

from bertchen.data.shards import PART
from bertchen.data.streams import ShardStream, always
from bertchen.errors import UserError, is_disk_full
from bertchen.stores import StoreError, StoreGone

log = logging.getLogger(__name__)

# Streaming's state of a shard before any was set: here, that nobody can fetch it.
FAILED = _ShardState.INVALID
ROOM_PATIENCE = 2.0  # seconds in which other processes close a file that was removed
_LOOK = 1.0  # seconds between looks whether whoever fetches a shard is alive

# All of this process: those on one disk make room for each other.
_caches: WeakSet[CachedDataset] = WeakSet()


class CachedDataset(StreamingDataset):
    """A StreamingDataset of one split.

    Args:
        local: folder of the data set or, with `remote`, of its cache.
        remote: URL or path that shards are fetched from.
        split: folder of the split below both.
        download_timeout: [s] that a store may take to answer.
        download_patience: [s] that a store may be gone.
        options: StreamingDataset's.
    """

    def __init__(
        self,
        *,
        local: str,
        remote: str | None = None,
        split: str = "",
        download_timeout: float = 60.0,
        download_patience: float = 300.0,
        **options: Any,
    ) -> None:
        stream = ShardStream(
            local=local, remote=remote, split=split, timeout=download_timeout, patience=download_patience
        )
        super().__init__(streams=[stream], **options)
        self._stream = stream
        self._failure: BaseException | None = None
        self._mended: set[int] = set()
        if stream.is_cached and self._unique_rank_world.is_local_leader:
            self._reason.unlink(missing_ok=True)  # of an earlier run
        _caches.add(self)

    def __iter__(self) -> Iterator[Any]:
        """The samples, or their numbers, of this process and worker in the order of the epoch.

        Raises:
            UserError: a shard can't be fetched. StreamingDataset would end the epoch there.
        """
        yield from super().__iter__()
        if isinstance(self._failure, UserError):
            raise self._failure
        if self._failure is not None:
            raise RuntimeError(f"a shard can't be fetched: {self._failure}") from self._failure

    def on_exception(self, future: Future[None]) -> None:
        """Called by StreamingDataset when one of its threads has ended."""
        if failure := future.exception():
            self._failure = self._failure or failure
            self._event.set()

    def prepare_shard(self, shard_id: int, blocking: bool = True, is_wanted: Callable[[], bool] = always) -> None:
        """Fetches and decompresses a shard, unless it is there or another thread or process does so.

        Args:
            shard_id: its number.
            blocking: whether to wait for the other.
            is_wanted: asked while a store is gone; false gives up.

        Raises:
            StoreError: it can't be fetched, here or there.
            OSError: no room to decompress a shard that is not cached.
        """
        with self._lock():
            state = self._shard_states[shard_id]
            is_ours = state == _ShardState.REMOTE or (state == _ShardState.LOCAL and not self._has_raw(shard_id))
            if is_ours:
                if self.cache_limit and state == _ShardState.REMOTE:
                    self._keep_limit(shard_id)
                self._shard_states[shard_id] = _ShardState.PREPARING
                self._shard_access_times[shard_id] = os.getpid()  # until it is there
            elif state == _ShardState.LOCAL:
                self._shard_access_times[shard_id] = time_ns()
        if is_ours:
            self._prepare(shard_id, state, is_wanted)
        elif blocking:
            self._wait_for(shard_id)
        else:
            self.refuse_failed(shard_id)

    def refuse_failed(self, shard_id: int) -> None:
        """Raises the UserError of whatever thread or process of this machine couldn't fetch the shard, if any."""
        if self._shard_states[shard_id] != FAILED:
            return
        if isinstance(self._failure, UserError):
            raise self._failure
        url = self._stream.url(self.shards[shard_id])
        kind, text = StoreGone, f"{url} couldn't be fetched by another process of this machine, which says why"
        with suppress(OSError, ValueError):
            name, text = json.loads(self._reason.read_text(encoding="utf-8"))
            kind = StoreGone if name == StoreGone.__name__ else StoreError
        raise kind(text)

    def free_abandoned(self, shard_id: int) -> None:
        """Lets others fetch a shard whose fetching process has died."""
        with self._lock():
            owner = int(self._shard_access_times[shard_id])
            if self._shard_states[shard_id] == _ShardState.PREPARING and not _is_alive(owner):
                log.warning("process %d has died while fetching %s", owner, self._stream.url(self.shards[shard_id]))
                self._shard_states[shard_id] = _ShardState.REMOTE

    def drop_damaged(self, shard_id: int, error: UserError) -> None:
        """Removes a damaged shard from the cache, once, to be fetched again.

        Raises:
            UserError: `error`, where the shard isn't cached, or was fetched again before.
        """
        if not self._stream.is_cached or shard_id in self._mended:
            raise error
        self._mended.add(shard_id)
        log.warning("%s; it is fetched again", error)
        with self._lock():
            if self._shard_states[shard_id] == _ShardState.LOCAL:
                self._evict_shard(shard_id)

    @property
    def _reason(self) -> Path:
        """A file in which the first process that fails says why, for the others of this machine."""
        return Path(self._stream.local) / self._stream.split / f"failure{PART}"

    def _note_failure(self, error: Exception) -> None:
        self._failure = self._failure or error
        if isinstance(error, UserError) and self._stream.is_cached:
            with suppress(OSError):  # the disk may be full
                self._reason.write_text(json.dumps([type(error).__name__, str(error)]), encoding="utf-8")

    def close_removed(self) -> None:
        """Closes files that were removed, whose room on the disk is free only then."""

    def _lock(self) -> FileLock:
        """Of the cache; one for each use, as it can't be pickled."""
        return FileLock(self._cache_filelock_path)

    def _has_raw(self, shard_id: int) -> bool:
        """Whether a shard is there uncompressed."""
        raw, _ = self.shards[shard_id].file_pairs[0]
        return os.path.isfile(os.path.join(self._stream.local, self._stream.split, raw.basename))

    def _keep_limit(self, shard_id: int) -> None:
        """Evicts what was read longest ago until a shard has room under `cache_limit`; holds the lock."""
        most = self.shards[shard_id].get_max_size()
        while self.cache_limit < self.cache_usage + most:
            if not self._evict_if_any():
                raise UserError(
                    f"data.cache_limit={self.cache_limit} bytes is too low: all shards in {self._stream.local} are "
                    "being fetched, and the next has no room: raise it"
                )

    def _prepare(self, shard_id: int, before: int, is_wanted: Callable[[], bool]) -> None:
        shard, parent = self.shards[shard_id], os.getppid()
        after = FAILED
        grown = 0

        def goes_on() -> bool:
            """Whether it is wanted still: no process has failed, and the one that this is a worker of is alive."""
            return is_wanted() and os.getppid() == parent and not (self._shard_states.numpy() == FAILED).any()

        try:
            grown = self._with_room(lambda: self._stream.prepare_shard(shard, goes_on), shard)
            after = _ShardState.LOCAL
        except BaseException as error:
            if not is_wanted():
                after = _ShardState(before)
            elif isinstance(error, Exception) and not (self._shard_states.numpy() == FAILED).any():
                self._note_failure(error)  # before the others see the state
            raise
        finally:
            with self._lock():
                self.cache_usage += grown
                self._shard_access_times[shard_id] = time_ns()
                self._shard_states[shard_id] = after

    def _wait_for(self, shard_id: int) -> None:
        look = monotonic() + _LOOK
        while self._shard_states[shard_id] == _ShardState.PREPARING:
            sleep(TICK)
            if monotonic() >= look:
                self.free_abandoned(shard_id)
                look = monotonic() + _LOOK
        self.refuse_failed(shard_id)

    def _with_room(self, action: Callable[[], int], shard: Any) -> int:
        """Calls `action`, and again after each shard that is removed from the cache because the disk was full."""
        while True:
            try:
                return action()
            except OSError as error:
                if not is_disk_full(error) or not self._stream.is_cached:
                    raise
                if not self._make_room(shard.get_max_size()):
                    raise StoreError(
                        f"data.local={self._stream.local}: no space left on the device, and no shards in the cache "
                        "that could be removed: free some, or choose a folder on a larger disk; data.cache_limit "
                        "keeps the cache below a size"
                    ) from error

    def _make_room(self, size: int) -> bool:
        """Removes the shard that was read longest ago of all that are cached on this disk, if there is one."""
        disk = _disk(self._stream.local)
        caches = [each for each in {self, *_caches} if each._stream.is_cached and _disk(each._stream.local) == disk]
        for cache in sorted(caches, key=CachedDataset._coldest_time):
            with cache._lock():
                found = cache._evict_if_any()
            if found:
                _say_disk_is_full(self._stream.local)
                end = monotonic() + ROOM_PATIENCE
                for each in caches:
                    each.close_removed()
                while shutil.disk_usage(self._stream.local).free < size and monotonic() < end:
                    sleep(TICK)
                return True
        return False

    def _coldest_time(self) -> int:
        """When the shard was read that was read longest ago; late, where none is there."""
        times = self._shard_access_times.numpy()[self._shard_states.numpy() == _ShardState.LOCAL]
        return int(times.min()) if len(times) else int(np.iinfo(np.int64).max)

    def _evict_if_any(self) -> bool:
        """Removes the shard that was read longest ago, if any is there; holds the lock."""
        if not (self._shard_states.numpy() == _ShardState.LOCAL).any():
            return False
        self._evict_coldest_shard()
        return True


_said: set[str] = set()


def _say_disk_is_full(local: str) -> None:
    if local not in _said:
        _said.add(local)
        log.warning(
            "the disk of data.local=%s is full: shards that were read longest ago are removed, and fetched again when "
            "they are needed; data.cache_limit keeps the cache below a size", local,
        )  # fmt: skip


def _disk(folder: str) -> int | None:
    """The number of the file system of a folder, if it is there."""
    try:
        return os.stat(folder).st_dev
    except FileNotFoundError:
        return None


def _is_alive(process: int) -> bool:
    """Whether a process runs, and is no zombie."""
    try:
        with open(f"/proc/{process}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False

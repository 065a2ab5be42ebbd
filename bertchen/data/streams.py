"""Where shards come from: each file is fetched whole or not at all, and anew where it isn't what the index says."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from composer.utils import dist
from streaming import Stream
from streaming.base.format import FileInfo, Reader
from streaming.base.world import World

from bertchen.data.manifest import MANIFEST
from bertchen.data.shards import INDEX, PART, mend_cache, why_damaged
from bertchen.errors import UserError, disk_full, is_disk_full
from bertchen.stores import Downloader, StoreError, hidden, keep_trying, said

log = logging.getLogger(__name__)

FETCH_ATTEMPTS = 3  # for a file that isn't what it should be
_END_OF_JSON = 64  # bytes


def always() -> bool:
    """Wanted in any case."""
    return True


class Source:
    """A folder, in a store or elsewhere, that files are fetched from.

    Args:
        remote: its URL or path.
        timeout: [s] that the store may take to answer.
        patience: [s] that the store may be gone.
    """

    def __init__(self, remote: str, timeout: float, patience: float) -> None:
        self.remote = remote.rstrip("/")
        self.patience = patience
        self._downloader = Downloader(timeout)

    def url(self, name: str) -> str:
        """The address of a file."""
        return f"{self.remote}/{name}"

    def fetch(
        self,
        name: str,
        target: str,
        damage: Callable[[str], str | None] = lambda path: None,
        is_wanted: Callable[[], bool] = always,
    ) -> None:
        """Fetches a file, which is at `target` only when it is whole.

        Args:
            name: below the folder.
            target: path to write it to.
            damage: what is wrong with a file, or None.
            is_wanted: asked while a store is gone; false gives up.

        Raises:
            StoreError: it can't be had, or isn't what it should be each time.
            OSError: the disk is full; names the target.
        """
        part = target + PART
        os.makedirs(os.path.dirname(target), exist_ok=True)
        reason = None
        try:
            for _ in range(FETCH_ATTEMPTS):
                self._download(name, part, is_wanted)
                reason = damage(part)
                if reason is None:
                    os.replace(part, target)
                    return
                log.warning("%s, as it was fetched, %s", hidden(self.url(name)), reason)
        except OSError as error:
            if is_disk_full(error):
                raise OSError(error.errno, error.strerror, target) from error
            raise
        finally:
            with suppress(FileNotFoundError):
                os.unlink(part)
        raise StoreError(
            f"{hidden(self.url(name))} {reason}, {FETCH_ATTEMPTS} times: upload {os.path.basename(name)} again from "
            "where the data was converted, or convert the data again"
        )

    def _download(self, name: str, part: str, is_wanted: Callable[[], bool]) -> None:
        keep_trying(
            lambda: self._downloader.download(self.url(name), part),
            self.patience,
            f"downloading {self.url(name)}",
            is_wanted,
        )


class ShardStream(Stream):
    """Streaming's Stream, of one split, whose files are fetched by a `Source`.

    Args:
        local: folder of the data set, or of its cache.
        remote: where it is fetched from; None where it is all in `local`.
        split: folder below both.
        timeout, patience: see `Source`.
    """

    def __init__(self, *, local: str, remote: str | None, split: str, timeout: float, patience: float) -> None:
        super().__init__(local=local, remote=remote, split=split)
        self._source = None if remote is None else Source(remote, timeout, patience)

    @property
    def is_cached(self) -> bool:
        """Whether what is in `local` can be fetched again, so that it may be removed."""
        remote = self.remote
        return remote is not None and not (os.path.isdir(remote) and os.path.samefile(remote, self.local))

    def get_shards(self, world: World, allow_unsafe_types: bool) -> list[Reader]:
        """The shards in the index, which the first process of each node fetches if need be."""
        if self._source is not None:
            fetch_on_each_node(self._source, os.path.join(self.split, INDEX), self.local)
        return super().get_shards(world, allow_unsafe_types)

    def prepare_shard(self, shard: Reader, is_wanted: Callable[[], bool] = always) -> int:
        """Fetches and decompresses a shard where need be; leaves nothing new where that fails.

        Returns:
            By how many bytes the cache has grown.

        Raises:
            StoreError: it can't be fetched.
            OSError: the disk is full.
        """
        fetched: list[str] = []
        grown = 0
        try:
            for raw, zipped in shard.file_pairs:
                info = zipped or raw
                paths = self._path(raw.basename), self._path(info.basename)
                if self._source is not None and not any(map(os.path.isfile, paths)):
                    self._fetch(info, is_wanted)
                    fetched.append(paths[1])
                    grown += info.bytes
            return grown + super().prepare_shard(shard)
        except BaseException:
            for raw, _ in shard.file_pairs:
                fetched.append(f"{self._path(raw.basename)}.tmp")  # what is being decompressed
            for path in fetched:
                with suppress(FileNotFoundError):
                    os.unlink(path)
            raise

    def url(self, shard: Reader) -> str:
        """Where a shard is fetched from, for messages."""
        raw, zipped = shard.file_pairs[0]
        name = os.path.join(self.split, (zipped or raw).basename)
        return hidden(self._source.url(name)) if self._source else os.path.join(self.local, name)

    def _fetch(self, info: FileInfo, is_wanted: Callable[[], bool]) -> None:
        assert self._source is not None
        self._source.fetch(
            os.path.join(self.split, info.basename),
            self._path(info.basename),
            lambda path: why_damaged(path, info.bytes, info.hashes),
            is_wanted,
        )

    def _path(self, basename: str) -> str:
        return os.path.join(self.local, self.split, basename)

    def _download_file(self, from_basename: str, to_basename: str | None = None) -> str:
        """Called by Streaming for files that aren't there and have no remote."""
        raise UserError(f"{self._path(from_basename)} is missing, but {INDEX} lists it: convert the data again")


def fetch_manifest(remote: str, local: str, timeout: float, patience: float) -> None:
    """Fetches the manifest of a remote data set into its cache, once on each node.

    Raises:
        UserError: it can't be fetched.
    """
    try:
        fetch_on_each_node(Source(remote, timeout, patience), MANIFEST, local)
    except UserError as error:
        raise type(error)(f"data.remote={hidden(remote)}: {error}") from error


def prepare_cache(
    remote: str, local: str, splits: list[str], check_hashes: bool | None, timeout: float, patience: float
) -> None:
    """Fetches the indexes of splits, and removes shards from their cache that aren't what the index says.

    Args:
        check_hashes: compare hashes, and not only sizes; None does so up to 4 GiB.

    Raises:
        UserError: an index can't be fetched.
    """
    source = Source(remote, timeout, patience)
    for split in splits:
        fetch_on_each_node(source, os.path.join(split, INDEX), local)

    def mend() -> None:
        for split in splits:
            removed = mend_cache(os.path.join(local, split), "auto" if check_hashes is None else check_hashes)
            if removed:
                log.warning(
                    "%s: %d damaged files removed from the cache, to be fetched again: %s",
                    os.path.join(local, split), len(removed), "; ".join(removed[:3]),
                )  # fmt: skip

    on_each_node(mend)


def fetch_on_each_node(source: Source, name: str, local: str) -> None:
    """Fetches a file of JSON into the same place below `local`, unless it is there, and lets all processes wait for it.

    Raises:
        UserError: on all processes, if one can't.
    """
    target = os.path.join(local, name)

    def fetch() -> None:
        if os.path.exists(target):
            return
        is_new = not os.path.exists(local)
        try:
            source.fetch(name, target, _cut_short)
        except BaseException:
            if is_new:
                shutil.rmtree(local, ignore_errors=True)
            raise

    on_each_node(fetch)


def on_each_node(action: Callable[[], None]) -> None:
    """Does something in the first process of each node; if it fails on one, all processes fail.

    Raises:
        UserError: what the action has raised.
    """
    failed: Exception | None = None
    if dist.get_local_rank() == 0:
        try:
            action()
        except UserError as error:
            failed = type(error)(str(error))  # without its traceback, which can't be pickled
        except Exception as error:
            failed = disk_full(error) if is_disk_full(error) else RuntimeError(said(error))
    failures: list[Any] = [each for each in dist.all_gather_object(failed) if each is not None]
    if failures:
        raise failures[0]


def _cut_short(path: str) -> str | None:
    """What is wrong with a file of JSON; a look at its end, as reading an index of 100,000 shards takes seconds."""
    with open(path, "rb") as file:
        file.seek(-min(_END_OF_JSON, os.path.getsize(path)), os.SEEK_END)
        return None if file.read().rstrip().endswith(b"}") else "is no whole JSON"

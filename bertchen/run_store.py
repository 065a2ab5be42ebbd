"""A run's copy in an object store, or on a shared path: whole at every moment, whenever its writer is killed.

What stands there:

    latest.json           the checkpoints that count, newest first, with sizes and hashes; replaced as one object
    ep0-ba100-rank0.pt    a checkpoint; counts only while latest.json names it
    metrics.jsonl, …      logs, which grow; of each checkpoint latest.json says which beginning belongs to it
    config.yaml, hf/…

A checkpoint is uploaded before latest.json names it, and removed after latest.json has ceased to.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import xxhash
from fsspec import AbstractFileSystem, Callback
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from bertchen.stores import StoreError, hidden, is_remote, keep_trying, said, why_refused

log = logging.getLogger(__name__)

T = TypeVar("T")

LATEST = "latest.json"
_VERSION = 1
_PROBE = ".probe"
_CHECKPOINT = re.compile(r"ep\d+-ba\d+-rank0\.pt")
_OURS = re.compile(rf"{LATEST}|\w+\.jsonl|config\.yaml|{_CHECKPOINT.pattern}|(hf|finetune)/.*")
_CHUNK = 4 << 20
# What goes to S3 at once; of larger files so many parts are held in memory.
_PART_BYTES = 16 << 20
_PARTS = 4
# A hash that is wrong twice was wrong in the store, and not on its way here.
_DOWNLOADS = 2


@dataclass(frozen=True)
class Content:
    """What a file's bytes must be: how many, and their xxh64."""

    bytes: int
    xxh64: str

    @classmethod
    def of(cls, content: bytes) -> Content:
        return cls(len(content), xxhash.xxh64(content).hexdigest())


@dataclass(frozen=True)
class StoredCheckpoint:
    """A checkpoint in the store, and the beginnings of the logs that belong to it."""

    name: str
    step: int
    content: Content
    logs: dict[str, Content]


def content_of(path: Path) -> Content:
    """Reads the whole file."""
    digest, size = xxhash.xxh64(), 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return Content(size, digest.hexdigest())


class RunStore:
    """One run's folder in a store.

    Args:
        url: s3://bucket/runs/name, or what else fsspec knows, a path too. S3_ENDPOINT_URL, or AWS_ENDPOINT_URL, names
            another server than Amazon's.
        patience: [s] that the store may be gone in each of the calls.

    Raises:
        ValueError: fsspec doesn't know the store, or lacks a package for it.
    """

    def __init__(self, url: str, patience: float) -> None:
        self.url = url.rstrip("/")
        self.patience = patience
        options: dict[str, Any] = {"skip_instance_cache": True}
        if self.url.startswith(("s3:", "s3a:")):
            options |= {"max_concurrency": _PARTS, "use_listings_cache": False}
            if endpoint := os.environ.get("S3_ENDPOINT_URL"):
                options["endpoint_url"] = endpoint
        try:
            filesystem, root = url_to_fs(self.url, **options)
        except (ImportError, ValueError) as error:
            raise ValueError(f"no store that can be written: {said(error)}") from None
        self.filesystem: AbstractFileSystem = filesystem
        self.root = str(root).rstrip("/")
        self._upload_options = {"chunksize": _PART_BYTES} if "max_concurrency" in options else {}
        self._is_local = isinstance(filesystem, LocalFileSystem)

    def check(self) -> None:
        """Writes a small object and removes it.

        Raises:
            StoreError: the store refuses; the message names the variables to set.
        """
        self._try("writing to", _PROBE, lambda: self._write(_PROBE, b"BERTchen was here\n"))
        self._try("removing from", _PROBE, lambda: self._remove([_PROBE]))

    def names(self) -> list[str]:
        """What of a run is there."""
        prefix = f"{self.root}/"

        def find() -> list[str]:
            try:
                return [str(path).removeprefix(prefix) for path in self.filesystem.find(self.root)]
            except FileNotFoundError as error:
                _raise_if_refused(error, self.url)
                return []

        return sorted(name for name in self._try("listing", "", find) if _OURS.fullmatch(name))

    def checkpoints(self) -> list[StoredCheckpoint]:
        """Those that count, newest first.

        Raises:
            StoreError: latest.json isn't ours or is damaged.
        """
        text = self._try("reading", LATEST, lambda: self._read(LATEST))
        if text is None:
            return []
        try:
            found = json.loads(text)
            if found["version"] != _VERSION:
                raise ValueError(f"version {found['version']}")
            return [
                StoredCheckpoint(
                    each["name"],
                    each["step"],
                    Content(**each["content"]),
                    {name: Content(**log) for name, log in each["logs"].items()},
                )
                for each in found["checkpoints"]
            ]
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{self._shown(LATEST)}: can't be understood: {said(error)}") from None

    def name_checkpoints(self, checkpoints: Sequence[StoredCheckpoint]) -> None:
        """From now on these count and no others; the others are removed."""
        listed = {"version": _VERSION, "checkpoints": [asdict(each) for each in checkpoints]}
        self.put_bytes(LATEST, json.dumps(listed, indent=1).encode())
        kept = {each.name for each in checkpoints}
        self._remove_all([name for name in self.names() if _CHECKPOINT.fullmatch(name) and name not in kept])

    def put(self, path: Path, name: str, on_progress: Callable[[], None] = lambda: None) -> None:
        """Uploads a file. `on_progress` is called whenever a part is there."""
        self._try("uploading", name, lambda: self._upload(path, name, on_progress))

    def put_bytes(self, name: str, content: bytes) -> None:
        """Replaces an object as a whole."""
        self._try("writing", name, lambda: self._write(name, content))

    def fetch(self, checkpoint: StoredCheckpoint, path: Path) -> str | None:
        """Downloads a checkpoint to a file that appears when it is whole; what is wrong with it, or None."""
        return self._fetch(checkpoint.name, checkpoint.content, path)

    def fetch_log(self, checkpoint: StoredCheckpoint, name: str, path: Path) -> str | None:
        """The same for the beginning of a log that belongs to it."""
        return self._fetch(name, checkpoint.logs[name], path)

    def clear(self) -> None:
        """Removes the run, and nothing else that may be there."""
        names = self.names()
        self._remove_all([LATEST] if LATEST in names else [])  # first, since it says what counts
        self._remove_all([name for name in names if name != LATEST])

    def _fetch(self, name: str, expected: Content, path: Path) -> str | None:
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        reason: str | None = None
        try:
            for _ in range(_DOWNLOADS):
                reason = self._try("downloading", name, lambda: self._download(name, expected, temporary))
                if reason is None:
                    os.replace(temporary, path)
                    return None
        finally:
            temporary.unlink(missing_ok=True)
        return reason

    def _download(self, name: str, expected: Content, path: Path) -> str | None:
        """What is wrong with the file, of which as much is kept as is expected; None if nothing is."""
        try:
            self.filesystem.get_file(self._path(name), str(path))
        except FileNotFoundError as error:
            _raise_if_refused(error, self.url)
            return "it isn't there"
        if (size := path.stat().st_size) < expected.bytes:
            return f"{size} bytes instead of {expected.bytes}"
        os.truncate(path, expected.bytes)
        return None if content_of(path) == expected else f"its xxh64 isn't that of {LATEST}"

    def _upload(self, path: Path, name: str, on_progress: Callable[[], None]) -> None:
        target = self._path(name)
        if self._is_local:
            temporary = self._beside(target)
            self.filesystem.put_file(str(path), temporary, callback=_Progress(on_progress))
            os.replace(temporary, target)
        else:
            self.filesystem.put_file(str(path), target, callback=_Progress(on_progress), **self._upload_options)

    def _write(self, name: str, content: bytes) -> None:
        target = self._path(name)
        if self._is_local:  # where a file is not replaced as a whole
            temporary = Path(self._beside(target))
            temporary.write_bytes(content)
            os.replace(temporary, target)
        else:
            self.filesystem.pipe_file(target, content)

    def _read(self, name: str) -> bytes | None:
        try:
            return self.filesystem.cat_file(self._path(name))
        except FileNotFoundError as error:
            _raise_if_refused(error, self.url)
            return None

    def _remove_all(self, names: list[str]) -> None:
        if names:
            self._try("removing", names[0], lambda: self._remove(names))

    def _remove(self, names: list[str]) -> None:
        for name in names:
            try:
                self.filesystem.rm_file(self._path(name))
            except FileNotFoundError as error:
                _raise_if_refused(error, self.url)

    def _beside(self, target: str) -> str:
        path = Path(target)
        path.parent.mkdir(parents=True, exist_ok=True)
        return str(path.with_name(f".{path.name}.tmp"))

    def _path(self, name: str) -> str:
        return f"{self.root}/{name}"

    def _shown(self, name: str) -> str:
        return hidden(f"{self.url}/{name}")

    def _try(self, doing: str, name: str, action: Callable[[], T]) -> T:
        return keep_trying(action, self.patience, f"{doing} {self.url}/{name}")


class _Progress(Callback):
    """fsspec's way to hear of progress."""

    def __init__(self, on_progress: Callable[[], None]) -> None:
        super().__init__()
        self.on_progress = on_progress

    def relative_update(self, inc: int = 1) -> None:
        self.on_progress()


def _raise_if_refused(error: FileNotFoundError, url: str) -> None:
    """s3fs says of a bucket that isn't there what it says of an object."""
    if is_remote(url) and why_refused(error, url):
        raise error

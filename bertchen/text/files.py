"""Files of text: which ones a source names, what is stored in them, and their bytes, decompressed.

Files are opened through fsspec, so a source may also be a URL such as `s3://bucket/folder` where fsspec's package for
it is installed. Decompression is ours because fsspec ends a cut-off zstd file, or one of several frames, without an
error.
"""

from __future__ import annotations

import bz2
import lzma
import os
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import zstandard
from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from bertchen.errors import UserError
from bertchen.text.documents import DAMAGED, BadFile

READ_BYTES = 1 << 16
KINDS = (".jsonl", ".json", ".txt", ".parquet")

# Remote files are fetched in such blocks. Parquet is read at a few places in turn, so some are kept.
_REMOTE_BLOCK_BYTES = 1 << 22
_REMOTE_BLOCKS = 8

_MAGIC = re.compile(r"[*?\[]")

# Each has `decompress(bytes)`, `eof` and `unused_data`, and reads one gzip member, zstd frame, … of a file.
_DECOMPRESSORS: dict[str, Callable[[], Any]] = {
    ".gz": lambda: zlib.decompressobj(wbits=31),
    ".zst": lambda: zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj(),
    ".bz2": bz2.BZ2Decompressor,
    ".xz": lzma.LZMADecompressor,
}
_DECOMPRESSION_ERRORS = (zlib.error, zstandard.ZstdError, lzma.LZMAError, OSError, EOFError)

KNOWN = f"{', '.join(KINDS)}; all but .parquet also with {', '.join(_DECOMPRESSORS)}"

# Where file systems say which content of a file they hold; the first that is there counts.
_VERSION_KEYS = ("ETag", "etag", "blob_id", "Content-MD5", "Digest", "content_md5", "md5Hash", "crc32c", "checksum")
_TIME_KEYS = ("LastModified", "Last-Modified", "last_modified", "updated", "mtime", "modified", "created")


def resolve_paths(source: str | Sequence[str]) -> list[str]:
    """The files that `source` names: sorted, each once.

    Args:
        source: a file, a folder (searched recursively for every known extension; hidden files and folders
            are passed over), a glob such as `corpus/**/*.jsonl.gz`, or a list of these. Paths or fsspec
            URLs. A path relative to the working directory stays relative.

    Raises:
        UserError: a part of `source` names no file, a file of an unknown kind, or a place that can't be reached.
    """
    sources = [source] if isinstance(source, str) else list(source)
    if not sources:
        raise UserError("the source of the documents is an empty list: name a file, a folder or a glob")
    found = [path for item in sources for path in _resolve(str(item))]
    return sorted({url_to_fs(path)[1]: path for path in found}.values())


def total_bytes(paths: Sequence[str]) -> int:
    """Size of the files as stored (compressed): the sum of what `read_documents` reports to `on_bytes`."""
    return sum(size_and_version(path)[0] for path in paths)


def size_and_version(path: str) -> tuple[int, str]:
    """Bytes of a file as stored, and a text that changes when its content does.

    The version of a local file is its size and time of change; of a remote one what the server says of its content, or
    else the time.

    Raises:
        UserError: the file isn't there or can't be reached.
    """
    filesystem, root = _filesystem(path)
    if _is_local(filesystem):
        with file_errors(path, remote=False):
            stat = os.stat(root)
        return stat.st_size, f"{stat.st_size} {stat.st_mtime_ns}"
    with file_errors(path, remote=True):
        info = filesystem.info(root)
    size = int(info.get("size") or 0)
    told = next((f" {info[key]}" for key in (*_VERSION_KEYS, *_TIME_KEYS) if info.get(key)), "")
    return size, f"{size}{told}"


def kind_of(path: str) -> tuple[str, str]:
    """(kind, compression) of a file by its name, such as (".jsonl", ".gz"); compression "" where there is none.

    Raises:
        UserError: it is none of `KNOWN`.
    """
    extension = _split_extension(path)
    if extension is None:
        raise UserError(f"{path}: unknown kind of file; known: {KNOWN}")
    return extension


class StoredFile:
    """A file opened for reading bytes as they are stored. What goes wrong is a `UserError`.

    A context manager with `read`, `seek`, `tell` and `close`, as pyarrow asks for.

    Attributes:
        size: in bytes; None where a server doesn't tell.
        error: what `read` has raised, for libraries that pass on something else.
    """

    def __init__(self, path: str, at_random: bool = False) -> None:
        """
        Args:
            path: file or URL.
            at_random: it is read at several places in turn, not from beginning to end.
        """
        filesystem, root = _filesystem(path)
        self._path, self._remote = path, not _is_local(filesystem)
        self.error: UserError | None = None
        options: dict[str, Any] = {}
        if self._remote:
            options["block_size"] = _REMOTE_BLOCK_BYTES
            if at_random:
                options |= {"cache_type": "blockcache", "cache_options": {"maxblocks": _REMOTE_BLOCKS}}
        with file_errors(path, self._remote):
            self._file = filesystem.open(root, "rb", **options)
        self.size: int | None = getattr(self._file, "size", None)

    def __enter__(self) -> StoredFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self, size: int = -1) -> bytes:
        try:
            with file_errors(self._path, self._remote):
                return self._file.read(size)
        except UserError as error:
            self.error = error
            raise

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        self._file.close()

    @property
    def closed(self) -> bool:
        return self._file.closed

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def writable(self) -> bool:
        return False


class ByteStream:
    """The decompressed bytes of a file, in pieces.

    Attributes:
        position: stored bytes read so far.
        size: of the file, once it is being read; None where a server doesn't tell.
    """

    def __init__(self, path: str) -> None:
        self.position = 0
        self.size: int | None = None
        self._path = path
        _, compression = kind_of(path)
        self._new = _DECOMPRESSORS.get(compression)

    def __iter__(self) -> Iterator[bytes]:
        """
        Raises:
            BadFile: they can't be decompressed, or end too early.
            UserError: the file can't be read, or not to its end.
        """
        stored = self._stored()
        yield from self._decompress(stored) if self._new else stored

    @property
    def total(self) -> int:
        """Bytes of the file as stored; where no server tells, those that were read."""
        return max(self.position, self.size or 0)

    def _stored(self) -> Iterator[bytes]:
        with StoredFile(self._path) as file:
            self.size = file.size
            while piece := file.read(READ_BYTES):
                self.position += len(piece)
                yield piece
            if file.size is not None and self.position < file.size:
                raise UserError(
                    f"{self._path}: ended after {self.position} of its {file.size} bytes: it was changed, or the "
                    "connection was lost"
                )

    def _decompress(self, stored: Iterator[bytes]) -> Iterator[bytes]:
        """Decompresses a file of one or more members; one that ends inside a member is an error."""
        assert self._new is not None
        decompressor, complete = self._new(), False
        for piece in stored:
            while piece:
                if complete:
                    piece = piece.lstrip(b"\0")  # gzip allows zeros between and after its members
                    if not piece:
                        break
                    decompressor, complete = self._new(), False
                try:
                    yield decompressor.decompress(piece)
                except _DECOMPRESSION_ERRORS as error:
                    raise BadFile(DAMAGED, f"{self._path}: damaged, can't be decompressed: {error}") from None
                complete = decompressor.eof
                piece = decompressor.unused_data if complete else b""
        if not complete:
            raise BadFile(
                DAMAGED, f"{self._path}: cut off: the compressed data ends too early; fetch or make the file again"
            )


@contextmanager
def file_errors(path: str, remote: bool) -> Iterator[None]:
    """Turns errors of the file system into `UserError`. The many libraries behind URLs have no common error."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not remote and not isinstance(error, OSError):
            raise
        raise UserError(f"{path}: can't be read: {_told(error.__cause__ or error)}") from error


def _told(error: BaseException) -> str:
    """The first line of what an error says."""
    told = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
    return str(told).splitlines()[0]


def _resolve(source: str) -> list[str]:
    if not source:
        raise UserError("the source of the documents is empty: name a file, a folder or a glob")
    filesystem, root = _filesystem(source)
    local = _is_local(filesystem)
    absolute = os.path.isabs(source) or source.startswith(("~", "file:", "local:"))
    with file_errors(source, not local):
        # A web server calls everything a file, its folders too.
        if _is_file(filesystem, root) and (_split_extension(source) or not filesystem.isdir(root)):
            kind_of(source)
            return [os.path.relpath(root) if local and not absolute else source]
        if filesystem.isdir(root):
            found, fixed = filesystem.find(root), root
        else:
            matches = filesystem.glob(root, detail=True)
            found, fixed = [path for path, info in matches.items() if info["type"] == "file"], _MAGIC.split(root)[0]
    found = [path for path in found if not _hidden(path[len(fixed) :])]
    known = [path for path in found if _split_extension(path)]
    if not known and found:
        raise UserError(f"{source}: none of its {len(found)} files is of a known kind, not {found[0]}; known: {KNOWN}")
    if not known:
        raise UserError(f"{source}: matches no file: name a file, a folder with files in it or a glob")
    if not local:
        return [filesystem.unstrip_protocol(path) for path in known]
    return known if absolute else [os.path.relpath(path) for path in known]


def _is_file(filesystem: AbstractFileSystem, root: str) -> bool:
    if _is_local(filesystem) or _MAGIC.search(root):
        return filesystem.isfile(root)
    try:  # isfile would hide that a server can't be reached
        return filesystem.info(root)["type"] == "file"
    except FileNotFoundError as error:
        if error.__cause__ is not None:
            raise
        return False


def _hidden(path: str) -> bool:
    return any(part.startswith(".") for part in path.split("/"))


def _split_extension(path: str) -> tuple[str, str] | None:
    """(kind, compression) of a file name, None where the kind is unknown."""
    if path.startswith(("http://", "https://")):
        path = path.partition("?")[0]
    stem, last = os.path.splitext(path.lower())
    compression = last if last in _DECOMPRESSORS else ""
    kind = os.path.splitext(stem)[1] if compression else last
    if kind not in KINDS or (compression and kind == ".parquet"):
        return None
    return kind, compression


def _filesystem(path: str) -> tuple[AbstractFileSystem, str]:
    try:
        return url_to_fs(path)
    except (ImportError, ValueError) as error:
        raise UserError(f"{path}: fsspec can't open it: {error}") from None


def _is_local(filesystem: AbstractFileSystem) -> bool:
    return isinstance(filesystem, LocalFileSystem)

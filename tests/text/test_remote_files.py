"""Files behind URLs: read like others, and what goes wrong on the way is said."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
from collections.abc import Iterator
from typing import Any, ClassVar

import fsspec
import pyarrow
import pyarrow.parquet
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hub_server import HubServer

from bertchen.errors import UserError
from bertchen.text.documents import Document, RowRules
from bertchen.text.files import resolve_paths, size_and_version, total_bytes
from bertchen.text.readers import read_chunks, read_documents

TEXTS = [f"Text {number} " + format(number**9, "x") for number in range(20_000)]
JSON_GZ = gzip.compress(b"".join(json.dumps({"text": text}).encode() + b"\n" for text in TEXTS), 1)


def parquet_bytes() -> bytes:
    sink = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"id": range(len(TEXTS)), "text": TEXTS}), sink, row_group_size=5000)
    return sink.getvalue()


PARQUET = parquet_bytes()


class Lost(Exception):
    """As of many libraries behind fsspec, no OSError."""


class Flaky(MemoryFileSystem):
    """Loses its connection behind the first bytes of a file."""

    protocol = "flaky"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    good_bytes = 0

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return MemoryFileSystem._strip_protocol(path.removeprefix("flaky:/"))

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        file = super()._open(path, mode)
        if mode == "rb":
            read = type(file).read

            def flaky_read(size: int = -1) -> bytes:
                if self.good_bytes <= file.tell() < len(file.getvalue()) - 70_000:
                    raise Lost("peer went away\nfar away")
                return read(file, size)

            file.read = flaky_read
        return file


@pytest.fixture
def flaky() -> Iterator[type[Flaky]]:
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    yield Flaky
    Flaky.store.clear()


@pytest.mark.parametrize(("name", "raw"), [("a.jsonl.gz", JSON_GZ), ("a.parquet", PARQUET)])
@pytest.mark.parametrize("good_bytes", [0, 200_000])
def test_a_lost_connection_is_no_damage(flaky: type[Flaky], name: str, raw: bytes, good_bytes: int) -> None:
    url = f"flaky://{name}"
    with fsspec.open(url, "wb") as file:
        file.write(raw)
    flaky.good_bytes = good_bytes
    documents: list[Document] = []
    with pytest.raises(UserError, match=rf"{name}: can't be read: peer went away$"):
        documents += (row for chunk in read_chunks(url, RowRules()) for row in chunk.rows())


@pytest.fixture(scope="module")
def server() -> Iterator[HubServer]:
    with HubServer() as server:
        server.files = {"/corpus/a.jsonl.gz": JSON_GZ, "/corpus/b.parquet": PARQUET, "/notes.md": b"#"}
        server.files["/corpus/"] = b'<a href="a.jsonl.gz">a</a> <a href="b.parquet">b</a> <a href="/notes.md">c</a>'
        yield server


@pytest.fixture(autouse=True)
def whole_answers(server: HubServer) -> Iterator[None]:
    yield
    server.cut_after = None


@pytest.mark.parametrize("name", ["a.jsonl.gz", "b.parquet", "a.jsonl.gz?token=1"])
def test_files_of_a_web_server(server: HubServer, name: str) -> None:
    (url,) = resolve_paths(f"{server.url}/corpus/{name}")
    assert [document.text for document in read_documents([url])] == TEXTS
    assert total_bytes([url]) == len(JSON_GZ if "jsonl" in name else PARQUET)


def test_folder_of_a_web_server(server: HubServer) -> None:
    assert resolve_paths(f"{server.url}/corpus/") == [
        f"{server.url}/corpus/a.jsonl.gz",
        f"{server.url}/corpus/b.parquet",
    ]


@pytest.mark.parametrize("name", ["a.jsonl.gz", "b.parquet"])
def test_a_web_server_that_hangs_up(server: HubServer, name: str) -> None:
    server.cut_after = 100_000
    with pytest.raises(UserError, match=rf"{name}: can't be read: "):
        list(read_documents([f"{server.url}/corpus/{name}"]))


def test_a_web_server_without_the_file(server: HubServer) -> None:
    with pytest.raises(UserError, match=rf"{server.url}/corpus/c\.jsonl: can't be read: .*404"):
        resolve_paths(f"{server.url}/corpus/c.jsonl")
    with pytest.raises(UserError, match=r"c\.jsonl: can't be read: .*404"):
        list(read_documents([f"{server.url}/corpus/c.jsonl"]))


def test_no_web_server() -> None:
    with HubServer() as server:
        url = f"{server.url}/a.jsonl"
    with pytest.raises(UserError, match=rf"{re.escape(url)}: can't be read: .*[Cc]onnect"):
        resolve_paths(url)


def test_a_file_that_became_shorter(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that ends its answer early, politely."""
    with fsspec.open("memory://short/a.jsonl", "wb") as file:
        file.write(b'{"text": "a"}\n' * 10)
    monkeypatch.setattr("fsspec.implementations.memory.MemoryFile.size", 1000)
    with pytest.raises(UserError, match=r"a\.jsonl: ended after 140 of its 1000 bytes.*the connection was lost"):
        list(read_documents(["memory://short/a.jsonl"]))


def test_versions(tmp_path: Any, server: HubServer) -> None:
    """A version is the same until the content changes."""
    path = tmp_path / "a.jsonl"
    versions = set()
    for seconds, content in enumerate(("{}", "[]")):
        path.write_text(content)
        os.utime(path, (seconds, seconds))
        versions |= {size_and_version(str(path)), size_and_version(str(path))}
    assert len(versions) == 2
    assert {size for size, _ in versions} == {2}

    url = f"{server.url}/corpus/a.jsonl.gz"
    assert size_and_version(url) == size_and_version(url)
    assert size_and_version(url)[0] == len(JSON_GZ)

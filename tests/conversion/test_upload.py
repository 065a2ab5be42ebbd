"""Uploading, over HTTP to a server that speaks S3: whole in the end, whatever happened; refusals are told."""

from __future__ import annotations

import json
import os
import pickle
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import huggingface_hub
import numpy as np
import psutil
import pytest
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem
from s3_store import REMOTE, Store
from streaming import StreamingDataset
from streaming.base.storage.upload import S3Uploader

from bertchen.config.schema_convert import ConvertConfig
from bertchen.conversion import upload
from bertchen.conversion.groups import WriteJob, finish_split, group_count, write_group, write_groups
from bertchen.conversion.pack import Split
from bertchen.conversion.segments import SegmentInfo, Segments, document_type, write_segment
from bertchen.conversion.upload import check_remote, upload_files
from bertchen.errors import UserError
from bertchen.stores import said

ROOT = Path(__file__).resolve().parents[2]
TOKENS = np.random.default_rng(0).integers(0, 60_000, 32 * 240).astype(np.uint16)
SPLIT = Split("train", "documents", len(TOKENS), 240, True, 0, 0, 240)

pytestmark = pytest.mark.usefixtures("shared_memory_given_back", "s3_environment")


def make_job(folder: Path, remote: str | None = REMOTE, **settings: Any) -> WriteJob:
    work = folder / "work"
    for name in ("segments", "arrangement", "groups", "data"):
        (work / name).mkdir(parents=True, exist_ok=True)
    info = SegmentInfo(0, 0, 0, 0, 0, True, len(TOKENS), 1, 1, 1, 1)
    write_segment(work / "segments", info, TOKENS, np.zeros(1, document_type(0)))
    np.save(work / "arrangement/documents.npy", np.array([[0, len(TOKENS)]]))
    segments = Segments.load(work / "segments", TOKENS.dtype, 1)
    return WriteJob(segments, work, ConvertConfig(block_size=32, shard_size=2000, **settings), remote)


def write_all(job: WriteJob, workers: int = 1) -> None:
    groups = range(group_count(SPLIT, job.segments.dtype, job.settings))
    write_groups(job, [(SPLIT, group) for group in groups], workers)
    finish_split(job, SPLIT)


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of the same conversion into a folder."""
    job = make_job(tmp_path_factory.mktemp("written"), remote=None)
    write_all(job)
    return files_in(job.data)


@pytest.mark.parametrize("keep_local", [True, False])
@pytest.mark.parametrize("workers", [1, 2])
def test_what_is_uploaded_is_what_a_folder_would_hold(
    tmp_path: Path, store: Store, written: dict[str, bytes], keep_local: bool, workers: int
) -> None:
    job = make_job(tmp_path, keep_local=keep_local)
    write_all(job, workers)
    assert store.objects() == written
    local = files_in(job.data)
    assert local == (written if keep_local else {name: raw for name, raw in written.items() if "index" in name})


@pytest.mark.parametrize("compression", [None, "zstd"])
def test_streaming_reads_it_from_there(tmp_path: Path, store: Store, compression: str | None) -> None:
    job = make_job(tmp_path, keep_local=False, compression=compression)
    write_all(job)
    cache = tmp_path / "cache"
    dataset = StreamingDataset(remote=f"{REMOTE}/train", local=str(cache), shuffle=False, batch_size=7)
    read = np.stack([sample["input_ids"] for sample in dataset])
    order = SPLIT.block_numbers(0, 240, job.settings.seed)
    assert (read == TOKENS.reshape(240, 32)[order]).all()


@pytest.mark.parametrize(("at", "keep_local"), [(0, False), (3, True), (8, False), (9, True), (10, False)])
def test_connection_lost_and_the_same_command_again(
    tmp_path: Path,
    store: Store,
    written: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    at: int,
    keep_local: bool,
) -> None:
    job = make_job(tmp_path, keep_local=keep_local)
    uploads = 0

    def upload_file(self: S3Uploader, name: str) -> None:
        nonlocal uploads
        if uploads == at:
            store.stop()
        uploads += 1
        original(self, name)

    original = S3Uploader.upload_file
    with monkeypatch.context() as patched:
        patched.setattr(S3Uploader, "upload_file", upload_file)
        message = rf"{REMOTE}/train/0000\d/\S+: the upload failed: .*onnect.*check the network"
        with pytest.raises(UserError, match=message):
            write_all(job)
    store.start()
    assert len(store.objects()) == at
    write_all(job)
    assert store.objects() == written


def test_another_out_when_some_groups_are_done(tmp_path: Path, store: Store, written: dict[str, bytes]) -> None:
    job = make_job(tmp_path, keep_local=False)
    write_group(job, SPLIT, 0)
    elsewhere = replace(job, remote="s3://bucket/corpora/two")
    with pytest.raises(UserError, match="group 0 of the split train isn't written"):
        finish_split(elsewhere, SPLIT)
    write_all(elsewhere, 2)
    assert store.objects("corpora/two/") == written
    assert len(store.objects()) == 9  # eight shards and their index
    here = replace(job, remote=None)
    write_all(here)
    assert files_in(here.data) == written


def test_another_out_given_up_halfway(tmp_path: Path, store: Store, written: dict[str, bytes]) -> None:
    job = make_job(tmp_path, remote=None)
    write_group(job, SPLIT, 0)
    store.stop()
    with pytest.raises(UserError, match="the upload failed"):
        write_group(replace(job, remote=REMOTE, settings=replace(job.settings, keep_local=False)), SPLIT, 0)
    (job.data / "train/00000/shard.00000.mds").unlink()  # as if that had been killed while it removed them
    write_all(job)
    assert files_in(job.data) == written
    store.start()


def test_connection_lost_at_the_end(tmp_path: Path, store: Store, written: dict[str, bytes]) -> None:
    job = make_job(tmp_path, keep_local=False)
    for group in range(group_count(SPLIT, job.segments.dtype, job.settings)):
        write_group(job, SPLIT, group)
    store.stop()
    with pytest.raises(UserError, match=rf"{REMOTE}: the upload failed: "):
        finish_split(job, SPLIT)
    store.start()
    write_all(job)
    assert store.objects() == written


@pytest.mark.parametrize("workers", [1, 2])
def test_missing_bucket(tmp_path: Path, store: Store, workers: int) -> None:
    job = make_job(tmp_path, "s3://no-such-bucket/x")
    with pytest.raises(UserError, match=r"s3://no-such-bucket/x.*: the upload failed: ClientError: .*404"):
        write_all(job, workers)
    assert list((job.work / "groups").iterdir()) == []


class Unavailable(BaseHTTPRequestHandler):
    """Has a bucket, but takes nothing, the first so many times."""

    protocol_version = "HTTP/1.1"
    failures = 10**9

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.end_headers()

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        cls = type(self)
        status, cls.failures = (503, cls.failures - 1) if cls.failures else (200, 0)
        body = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if status == 503 else 0))
        self.end_headers()
        if status == 503:
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def unavailable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Unavailable) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("S3_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        yield
        server.shutdown()


def test_store_that_is_overloaded(tmp_path: Path, unavailable: None, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("content")
    with pytest.raises(UserError, match=r"s3://bucket/x/file: the upload failed: .*SlowDown.*the room there"):
        upload_files(tmp_path, ["file"], "s3://bucket/x")
    monkeypatch.setattr(upload, "UPLOAD_ATTEMPTS", 2)
    monkeypatch.setattr(Unavailable, "failures", 1)
    upload_files(tmp_path, ["file"], "s3://bucket/x/")


def test_check_remote(store: Store) -> None:
    check_remote(REMOTE)
    assert list(store.objects()) == ["README.txt"]
    assert b"complete when there is a manifest.json" in store.objects()["README.txt"]
    check_remote(f"{REMOTE}/")
    store.client.put_object(Bucket="bucket", Key="corpora/one-and-a-half/manifest.json", Body=b"{}")
    check_remote(REMOTE)
    store.client.put_object(Bucket="bucket", Key="corpora/one/train/index.json", Body=b"{}")
    with pytest.raises(UserError, match=rf"out={REMOTE} is not empty \(corpora/one/train/index\.json\): nothing is"):
        check_remote(REMOTE)
    with pytest.raises(UserError, match="out=s3://bucket is not empty"):
        check_remote("s3://bucket")


def test_check_remote_of_a_store_that_can_not_list(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def list_objects(self: S3Uploader) -> list[str]:
        raise NotImplementedError

    monkeypatch.setattr(S3Uploader, "list_objects", list_objects)
    check_remote(REMOTE)
    store.client.put_object(Bucket="bucket", Key="corpora/one/manifest.json", Body=b"{}")
    with pytest.raises(UserError, match=rf"out={REMOTE} is not empty \(manifest\.json\)"):
        check_remote(REMOTE)


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("file:///x", r"out=file:///x: file: is no store that Streaming uploads to, should be a local folder or"),
        ("sftp://host/x", r"begin with one of: alipan:, azure:, azure-dl:, dbfs:, gs:, hf:, oci:, s3:"),
        ("s4://bucket/x", "s4: is no store"),
        ("dbfs:/Volumes/a/b", "Streaming needs a Python package for dbfs: that is not installed: .*databricks"),
        ("alipan:///x", "Streaming needs a Python package for alipan: that is not installed: .*alipcs_py"),
        ("s3://no-such-bucket/x", "nothing can be written there: ClientError: .*404.*: check the address, the network"),
        ("s3:///x", "nothing can be written there: .*[Ii]nvalid bucket name"),
        ("hf://datasets/name", "nothing can be written there: "),
    ],
)
def test_check_remote_refuses(store: Store, out: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_remote(out)


def test_check_remote_without_a_server_or_credentials(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.stop()
    with pytest.raises(UserError, match=rf"out={REMOTE}: nothing can be written there: .*onnect"):
        check_remote(REMOTE)
    store.start()
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(
        UserError,
        match=r"written there: NoCredentialsError: .*: no credentials, or .*: set AWS_ACCESS_KEY_ID and AWS_S",
    ):
        check_remote(REMOTE)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "an-invented-key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "an-invented-secret")


def test_messages_hold_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TOKEN", "hunter2-hunter2")
    text = "a\nb https://me:password1@host/x?sig=abc&y=1: an-invented-secret hunter2-hunter2 an-invented-key"
    assert said(ValueError(text)) == "ValueError: a b https://…@host/x?… … … …"
    with pytest.raises(UserError) as failure:
        check_remote("nowhere://me:password1@host/x?sig=abc")
    assert "password1" not in str(failure.value)
    assert "abc" not in str(failure.value)
    assert len(said(ValueError("x" * 10_000))) < 600


@pytest.mark.parametrize("inside", ["", "/a/b/"])
def test_hugging_face(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inside: str) -> None:
    """The hub is a folder here."""
    hub = DirFileSystem(str(tmp_path / "hub"), LocalFileSystem(auto_mkdir=True))
    monkeypatch.setattr(huggingface_hub, "HfFileSystem", lambda **_: hub)
    monkeypatch.setattr(huggingface_hub, "list_repo_tree", lambda *_, **__: [])
    (tmp_path / "data/train").mkdir(parents=True)
    (tmp_path / "data/train/shard").write_text("content")
    upload_files(tmp_path / "data", ["train/shard"], f"hf://datasets/me/corpus{inside}")
    assert files_in(tmp_path / "hub") == {f"datasets/me/corpus{inside.rstrip('/')}/train/shard": b"content"}


def test_workers_end_with_their_killed_parent(
    tmp_path: Path, store: Store, written: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both workers wait for a server that doesn't answer when the parent is killed; then the same command again."""
    job = make_job(tmp_path)
    program = """
import pickle, sys
from bertchen.conversion.groups import write_groups
if __name__ == "__main__":
    job, split = pickle.load(open(sys.argv[1], "rb"))
    write_groups(job, [(split, 0), (split, 1)], 2)
"""
    (tmp_path / "program.py").write_text(program)
    (tmp_path / "arguments").write_bytes(pickle.dumps((job, SPLIT)))
    with socket.create_server(("127.0.0.1", 0)) as server:
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "S3_ENDPOINT_URL": f"http://127.0.0.1:{server.getsockname()[1]}",
        }
        command = [sys.executable, str(tmp_path / "program.py"), str(tmp_path / "arguments")]
        parent = subprocess.Popen(command, cwd=ROOT, env=environment)
        server.settimeout(60)
        connections = [server.accept()[0] for _ in range(2)]
        workers = psutil.Process(parent.pid).children(recursive=True)
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        gone, alive = psutil.wait_procs(workers, timeout=60)
        for connection in connections:
            connection.close()
    assert len(gone) >= 2
    assert alive == []
    write_all(job, 2)
    assert store.objects() == written


def test_index_is_uploaded_after_its_shards(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str] = []
    original = S3Uploader.upload_file

    def upload_file(self: S3Uploader, name: str) -> None:
        names.append(name)
        original(self, name)

    monkeypatch.setattr(S3Uploader, "upload_file", upload_file)
    write_all(make_job(tmp_path))
    assert names[-1] == "train/index.json"
    index = json.loads(store.objects()["train/index.json"])
    shards = [f"train/{shard['raw_data']['basename']}" for shard in index["shards"]]
    assert [name for name in names if "shard" in name] == shards
    groups = [name.split("/")[1] for name in names[:-1]]
    assert groups == sorted(groups)

"""Sources in a bucket of moto's S3, through s3fs: found, read, gone on with, and what is said where that fails."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from unittest import mock

import boto3
import pyarrow
import pyarrow.parquet
import pytest
import s3fs
from moto.server import ThreadedMotoServer

from bertchen.config.load import load_config
from bertchen.config.schema_convert import ConvertConfig
from bertchen.errors import UserError
from bertchen.text import readers
from bertchen.text.documents import RowRules
from bertchen.text.files import resolve_paths, size_and_version
from bertchen.text.readers import read_chunks, read_documents
from bertchen.text.sources import resolve_sources

TEXTS = [[f"Teil {part}, Zeile {line}: {line**7:x}" for line in range(3000)] for part in range(3)]


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket with files below `corpus/de/`; reached as the environment says."""
    for name, value in {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    client = boto3.client("s3")
    client.create_bucket(Bucket="bucket")
    for part, texts in enumerate(TEXTS):
        raw = b"".join(json.dumps({"text": text}).encode() + b"\n" for text in texts)
        client.put_object(Bucket="bucket", Key=f"corpus/de/part-{part}.jsonl.gz", Body=gzip.compress(raw))
    client.put_object(Bucket="bucket", Key="corpus/de/notes.md", Body=b"#")
    yield "s3://bucket/corpus"
    for item in client.list_objects_v2(Bucket="bucket")["Contents"]:
        client.delete_object(Bucket="bucket", Key=item["Key"])
    client.delete_bucket(Bucket="bucket")
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.mark.parametrize("source", ["", "/", "/de", "/**/*.gz", "/de/part-[012].*"])
def test_a_prefix_is_read(bucket: str, source: str) -> None:
    paths = resolve_paths(bucket + source)
    assert paths == [f"{bucket}/de/part-{part}.jsonl.gz" for part in range(3)]
    assert [document.text for document in read_documents(paths)] == [text for texts in TEXTS for text in texts]


def test_source_of_a_conversion(bucket: str) -> None:
    config = load_config(ConvertConfig, [f"source.path={bucket}", "tokenizer=t", "out=o"], "")
    (source,) = resolve_sources(config)
    assert [file.path for file in source.files] == resolve_paths(bucket)
    sizes = {item["Key"]: item["Size"] for item in boto3.client("s3").list_objects_v2(Bucket="bucket")["Contents"]}
    assert [file.bytes for file in source.files] == [
        sizes[file.path.removeprefix("s3://bucket/")] for file in source.files
    ]
    assert len({file.version for file in source.files}) == 3


def test_reading_goes_on(bucket: str) -> None:
    path = f"{bucket}/de/part-1.jsonl.gz"
    with mock.patch.object(readers, "CHUNK_BYTES", 20_000):
        chunks = list(read_chunks(path, RowRules()))
        assert len(chunks) > 5
        assert list(read_chunks(path, RowRules(), chunks[2].next_row)) == chunks[3:]
    assert sum(chunk.stored_bytes for chunk in chunks) == size_and_version(path)[0]


def test_parquet(bucket: str) -> None:
    pyarrow.parquet.write_table(
        pyarrow.table({"id": range(3000), "text": TEXTS[0]}),
        "bucket/corpus/fr/a.parquet",
        filesystem=pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(s3fs.S3FileSystem())),
        row_group_size=1000,
    )
    assert [document.text for document in read_documents([f"{bucket}/fr/a.parquet"])] == TEXTS[0]


def test_the_version_is_that_of_the_content(bucket: str) -> None:
    client, versions = boto3.client("s3"), []
    for body in (b"{}", b"{}", b"[]"):
        client.put_object(Bucket="bucket", Key="corpus/de/part-0.jsonl.gz", Body=body)
        s3fs.S3FileSystem.clear_instance_cache()
        versions.append(size_and_version(f"{bucket}/de/part-0.jsonl.gz"))
    assert versions[0] == versions[1] != versions[2]


def test_an_object_that_was_deleted(bucket: str) -> None:
    paths = resolve_paths(bucket)
    boto3.client("s3").delete_object(Bucket="bucket", Key="corpus/de/part-1.jsonl.gz")
    with pytest.raises(UserError, match=r"s3://bucket/corpus/de/part-1\.jsonl\.gz: can't be read: "):
        list(read_documents(paths))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("s3://bucket/corpus/missing", "matches no file"),
        ("s3://bucket/corpus/de/*.parquet", "matches no file"),
        ("s3://bucket/corpus/de/notes.md", "unknown kind of file"),
        ("s3://no-such-bucket/corpus", "bucket does not exist|matches no file"),
    ],
)
def test_nothing_to_read(bucket: str, source: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        resolve_paths(source)


def test_no_credentials(bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", f"{tmp_path}/none")
    monkeypatch.setenv("AWS_CONFIG_FILE", f"{tmp_path}/none")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(UserError, match=r"s3://bucket/corpus/a\.jsonl: can't be read: Unable to locate credentials"):
        resolve_paths("s3://bucket/corpus/a.jsonl")

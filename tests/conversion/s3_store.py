"""A server on this machine that speaks S3, and an environment in which nothing else is reached."""

from __future__ import annotations

import os
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from bertchen.conversion import upload

REMOTE = "s3://bucket/corpora/one"


def isolate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Invented credentials, no others, and no second attempts, before which libraries sleep."""
    for name in [name for name in os.environ if name.startswith(("AWS_", "S3_", "GCS_", "HF_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "an-invented-key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "an-invented-secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(upload, "UPLOAD_ATTEMPTS", 1)


class Store:
    """An S3 server that can be stopped and started; it keeps its objects."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch = monkeypatch

    def start(self) -> None:
        self.server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
        self.server.start()
        host, port = self.server.get_host_and_port()
        self.url = f"http://{host}:{port}"
        self.monkeypatch.setenv("S3_ENDPOINT_URL", self.url)
        self.client = boto3.client("s3", endpoint_url=self.url)

    def stop(self) -> None:
        self.server.stop()

    def objects(self, prefix: str = "corpora/one/") -> dict[str, bytes]:
        found = self.client.list_objects_v2(Bucket="bucket", Prefix=prefix).get("Contents", [])
        return {
            each["Key"].removeprefix(prefix): self.client.get_object(Bucket="bucket", Key=each["Key"])["Body"].read()
            for each in found
        }

"""An S3 endpoint over HTTP that fails as it is told: a proxy in front of moto's server.

moto takes any credentials; the proxy checks them as S3 does, signature included, and gives S3's own answers.
"""

from __future__ import annotations

import hashlib
import hmac
import http.client
import os
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, urlsplit

import boto3
import pytest

BUCKET = "bucket"
KEY_ID, SECRET = "AN-INVENTED-KEY-ID", "an-invented-secret"
TOKEN = "an-invented-session-token"
_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "expect", "content-length"}
_MESSAGES = {500: "InternalError", 503: "SlowDown"}


def use(url: str, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """An environment with an endpoint and invented credentials in which nothing else is reached."""
    for name in [name for name in os.environ if name.startswith(("AWS_", "S3_", "GCS_", "HF_"))]:
        monkeypatch.delenv(name)
    for name, value in {
        "S3_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": KEY_ID,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_SHARED_CREDENTIALS_FILE": str(folder / "none"),
        "AWS_CONFIG_FILE": str(folder / "none"),
    }.items():
        monkeypatch.setenv(name, value)


class FaultyStore:
    """The proxy, with a bucket `bucket`; everything works until a fault is set.

    Faults concern requests whose object `where` takes, one in `one_in` of them by chance, seeded.

    Attributes:
        url: the endpoint.
        client: boto3's, which goes past the proxy.
        one_in: 0 for no faults.
        fault: what happens to those: a status (500, 503), or several to choose from, `cut` (the connection is closed
            in the middle of the body) or `flip` (a bit of the body is another one).
        where: whether a fault may concern an object of this name.
        delay: [s] before each answer.
        secrets: the keys that are known and their secrets, or None, where any are taken.
        expired: whether all credentials have expired.
        asked: (method, name of the object, what was answered: the status, `cut` or `flip`), in their order.
    """

    def __init__(self, moto: str) -> None:
        self.moto = urlsplit(moto).netloc
        self.client = boto3.client("s3", endpoint_url=moto, aws_access_key_id="any", aws_secret_access_key="any")
        self.client.create_bucket(Bucket=BUCKET)
        self.one_in = 0
        self.fault: int | str | tuple[int, ...] = (500, 503)
        self.where: Callable[[str], bool] = lambda name: True
        self.delay = 0.0
        self.secrets: dict[str, str] | None = None
        self.expired = False
        self.asked: list[tuple[str, str, int | str]] = []
        self.random = random.Random(0)
        self.lock = threading.Lock()
        self._connections: set[socket.socket] = set()
        self._server: ThreadingHTTPServer | None = None
        self._port = 0
        self.listen()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def listen(self) -> None:
        """Takes connections, after `leave` at the same port."""
        handler = type("_Bound", (_Handler,), {"store": self})
        self._server = _Server(("127.0.0.1", self._port), handler)
        self._server.store = self
        self._port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def leave(self) -> None:
        """Closes all connections and refuses new ones."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
        with self.lock:
            open_ = list(self._connections)
        for connection in open_:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    @contextmanager
    def gone(self) -> Iterator[None]:
        """Refuses connections in the body of the `with`."""
        self.leave()
        try:
            yield
        finally:
            self.listen()

    def upload(self, folder: Path, prefix: str) -> str:
        """Puts the files of a folder there, without faults; the address."""
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                self.client.put_object(
                    Bucket=BUCKET, Key=f"{prefix}/{path.relative_to(folder)}", Body=path.read_bytes()
                )
        return f"s3://{BUCKET}/{prefix}"

    def change(self, name: str, change: Callable[[bytes], bytes]) -> None:
        """Replaces what an object holds."""
        held = self.client.get_object(Bucket=BUCKET, Key=name)["Body"].read()
        self.client.put_object(Bucket=BUCKET, Key=name, Body=change(held))

    def objects(self, prefix: str = "") -> dict[str, bytes]:
        """What is below a prefix, by the rest of the name."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        names = [each["Key"] for page in pages for each in page.get("Contents", [])]
        return {
            name.removeprefix(prefix).lstrip("/"): self.client.get_object(Bucket=BUCKET, Key=name)["Body"].read()
            for name in names
        }

    def answers(self, method: str = "GET") -> Counter[int | str]:
        """How often each answer was given."""
        return Counter(answer for asked, _, answer in self.asked if asked == method)

    def chosen(self, name: str) -> int | str | None:
        """What shall go wrong with a request, if anything; by chance."""
        with self.lock:
            if not self.one_in or not self.where(name) or self.random.randrange(self.one_in):
                return None
            return self.random.choice(self.fault) if isinstance(self.fault, tuple) else self.fault

    def refusal(self, request: BaseHTTPRequestHandler) -> tuple[int, str] | None:
        """Status and code of an answer to credentials that aren't right."""
        header = request.headers.get("Authorization", "")
        if self.expired:
            return 400, "ExpiredToken"
        if self.secrets is None:
            return None
        if not header:
            return 403, "AccessDenied"
        key = header.partition("Credential=")[2].partition("/")[0]
        if key not in self.secrets:
            return 403, "InvalidAccessKeyId"
        return None if _signature(request, self.secrets[key]) in header else (403, "SignatureDoesNotMatch")


class _Server(ThreadingHTTPServer):
    """Keeps the connections, to close them."""

    daemon_threads = True
    block_on_close = False
    store: FaultyStore

    def process_request(self, request: Any, client_address: Any) -> None:
        with self.store.lock:
            self.store._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self.store.lock:
            self.store._connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is nothing to print."""


class _Handler(BaseHTTPRequestHandler):
    """Passes a request on to moto, or fails."""

    protocol_version = "HTTP/1.1"
    store: FaultyStore

    def handle_any(self) -> None:
        store, name = self.store, urlsplit(self.path).path.removeprefix(f"/{BUCKET}").lstrip("/")
        fault = store.chosen(name)
        body = self._body()
        time.sleep(store.delay)
        if fault == "cut" and self.command not in ("GET", "HEAD"):
            self._note(name, fault)
            self._close()
        elif refusal := store.refusal(self):
            self._error(name, *refusal)
        elif isinstance(fault, int):
            self._error(name, fault, _MESSAGES[fault])
        else:
            self._pass_on(name, body, fault)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_any

    def log_message(self, *_: Any) -> None:
        pass

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return b"".join(parts)

    def _pass_on(self, name: str, body: bytes, fault: int | str | None) -> None:
        moto = http.client.HTTPConnection(self.store.moto)
        headers = {key: value for key, value in self.headers.items() if key.lower() not in _HOP_BY_HOP}
        moto.request(self.command, self.path, body, {**headers, "Content-Length": str(len(body))})
        answer = moto.getresponse()
        content = answer.read()
        spoils = bool(fault) and self.command == "GET" and len(content) > 1
        if spoils and fault == "flip":
            at = self.store.random.randrange(len(content))
            content = content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
        self._note(name, fault if spoils and fault else answer.status)
        self.send_response(answer.status)
        for key, value in answer.getheaders():
            if key.lower() not in _HOP_BY_HOP:
                self.send_header(key, value)
        length = answer.getheader("Content-Length", "0") if self.command == "HEAD" else len(content)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        moto.close()
        if spoils and fault == "cut":
            self.wfile.write(content[: len(content) // 2])
            self._close()
        else:
            self.wfile.write(content)

    def _error(self, name: str, status: int, code: str) -> None:
        self._note(name, status)
        body = (
            f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code><Message>No.</Message></Error>'.encode()
        )
        self.send_response(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _note(self, name: str, answer: int | str) -> None:
        with self.store.lock:
            self.store.asked.append((self.command, name, answer))

    def _close(self) -> None:
        self.wfile.flush()
        self.close_connection = True
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)


def _signature(request: BaseHTTPRequestHandler, secret: str) -> str:
    """What a request's signature must be: AWS Signature Version 4."""
    fields = dict(part.strip().split("=", 1) for part in request.headers["Authorization"].partition(" ")[2].split(","))
    _, day, region, service, _ = fields["Credential"].split("/")
    url, names = urlsplit(request.path), fields["SignedHeaders"].split(";")
    query = sorted((quote(key, "-_.~"), quote(value, "-_.~")) for key, value in parse_qsl(url.query, True))
    canonical = "\n".join(
        [
            request.command, url.path, "&".join(f"{key}={value}" for key, value in query),
            *(f"{name}:{' '.join(request.headers[name].split())}" for name in names), "",
            fields["SignedHeaders"], request.headers["x-amz-content-sha256"],
        ]
    )  # fmt: skip
    scope = f"{day}/{region}/{service}/aws4_request"
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    key = f"AWS4{secret}".encode()
    for part in (day, region, service, "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    text = f"AWS4-HMAC-SHA256\n{request.headers['x-amz-date']}\n{scope}\n{digest}"
    return hmac.digest(key, text.encode(), "sha256").hex()

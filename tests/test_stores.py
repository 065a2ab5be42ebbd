"""What is made of stores' errors: real ones of botocore, requests, urllib3, Google and the system, as they occur."""

from __future__ import annotations

import errno
import http.client
import itertools
import logging
import pickle
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import botocore.exceptions
import google.api_core.exceptions
import google.auth.exceptions
import pytest
import requests
import urllib3.exceptions
from boto3.exceptions import RetriesExceededError, S3UploadFailedError
from botocore.exceptions import ClientError
from streaming.base.storage import GCSDownloader
from streaming.base.storage.upload import CloudUploader

from bertchen import stores
from bertchen.errors import AGAIN_EXIT_CODE, EXIT_CODE, UserError
from bertchen.stores import (
    CutShort,
    Downloader,
    StoreError,
    StoreGone,
    hidden,
    is_passing,
    is_remote,
    keep_trying,
    said,
    why_refused,
)

if TYPE_CHECKING:
    from faulty_store import FaultyStore

URL = "s3://bucket/corpora/one/train/shard.00000.mds"


def client_error(code: str, status: int, message: str = "") -> ClientError:
    answer = {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(answer, "GetObject")


def http_error(status: int) -> requests.HTTPError:
    response = requests.Response()
    response.status_code = status
    return requests.HTTPError(f"{status} for url", response=response)


def wrapped(inner: Exception, outer: Exception, cause: bool = False) -> Exception:
    """`outer`, raised in the handling of `inner`, or from it."""
    try:
        try:
            raise inner
        except Exception as error:
            if cause:
                raise outer from error
            raise outer  # noqa: B904
    except Exception as error:
        return error


PASSING = [
    client_error("SlowDown", 503),
    client_error("InternalError", 500),
    client_error("503", 503),
    client_error("RequestTimeout", 400),
    client_error("TooManyRequests", 429),
    client_error("BadDigest", 400),
    botocore.exceptions.EndpointConnectionError(endpoint_url="http://x"),
    botocore.exceptions.ConnectTimeoutError(endpoint_url="http://x"),
    botocore.exceptions.ReadTimeoutError(endpoint_url="http://x"),
    botocore.exceptions.ConnectionClosedError(endpoint_url="http://x"),
    botocore.exceptions.IncompleteReadError(actual_bytes=1, expected_bytes=2),
    botocore.exceptions.ResponseStreamingError(error="cut"),
    botocore.exceptions.HTTPClientError(error="cut"),
    botocore.exceptions.FlexibleChecksumError(error_msg="Expected checksum a did not match b"),
    RetriesExceededError(botocore.exceptions.IncompleteReadError(actual_bytes=1, expected_bytes=2)),
    wrapped(client_error("SlowDown", 503), S3UploadFailedError("Failed to upload")),
    wrapped(client_error("InternalError", 500), RuntimeError("a library's own"), cause=True),
    requests.ConnectionError("reset"),
    requests.Timeout("slow"),
    requests.exceptions.ChunkedEncodingError("cut"),
    http_error(502),
    http_error(429),
    urllib3.exceptions.ProtocolError("Connection broken: IncompleteRead(1 bytes read)"),
    urllib3.exceptions.IncompleteRead(1, 2),
    http.client.IncompleteRead(b"", 2),
    http.client.RemoteDisconnected("closed"),
    google.api_core.exceptions.ServiceUnavailable("no"),
    google.api_core.exceptions.TooManyRequests("no"),
    google.auth.exceptions.TransportError("no"),
    ConnectionResetError(errno.ECONNRESET, "reset"),
    BrokenPipeError(errno.EPIPE, "pipe"),
    TimeoutError("timed out"),
    socket.timeout("timed out"),  # noqa: UP041
    OSError(errno.ENETUNREACH, "Network is unreachable"),
    OSError(errno.ESTALE, "Stale file handle"),
    OSError(errno.EIO, "Input/output error"),
    CutShort("nothing came"),
]
LASTING = [
    client_error("NoSuchKey", 404),
    client_error("404", 404),
    client_error("AccessDenied", 403),
    client_error("NoSuchBucket", 404),
    client_error("InvalidAccessKeyId", 403),
    client_error("ExpiredToken", 400),
    botocore.exceptions.NoCredentialsError(),
    botocore.exceptions.ParamValidationError(report="Invalid bucket name"),
    wrapped(client_error("NoSuchKey", 404), FileNotFoundError("Object not found"), cause=True),
    wrapped(client_error("SlowDown", 503), client_error("NoSuchKey", 404)),
    http_error(404),
    google.api_core.exceptions.NotFound("no"),
    requests.exceptions.SSLError("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed"),
    FileNotFoundError(errno.ENOENT, "No such file"),
    PermissionError(errno.EACCES, "Permission denied"),
    OSError(errno.ENOSPC, "No space left on device"),
    ValueError("a bug"),
    KeyError("a bug"),
]


def name(error: Exception) -> str:
    return f"{type(error).__name__}-{str(error)[:40]}"


@pytest.mark.parametrize("error", PASSING, ids=name)
def test_errors_that_pass(error: Exception) -> None:
    assert is_passing(error)
    assert why_refused(error, URL) is None


@pytest.mark.parametrize("error", LASTING, ids=name)
def test_errors_that_do_not_pass(error: Exception) -> None:
    assert not is_passing(error)


KEY, SECRET, TOKEN = "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"


@pytest.mark.parametrize(
    ("error", "url", "variables", "text"),
    [
        (botocore.exceptions.NoCredentialsError(), URL, {KEY, SECRET, TOKEN}, "no credentials"),
        (
            botocore.exceptions.PartialCredentialsError(provider="env", cred_var="aws_secret_access_key"),
            URL, {KEY, SECRET, TOKEN}, "some of them only",
        ),
        (
            wrapped(botocore.exceptions.NoCredentialsError(), client_error("AccessDenied", 403), cause=True),
            URL, {KEY, SECRET, TOKEN}, "no credentials",
        ),
        (client_error("InvalidAccessKeyId", 403), URL, {KEY}, "doesn't know the key"),
        (client_error("SignatureDoesNotMatch", 403), URL, {KEY, SECRET}, "isn't that of the key"),
        (client_error("ExpiredToken", 400), URL, {KEY, SECRET, TOKEN}, "have expired"),
        (client_error("InvalidToken", 400), URL, {KEY, TOKEN}, "isn't that of the key"),
        (client_error("AccessDenied", 403), URL, {KEY, SECRET, TOKEN}, "don't permit"),
        (client_error("403", 403), URL, {KEY, SECRET, TOKEN}, "wrong, have expired or don't permit"),
        (client_error("NoSuchBucket", 404), URL, {"S3_ENDPOINT_URL"}, "no such bucket"),
        (client_error("AuthorizationHeaderMalformed", 400), URL, {"AWS_DEFAULT_REGION"}, "another region"),
        (
            wrapped(client_error("SignatureDoesNotMatch", 403), S3UploadFailedError("Failed to upload")),
            URL, {KEY, SECRET}, "isn't that of the key",
        ),
        (
            client_error("SignatureDoesNotMatch", 403),
            "gs://b/x", {"GCS_KEY", "GCS_SECRET"}, "isn't that of the key",
        ),
        (
            google.auth.exceptions.DefaultCredentialsError("none"),
            "gs://b/x", {"GOOGLE_APPLICATION_CREDENTIALS", "GCS_KEY", "GCS_SECRET"}, "no credentials",
        ),
        (
            google.api_core.exceptions.Forbidden("no"),
            "gs://b/x", {"GOOGLE_APPLICATION_CREDENTIALS", "GCS_KEY", "GCS_SECRET"}, "don't permit",
        ),
        (http_error(401), "hf://datasets/me/x", {"HF_TOKEN"}, "wrong, have expired"),
    ],
)  # fmt: skip
def test_a_refusal_names_the_variables(error: Exception, url: str, variables: set[str], text: str) -> None:
    reason = why_refused(error, url)
    assert reason is not None
    assert text in reason
    words = {word.strip("(),:;") for word in reason.split()}
    assert {word for word in words if word.isupper() and "_" in word} == variables
    assert not is_passing(error)


def test_streamings_own_words_about_missing_credentials_of_gcs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for variable in ("GCS_KEY", "GCS_SECRET", "GOOGLE_CLOUD_PROJECT"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "none.json"))
    with pytest.raises(ValueError, match="GCS_KEY") as caught:
        GCSDownloader().download("gs://bucket/x", str(tmp_path / "x"))
    assert "set GOOGLE_APPLICATION_CREDENTIALS" in str(why_refused(caught.value, "gs://bucket/x"))


@pytest.mark.parametrize("error", [client_error("NoSuchKey", 404), ValueError("x"), OSError(errno.ENOSPC, "full")])
def test_no_refusal(error: Exception) -> None:
    assert why_refused(error, URL) is None


@pytest.mark.parametrize(
    ("folder", "remote"),
    [("s3://bucket/run", True), ("gs://b", True), ("runs/first", False), ("/abs", False), ("a:b", False)],
)
def test_is_remote(folder: str, remote: bool) -> None:
    assert is_remote(folder) is remote


def test_secrets_are_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2-hunter2")
    assert hidden("https://me:pass@host/x?sig=1 s3://b/y") == "https://…@host/x?… s3://b/y"
    assert said(ValueError("hunter2-hunter2\nis https://a:b@c")) == "ValueError: … is https://…@c"
    error = client_error("SignatureDoesNotMatch", 403, "hunter2-hunter2 is wrong")
    with pytest.raises(StoreError) as caught:
        keep_trying(raiser(error), 0, f"downloading {URL}?sig=abc")
    assert "hunter2" not in str(caught.value)
    assert "abc" not in str(caught.value)


def raiser(*errors: Exception) -> Callable[[], str]:
    """An action that fails with each of these, the last one for ever; `None` lets it succeed."""
    left = list(errors)

    def action() -> str:
        error = left.pop(0) if len(left) > 1 else left[0]
        if error is not None:
            raise error
        return "done"

    return action


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Time passes only by sleeping; the naps."""
    naps: list[float] = []
    monkeypatch.setattr(time, "monotonic", lambda: sum(naps))
    monkeypatch.setattr(time, "sleep", naps.append)
    return naps


def test_trying_again_until_it_succeeds(clock: list[float], caplog: pytest.LogCaptureFixture) -> None:
    slow = client_error("SlowDown", 503)
    with caplog.at_level(logging.INFO, "bertchen"):
        assert keep_trying(raiser(slow, slow, slow, None), 60, f"downloading {URL}") == "done"
    first, last = (record.getMessage() for record in caplog.records)
    assert first.startswith(f"downloading {URL} failed; trying again for 60 s: ClientError: ")
    assert "succeeded after" in last
    assert 0.25 + 0.5 + 1 <= sum(clock) <= 0.5 + 1 + 2


def test_pauses_grow_to_the_longest_and_end_with_the_patience(clock: list[float]) -> None:
    times: list[float] = []

    def action() -> None:
        times.append(sum(clock))
        raise ConnectionResetError(errno.ECONNRESET, "reset")

    with pytest.raises(StoreGone, match=rf"downloading {URL} has failed for 100 s: ConnectionResetError: .*reset"):
        keep_trying(action, 100, f"downloading {URL}")
    pauses = [after - before for before, after in itertools.pairwise(times)]
    for number, pause in enumerate(pauses[:-1]):
        most = min(stores.FIRST_DELAY * 2**number, stores.LONGEST_DELAY)
        assert most / 2 - 1e-9 <= pause <= most + 1e-9
    assert times[-1] == pytest.approx(100)


def test_no_patience_is_one_attempt(clock: list[float]) -> None:
    with pytest.raises(StoreGone):
        keep_trying(raiser(TimeoutError("no"), None), 0, "downloading x")
    assert clock == []


@pytest.mark.parametrize("error", [client_error("InvalidAccessKeyId", 403), client_error("NoSuchKey", 404)])
def test_what_does_not_pass_is_told_at_once(clock: list[float], error: Exception) -> None:
    with pytest.raises(StoreError) as caught:
        keep_trying(raiser(error), 60, f"downloading {URL}")
    assert not isinstance(caught.value, StoreGone)
    assert URL in str(caught.value)
    assert clock == []


def test_own_errors_and_a_full_disk_are_left_alone() -> None:
    for error in (UserError("mine"), OSError(errno.ENOSPC, "No space left on device")):
        with pytest.raises(type(error)) as caught:
            keep_trying(raiser(error), 60, "downloading x")
        assert caught.value is error


def test_what_is_not_wanted_any_longer_is_given_up(clock: list[float]) -> None:
    with pytest.raises(StoreGone, match="downloading x was given up"):
        keep_trying(raiser(TimeoutError("no")), 60, "downloading x", is_wanted=lambda: sum(clock) < 10)
    assert 10 <= sum(clock) < 10.5


@pytest.mark.parametrize("kind", [StoreError, StoreGone])
def test_errors_survive_what_a_loader_does_with_them(kind: type[StoreError]) -> None:
    """It pickles the class, and makes the exception anew from one text."""
    copy = pickle.loads(pickle.dumps(kind("what happened")))
    assert (type(copy), str(copy)) == (kind, "what happened")
    assert kind("x").exit_code == (AGAIN_EXIT_CODE if kind is StoreGone else EXIT_CODE)


def fetched(url: str, folder: Path, timeout: float = 5) -> bytes:
    Downloader(timeout).download(url, str(folder / "got"))
    return (folder / "got").read_bytes()


def put(store: FaultyStore, content: bytes = b"content" * 1000) -> str:
    store.client.put_object(Bucket="bucket", Key="a b/c+d", Body=content)
    return "s3://bucket/a b/c+d"


def test_downloading_is_one_request(faulty_store: FaultyStore, tmp_path: Path) -> None:
    faulty_store.secrets = {"AN-INVENTED-KEY-ID": "an-invented-secret"}
    assert fetched(put(faulty_store), tmp_path) == b"content" * 1000
    assert [(method, answer) for method, _, answer in faulty_store.asked] == [("GET", 200)]


def test_copying_and_other_stores(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("content")
    assert fetched(str(tmp_path / "file"), tmp_path) == b"content"
    with pytest.raises(ValueError, match="Unsupported remote path"):
        fetched("nowhere://x/y", tmp_path)


@pytest.mark.parametrize("fault", [500, 503, "cut", "gone"])
def test_real_faults_pass(faulty_store: FaultyStore, tmp_path: Path, fault: Any) -> None:
    url = put(faulty_store)
    faulty_store.one_in, faulty_store.fault = (0, 500) if fault == "gone" else (1, fault)
    if fault == "gone":
        faulty_store.leave()
    with pytest.raises(Exception) as caught:  # noqa: PT011
        fetched(url, tmp_path)
    assert is_passing(caught.value), caught.value


def test_a_store_that_does_not_answer_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("S3_ENDPOINT_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        with pytest.raises(botocore.exceptions.ReadTimeoutError) as caught:
            fetched(URL, tmp_path, timeout=0.2)
    assert is_passing(caught.value)


@pytest.mark.parametrize(
    ("variable", "value", "text"),
    [
        ("AWS_ACCESS_KEY_ID", "NOT-A-KNOWN-KEY-ID", "doesn't know the key in AWS_ACCESS_KEY_ID"),
        ("AWS_SECRET_ACCESS_KEY", "not-the-secret", "the secret in AWS_SECRET_ACCESS_KEY isn't"),
        ("AWS_ACCESS_KEY_ID", None, "no credentials, or some of them only: set AWS_ACCESS_KEY_ID and"),
        ("AWS_SECRET_ACCESS_KEY", None, "no credentials, or some of them only: set AWS_ACCESS_KEY_ID and"),
        ("both", None, "no credentials, or some of them only: set AWS_ACCESS_KEY_ID and"),
    ],
)
def test_credentials_that_are_wrong_or_missing(
    faulty_store: FaultyStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    variable: str, value: str | None, text: str,
) -> None:  # fmt: skip
    faulty_store.secrets = {"AN-INVENTED-KEY-ID": "an-invented-secret"}
    url = put(faulty_store)
    for each in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY") if variable == "both" else (variable,):
        if value is None:
            monkeypatch.delenv(each)
        else:
            monkeypatch.setenv(each, value)
    with pytest.raises(StoreError) as caught:
        keep_trying(lambda: fetched(url, tmp_path), 60, f"downloading {url}")
    assert text in str(caught.value)
    assert not any(value in str(caught.value) for value in ("an-invented-secret", "not-the-secret"))


def test_credentials_that_have_expired(faulty_store: FaultyStore, tmp_path: Path) -> None:
    url = put(faulty_store)
    faulty_store.expired = True
    with pytest.raises(StoreError, match="have expired: set AWS_SESSION_TOKEN, AWS_ACCESS_KEY_ID and"):
        keep_trying(lambda: fetched(url, tmp_path), 60, f"downloading {url}")


def test_a_public_bucket_needs_no_credentials(
    faulty_store: FaultyStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = put(faulty_store)
    faulty_store.client.put_object_acl(Bucket="bucket", Key="a b/c+d", ACL="public-read")
    for each in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(each)
    assert fetched(url, tmp_path) == b"content" * 1000


def test_what_is_missing_is_told(faulty_store: FaultyStore, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"downloading s3://bucket/none failed: NoSuchKey: .*NoSuchKey"):
        keep_trying(lambda: fetched("s3://bucket/none", tmp_path), 60, "downloading s3://bucket/none")
    with pytest.raises(StoreError, match="no such bucket"):
        keep_trying(lambda: fetched("s3://other/none", tmp_path), 60, "downloading s3://other/none")


def test_uploads_of_streaming_are_understood(
    faulty_store: FaultyStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its uploader wraps what boto3 raises."""
    (tmp_path / "file").write_text("content")
    uploader = CloudUploader.get((str(tmp_path / "empty"), "s3://bucket/x"), keep_local=True, retry=1)
    uploader.local = str(tmp_path)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    faulty_store.one_in, faulty_store.fault = 1, 503
    with pytest.raises(Exception) as caught:  # noqa: PT011
        uploader.upload_file("file")
    assert is_passing(caught.value)

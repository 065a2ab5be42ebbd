"""Object stores: which of their errors pass and which don't, what these say to a user, trying again, and downloading.

Each store's package raises errors of its own, and Streaming wraps some of them, so they are told apart by the HTTP
status and the code in them and by the names of their classes; no such package is imported here.
"""

from __future__ import annotations

import errno
import logging
import os
import random
import re
import shutil
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar
from urllib.parse import urlsplit

from bertchen.errors import AGAIN_EXIT_CODE, UserError, is_disk_full

log = logging.getLogger(__name__)

T = TypeVar("T")

FIRST_DELAY, LONGEST_DELAY = 0.5, 15.0  # seconds
CONNECT_TIMEOUT = 10.0  # seconds
_POLL = 0.2  # seconds
_CHUNK = 1 << 20  # bytes
_GCS_ENDPOINT = "https://storage.googleapis.com"
_URL = re.compile(r"[a-z][a-z0-9-]*:/\S*")
_SECRET_NAME = re.compile("KEY|SECRET|TOKEN|PASSWORD|SAS", re.IGNORECASE)
_MIN_SECRET, _MAX_SAID = 8, 500

_VARIABLES = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and AWS_SESSION_TOKEN, if the store gave one)",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS (a file), or GCS_KEY and GCS_SECRET",
    "azure": "AZURE_ACCOUNT_NAME and AZURE_ACCOUNT_ACCESS_KEY",
    "azure-dl": "AZURE_ACCOUNT_NAME and AZURE_ACCOUNT_ACCESS_KEY",
    "hf": "HF_TOKEN",
}
_MISSING = re.compile("NoCredentials|PartialCredentials|CredentialRetrieval|DefaultCredentials|NoAuthToken")
_NO_GCS_CREDENTIALS = "`GCS_KEY` and `GCS_SECRET`"  # in a ValueError of Streaming
_REFUSED = {
    "InvalidAccessKeyId": "the store doesn't know the key in {key}: set it anew",
    "SignatureDoesNotMatch": "the secret in {secret} isn't that of the key in {key}: set it anew",
    "ExpiredToken": "the credentials have expired: set AWS_SESSION_TOKEN, {key} and {secret} to new ones",
    "InvalidToken": "the token in AWS_SESSION_TOKEN isn't that of the key in {key}: set both anew, or unset it",
    "AccessDenied": "the credentials in {all} don't permit it: set others, or have them permitted",
    "NoSuchBucket": "the store has no such bucket: check the address, and that S3_ENDPOINT_URL names the right store",
    "AuthorizationHeaderMalformed": "the bucket is in another region: set AWS_DEFAULT_REGION",
    "RequestTimeTooSkewed": "the clock of this machine is wrong: set it",
}
_SAME = {
    "AuthFailure": "InvalidAccessKeyId",
    "InvalidClientTokenId": "InvalidAccessKeyId",
    "InvalidSecurity": "InvalidAccessKeyId",
    "ExpiredTokenException": "ExpiredToken",
    "TokenRefreshRequired": "ExpiredToken",
    "RequestExpired": "ExpiredToken",
    "AllAccessDisabled": "AccessDenied",
    "AccountProblem": "AccessDenied",
    "PermanentRedirect": "AuthorizationHeaderMalformed",
    "IllegalLocationConstraintException": "AuthorizationHeaderMalformed",
}
_UNAUTHORIZED = (401, 403)

_PASSING_STATUS = (408, 425, 429)
_PASSING_CODES = re.compile("SlowDown|Throttl|RequestTimeout|InternalError|ServiceUnavailable|BadDigest|IncompleteBody")
_PASSING_NAMES = re.compile(
    "Timeout|TimedOut|ConnectionError|ConnectionClosed|ConnectError|ReadError|Incomplete|ProtocolError|Disconnected|"
    "ResponseStreaming|ChunkedEncoding|ContentDecoding|RetriesExceeded|MaxRetry|TransportError|DataCorruption|"
    "ServiceRequestError|ServiceResponseError|HTTPClientError|ServerError|NameResolution|FlexibleChecksum"
)
_PASSING_ERRNO = (
    errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED, errno.EPIPE, errno.ETIMEDOUT, errno.ENETUNREACH,
    errno.ENETDOWN, errno.EHOSTUNREACH, errno.EHOSTDOWN, errno.EIO, errno.ESTALE, errno.EAGAIN,
)  # fmt: skip


class StoreError(UserError):
    """A store refuses, or what it gives isn't what it should be; trying again doesn't help."""


class StoreGone(StoreError):
    """A store couldn't be reached for as long as a key allows: later the same command can succeed."""

    exit_code = AGAIN_EXIT_CODE


class CutShort(OSError):
    """Less came than was announced."""


def is_remote(folder: str) -> bool:
    """Whether a folder is in an object store."""
    return "://" in folder


def hidden(text: str) -> str:
    """Without the parts of URLs that can hold secrets: passwords and queries."""
    text = re.sub(r"://[^/@\s]*:[^/@\s]*@", "://…@", text)
    return re.sub(r"(://[^\s?'\"]*)\?[^\s'\"]+", r"\1?…", text)


def said(error: BaseException) -> str:
    """What an error of a store says, in one line and without secrets."""
    text = hidden(" ".join(f"{type(error).__name__}: {error}".split()))
    for name, value in os.environ.items():
        if _SECRET_NAME.search(name) and len(value) >= _MIN_SECRET:
            text = text.replace(value, "…")
    return text if len(text) <= _MAX_SAID else f"{text[:_MAX_SAID]}…"


def why_refused(error: BaseException, url: str) -> str | None:
    """What to set where a store has no credentials, refuses them, or has no such bucket; None for anything else.

    Names variables of the environment, never their values.
    """
    scheme = url.partition(":")[0]
    variables = _VARIABLES.get(scheme, f"the environment as {scheme}: needs them")
    errors = list(_chain(error))
    if any(_MISSING.search(type(each).__name__) or _NO_GCS_CREDENTIALS in str(each) for each in errors):
        return f"no credentials, or some of them only: set {variables}"
    key, secret = ("GCS_KEY", "GCS_SECRET") if scheme == "gs" else ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    for each in errors:
        code = _code(each)
        if sentence := _REFUSED.get(_SAME.get(code, code)):
            return sentence.format(key=key, secret=secret, all=variables)
        if _status(each) in _UNAUTHORIZED:  # the answer to HEAD says no more
            return f"the credentials are wrong, have expired or don't permit it: check {variables}"
    return None


def is_passing(error: BaseException) -> bool:
    """Whether trying again can help: time-outs, lost connections, 429, 5xx, bodies cut short.

    Of an error and those that it was raised from, or in the handling of, the first that tells decides.
    """
    return next((verdict for each in _chain(error) if (verdict := _verdict(each)) is not None), False)


def keep_trying(action: Callable[[], T], patience: float, what: str, is_wanted: Callable[[], bool] = lambda: True) -> T:
    """Calls `action` until it succeeds, waiting longer and longer between passing failures, with jitter.

    Args:
        action: to be tried; may be called again after any failure.
        patience: [s] for which a store may fail, from the first failure on.
        what: is done, with the full URL, for messages: `downloading s3://bucket/name`.
        is_wanted: asked while waiting; false gives up.

    Raises:
        StoreGone: it still fails after that time, or isn't wanted any longer.
        StoreError: the store refuses, or fails otherwise.
        UserError, OSError: of the action's own, and for a full disk, as they are.
    """
    begin: float | None = None
    delay = FIRST_DELAY
    while True:
        try:
            result = action()
        except UserError:
            raise
        except Exception as error:  # each store raises its own
            if is_disk_full(error):
                raise
            now = time.monotonic()
            begin = now if begin is None else begin
            _raise_for_good(error, what, patience, now - begin)
            if now == begin:
                log.warning("%s failed; trying again for %g s: %s", hidden(what), patience, said(error))
            pause = min(delay * random.SystemRandom().uniform(0.5, 1.0), max(0.0, begin + patience - now))
            if not _wait(pause, is_wanted):
                raise StoreGone(f"{hidden(what)} was given up: {said(error)}") from error
            delay = min(2 * delay, LONGEST_DELAY)
        else:
            if begin is not None:
                log.warning("%s succeeded after %.1f s", hidden(what), time.monotonic() - begin)
            return result


def _raise_for_good(error: Exception, what: str, patience: float, elapsed: float) -> None:
    """Raises where it is no use to try again."""
    found = _URL.search(what)
    if reason := why_refused(error, found[0] if found else what):
        raise StoreError(f"{hidden(what)}: {reason} ({said(error)})") from error
    if not is_passing(error):
        raise StoreError(f"{hidden(what)} failed: {said(error)}") from error
    if elapsed >= patience:
        raise StoreGone(
            f"{hidden(what)} has failed for {elapsed:.0f} s: {said(error)}: check the network and the store, "
            "then start the same command again"
        ) from error


def _wait(seconds: float, is_wanted: Callable[[], bool]) -> bool:
    """Waits, and says whether the result is still wanted."""
    end = time.monotonic() + seconds
    while is_wanted():
        left = end - time.monotonic()
        if left <= 0:
            return True
        time.sleep(min(left, _POLL))
    return False


def _verdict(error: BaseException) -> bool | None:
    """Whether an error, for itself, passes; None where it doesn't tell."""
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return False
    if _PASSING_CODES.search(_code(error)):
        return True
    if status := _status(error):
        return status >= 500 or status in _PASSING_STATUS
    if isinstance(error, CutShort | ConnectionError | TimeoutError):
        return True
    if isinstance(error, OSError) and error.errno in _PASSING_ERRNO:
        return True
    names = " ".join(kind.__name__ for kind in type(error).__mro__)
    return True if _PASSING_NAMES.search(names) else None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and what it was raised from or in the handling of."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _code(error: BaseException) -> str:
    """What an error of S3 is called by the store; empty for others."""
    response = getattr(error, "response", None)
    return str(response.get("Error", {}).get("Code", "")) if isinstance(response, dict) else ""


def _status(error: BaseException) -> int | None:
    """The HTTP status that the store answered with, if it did."""
    response: Any = getattr(error, "response", None)
    if isinstance(response, dict):
        found = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    else:
        places = ((response, "status_code"), (error, "status_code"), (error, "code"), (error, "status"))
        found = next((value for place, name in places if isinstance(value := getattr(place, name, None), int)), None)
    return int(found) if isinstance(found, int) and 100 <= found < 600 else None


class Downloader:
    """Downloads objects and copies files, in one attempt each.

    Streaming's downloader of S3 asks for the head of an object first, whose answer doesn't say why it is refused, and
    tries without credentials what was refused with them; so S3 is asked here. Other stores are left to Streaming.

    Args:
        timeout: [s] without an answer after which an attempt fails.
    """

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        # Of each process: connections must not be shared with a forked one.
        self._clients: dict[tuple[int, str], Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_clients": {}}

    def download(self, url: str, target: str) -> None:
        """Writes what is at `url` (a path for files) to the file `target`, which a failure leaves cut short."""
        scheme = urlsplit(url).scheme
        if not scheme:
            shutil.copyfile(url, target)
        elif scheme == "s3" or (scheme == "gs" and "GCS_KEY" in os.environ and "GCS_SECRET" in os.environ):
            self._download_s3(url, target)
        else:
            from streaming.base.storage import CloudDownloader

            if os.path.exists(target):  # its downloaders leave what is there
                os.unlink(target)
            at = os.getpid(), scheme
            downloader = self._clients.get(at) or self._clients.setdefault(at, CloudDownloader.get(url))
            try:
                downloader.download(url, target, self.timeout)
            except Exception:
                downloader.clean_up()  # what is connected may be broken
                raise
            if not os.path.exists(target):
                raise CutShort(f"{hidden(url)}: nothing came")

    def _download_s3(self, url: str, target: str) -> None:
        from botocore import UNSIGNED
        from botocore.exceptions import NoCredentialsError

        scheme, _, place = url.partition("://")
        bucket, _, name = place.partition("/")
        at = os.getpid(), scheme
        client = self._clients.get(at) or self._clients.setdefault(at, s3_client(scheme, self.timeout))
        payers = [each.strip() for each in os.environ.get("MOSAICML_STREAMING_AWS_REQUESTER_PAYS", "").split(",")]
        options = {"RequestPayer": "requester"} if bucket in payers else {}
        try:
            body = client.get_object(Bucket=bucket, Key=name, **options)["Body"]
        except Exception as error:
            if _status(error) in _UNAUTHORIZED and client.meta.config.signature_version is UNSIGNED:
                raise error from NoCredentialsError()
            raise
        with body, open(target, "wb") as file:
            shutil.copyfileobj(body, file, _CHUNK)


def s3_client(scheme: str, timeout: float) -> Any:
    """boto3's client for `s3`, or for `gs` with GCS_KEY and GCS_SECRET; it doesn't try again by itself.

    Where there are no credentials at all, requests aren't signed: a public bucket gives its objects.
    """
    from boto3.session import Session
    from botocore import UNSIGNED
    from botocore.config import Config

    session = Session()
    options: dict[str, Any] = {
        "connect_timeout": min(CONNECT_TIMEOUT, timeout),
        "read_timeout": timeout,
        "retries": {"mode": "standard", "total_max_attempts": 1},
    }
    if scheme == "gs":
        return session.client(
            "s3",
            region_name="auto",
            endpoint_url=_GCS_ENDPOINT,
            aws_access_key_id=os.environ["GCS_KEY"],
            aws_secret_access_key=os.environ["GCS_SECRET"],
            config=Config(**options),
        )
    if session.get_credentials() is None:
        options["signature_version"] = UNSIGNED
    return session.client("s3", endpoint_url=os.environ.get("S3_ENDPOINT_URL"), config=Config(**options))

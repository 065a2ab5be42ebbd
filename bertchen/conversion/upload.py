"""Uploading to the stores that Streaming knows, and what can be checked of one before any work."""

from __future__ import annotations

import os
import posixpath
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bertchen.errors import UserError
from bertchen.stores import hidden, said, why_refused

UPLOAD_ATTEMPTS = 4
# Uploaded before the work, to see whether anything can be; Streaming's uploaders can't remove it.
NOTE = "README.txt"

_NOTE_TEXT = "BERTchen writes converted data here. They are complete when there is a manifest.json.\n"
_MANIFEST = "manifest.json"


def check_remote(out: str) -> None:
    """Checks that a data set can be written to a remote folder, which must be empty; leaves a README.txt there.

    Raises:
        UserError: Streaming has no uploader for the URL, or lacks a package for it; the store refuses; something is
            there already.
    """
    scheme = out.partition(":")[0]
    if scheme not in (schemes := _schemes()):
        raise UserError(
            f"out={hidden(out)}: {scheme}: is no store that Streaming uploads to, should be a local folder or begin "
            f"with one of: {', '.join(f'{each}:' for each in schemes)}"
        )
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / NOTE).write_text(_NOTE_TEXT, encoding="utf-8")
        try:
            uploader = _uploader(out, Path(folder))
            found = [name for name in _objects(uploader, out) if posixpath.basename(name) != NOTE]
            if not found:
                uploader.upload_file(NOTE)
        except ImportError as error:
            raise UserError(
                f"out={hidden(out)}: Streaming needs a Python package for {scheme}: that is not installed: "
                f"{said(error)}"
            ) from error
        except Exception as error:  # each store raises its own
            raise UserError(
                f"out={hidden(out)}: nothing can be written there: {said(error)}: "
                f"{why_refused(error, out) or 'check the address, the network and the credentials in the environment'}"
            ) from error
    if found:
        raise UserError(
            f"out={hidden(out)} is not empty ({found[0]}): nothing is replaced there; choose another out or empty it"
        )


def upload_files(folder: Path, names: Iterable[str], remote: str) -> None:
    """Uploads files of a folder to the same names below a remote one, in their order; what is there is replaced.

    Raises:
        UserError: that failed, also when tried again.
    """
    url = remote
    try:
        uploader = _uploader(remote, folder)
        for name in names:
            url = f"{remote.rstrip('/')}/{name}"
            uploader.upload_file(name)
    except Exception as error:  # each store raises its own
        raise UserError(
            f"{hidden(url)}: the upload failed: {said(error)}: "
            f"{why_refused(error, url) or 'check the network, the credentials in the environment and the room there'}"
        ) from error


def download_manifest(remote: str) -> bytes | None:
    """The manifest in a remote folder; None where there is none, or the store doesn't give it."""
    from streaming.base.storage import CloudDownloader

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / _MANIFEST
        try:
            CloudDownloader.direct_download(f"{remote.rstrip('/')}/{_MANIFEST}", str(path))
            return path.read_bytes()
        except Exception:  # each store raises its own
            return None


def _schemes() -> list[str]:
    from streaming.base.storage.upload import UPLOADERS

    return sorted({name.partition(":")[0] for name in UPLOADERS if name})


def _uploader(remote: str, folder: Path) -> Any:
    """Streaming's uploader from a local folder to a remote one."""
    from streaming.base.storage import CloudUploader

    url = f"{remote.rstrip('/')}/"
    with tempfile.TemporaryDirectory() as empty:
        # Given the folder itself, it warns that it isn't empty; and Hugging Face's takes no local folder.
        out = url if url.startswith("hf:") else (empty, url)
        uploader = CloudUploader.get(out, keep_local=True, retry=UPLOAD_ATTEMPTS)
    if isinstance(out, str):
        os.rmdir(uploader.local)
        # It knows of a folder inside of the repository, but writes to the repository's root.
        uploader.dataset_id = posixpath.join(uploader.dataset_id, uploader.path).rstrip("/")
    uploader.local = str(folder)
    return uploader


def _objects(uploader: Any, remote: str) -> list[str]:
    """What is there; of a store whose objects Streaming can't list, the manifest, if there is one."""
    try:
        return uploader.list_objects() or []
    except NotImplementedError:
        return [] if download_manifest(remote) is None else [_MANIFEST]

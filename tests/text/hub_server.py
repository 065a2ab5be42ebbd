"""A Hugging Face Hub in a thread: what huggingface_hub and datasets ask for to find and read a data set.

Written after what these libraries request; the answers' form follows https://huggingface.co/docs/hub/api.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_right"


@dataclass
class Repository:
    """Attributes: commits: commit to the files of that commit; refs: branch or tag to commit; gated: asks for TOKEN."""

    commits: dict[str, dict[str, bytes]]
    refs: dict[str, str]
    gated: bool = False
    private: bool = False

    def commit(self, revision: str) -> str | None:
        found = self.refs.get(revision, revision)
        return found if found in self.commits else None


@dataclass
class HubServer:
    """Serves `repositories` under the Hub's addresses, and `files` under theirs.

    Attributes:
        requests: (method, path) of what was asked for.
        cut_after: connections that send a file are dropped after so many bytes of it, if it is set.
    """

    repositories: dict[str, Repository] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    cut_after: int | None = None

    def __enter__(self) -> HubServer:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def add(
        self, name: str, files: dict[str, bytes], gated: bool = False, private: bool = False, ref: str = "main"
    ) -> str:
        """Adds a commit to a repository, which becomes that of the branch `ref`. Returns the commit."""
        repository = self.repositories.setdefault(name, Repository({}, {}, gated, private))
        commit = hashlib.sha1(f"{name} {len(repository.commits)}".encode()).hexdigest()
        repository.commits[commit] = files
        repository.refs[ref] = commit
        return commit


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        path, query = unquote(url.path), parse_qs(url.query)
        self.hub.requests.append((self.command, path))
        if match := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            self._info(match[1], match[2] or "main")
        elif match := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)/tree/([^/]+)/?(.*)", path):
            self._tree(match[1], match[2], match[3], query.get("recursive", ["False"])[0].lower() == "true")
        elif match := re.fullmatch(r"/datasets/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._resolve(match[1], match[2], match[3])
        elif path in self.hub.files:
            self._file(self.hub.files[path], {})
        else:
            self._error(404, None, "nothing here")

    do_HEAD = do_GET

    def log_message(self, *_: Any) -> None: ...

    def _repository(self, name: str, revision: str) -> tuple[Repository, str] | None:
        repository = self.hub.repositories.get(name)
        if repository is None or (repository.private and not self._authorized()):
            self._error(401, "RepoNotFound", "Repository not found")
            return None
        commit = repository.commit(revision)
        if commit is None:
            self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return None
        return repository, commit

    def _authorized(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _info(self, name: str, revision: str) -> None:
        found = self._repository(name, revision)
        if found:
            repository, commit = found
            siblings = [{"rfilename": path} for path in repository.commits[commit]]
            self._json(
                {"_id": "0", "id": name, "sha": commit, "private": repository.private, "gated": repository.gated}
                | {"disabled": False, "downloads": 0, "likes": 0, "tags": [], "siblings": siblings}
            )

    def _tree(self, name: str, revision: str, folder: str, recursive: bool) -> None:
        found = self._repository(name, revision)
        if not found:
            return
        files = found[0].commits[found[1]]
        prefix = f"{folder}/" if folder else ""
        entries: dict[str, dict[str, Any]] = {}
        for path, raw in files.items():
            if not path.startswith(prefix):
                continue
            parts = path[len(prefix) :].split("/")
            for depth in range(1, len(parts) if recursive else min(len(parts), 2)):
                above = prefix + "/".join(parts[:depth])
                entries[above] = {"type": "directory", "oid": _oid(above.encode()), "size": 0, "path": above}
            if recursive or len(parts) == 1:
                entries[path] = {"type": "file", "oid": _oid(raw), "size": len(raw), "path": path}
        if not entries:
            self._error(404, "EntryNotFound", f"{folder} does not exist on {revision}")
        else:
            self._json([entries[path] for path in sorted(entries)])

    def _resolve(self, name: str, revision: str, path: str) -> None:
        found = self._repository(name, revision)
        if not found:
            return
        repository, commit = found
        if repository.gated and not self._authorized():
            status = 403 if "Authorization" in self.headers else 401
            self._error(status, "GatedRepo", f"Access to dataset {name} is restricted.")
        elif path not in repository.commits[commit]:
            self._error(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": commit})
        else:
            raw = repository.commits[commit][path]
            self._file(raw, {"X-Repo-Commit": commit, "ETag": f'"{_oid(raw)}"'})

    def _file(self, raw: bytes, headers: dict[str, str]) -> None:
        status, total = 200, len(raw)
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            begin, end = int(match[1]), min(int(match[2] or total), total - 1)
            status, raw = 206, raw[begin : end + 1]
            headers = {**headers, "Content-Range": f"bytes {begin}-{end}/{total}"}
        cut = self.hub.cut_after
        self._answer(status, raw, {**headers, "Accept-Ranges": "bytes"}, cut)

    def _json(self, content: Any) -> None:
        self._answer(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _error(self, status: int, code: str | None, message: str, headers: dict[str, str] | None = None) -> None:
        named = {"X-Error-Code": code, "X-Error-Message": message} if code else {}
        self._answer(status, json.dumps({"error": message}).encode(), {**named, **(headers or {})})

    def _answer(self, status: int, body: bytes, headers: dict[str, str], cut: int | None = None) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if cut is not None and cut < len(body):
            body, self.close_connection = body[:cut], True
        self.wfile.write(body)


def _oid(raw: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(raw) + raw).hexdigest()

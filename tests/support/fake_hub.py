"""A Hugging Face Hub on loopback: what huggingface_hub 1 and 2 call to make, fill and read repositories.

Large files go the way of Git LFS (HF_HUB_DISABLE_XET=1). `refuse` makes a request fail once or always, `hold` keeps
an upload until the test lets it go on.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    import pytest

TOKEN = "hf_pretendedtokenofnobody0123456789"
LFS_SUFFIXES = (".parquet", ".safetensors", ".index", ".png", ".bin")


@dataclass
class FakeRepository:
    """One repository: whether it is private, and the files of every commit, newest last."""

    private: bool = False
    commits: list[dict[str, bytes]] = field(default_factory=lambda: [{".gitattributes": b"*.png filter=lfs\n"}])

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits[-1]

    def name(self, number: int = -1) -> str:
        """The commit's id."""
        number %= len(self.commits)
        marks = sorted((name, hashlib.sha256(content).hexdigest()) for name, content in self.commits[number].items())
        return hashlib.sha1(repr((number, marks)).encode()).hexdigest()

    def at(self, revision: str) -> dict[str, bytes]:
        names = [self.name(number) for number in range(len(self.commits))]
        return self.files if revision == "main" else self.commits[names.index(revision)]


@dataclass
class Refusal:
    """An answer in place of the right one. times: how often; status 0 breaks the connection."""

    status: int
    times: int = 1
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class FakeHub:
    """Repositories by kind and name (`datasets/me/set`), stored large files, and what was asked."""

    url: str = ""
    repositories: dict[str, FakeRepository] = field(default_factory=dict)
    stored: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    refusals: dict[str, Refusal] = field(default_factory=dict)
    holding: threading.Event = field(default_factory=threading.Event)
    go_on: threading.Event = field(default_factory=threading.Event)
    held: str = ""

    def refuse(self, part: str, status: int, times: int = 1, **headers: str) -> None:
        """Refuse requests whose `METHOD path` contains `part`."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.refusals[part] = Refusal(status, times, named)

    def hold(self, part: str) -> None:
        """Keep requests whose `METHOD path` contains `part` half read until `go_on` is set."""
        self.held = part

    def uploads(self) -> int:
        """How many large files were sent."""
        return sum(request.startswith("PUT ") for request in self.requests)

    def refusal_of(self, request: str) -> Refusal | None:
        for part, refusal in self.refusals.items():
            if part in request and refusal.times > 0:
                refusal.times -= 1
                return refusal
        return None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: FakeHub

    def log_message(self, format: str, *args: Any) -> None:
        return None

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        request = f"{self.command} {path}"
        self.hub.requests.append(request)
        length = int(self.headers.get("Content-Length") or 0)
        if self.hub.held and self.hub.held in request:
            self.rfile.read(length // 2)
            self.hub.holding.set()
            self.hub.go_on.wait(60)
            self.close_connection = True
            return
        refusal = self.hub.refusal_of(request)
        if refusal is not None and refusal.status == 0:
            self.rfile.read(length // 2)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            self.connection.close()
            self.close_connection = True
            return
        body = self._body(length)
        if refusal is not None:
            self._send(refusal.status, {"error": "refused by the test"}, refusal.headers)
        elif self.command != "HEAD" and path.startswith("/api/") and not self._known():
            self._send(401, {"error": "Invalid username or password."})
        else:
            self._route(path, body)

    def _known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _body(self, length: int) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(length)
        parts = []
        while size := int(self.rfile.readline().strip() or b"0", 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _send(self, status: int, value: Any = None, headers: dict[str, str] | None = None, body: bytes = b"") -> None:
        content = body if value is None else json.dumps(value).encode()
        self.send_response(status)
        for name, text in (headers or {}).items():
            self.send_header(name, text)
        if "Content-Length" not in (headers or {}):
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _route(self, path: str, body: bytes) -> None:
        if path == "/api/repos/create":
            self._create(json.loads(body))
        elif path == "/api/validate-yaml":
            self._send(200, {"errors": [], "warnings": []})
        elif path.startswith("/lfs/"):
            self._store(path.removeprefix("/lfs/"), body)
        elif batch := re.fullmatch(r"/((?:datasets/)?[^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            self._batch(batch[1], json.loads(body))
        elif call := re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(\w+)/([^/]+)(/.*)?)?", path):
            self._call(call[1], call[2], call[3] or "revision", call[4] or "main", body)
        elif file := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._file("datasets" if file[1] else "models", file[2], file[3], file[4])
        else:
            self._send(404, {"error": f"no such path: {path}"})

    def _create(self, asked: dict[str, Any]) -> None:
        key = f"{asked.get('type', 'model')}s/{asked['organization']}/{asked['name']}"
        url = {"url": f"{self.hub.url}/{key.removeprefix('models/')}"}
        if key in self.hub.repositories:
            self._send(409, {"error": "You already created this repo", **url})
            return
        self.hub.repositories[key] = FakeRepository(asked.get("visibility") == "private" or bool(asked.get("private")))
        self._send(200, url)

    def _store(self, oid: str, body: bytes) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            self._send(400, {"error": "half a file"})
            return
        self.hub.stored[oid] = body
        self._send(200, {})

    def _batch(self, key: str, asked: dict[str, Any]) -> None:
        objects = []
        for entry in asked["objects"]:
            answer = {"oid": entry["oid"], "size": entry["size"]}
            if entry["oid"] not in self.hub.stored:
                answer["actions"] = {"upload": {"href": f"{self.hub.url}/lfs/{entry['oid']}"}}
            objects.append(answer)
        self._send(200, {"transfer": "basic", "objects": objects})

    def _call(self, kind: str, name: str, what: str, revision: str, body: bytes) -> None:
        repository = self.hub.repositories.get(f"{kind}/{name}")
        if repository is None:
            self._send(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        elif what == "preupload":
            files = [self._upload_mode(repository, entry) for entry in json.loads(body)["files"]]
            self._send(200, {"files": files})
        elif what == "commit":
            self._commit(repository, kind, name, body)
        elif what == "tree":
            self._send(200, [_entry(path, content) for path, content in sorted(repository.at(revision).items())])
        else:
            files = [{"rfilename": path} for path in sorted(repository.at(revision))]
            facts = {"id": name, "sha": repository.name(), "private": repository.private, "siblings": files}
            self._send(200, {**facts, "tags": [], "downloads": 0, "likes": 0})

    def _upload_mode(self, repository: FakeRepository, entry: dict[str, Any]) -> dict[str, Any]:
        path = entry["path"]
        is_large = path.endswith(LFS_SUFFIXES)
        there = repository.files.get(path)
        oid = None if there is None else hashlib.sha256(there).hexdigest() if is_large else _git_hash(there)
        return {"path": path, "uploadMode": "lfs" if is_large else "regular", "shouldIgnore": False, "oid": oid}

    def _commit(self, repository: FakeRepository, kind: str, name: str, body: bytes) -> None:
        files = dict(repository.files)
        for line in body.splitlines():
            operation = json.loads(line)
            value = operation["value"]
            if operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                files[value["path"]] = self.hub.stored[value["oid"]]
            elif operation["key"] == "deletedFile":
                del files[value["path"]]
        repository.commits.append(files)
        url = f"{self.hub.url}/{kind}/{name}/commit/{repository.name()}"
        self._send(200, {"success": True, "commitOid": repository.name(), "commitUrl": url})

    def _file(self, kind: str, name: str, revision: str, path: str) -> None:
        repository = self.hub.repositories.get(f"{kind}/{name}")
        content = repository.at(revision).get(path) if repository is not None else None
        if repository is None or content is None:
            code = "RepoNotFound" if repository is None else "EntryNotFound"
            self._send(404, None, {"X-Error-Code": code})
            return
        commit = repository.name() if revision == "main" else revision
        entry = _entry(path, content)
        etag = entry["lfs"]["oid"] if "lfs" in entry else entry["oid"]
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": commit, "Content-Length": str(len(content))}
        self._send(200, None, headers, content)


def _entry(path: str, content: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": _git_hash(content)}
    if path.endswith(LFS_SUFFIXES):
        entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
    return entry


def _git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """A hub that answers until the block is left."""
    hub = FakeHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.go_on.set()
        server.shutdown()
        server.server_close()


@contextmanager
def hub_of_this_process(patched: pytest.MonkeyPatch, cache: Path) -> Iterator[FakeHub]:
    """A hub that huggingface_hub of this process talks to, with a cache of its own and a token."""
    from huggingface_hub import constants
    from huggingface_hub.utils._http import close_session

    with fake_hub() as running:
        for name, value in {
            "ENDPOINT": running.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": f"{running.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}",
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_CACHE": str(cache),
        }.items():
            patched.setattr(constants, name, value)
        patched.setenv("HF_TOKEN", TOKEN)
        yield running
        close_session()

"""A server on this machine that speaks the hub's HTTP interface, as far as its client uses it here."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

LARGE = (".pth", ".pt", ".model", ".safetensors", ".npz")
"""Kept outside git, with their SHA-256, and reached by a redirect."""


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@dataclass
class Repository:
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    private: bool = False
    gated: bool = False

    def commit(self, files: dict[str, bytes], branch: str = "main") -> str:
        name = hashlib.sha1(repr((len(self.commits), sorted(files))).encode()).hexdigest()
        self.commits[name] = files
        self.branches[branch] = name
        return name


@dataclass
class Hub:
    url: str = ""
    store: str = ""
    """Large files, on another host as far as names tell."""
    repositories: dict[str, Repository] = field(default_factory=dict)
    uploads: dict[str, bytes] = field(default_factory=dict)
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    lies: dict[str, Any] = field(default_factory=dict)
    """What the server says that is not so: `listed` (names), `sent` (name -> content), `size`."""
    pages: dict[str, tuple[int, dict[str, str], bytes]] = field(default_factory=dict)
    """Any other path -> code, headers, body."""

    def add(self, repo: str, files: dict[str, bytes], **options: bool) -> str:
        return self.repositories.setdefault(repo, Repository(**options)).commit(files)


class Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def handle_any(self) -> None:
        path = urlsplit(self.path).path
        length = int(self.headers.get("Content-Length") or 0)
        self.body = self.rfile.read(length)
        self.hub.requests.append((self.command, path, self.headers.get("Authorization")))
        if path in self.hub.pages:
            self.answer(*self.hub.pages[path])
            return
        for pattern, act in ROUTES:
            if found := re.fullmatch(pattern, f"{self.command} {path}"):
                act(self, *map(unquote, found.groups()))
                return
        self.answer(404, {}, b"")

    do_GET = do_HEAD = do_POST = do_PUT = handle_any  # noqa: N815

    def answer(self, code: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(code)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def json(self, content: Any, code: int = 200) -> None:
        self.answer(code, {"Content-Type": "application/json"}, json.dumps(content).encode())

    def fail(self, code: int, kind: str) -> None:
        self.answer(code, {"X-Error-Code": kind, "X-Error-Message": kind}, b"")

    def revision(self, repo: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """The commit and its files; None after an answer."""
        known = self.hub.repositories.get(repo)
        signed_in = self.headers.get("Authorization") == "Bearer hf_good"
        if known is None or (known.private and not signed_in):
            self.fail(401, "RepoNotFound")
        elif (commit := known.branches.get(revision, revision)) not in known.commits:
            self.fail(404, "RevisionNotFound")
        else:
            return commit, known.commits[commit]
        return None

    def info(self, repo: str, revision: str = "main") -> None:
        if (found := self.revision(repo, revision)) is None:
            return
        commit, files = found
        listed = []
        for name, content in files.items():
            size = self.hub.lies.get("size", len(content))
            lfs = {"sha256": digest(content), "size": size, "pointerSize": 130} if name.endswith(LARGE) else None
            listed.append({"rfilename": name, "size": size, "blobId": "0"} | ({"lfs": lfs} if lfs else {}))
        listed += [{"rfilename": name, "size": 1, "blobId": "0"} for name in self.hub.lies.get("listed", ())]
        private = self.hub.repositories[repo].private
        self.json({"id": repo, "sha": commit, "private": private, "siblings": listed})

    def resolve(self, repo: str, revision: str, file: str) -> None:
        if self.hub.repositories.get(repo, Repository()).gated and (self.headers.get("Authorization") is None):
            self.fail(403, "GatedRepo")
            return
        if (found := self.revision(repo, revision)) is None:
            return
        commit, files = found
        if file not in files:
            self.fail(404, "EntryNotFound")
            return
        content, headers = files[file], {"X-Repo-Commit": commit}
        if file.endswith(LARGE):
            self.hub.uploads[digest(content)] = self.hub.lies.get("sent", {}).get(file, content)
            headers |= {"X-Linked-Size": str(len(content)), "X-Linked-ETag": f'"{digest(content)}"',
                        "Location": f"{self.hub.store}/store/{digest(content)}"}  # fmt: skip
            self.answer(302, headers, b"")
        else:
            self.answer(200, headers | {"ETag": f'"{hashlib.sha1(content).hexdigest()}"'}, content)

    def stored(self, oid: str) -> None:
        self.answer(200, {}, self.hub.uploads[oid])

    def create(self) -> None:
        asked = json.loads(self.body)
        repo = f"{asked['organization']}/{asked['name']}"
        if self.headers.get("Authorization") != "Bearer hf_good":
            self.fail(401, "Unauthorized")
        elif repo in self.hub.repositories:
            self.json({"url": f"{self.hub.url}/{repo}"}, 409)
        else:
            self.hub.add(repo, {}, private="private" in (asked.get("visibility"), asked.get("private") and "private"))
            self.json({"url": f"{self.hub.url}/{repo}", "name": repo})

    def yaml(self) -> None:
        self.json({"errors": [], "warnings": []})

    def preupload(self, repo: str, _: str) -> None:
        files = [one["path"] for one in json.loads(self.body)["files"]]
        modes = [{"path": path, "uploadMode": "lfs" if path.endswith(LARGE) else "regular", "shouldIgnore": False}
                 for path in files]  # fmt: skip
        self.json({"files": modes})

    def batch(self, repo: str) -> None:
        objects = [{"oid": one["oid"], "size": one["size"],
                    "actions": {"upload": {"href": f"{self.hub.url}/store/{one['oid']}", "header": {}}}}
                   for one in json.loads(self.body)["objects"]]  # fmt: skip
        self.json({"transfer": "basic", "objects": objects})

    def store(self, oid: str) -> None:
        assert digest(self.body) == oid
        self.hub.uploads[oid] = self.body
        self.answer(200, {}, b"")

    def commit(self, repo: str, branch: str) -> None:
        known = self.hub.repositories[repo]
        files = dict(known.commits[known.branches[branch]])
        for line in map(json.loads, self.body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.uploads[value["oid"]]
        commit = known.commit(files, branch)
        self.json({"commitUrl": f"{self.hub.url}/{repo}/commit/{commit}", "commitOid": commit})


REPO = r"([\w.-]+/[\w.-]+)"
ROUTES = (
    (rf"GET /api/models/{REPO}/revision/([^/]+)", Handler.info),
    (rf"GET /api/models/{REPO}", Handler.info),
    (rf"(?:GET|HEAD) /{REPO}/resolve/([^/]+)/(.+)", Handler.resolve),
    (r"(?:GET|HEAD) /store/(\w+)", Handler.stored),
    (r"POST /api/repos/create", Handler.create),
    (r"POST /api/validate-yaml", Handler.yaml),
    (rf"POST /api/models/{REPO}/preupload/(\w+)", Handler.preupload),
    (rf"POST /{REPO}\.git/info/lfs/objects/batch", Handler.batch),
    (r"PUT /store/(\w+)", Handler.store),
    (rf"POST /api/models/{REPO}/commit/(\w+)", Handler.commit),
)


@contextmanager
def running() -> Iterator[Hub]:
    """A hub that answers at `url` for as long as the block runs."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": hub}))
    hub.url, hub.store = (f"http://{host}:{server.server_port}" for host in ("127.0.0.1", "localhost"))
    thread = Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

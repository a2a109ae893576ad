"""A small Hub on loopback that speaks what `huggingface_hub` speaks to publish, and fails on request.

It keeps what the real one promises: storage takes only bytes of the announced hash, a commit names only stored objects,
is made whole or not at all, and only behind the parent it states. Every head that a branch ever had is in `history`,
so that tests can look for a moment in which something half-made was visible. Addresses of uploads carry a signature and
no token, as on the Hub.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml  # type: ignore[import-untyped]

TOKEN = "hf_" + "TestTokenThatMustNeverBeSeen" + "0123456789"
PAGE = 5
"""Entries of one page of a tree."""
SMALL = 10_000_000
GIT = ".gitattributes"


@dataclass(frozen=True)
class Fault:
    """What happens to one request: an answer with `status`, or a cut `before` or `after` it is worked on."""

    status: int = 0
    headers: tuple[tuple[str, str], ...] = ()
    message: str = "planted"
    cut: str = ""


@dataclass(frozen=True)
class Stored:
    """One file of a commit: content of a small one, hash and size of a large one."""

    content: bytes
    large: bool

    @property
    def blob(self) -> str:
        data = self.content
        if self.large:
            sha256 = hashlib.sha256(data).hexdigest()
            data = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {len(data)}\n".encode()
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


Tree = dict[str, Stored]


@dataclass
class Repo:
    name: str
    private: bool
    history: list[tuple[str, str, Tree]]
    """Of the whole server: repo, branch and tree of every head, in order."""
    commits: dict[str, tuple[str | None, Tree]] = field(default_factory=dict)
    heads: dict[str, str] = field(default_factory=dict)
    storage: dict[str, bytes] = field(default_factory=dict)

    def move(self, branch: str, parent: str | None, tree: Tree) -> str:
        named = repr((branch, parent, len(self.commits), sorted(tree)))
        commit = hashlib.sha1(named.encode()).hexdigest()
        self.commits[commit] = (parent, tree)
        self.heads[branch] = commit
        self.history.append((self.name, branch, tree))
        return commit

    def tree(self, revision: str) -> Tree | None:
        found = self.commits.get(self.heads.get(revision, revision))
        return found[1] if found else None


class HubServer:
    """The Hub's state, and the faults that it is to make."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.history: list[tuple[str, str, Tree]] = []
        self.licences: dict[str, str] = {}
        """Of models by other people."""
        self.role, self.user, self.orgs = "write", "ada", ["lovelace"]
        self.quota: int | None = None
        self.part = 1000
        """Bytes of a part: larger objects go in several."""
        self.read_only: set[str] = set()
        self.fault: Callable[[str, str], Fault | None] = lambda method, path: None
        self.requests: list[tuple[str, str]] = []
        self.authorizations: set[str] = set()
        self.received = 0
        """Bytes of large files."""
        self.uploads: dict[str, dict[int, bytes]] = {}
        self.lock = threading.RLock()
        self.endpoint = ""

    def repo(self, name: str, files: dict[str, bytes] | None = None, *, private: bool = False) -> Repo:
        """Make a repo as the Hub does: with one commit; `files` are somebody's second one."""
        repo = self.repos[name] = Repo(name, private, self.history)
        first = repo.move("main", None, {GIT: Stored(b"*.gguf filter=lfs\n", large=False)})
        if files:
            repo.move("main", first, repo.tree("main") | {k: Stored(v, large=False) for k, v in files.items()})  # type: ignore[operator]
        return repo

    def read(self, name: str, branch: str) -> dict[str, bytes]:
        """What a branch holds, but the Hub's own file."""
        return {path: file.content for path, file in (self.repos[name].tree(branch) or {}).items() if path != GIT}

    @contextmanager
    def running(self) -> Iterator[HubServer]:
        server = type("Server", (ThreadingHTTPServer,), {"daemon_threads": True, "hub": self})(
            ("127.0.0.1", 0), Handler
        )
        server.handle_error = lambda request, address: None
        self.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


class Refused(Exception):
    def __init__(self, status: int, message: str, code: str = "") -> None:
        self.status, self.message, self.code = status, message, code


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        super().setup()
        self.hub: HubServer = self.server.hub  # type: ignore[attr-defined]
        self.connection.setsockopt(6, 1, 1)  # No waiting for more before a small answer is sent.

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._serve()

    do_POST = do_PUT = do_HEAD = do_GET

    def _serve(self) -> None:
        url = urlsplit(self.path)
        path, self.query = unquote(url.path), parse_qs(url.query)
        fault = self.hub.fault(self.command, path)
        if fault and fault.cut == "before":
            # In the middle of the request's body, where it has one.
            self.rfile.read(int(self.headers.get("content-length", 0)) // 2)
            return self._cut()
        body = self._body()
        self.hub.requests.append((self.command, path))
        self.hub.authorizations.add(self.headers.get("authorization", ""))
        if fault and not fault.cut:
            return self._answer(fault.status, {"error": fault.message}, dict(fault.headers))
        try:
            with self.hub.lock:
                status, value, headers = self._work(path, body)
        except Refused as refused:
            status, value = refused.status, {"error": refused.message}
            headers = {"X-Error-Code": refused.code, "X-Error-Message": refused.message}
        if fault and fault.cut == "after":
            return self._cut()
        self._answer(status, value, headers)

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("transfer-encoding", ""):
            return self.rfile.read(int(self.headers.get("content-length", 0)))
        data = b""
        while size := int(self.rfile.readline(), 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    def _cut(self) -> None:
        self.close_connection = True
        self.connection.shutdown(2)

    def _answer(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response_only(status)
        for name, text in {"Date": self.date_time_string(), **(headers or {})}.items():
            self.send_header(name, text)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _work(self, path: str, body: bytes) -> tuple[int, Any, dict[str, str]]:
        if path.startswith("/lfs/"):
            return self._storage(path, body)
        if self.headers.get("authorization") != f"Bearer {TOKEN}":
            raise Refused(401, "Invalid credentials in Authorization header")
        if path == "/api/whoami-v2":
            orgs = [{"name": name} for name in self.hub.orgs]
            role = {"accessToken": {"displayName": "t", "role": self.hub.role}}
            return 200, {"type": "user", "name": self.hub.user, "orgs": orgs, "auth": role}, {}
        if path == "/api/validate-yaml":
            return self._validate(json.loads(body)["content"])
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path.startswith("/api/models/"):
            return self._model(path.removeprefix("/api/models/").split("/"), body)
        if "/resolve/" in path:
            name, _, rest = path[1:].partition("/resolve/")
            revision, _, file = rest.partition("/")
            return self._resolve(name, revision, file)
        if path.endswith(".git/info/lfs/objects/batch"):
            return self._batch(path[1:].partition(".git/")[0], json.loads(body))
        raise Refused(404, f"no such endpoint {path}")

    def _validate(self, content: str) -> tuple[int, Any, dict[str, str]]:
        front = content.split("---")
        data = yaml.safe_load(front[1]) if len(front) > 2 else None
        if not isinstance(data, dict):
            return 200, {"errors": [], "warnings": [{"message": "empty or missing yaml metadata"}]}, {}
        errors = [
            {"message": f'"{key}" is not allowed to be empty'} for key in ("base_model", "tags", "license")
            if key in data and not data[key]
        ]  # fmt: skip
        return (400 if errors else 200), {"errors": errors, "warnings": []}, {}

    def _create(self, asked: dict[str, Any]) -> tuple[int, Any, dict[str, str]]:
        name = f"{asked['organization'] or self.hub.user}/{asked['name']}"
        if name.partition("/")[0] not in {self.hub.user, *self.hub.orgs} or self.hub.role == "read":
            raise Refused(403, "You don't have the rights to create a model under this namespace")
        url = {"url": f"{self.hub.endpoint}/{name}", "name": name, "id": name}
        if name in self.hub.repos:
            return 409, {**url, "error": "You already created this model repo"}, {}
        self.hub.repo(name, private=asked.get("visibility") == "private" or bool(asked.get("private")))
        return 200, url, {}

    def _found(self, name: str, revision: str | None = None) -> tuple[Repo, Tree]:
        if name not in self.hub.repos:
            raise Refused(404, "Repository not found", "RepoNotFound")
        repo = self.hub.repos[name]
        tree = repo.tree(revision or "main")
        if tree is None:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return repo, tree

    def _model(self, words: list[str], body: bytes) -> tuple[int, Any, dict[str, str]]:
        name, what, rest = "/".join(words[:2]), words[2] if len(words) > 2 else "", "/".join(words[3:])
        if not what and name in self.hub.licences:
            return 200, {"id": name, "cardData": {"license": self.hub.licences[name]}}, {}
        repo, tree = self._found(name, rest if what in ("tree", "preupload", "commit", "revision") else None)
        if what in ("commit", "branch", "preupload") or rest == "write":
            self._require_write(name)
        if what in ("", "revision"):
            return 200, {"id": name, "sha": repo.heads.get(rest or "main", rest), "private": repo.private}, {}
        if what == "auth-check":
            return 200, {}, {}
        if what == "refs":
            heads = [{"name": b, "ref": f"refs/heads/{b}", "targetCommit": c} for b, c in repo.heads.items()]
            return 200, {"branches": heads, "converts": [], "tags": []}, {}
        if what == "commits":
            return 200, self._log(repo, repo.heads[rest or "main"]), {}
        if what == "tree":
            return self._tree(name, rest, tree)
        if what == "branch":
            return self._branch(repo, rest, json.loads(body or b"{}"))
        if what == "preupload":
            files = [self._mode(tree, file) for file in json.loads(body)["files"]]
            return 200, {"files": files}, {}
        if what == "commit":
            return self._commit(name, repo, rest, body)
        raise Refused(404, f"no such endpoint {what}")

    def _require_write(self, name: str) -> None:
        if name in self.hub.read_only or self.hub.role == "read":
            raise Refused(403, "You don't have write access to this repo")

    def _log(self, repo: Repo, commit: str | None) -> list[dict[str, Any]]:
        found = []
        while commit:
            date = "2026-01-01T00:00:00.000Z"
            found.append({"id": commit, "title": "t", "message": "", "date": date, "authors": []})
            commit = repo.commits[commit][0]
        return found

    def _tree(self, name: str, revision: str, tree: Tree) -> tuple[int, Any, dict[str, str]]:
        start = int(self.query.get("cursor", ["0"])[0])
        paths = sorted(tree)
        entries = []
        for path in paths[start : start + PAGE]:
            file = tree[path]
            entry: dict[str, Any] = {"type": "file", "path": path, "size": len(file.content), "oid": file.blob}
            if file.large:
                sha256 = hashlib.sha256(file.content).hexdigest()
                entry["lfs"] = {"oid": sha256, "size": len(file.content), "pointerSize": 130}
            entries.append(entry)
        headers = {}
        if start + PAGE < len(paths):
            url = f"{self.hub.endpoint}/api/models/{name}/tree/{revision}?recursive=true&cursor={start + PAGE}"
            headers["Link"] = f'<{url}>; rel="next"'
        return 200, entries, headers

    def _branch(self, repo: Repo, branch: str, asked: dict[str, str]) -> tuple[int, Any, dict[str, str]]:
        if branch in repo.heads:
            raise Refused(409, "Reference already exists")
        start = asked.get("startingPoint", "main")
        commit = repo.heads.get(start, start)
        repo.heads[branch] = commit
        repo.history.append((repo.name, branch, repo.commits[commit][1]))
        return 200, {}, {}

    def _mode(self, tree: Tree, file: dict[str, Any]) -> dict[str, Any]:
        large = file["path"].endswith((".gguf", ".safetensors")) or file["size"] > SMALL
        known = tree.get(file["path"])
        oid = None
        if known:
            oid = hashlib.sha256(known.content).hexdigest() if known.large else known.blob
        return {
            "path": file["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": oid,
        }  # fmt: skip

    def _batch(self, name: str, asked: dict[str, Any]) -> tuple[int, Any, dict[str, str]]:
        repo, _ = self._found(name)
        self._require_write(name)
        used = sum(map(len, repo.storage.values()))
        new = {each["oid"]: each["size"] for each in asked["objects"] if each["oid"] not in repo.storage}
        if self.hub.quota is not None and used + sum(new.values()) > self.hub.quota:
            raise Refused(403, "Private repository storage limit reached")
        objects = []
        for each in asked["objects"]:
            oid, size = each["oid"], each["size"]
            entry: dict[str, Any] = {"oid": oid, "size": size}
            if oid in new:
                entry["actions"] = self._actions(name, oid, size)
            objects.append(entry)
        return 200, {"transfer": "basic", "objects": objects}, {}

    def _actions(self, name: str, oid: str, size: int) -> dict[str, Any]:
        base = f"{self.hub.endpoint}/lfs"
        verify = {"href": f"{base}/verify/{name}", "header": {}}
        if size <= self.hub.part:
            return {"upload": {"href": f"{base}/basic/{name}/{oid}?signature=s", "header": {}}, "verify": verify}
        upload = f"{name}/{oid}"
        count = -(-size // self.hub.part)
        parts = {str(n + 1): f"{base}/part/{upload}/{n}?signature=s" for n in range(count)}
        header = {"chunk_size": str(self.hub.part), **parts}
        return {"upload": {"href": f"{base}/complete/{upload}", "header": header}, "verify": verify}

    def _storage(self, path: str, body: bytes) -> tuple[int, Any, dict[str, str]]:
        if "authorization" in self.headers and "/verify/" not in path:
            raise Refused(400, "a signed address takes no token")
        what, org, name, *rest = path.removeprefix("/lfs/").split("/")
        repo = self.hub.repos[f"{org}/{name}"]
        if what == "basic":
            self.hub.received += len(body)
            self._store(repo, rest[0], body)
        elif what == "part":
            self.hub.received += len(body)
            self.hub.uploads.setdefault(rest[0], {})[int(rest[1])] = body
            return 200, {}, {"ETag": f'"{hashlib.md5(body).hexdigest()}"'}
        elif what == "complete":
            parts = self.hub.uploads.pop(rest[0], {})
            named = {each["partNumber"] - 1: each["etag"].strip('"') for each in json.loads(body)["parts"]}
            if rest[0] in repo.storage:
                return 200, {}, {}
            if {n: hashlib.md5(data).hexdigest() for n, data in parts.items()} != named:
                raise Refused(400, "parts do not match")
            self._store(repo, rest[0], b"".join(parts[n] for n in sorted(parts)))
        else:
            asked = json.loads(body)
            if len(repo.storage.get(asked["oid"], b"")) != asked["size"]:
                raise Refused(404, "object not found")
        return 200, {}, {}

    def _store(self, repo: Repo, oid: str, data: bytes) -> None:
        if hashlib.sha256(data).hexdigest() != oid:
            raise Refused(400, "the content does not have this hash")
        repo.storage[oid] = data

    def _commit(self, name: str, repo: Repo, branch: str, body: bytes) -> tuple[int, Any, dict[str, str]]:
        lines = [json.loads(line) for line in body.splitlines()]
        parent = lines[0]["value"].get("parentCommit")
        if branch not in repo.heads:
            raise Refused(404, f"Invalid rev id: {branch}", "RevisionNotFound")
        if parent and parent != repo.heads[branch]:
            raise Refused(412, "A commit has happened since. Please refresh and try again.")
        tree = dict(repo.tree(branch) or {})
        for line in lines[1:]:
            value, path = line["value"], line["value"]["path"]
            if line["key"] == "file":
                tree[path] = Stored(base64.b64decode(value["content"]), large=False)
            elif line["key"] == "lfsFile":
                if value["oid"] not in repo.storage:
                    raise Refused(400, f"Your push was rejected: {path} is not uploaded")
                tree[path] = Stored(repo.storage[value["oid"]], large=True)
            elif tree.pop(path, None) is None:
                raise Refused(404, "A file with this name doesn't exist", "EntryNotFound")
        commit = repo.move(branch, repo.heads[branch], tree)
        return 200, {"commitUrl": f"{self.hub.endpoint}/{name}/commit/{commit}", "commitOid": commit}, {}

    def _resolve(self, name: str, revision: str, path: str) -> tuple[int, Any, dict[str, str]]:
        repo, tree = self._found(name, revision)
        if path not in tree:
            raise Refused(404, "Entry not found", "EntryNotFound")
        file = tree[path]
        etag = hashlib.sha256(file.content).hexdigest() if file.large else file.blob
        commit = repo.heads.get(revision, revision)
        return 200, file.content, {"ETag": f'"{etag}"', "X-Repo-Commit": commit}

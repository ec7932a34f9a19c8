"""A web server on 127.0.0.1 that answers as the Hub does, as far as models are sent and fetched."""

import base64
import hashlib
import json
import re
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants

TOKEN = "hf_the-secret-of-the-tests"


@dataclass
class Repo:
    """Files by path, of each commit; branches by name."""

    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, bytes], without: Collection[str] = ()) -> str:
        old = self.commits.get(self.branches.get(branch, ""), {})
        old = {path: data for path, data in old.items() if path not in without}
        sha = hashlib.sha1(f"{branch}{len(self.commits)}".encode()).hexdigest()
        self.commits[sha] = old | files
        self.branches[branch] = sha
        return sha

    def find(self, revision: str) -> str | None:
        return self.branches.get(revision, revision if revision in self.commits else None)


class Hub(ThreadingHTTPServer):
    """Keeps `repos` by name, `large` files by SHA-256, and the `log` of all requests."""

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos: dict[str, Repo] = {}
        self.large: dict[str, bytes] = {}
        self.log: list[tuple[str, str, str]] = []
        self.status: int | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def answer(self, patch: pytest.MonkeyPatch, folder: Path) -> None:
        """Take the place of the real Hub; what is fetched goes below `folder`."""
        template = self.url + "/{repo_id}/resolve/{revision}/{filename}"
        patch.setattr(constants, "ENDPOINT", self.url)
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        patch.setattr(constants, "HF_HUB_CACHE", str(folder / "cache"))
        patch.setattr(constants, "HF_TOKEN_PATH", str(folder / "token"))
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patch.setenv("HF_TOKEN", TOKEN)

    def files(self, name: str, branch: str = "main") -> dict[str, bytes]:
        repo = self.repos[name]
        return repo.commits[repo.branches[branch]]


@contextmanager
def serving_hub() -> Iterator[Hub]:
    with Hub() as hub:
        Thread(target=hub.serve_forever, args=(0.01,), daemon=True).start()
        yield hub
        hub.shutdown()


_ROUTES: list[tuple[str, str, str]] = [
    ("POST", r"/api/repos/create", "create"),
    ("POST", r"/api/validate-yaml", "validate"),
    ("POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/branch/(?P<revision>[^/]+)", "branch"),
    ("POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/preupload/(?P<revision>[^/]+)", "preupload"),
    ("POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/commit/(?P<revision>[^/]+)", "commit"),
    ("POST", r"/(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch", "batch"),
    ("PUT", r"/large/(?P<oid>\w+)", "store"),
    ("GET", r"/api/models/(?P<repo>[^/]+/[^/]+)/tree/(?P<revision>[^/]+)", "tree"),
    ("GET", r"/api/models/(?P<repo>[^/]+/[^/]+)/revision/(?P<revision>[^/]+)", "info"),
    ("GET", r"/api/models/(?P<repo>[^/]+/[^/]+)", "info"),
    ("GET", r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        self._route("GET")

    def do_HEAD(self) -> None:
        self._route("GET")

    def do_POST(self) -> None:
        self._route("POST")

    def do_PUT(self) -> None:
        self._route("PUT")

    def _route(self, method: str) -> None:
        path = urlsplit(self.path).path
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        sender = self.headers.get("Authorization", "")
        self.server.log.append((self.command, path, sender))
        for wanted, pattern, name in _ROUTES:
            found = re.fullmatch(pattern, path)
            if method == wanted and found:
                parts = {key: unquote(value) for key, value in found.groupdict().items()}
                return self._serve(name, parts, known=sender == f"Bearer {TOKEN}")
        return self._fail(404)

    def _serve(self, name: str, parts: dict[str, str], *, known: bool) -> None:
        if self.server.status:
            return self._fail(self.server.status)
        if self.command == "POST" and name != "batch" and not known:
            return self._fail(401)
        answer: Callable[..., None] = getattr(self, f"_{name}")
        if name in ("create", "validate", "store"):
            return answer(**parts)
        repo = self.server.repos.get(parts["repo"])
        if repo is None or (repo.private and not known):
            return self._fail(401, "RepoNotFound")
        if repo.gated and name == "resolve":
            return self._fail(403, "GatedRepo")
        return answer(**parts)

    def _create(self) -> None:
        asked = json.loads(self.body)
        name = f"{asked['organization']}/{asked['name']}"
        status = 409 if name in self.server.repos else 200
        if status == 200:
            repo = self.server.repos[name] = Repo(
                private="private" in (asked.get("visibility"), asked.get("private") and "private")
            )
            repo.commit("main", {".gitattributes": b""})
        self._json({"url": f"{self.server.url}/{name}", "name": name}, status)

    def _validate(self) -> None:
        bad = "broken: [" in json.loads(self.body)["content"]
        errors = [{"message": "not to be read"}] if bad else []
        self._json({"errors": errors, "warnings": []}, 400 if bad else 200)

    def _branch(self, repo: str, revision: str) -> None:
        branches = self.server.repos[repo].branches
        known = revision in branches
        branches.setdefault(revision, branches["main"])
        self._json({}, 409 if known else 200)

    def _preupload(self, repo: str, revision: str) -> None:
        if self.server.repos[repo].find(revision) is None:
            return self._fail(404, "RevisionNotFound")
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                "shouldIgnore": False,
                "oid": None,
            }
            for file in json.loads(self.body)["files"]
        ]
        return self._json({"files": files})

    def _batch(self, repo: str) -> None:
        objects = [
            {**wanted, "actions": {"upload": {"href": f"{self.server.url}/large/{wanted['oid']}"}}}
            for wanted in json.loads(self.body)["objects"]
        ]
        self._json({"transfer": "basic", "objects": objects})

    def _store(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            return self._fail(400)
        self.server.large[oid] = self.body
        return self._json({})

    def _commit(self, repo: str, revision: str) -> None:
        files, deleted = {}, []
        for line in map(json.loads, self.body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.large[value["oid"]]
            elif line["key"] == "deletedFile":
                deleted.append(value["path"])
        sha = self.server.repos[repo].commit(revision, files, deleted)
        url = f"{self.server.url}/{repo}/commit/{sha}"
        self._json({"success": True, "commitOid": sha, "commitUrl": url})

    def _info(self, repo: str, revision: str = "main") -> None:
        kept = self.server.repos[repo]
        sha = kept.find(revision)
        if sha is None:
            return self._fail(404, "RevisionNotFound")
        siblings = [_about(path, data) for path, data in kept.commits[sha].items()]
        about = {"id": repo, "sha": sha, "private": kept.private, "siblings": siblings}
        return self._json(about | {"gated": "manual" if kept.gated else False, "tags": []})

    def _tree(self, repo: str, revision: str) -> None:
        kept = self.server.repos[repo]
        files = kept.commits[kept.find(revision) or ""]
        self._json(
            [
                {"type": "file", "path": path, "size": len(data), "oid": _oid(data)}
                for path, data in files.items()
            ]
        )

    def _resolve(self, repo: str, revision: str, path: str) -> None:
        kept = self.server.repos[repo]
        sha = kept.find(revision)
        if sha is None:
            return self._fail(404, "RevisionNotFound")
        data = kept.commits[sha].get(path)
        if data is None:
            return self._fail(404, "EntryNotFound")
        return self._send(200, data, {"X-Repo-Commit": sha, "ETag": f'"{_oid(data)}"'})

    def _json(self, data: object, status: int = 200) -> None:
        self._send(status, json.dumps(data).encode(), {"Content-Type": "application/json"})

    def _fail(self, status: int, code: str | None = None) -> None:
        self._send(status, b"{}", {"X-Error-Code": code} if code else {})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _about(path: str, data: bytes) -> dict[str, object]:
    about: dict[str, object] = {"rfilename": path, "size": len(data)}
    if path.endswith(".safetensors"):
        digest = hashlib.sha256(data).hexdigest()
        about["lfs"] = {"size": len(data), "sha256": digest, "pointerSize": 134}
    return about


def _oid(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()

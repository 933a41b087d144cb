"""A stand-in of the Hub's HTTP API for uploads: what huggingface_hub 2.4 asks, answered as the Hub answers it.

Repositories are kept as commits of whole trees. A commit names its LFS files by hash, and only those whose bytes came
with that very hash are taken. Xet's storage is not spoken: clients run with HF_HUB_DISABLE_XET=1.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

TOKEN = "hf_" + "Ab1" * 12
OWNER = "ada"
HUB_NAME = re.compile(r"(?:[\w-][\w.-]*/)?[\w-][\w.-]*")
LICENCES = {"apache-2.0", "mit", "llama3.1", "gemma", "other", "unknown"}
"""Some of the words that the Hub takes (huggingface/huggingface_hub#4218 quotes all)."""


@dataclass
class Repo:
    """One repository: branches, and commits as whole trees."""

    is_private: bool = False
    branches: dict[str, str] = field(default_factory=dict)
    trees: dict[str, dict[str, bytes]] = field(default_factory=dict)
    lfs: dict[str, set[str]] = field(default_factory=dict)
    """Commit -> the files that are in LFS."""

    def put(self, branch: str, tree: dict[str, bytes], lfs: set[str]) -> str:
        commit = hashlib.sha1(f"{branch}{len(self.trees)}{sorted(tree)}".encode()).hexdigest()
        self.branches[branch], self.trees[commit], self.lfs[commit] = commit, tree, lfs
        return commit

    def files(self, branch: str = "main") -> dict[str, bytes]:
        return self.trees[self.branches[branch]]


@dataclass
class Hub:
    """All that the server holds, and how it misbehaves."""

    address: str = ""
    repos: dict[str, Repo] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    faults: list[tuple[str, str, int, int]] = field(default_factory=list)
    """Method, pattern of the path, status, and how many times it is answered with that."""

    before: Callable[[str, str], None] = lambda method, path: None
    """Called before a request is answered; it may wait."""

    def add(self, name: str, files: dict[str, bytes], **settings: Any) -> Repo:
        repo = self.repos[name] = Repo(**settings)
        repo.put("main", files, set())
        return repo

    def fault_for(self, method: str, path: str) -> int | None:
        for index, (wanted, pattern, status, times) in enumerate(self.faults):
            if wanted == method and re.search(pattern, path) and times > 0:
                self.faults[index] = (wanted, pattern, status, times - 1)
                return status
        return None


def head_faults(card: str) -> list[str]:
    """What the Hub's check of a card's head refuses, for the keys that cards of ours have."""
    values = yaml.safe_load(card.split("---\n")[1]) if card.startswith("---\n") else {}
    faults = []
    for key in ("base_model", "datasets"):
        names = values.get(key, [])
        for name in [names] if isinstance(names, str) else names:
            if not HUB_NAME.fullmatch(name):
                faults.append(f'"{key}" with value "{name}" is not valid. Use a model id from https://hf.co/models.')
    if values.get("license", "mit") not in LICENCES:
        faults.append(f'"license" must be one of [{", ".join(sorted(LICENCES))}]')
    if values.get("base_model_relation", "adapter") not in {"adapter", "finetune", "merge", "quantized"}:
        faults.append('"base_model_relation" must be one of [finetune, adapter, merge, quantized]')
    for at, model in enumerate(values.get("model-index", [])):
        for number, result in enumerate(model["results"]):
            where = f"model-index[{at}].results[{number}]"
            faults += [
                f'"{where}.dataset.{key}" is required' for key in ("name", "type") if not result["dataset"].get(key)
            ]
            faults += [f'"{where}.metrics" is wrong' for one in result["metrics"] if not {"type", "value"} <= set(one)]
    return faults


class Handler(BaseHTTPRequestHandler):
    """Answers one request; `hub` is set on a subclass."""

    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None: ...

    def answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path))
        self.hub.before(self.command, path)
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        if (status := self.hub.fault_for(self.command, path)) is not None:
            return self.say(status, {"error": "made up"})
        is_storage = path.startswith("/storage/")
        if not is_storage and self.headers.get("authorization") != f"Bearer {TOKEN}" and self.command != "HEAD":
            return self.say(401, {"error": "Invalid credentials in Authorization header"})
        for method, pattern, act in ROUTES:
            if method == self.command and (found := re.fullmatch(pattern, path)):
                return act(self, body, *found.groups())
        return self.say(404, {"error": f"no {self.command} {path}"})

    do_GET = do_HEAD = do_POST = do_PUT = answer  # noqa: N815 - the names are the library's

    def say(self, status: int, value: Any = None, content: bytes = b"", **headers: str) -> None:
        content = json.dumps(value).encode() if value is not None else content
        self.send_response(status)
        if status == 404:
            headers.setdefault("X_Error_Code", "RepoNotFound")
        for name, text in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), text)
        self.end_headers()
        if self.command != "HEAD":
            with suppress(BrokenPipeError, ConnectionResetError):  # whoever asked was killed
                self.wfile.write(content)

    def whoami(self, body: bytes) -> None:
        self.say(200, {"type": "user", "name": OWNER, "auth": {"accessToken": {"displayName": "t", "role": "write"}}})

    def create(self, body: bytes) -> None:
        asked = json.loads(body)
        name = f"{asked.get('organization') or OWNER}/{asked['name']}"
        if name in self.hub.repos:
            return self.say(409, {"error": "You already created this model repo", "url": f"{self.hub.address}/{name}"})
        private = asked.get("private") or asked.get("visibility") == "private"
        self.hub.add(name, {".gitattributes": b""}, is_private=bool(private))
        return self.say(200, {"url": f"{self.hub.address}/{name}", "name": name, "id": "1"})

    def info(self, body: bytes, name: str, revision: str | None = None) -> None:
        full = name if "/" in name else f"{OWNER}/{name}"
        repo = self.hub.repos.get(full)
        if repo is None:
            return self.say(404, {"error": "Repository not found"})
        commit = self.commit_of(repo, revision or "main")
        if commit is None:
            return self.say(404, {"error": "Invalid rev id"}, X_Error_Code="RevisionNotFound")
        files = [{"rfilename": path} for path in sorted(repo.trees[commit])]
        return self.say(200, {"id": full, "sha": commit, "private": repo.is_private, "siblings": files, "tags": []})

    @staticmethod
    def commit_of(repo: Repo, revision: str) -> str | None:
        return revision if revision in repo.trees else repo.branches.get(revision)

    def entries(self, name: str, revision: str) -> list[dict[str, Any]]:
        repo = self.hub.repos[name]
        commit = self.commit_of(repo, revision) or ""
        found = []
        for path, content in sorted(repo.trees[commit].items()):
            entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": git_hash(content)}
            if path in repo.lfs[commit]:
                entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
            found.append(entry)
        return found

    def tree(self, body: bytes, name: str, revision: str) -> None:
        self.say(200, self.entries(name, revision))

    def paths_info(self, body: bytes, name: str, revision: str) -> None:
        asked = unquote(body.decode())
        self.say(200, [entry for entry in self.entries(name, revision) if entry["path"] in asked])

    def resolve(self, body: bytes, name: str, revision: str, path: str) -> None:
        repo = self.hub.repos[name]
        commit = self.commit_of(repo, revision) or ""
        content = repo.trees[commit][path]
        self.say(200, content=content, ETag=f'"{git_hash(content)}"', X_Repo_Commit=commit)

    def branch(self, body: bytes, name: str, branch: str) -> None:
        repo = self.hub.repos[name]
        repo.branches[branch] = repo.branches["main"]
        self.say(200, {})

    def validate(self, body: bytes) -> None:
        faults = head_faults(json.loads(body)["content"])
        self.say(400 if faults else 200, {"errors": [{"message": fault} for fault in faults], "warnings": []})

    def preupload(self, body: bytes, name: str, revision: str) -> None:
        repo = self.hub.repos[name]
        tree = repo.trees[self.commit_of(repo, revision) or ""]
        ignored = tree.get(".gitignore", b"").decode().split()
        modes = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith((".safetensors", ".gguf")) else "regular",
                "shouldIgnore": file["path"] in ignored,
                "oid": None,
            }
            for file in json.loads(body)["files"]
        ]
        self.say(200, {"files": modes})

    def batch(self, body: bytes, name: str) -> None:
        objects = []
        for wanted in json.loads(body)["objects"]:
            one = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.hub.objects:
                one["actions"] = {
                    "upload": {"href": f"{self.hub.address}/storage/{wanted['oid']}"},
                    "verify": {"href": f"{self.hub.address}/api/verify"},
                }
            objects.append(one)
        self.say(200, {"transfer": "basic", "objects": objects})

    def put_object(self, body: bytes, oid: str) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            return self.say(400, {"error": "the checksum differs"})
        self.hub.objects[oid] = body
        return self.say(200, {})

    def verify(self, body: bytes) -> None:
        asked = json.loads(body)
        is_there = len(self.hub.objects.get(asked["oid"], b"")) == asked["size"]
        self.say(200 if is_there else 404, {})

    def commit(self, body: bytes, name: str, branch: str) -> None:
        repo = self.hub.repos[name]
        lines = [json.loads(line) for line in body.splitlines()]
        parent = lines[0]["value"].get("parentCommit")
        if parent is not None and parent != repo.branches[branch]:
            return self.say(412, {"error": "A commit has happened since. Please refresh and try again."})
        tree, lfs = dict(repo.files(branch)), set(repo.lfs[repo.branches[branch]])
        for line in lines[1:]:
            value = line["value"]
            lfs.discard(value["path"])
            if line["key"] == "file":
                tree[value["path"]] = base64.b64decode(value["content"])
            else:
                tree[value["path"]] = self.hub.objects[value["oid"]]
                lfs.add(value["path"])
        oid = repo.put(branch, tree, lfs)
        return self.say(
            200, {"commitUrl": f"{self.hub.address}/{name}/commit/{oid}", "commitOid": oid, "success": True}
        )


NAME = r"([\w.-]+(?:/[\w.-]+)?)"
ROUTES: list[tuple[str, str, Callable[..., None]]] = [
    ("HEAD", "/api/models", lambda handler, body: handler.say(200)),
    ("GET", "/api/whoami-v2", Handler.whoami),
    ("POST", "/api/repos/create", Handler.create),
    ("POST", "/api/validate-yaml", Handler.validate),
    ("POST", "/api/verify", Handler.verify),
    ("PUT", "/storage/([0-9a-f]{64})", Handler.put_object),
    ("POST", rf"/api/models/{NAME}/preupload/(.+)", Handler.preupload),
    ("POST", rf"/api/models/{NAME}/commit/(.+)", Handler.commit),
    ("POST", rf"/api/models/{NAME}/branch/(.+)", Handler.branch),
    ("POST", rf"/api/models/{NAME}/paths-info/(.+)", Handler.paths_info),
    ("GET", rf"/api/models/{NAME}/tree/([^/]+)", Handler.tree),
    ("GET", rf"/api/models/{NAME}/revision/(.+)", Handler.info),
    ("GET", rf"/api/models/{NAME}", Handler.info),
    ("POST", rf"/{NAME}\.git/info/lfs/objects/batch", Handler.batch),
    ("GET", rf"/{NAME}/resolve/([^/]+)/(.+)", Handler.resolve),
    ("HEAD", rf"/{NAME}/resolve/([^/]+)/(.+)", Handler.resolve),
]


def git_hash(content: bytes) -> str:
    """Git's name of a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@contextmanager
def served() -> Iterator[Hub]:
    """A hub that answers at `hub.address` while the block runs."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Served", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()

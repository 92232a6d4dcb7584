"""A Hub on 127.0.0.1: what the real huggingface_hub client needs to publish and download, over plain HTTP.

    with HubServer(tokens={"hf_me": "you"}) as hub:
        os.environ["HF_ENDPOINT"] = hub.url  # before huggingface_hub is imported; and HF_HUB_DISABLE_XET=1

Repositories are lists of commits in memory. `hub.fail` (a regex over "METHOD path") makes requests fail, and
`hub.fault` spoils the N-th request, or all from the N-th on.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


@dataclass
class Fault:
    """What the server does to a request.

    Args:
        first: number of the first request that it is done to, from 0.
        how: `hang up` (before the request is looked at), `no answer` (done, then hang up), `half an answer`, `silence`,
            `nonsense` (an answer that is not JSON), or a status such as 503.
        onwards: to all later requests too.
    """

    first: int
    how: str | int
    onwards: bool = False


@dataclass
class Repository:
    """Branches point at commits; a commit is the whole tree, path -> content."""

    private: bool = False
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def commit(self, branch: str, tree: dict[str, bytes]) -> str:
        digest = hashlib.sha1(repr((len(self.commits), branch)).encode()).hexdigest()
        self.commits[digest] = tree
        self.branches[branch] = digest
        return digest

    def resolve(self, revision: str) -> str | None:
        return revision if revision in self.commits else self.branches.get(revision)


class HubServer:
    """The server, for a `with` block; its state is for tests to look at."""

    def __init__(self, tokens: dict[str, str]):
        self.tokens = tokens  # token -> user
        self.repositories: dict[str, Repository] = {}
        self.large_files: dict[str, bytes] = {}
        self.requests: list[str] = []  # "METHOD path", in order
        self.fail: str | None = None
        self.fault: Fault | None = None
        self.closing = threading.Event()
        self.gated: set[str] = set()  # repositories that nobody may download
        self.lock = threading.Lock()

    def __enter__(self) -> HubServer:
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *exc) -> None:
        self.closing.set()
        self._http.shutdown()
        self._http.server_close()

    def tree(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        repository = self.repositories[repo_id]
        return repository.commits[repository.resolve(revision)]


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def _handle(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self._chunked() if "chunked" in self.headers.get("Transfer-Encoding", "") else self.rfile.read(length)
        path = unquote(urlsplit(self.path).path)
        request = f"{self.command} {path}"
        with self.hub.lock:
            number, fault = len(self.hub.requests), self.hub.fault
            self.hub.requests.append(request)
            if fault is None or number < fault.first or (number > fault.first and not fault.onwards):
                return self._answer(request, body)
        return self._spoil(fault.how, request, body)

    def _answer(self, request: str, body: bytes) -> None:
        if self.hub.fail and re.search(self.hub.fail, request):
            return self._error(400, "", "the connection broke")
        for pattern, method in _ROUTES:
            match = re.fullmatch(pattern, request)
            if match:
                return method(self, body, *match.groups())
        return self._error(404, "", f"no such route: {request}")

    def _spoil(self, how: str | int, request: str, body: bytes) -> None:
        if isinstance(how, int):
            return self._error(how, "", "a fault")
        if how == "nonsense":
            return self._send(b"<html>a login page</html>")
        self.close_connection = True
        if how == "silence":
            self.hub.closing.wait()
        elif how != "hang up":
            socket, self.wfile = self.wfile, io.BytesIO()
            with self.hub.lock:
                self._answer(request, body)
            answer, self.wfile = self.wfile.getvalue(), socket
            if how == "half an answer":
                self.wfile.write(answer[: max(len(answer) - 20, len(answer) // 2)])
        return None

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _handle

    def _chunked(self) -> bytes:
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _user(self) -> str | None:
        return self.hub.tokens.get((self.headers.get("Authorization") or "").removeprefix("Bearer "))

    def _send(self, data: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _json(self, value) -> None:
        self._send(json.dumps(value).encode(), Content_Type="application/json")

    def _error(self, status: int, code: str, message: str) -> None:
        body = json.dumps({"error": message}).encode()
        self._send(body, status, X_Error_Code=code, X_Error_Message=message, Content_Type="application/json")

    def _repository(self, repo_id: str) -> Repository | None:
        """A repository that the user may see; the Hub answers 401 for one that is missing or hidden."""
        repository = self.hub.repositories.get(repo_id)
        if repository is None or (repository.private and self._user() != repo_id.split("/")[0]):
            self._error(401, "RepoNotFound", "Repository not found")
            return None
        if repo_id in self.hub.gated:
            self._error(403, "GatedRepo", "Access to this model is restricted")
            return None
        return repository

    def _tree(self, repo_id: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        repository = self._repository(repo_id)
        if repository is None:
            return None
        commit = repository.resolve(revision)
        if commit is None:
            self._error(404, "RevisionNotFound", f"Revision not found: {revision}")
            return None
        return commit, repository.commits[commit]

    def _writable(self, repo_id: str) -> Repository | None:
        if self._user() is None:
            self._error(401, "", "Invalid username or password.")
            return None
        if self._user() != repo_id.split("/")[0]:
            self._error(403, "", "You don't have the rights.")
            return None
        return self._repository(repo_id)

    # --- routes ---

    def whoami(self, body: bytes) -> None:
        user = self._user()
        if user is None:
            return self._error(401, "", "Invalid username or password.")
        return self._json({"type": "user", "name": user, "orgs": []})

    def create(self, body: bytes) -> None:
        user, wanted = self._user(), json.loads(body)
        if user is None:
            return self._error(401, "", "Invalid username or password.")
        owner = wanted.get("organization") or user
        if owner != user:
            return self._error(403, "", "You don't have the rights to create a model under this namespace.")
        repo_id = f"{owner}/{wanted['name']}"
        url = f"{self.hub.url}/{repo_id}"
        if repo_id in self.hub.repositories:
            return self._send(json.dumps({"url": url, "error": "exists"}).encode(), 409)
        repository = self.hub.repositories[repo_id] = Repository(
            private=bool(wanted.get("private")) or wanted.get("visibility") == "private"
        )
        repository.commit("main", {".gitattributes": b"*.safetensors filter=lfs\n"})
        return self._json({"url": url, "name": repo_id})

    def info(self, body: bytes, repo_id: str, revision: str | None = None) -> None:
        found = self._tree(repo_id, revision or "main")
        if found is not None:
            commit, tree = found
            siblings = [{"rfilename": path} for path in sorted(tree)]
            private = self.hub.repositories[repo_id].private
            self._json({"id": repo_id, "modelId": repo_id, "sha": commit, "private": private, "siblings": siblings})

    def list_tree(self, body: bytes, repo_id: str, revision: str) -> None:
        found = self._tree(repo_id, revision)
        if found is not None:
            self._json(
                [
                    {"type": "file", "path": path, "size": len(data), "oid": _sha1(data)}
                    for path, data in sorted(found[1].items())
                ]
            )

    def preupload(self, body: bytes, repo_id: str, revision: str) -> None:
        if self._writable(repo_id) is None:
            return
        modes = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                "shouldIgnore": False,
                "oid": None,
            }
            for file in json.loads(body)["files"]
        ]
        self._json({"files": modes})

    def lfs_batch(self, body: bytes, repo_id: str) -> None:
        if self._writable(repo_id) is None:
            return
        objects = []
        for wanted in json.loads(body)["objects"]:
            actions = {"upload": {"href": f"{self.hub.url}/lfs/{wanted['oid']}"}}
            known = wanted["oid"] in self.hub.large_files
            objects.append({**wanted, **({} if known else {"actions": actions})})
        self._json({"transfer": "basic", "objects": objects})

    def lfs_put(self, body: bytes, oid: str) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            return self._error(400, "", "the upload is not what was announced")
        self.hub.large_files[oid] = body
        return self._send(b"")

    def validate_yaml(self, body: bytes) -> None:
        self._json({"errors": [], "warnings": []})

    def create_branch(self, body: bytes, repo_id: str, branch: str) -> None:
        repository = self._writable(repo_id)
        if repository is None:
            return None
        if branch in repository.branches:
            return self._error(409, "", "Reference already exists")
        repository.branches[branch] = repository.branches["main"]
        return self._json({})

    def commit(self, body: bytes, repo_id: str, branch: str) -> None:
        repository = self._writable(repo_id)
        if repository is None:
            return None
        head = repository.branches.get(branch)
        if head is None:
            return self._error(404, "RevisionNotFound", f"Revision not found: {branch}")
        tree = dict(repository.commits[head])
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header" and value.get("parentCommit", head) != head:
                return self._error(412, "", "A commit has happened since. Please refresh and try again.")
            if item["key"] == "file":
                tree[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                if value["oid"] not in self.hub.large_files:
                    return self._error(400, "", f"LFS pointer to a file that was not uploaded: {value['path']}")
                tree[value["path"]] = self.hub.large_files[value["oid"]]
            elif item["key"] == "deletedFile":
                del tree[value["path"]]
        digest = repository.commit(branch, tree)
        return self._json(
            {"success": True, "commitOid": digest, "commitUrl": f"{self.hub.url}/{repo_id}/commit/{digest}"}
        )

    def resolve(self, body: bytes, repo_id: str, revision: str, path: str) -> None:
        found = self._tree(repo_id, revision)
        if found is None:
            return None
        commit, tree = found
        if path not in tree:
            self._send(b"", 404, X_Error_Code="EntryNotFound", X_Error_Message="Entry not found", X_Repo_Commit=commit)
            return None
        data = tree[path]
        large = path.endswith(".safetensors")
        headers = {"X_Repo_Commit": commit, "ETag": f'"{_sha1(data)}"', "Accept_Ranges": "bytes"}
        if large:
            headers |= {"X_Linked_ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X_Linked_Size": str(len(data))}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if asked:
            start, stop = int(asked[1]), int(asked[2] or len(data) - 1) + 1
            headers["Content_Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
            return self._send(data[start:stop], 206, **headers)
        return self._send(data, **headers)

    def log_message(self, *args) -> None:
        pass


def _sha1(data: bytes) -> str:
    """The oid of a git blob, which is the ETag of a file that is not large."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


_REPO, _REVISION = r"([\w.-]+/[\w.-]+)", r"([^/]+|refs/[^/]+/[^/]+)"
_ROUTES = [
    (r"GET /api/whoami-v2", _Handler.whoami),
    (r"POST /api/repos/create", _Handler.create),
    (r"POST /api/validate-yaml", _Handler.validate_yaml),
    (rf"GET /api/models/{_REPO}", _Handler.info),
    (rf"GET /api/models/{_REPO}/revision/{_REVISION}", _Handler.info),
    (rf"GET /api/models/{_REPO}/tree/{_REVISION}", _Handler.list_tree),
    (rf"POST /api/models/{_REPO}/preupload/{_REVISION}", _Handler.preupload),
    (rf"POST /{_REPO}\.git/info/lfs/objects/batch", _Handler.lfs_batch),
    (r"PUT /lfs/([0-9a-f]{64})", _Handler.lfs_put),
    (rf"POST /api/models/{_REPO}/branch/{_REVISION}", _Handler.create_branch),
    (rf"POST /api/models/{_REPO}/commit/{_REVISION}", _Handler.commit),
    (rf"(?:GET|HEAD) /{_REPO}/resolve/{_REVISION}/(.+)", _Handler.resolve),
]

"""A Hub in a folder: a local HTTP server that speaks as much of the Hub's protocol as pushing and loading a model needs.

Real huggingface_hub client code talks to it: repos/create, preupload, commit, revision, tree and resolve.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import unquote, urlsplit


class FakeHub(BaseHTTPRequestHandler):
    """Keeps every repository as {path: bytes}, one revision each."""

    protocol_version = "HTTP/1.1"
    token: ClassVar[str] = "hf_test"
    repos: ClassVar[dict[str, dict[str, bytes]]] = {}
    private: ClassVar[dict[str, bool]] = {}
    fetched: ClassVar[list[str]] = []

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _answer(self, value: Any = None, status: int = 200, **headers: str) -> None:
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for key, text in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key.replace("_", "-"), text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _sha(self, repo: str) -> str:
        digest = hashlib.sha1()
        for path, content in sorted(self.repos[repo].items()):
            digest.update(path.encode() + content)
        return digest.hexdigest()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b"".join(iter(self._chunk, b""))
        path = urlsplit(self.path).path
        if self.headers.get("Authorization") != f"Bearer {self.token}":
            return self._answer({"error": "Invalid credentials"}, 401)
        if path == "/api/validate-yaml":
            wrong = "license: MIT License" in json.loads(body)["content"]
            errors = [{"message": "license must be one of those that are known"}] * wrong
            return self._answer({"errors": errors, "warnings": []}, 400 if wrong else 200)
        if path == "/api/repos/create":
            wanted = json.loads(body)
            repo = f"{wanted.get('organization') or 'user'}/{wanted['name']}"
            known = repo in self.repos
            if not known:
                self.repos[repo] = {}
                self.private[repo] = wanted.get("visibility") == "private" or wanted.get("private") is True
            return self._answer({"url": f"http://{self.headers['Host']}/{repo}"}, 409 if known else 200)
        _, _, _, user, name, action, *_ = path.split("/")
        repo = f"{user}/{name}"
        if action == "preupload":
            files = [f["path"] for f in json.loads(body)["files"]]
            return self._answer({"files": [{"path": f, "uploadMode": "regular", "shouldIgnore": False} for f in files]})
        assert action == "commit", path
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                self.repos[repo][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            elif line["key"] == "deletedFile":
                del self.repos[repo][line["value"]["path"]]
        address = f"http://{self.headers['Host']}/{repo}/commit/{self._sha(repo)}"
        return self._answer({"commitUrl": address, "commitOid": self._sha(repo), "success": True})

    def _chunk(self) -> bytes:
        data = self.rfile.read(int(self.rfile.readline(), 16))
        self.rfile.readline()
        return data

    def do_GET(self) -> None:
        parts = [unquote(p) for p in urlsplit(self.path).path.split("/")[1:]]
        repo = "/".join(parts[2:4] if parts[0] == "api" else parts[:2])
        if repo not in self.repos:
            return self._answer({"error": "not found"}, 404, X_Error_Code="RepoNotFound")
        files, sha = self.repos[repo], self._sha(repo)
        if parts[0] != "api":  # user/name/resolve/revision/path
            path = "/".join(parts[4:])
            if path not in files:
                return self._answer({"error": "not found"}, 404, X_Error_Code="EntryNotFound")
            if self.command == "GET":
                self.fetched.append(path)
            etag = hashlib.sha1(files[path]).hexdigest()
            return self._answer(files[path], ETag=f'"{etag}"', X_Repo_Commit=sha)
        if len(parts) > 4 and parts[4] == "tree":
            entries = [
                {"type": "file", "path": p, "size": len(c), "oid": hashlib.sha1(c).hexdigest()}
                for p, c in files.items()
            ]
            return self._answer(entries)
        siblings = [{"rfilename": path} for path in files]
        return self._answer({"id": repo, "_id": repo, "sha": sha, "siblings": siblings, "private": False, "tags": []})

    do_HEAD = do_GET


@contextmanager
def fake_hub() -> Iterator[tuple[str, type[FakeHub]]]:
    """Run an empty Hub on a free port: its address, and its handler class with `repos`, `private`, `token`, `fetched`."""
    handler = type("Handler", (FakeHub,), {"repos": {}, "private": {}, "fetched": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", handler
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

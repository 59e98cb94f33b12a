"""The few answers of the Hugging Face hub that downloading and uploading a model take, on this machine."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest


class HubServer(ThreadingHTTPServer):
    """Repositories in memory: each a list of commits, which are contents by the names of their files."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, list[dict[str, bytes]]] = {}
        self.private: dict[str, bool] = {}
        self.downloaded: list[str] = []
        """Names of the files that were sent so far."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


def commit_hash(number: int) -> str:
    """The hash of the commit of a number, counted from 0."""
    return f"{number + 1:040x}"


class _Handler(BaseHTTPRequestHandler):
    server: HubServer

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if path == "/api/whoami-v2":
            known = self.headers["Authorization"] == "Bearer hf_right"
            self._json({"name": "ann"} if known else {"error": "Invalid token"}, 200 if known else 401)
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", path):
            self._repository(*match.groups())
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._file(*match.groups())
        else:
            self._json({"error": f"unexpected {path}"}, 500)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        path = urlsplit(self.path).path
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        if path == "/api/repos/create":
            values = json.loads(body)
            name = f"{values.get('organization') or 'ann'}/{values['name']}"
            new = name not in self.server.repositories
            self.server.repositories.setdefault(name, [{".gitattributes": b""}])
            self.server.private.setdefault(
                name, values.get("visibility") == "private" or values.get("private")
            )
            self._json({"url": f"{self.server.url}/{name}"}, 200 if new else 409)
        elif path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif path.endswith("/preupload/main"):
            files = [
                {"path": one["path"], "uploadMode": "regular", "shouldIgnore": False}
                for one in json.loads(body)["files"]
            ]
            self._json({"files": files})
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", path):
            self._commit(match[1], [json.loads(line) for line in body.splitlines()])
        else:
            self._json({"error": f"unexpected {path}"}, 500)

    def _repository(self, name: str, what: str | None, revision: str | None) -> None:
        commit = self._find(name, revision or "main")
        if commit is None:
            return
        number, files = commit
        listed = [{"rfilename": path} for path in files]
        entries = [
            {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
            for path, data in files.items()
        ]
        about = {"id": name, "sha": commit_hash(number), "siblings": listed}
        self._json(entries if what == "tree" else about)

    def _file(self, name: str, revision: str, path: str) -> None:
        commit = self._find(name, revision)
        if commit is None:
            return
        number, files = commit
        if path not in files:
            found = {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit_hash(number)}
            self._json({"error": "Entry not found"}, 404, found)
            return
        if self.command == "GET":
            self.server.downloaded.append(path)
        tag = hashlib.sha256(files[path]).hexdigest()
        self._answer(200, files[path], {"ETag": f'"{tag}"', "X-Repo-Commit": commit_hash(number)})

    def _commit(self, name: str, lines: list[dict[str, Any]]) -> None:
        files = dict(self.server.repositories[name][-1])
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        self.server.repositories[name].append(files)
        oid = commit_hash(len(self.server.repositories[name]) - 1)
        self._json({"success": True, "commitOid": oid, "commitUrl": f"{self.server.url}/{name}/commit/{oid}"})

    def _find(self, name: str, revision: str) -> tuple[int, dict[str, bytes]] | None:
        commits = self.server.repositories.get(name)
        # As the hub does, which does not say what exists to those who may not know it.
        if commits is None:
            self._json({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
            return None
        hashes = {commit_hash(number): number for number in range(len(commits))}
        number = hashes.get(revision, len(commits) - 1 if revision == "main" else None)
        if number is None:
            self._json({"error": "Invalid rev"}, 404, {"X-Error-Code": "RevisionNotFound"})
            return None
        return number, commits[number]

    def _json(self, value: object, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self._answer(
            status, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})}
        )

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def serve_hub(monkeypatch: pytest.MonkeyPatch, home: Path) -> Iterator[HubServer]:
    """A running server that ``huggingface_hub`` takes for the hub; its files are below ``home``."""
    from huggingface_hub import constants

    with HubServer() as server:
        # Read from the environment when the package was imported, which other tests may have done.
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", "hf_right")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()

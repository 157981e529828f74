"""A hub on this machine, which speaks as much of its API as huggingface_hub and datasets need to read repositories."""

import hashlib
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlparse


@dataclass
class Repository:
    """Its commits, each a set of files, and what main is."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    main: str = ""
    gated: bool = False
    forbidden: str = ""  # why nobody may read it, though it isn't gated
    token: str = ""  # who doesn't show it is told that there is no such repository

    def commit(self, files: dict[str, bytes]) -> str:
        """A new commit, which main then is."""
        self.main = hashlib.sha1(repr([len(self.commits), sorted(files)]).encode()).hexdigest()
        self.commits[self.main] = files
        return self.main


@dataclass
class Hub:
    """Repositories by kind and id ("models/org/name"), and what was asked for."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)  # of no repository: path of the URL -> content
    asked: list[str] = field(default_factory=list)
    endpoint: str = ""

    def model(self, name: str, folder: Path) -> str:
        """A commit with a folder's files."""
        files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
        return self.repositories.setdefault(f"models/{name}", Repository()).commit(files)

    def dataset(self, name: str, files: dict[str, bytes]) -> str:
        """A commit of a dataset."""
        return self.repositories.setdefault(f"datasets/{name}", Repository()).commit(files)


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub that answers until the block ends."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            hub.asked.append(self.path)
            self._answer(parse_qs(urlparse(self.path).query))

        def do_HEAD(self) -> None:
            hub.asked.append(self.path)
            self._answer({})

        def do_POST(self) -> None:
            hub.asked.append(self.path)
            body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
            known = json.loads(body) if body.startswith("{") else parse_qs(body)
            self._answer(known)

        def log_message(self, *_: Any) -> None:
            pass

        def _answer(self, query: dict[str, Any]) -> None:
            if self.path in hub.files:
                return self._send(200, hub.files[self.path], {})
            parts = [unquote(part) for part in urlparse(self.path).path.strip("/").split("/")]
            api = parts[0] == "api"
            kind = parts[1] if api else ("datasets" if parts[0] == "datasets" else "models")
            rest = parts[2:] if api else parts[1:] if kind == "datasets" else parts
            name, what = "/".join(rest[:2]), rest[2:]
            repository = hub.repositories.get(f"{kind}/{name}")
            shown = self.headers.get("Authorization", "").removeprefix("Bearer ")
            if repository is None or (repository.token and shown != repository.token):
                return self._refuse(404, "RepoNotFound")
            if repository.forbidden:
                return self._refuse(403, "", message=repository.forbidden)
            if repository.gated:
                return self._refuse(403, "GatedRepo")
            asked = what[1] if len(what) > 1 else "main"
            commit = repository.main if asked == "main" else asked
            files = repository.commits.get(commit)
            if files is None:
                return self._refuse(404, "RevisionNotFound")
            if not api:
                return self._file(commit, "/".join(what[2:]), files)
            if not what or what[0] == "revision":
                return self._json({"id": name, "sha": commit, "siblings": [{"rfilename": path} for path in files]})
            if what[0] == "tree":
                within = "/".join(what[2:])
                return self._json([entry for entry in _tree(files) if entry["path"].startswith(within)])
            if what[0] == "paths-info":
                return self._json([entry for entry in _tree(files) if entry["path"] in query.get("paths", [])])
            return self._refuse(404, "EntryNotFound")

        def _file(self, commit: str, path: str, files: dict[str, bytes]) -> None:
            if path not in files:
                return self._refuse(404, "EntryNotFound", commit)
            self._send(200, files[path], {"ETag": f'"{_digest(files[path])}"', "X-Repo-Commit": commit})

        def _json(self, value: Any) -> None:
            self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

        def _refuse(self, status: int, code: str, commit: str = "", message: str = "") -> None:
            said = {"X-Error-Code": code, "X-Error-Message": message or code, "X-Repo-Commit": commit}
            self._send(status, b"{}", {key: value for key, value in said.items() if value})

        def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def silent() -> Iterator[tuple[str, list[int]]]:
    """Where connections are taken and never answered, as by a firewall that drops packets; and one number for each."""
    listening = socket.create_server(("127.0.0.1", 0), backlog=100)
    taken: list[socket.socket] = []
    times: list[int] = []

    def take() -> None:
        while True:
            try:
                taken.append(listening.accept()[0])
            except OSError:
                return
            times.append(len(taken))

    threading.Thread(target=take, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", times
    finally:
        listening.close()
        for one in taken:
            one.close()


def _tree(files: dict[str, bytes]) -> list[dict[str, Any]]:
    folders = {str(parent) for path in files for parent in Path(path).parents} - {"."}
    return [{"type": "directory", "path": path, "oid": _digest(path.encode())} for path in sorted(folders)] + [
        {"type": "file", "path": path, "size": len(content), "oid": _digest(content)}
        for path, content in sorted(files.items())
    ]


def _digest(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()

"""A Hugging Face hub on this machine, with the faults that a test asks for.

It speaks as much of the protocol as `huggingface_hub`, `datasets` and `transformers` need to read a
repository: its information, the tree of its files, and the files, whole or in ranges.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "c0ffee" + "0" * 34
TOKEN = "hf_" + "x" * 34


@dataclass
class Repo:
    """Files by their paths, and who may read them."""

    files: dict[str, bytes]
    gated: bool = False
    """Readable with `TOKEN` alone; 401 without a token, 403 with another."""


@dataclass
class MockHub:
    """Repositories by kind and name, such as `datasets/org/name` and `models/org/name`."""

    repos: dict[str, Repo] = field(default_factory=dict)
    downloaded: list[str] = field(default_factory=list)
    """Files that were asked for whole, in order; what is streamed is asked for in ranges."""
    faults: dict[str, list[Fault]] = field(default_factory=dict)
    """What the next requests for a file (by its path) meet, one each, from the first on."""
    on_file: Callable[[str], None] = lambda path: None
    """Called with a file's path before any of it is sent; may wait."""
    pause: float = 0.0
    """Seconds between stretches of 16 kB of a file."""
    url: str = ""

    def dataset(self, name: str, files: dict[str, bytes], gated: bool = False) -> None:
        self.repos[f"datasets/{name}"] = Repo(files, gated)

    def model(self, name: str, files: dict[str, bytes], gated: bool = False) -> None:
        self.repos[f"models/{name}"] = Repo(files, gated)

    @contextmanager
    def serve(self) -> Iterator[MockHub]:
        with serving(handler(self)) as self.url:
            yield self


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """Answer requests on this machine in a thread of its own; gives the address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


Fault = str
"""`cut`: the connection ends halfway; `500`: the server fails; `403`: it refuses."""

_STRETCH = 16 * 1024


class Refusal(Exception):
    def __init__(self, status: int, code: str, message: str = "") -> None:
        self.status, self.code, self.message = status, code, message


def handler(hub: MockHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # else each answer waits 40 ms for an acknowledgement

        def do_GET(self) -> None:
            self._answer()

        def do_HEAD(self) -> None:
            self._answer()

        def do_POST(self) -> None:
            self._answer()

        def log_message(self, *_: object) -> None:
            pass

        def _answer(self) -> None:
            url = urlsplit(self.path)
            path = unquote(url.path)
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            try:
                if path.startswith("/api/"):
                    self._api(path.removeprefix("/api/"), parse_qs(body.decode()))
                else:
                    self._file(path.removeprefix("/"))
            except Refusal as refusal:
                headers = {"X-Error-Code": refusal.code, "X-Error-Message": refusal.message}
                self._send(refusal.status, b"", {k: v for k, v in headers.items() if v})
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True

        # --- what is asked for ------------------------------------------------------------

        def _api(self, path: str, form: dict[str, list[str]]) -> None:
            name, repo, rest = self._repo(path)
            what, _, rest = rest.partition("/")
            revision, _, folder = rest.partition("/")
            if what:
                _check_revision(revision)
            match what:
                case "" | "revision":
                    self._allow(repo)
                    files = [{"rfilename": file} for file in repo.files]
                    self._json({"id": name, "sha": COMMIT, "siblings": files, "private": False})
                case "tree":
                    self._json(_tree(repo, folder))
                case "paths-info":
                    paths = form.get("paths", [])
                    self._json([e for e in _tree(repo, "") if e["path"] in paths])
                case _:
                    raise Refusal(404, "")

        def _file(self, path: str) -> None:
            kind = "" if path.startswith("datasets/") else "models/"
            name, _, rest = path.partition("/resolve/")
            _, repo, _ = self._repo(kind + name)
            revision, _, file = rest.partition("/")
            _check_revision(revision)
            self._allow(repo)
            if file not in repo.files:
                raise Refusal(404, "EntryNotFound", "Entry not found")
            content = repo.files[file]
            headers = {
                "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
                "X-Repo-Commit": COMMIT,
                "Accept-Ranges": "bytes",
            }
            status, first, last = 200, 0, len(content)
            if asked := self.headers.get("Range"):
                begin, _, end = asked.removeprefix("bytes=").partition("-")
                first, last = int(begin), min(int(end) + 1 if end else last, last)
                headers["Content-Range"] = f"bytes {first}-{last - 1}/{len(content)}"
                status = 206
            if self.command == "HEAD":
                self._send(status, content, headers)
                return
            if status == 200:
                hub.downloaded.append(file)
            fault = hub.faults[file].pop(0) if hub.faults.get(file) else ""
            if fault == "500":
                raise Refusal(500, "", "Internal error")
            if fault == "403":
                raise Refusal(403, "GatedRepo", "Access to this repository is restricted")
            hub.on_file(file)
            self._send(status, content[first:last], headers, cut=fault == "cut")

        def _repo(self, path: str) -> tuple[str, Repo, str]:
            """Split a path into the repository's name, the repository, and the rest."""
            for name, repo in hub.repos.items():
                if path == name or path.startswith(f"{name}/"):
                    return name.partition("/")[2], repo, path.removeprefix(name).strip("/")
            # What the real hub says to who is not logged in: it may be there, but private.
            raise Refusal(401, "RepoNotFound", "Repository not found")

        def _allow(self, repo: Repo) -> None:
            token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
            if repo.gated and token != TOKEN:
                raise Refusal(403 if token else 401, "GatedRepo", "Access is restricted")

        # --- what is answered -------------------------------------------------------------

        def _json(self, values: object) -> None:
            self._send(200, json.dumps(values).encode(), {"Content-Type": "application/json"})

        def _send(
            self, status: int, body: bytes, headers: dict[str, str], cut: bool = False
        ) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "HEAD":
                return
            if cut:
                body, self.close_connection = body[: len(body) // 2], True
            for begin in range(0, len(body), _STRETCH):
                self.wfile.write(body[begin : begin + _STRETCH])
                time.sleep(hub.pause)

    return Handler


def _check_revision(revision: str) -> None:
    if revision not in ("main", COMMIT):
        raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")


def _tree(repo: Repo, folder: str) -> list[dict[str, object]]:
    """Return the entries below a folder, at any depth."""
    prefix = f"{folder}/" if folder else ""
    files = {path: content for path, content in repo.files.items() if path.startswith(prefix)}
    if folder and not files:
        raise Refusal(404, "EntryNotFound", f"{folder} does not exist")
    parts = {path: path.split("/") for path in files}
    above = {"/".join(p[:depth]) for p in parts.values() for depth in range(1, len(p))}
    folders = sorted(path for path in above if path.startswith(prefix))
    return [
        *({"type": "directory", "path": path, "oid": "0" * 40, "size": 0} for path in folders),
        *(
            {"type": "file", "path": path, "size": len(content), "oid": "1" * 40}
            for path, content in sorted(files.items())
        ),
    ]

"""A stand-in for the Hugging Face Hub on this machine."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

TOKEN = "hf_a_token_of_tests"


def etag(data: bytes) -> str:
    """What git calls a file."""
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()


class Hub(BaseHTTPRequestHandler):
    """The part of the Hugging Face Hub that downloading a repository needs."""

    repositories: dict[tuple[str, str], tuple[str, Path]]
    private: dict[str, str]  # repository -> what it answers without TOKEN
    log: list[str]

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        path = unquote(self.path.partition("?")[0]).strip("/")
        self.log.append(f"{self.command} {path}")
        parts = path.split("/")
        api = parts[:2] == ["api", "models"]
        name = "/".join(parts[2:4] if api else parts[:2])
        if name in self.private and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.fail(self.private[name])
            return
        if api:
            kind, revision = parts[4:6] if len(parts) > 5 else ("revision", "main")
            found = next(
                (
                    there
                    for (other, label), there in self.repositories.items()
                    if name == other and revision in (label, there[0])
                ),
                None,
            )
            if found is None:
                known = any(name == other for other, _ in self.repositories)
                self.fail("RevisionNotFound" if known else "RepoNotFound")
                return
            commit, folder = found
            files = sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
            info: Any = {
                "_id": "1", "id": name, "modelId": name, "sha": commit, "private": False,
                "gated": False, "disabled": False, "downloads": 0, "likes": 0, "tags": [],
                "siblings": [{"rfilename": str(file)} for file in files],
            }  # fmt: skip
            if kind == "tree":  # newer clients list files by this
                info = [
                    {
                        "type": "file",
                        "path": str(file),
                        "size": (folder / file).stat().st_size,
                        "oid": etag((folder / file).read_bytes()),
                    }
                    for file in files
                ]
            self.send(json.dumps(info).encode(), {"Content-Type": "application/json"}, body)
            return
        rest = parts[2:]
        if rest[:1] != ["resolve"]:
            self.fail("RepoNotFound")
            return
        for (other, revision), (commit, folder) in self.repositories.items():
            file = folder.joinpath(*rest[2:])
            if name == other and rest[1] in (revision, commit) and file.is_file():
                data = file.read_bytes()
                self.send(data, {"ETag": f'"{etag(data)}"', "X-Repo-Commit": commit}, body)
                return
        self.fail("EntryNotFound")

    def send(self, data: bytes, headers: dict[str, str], body: bool) -> None:
        self.send_response(200)
        for key, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def fail(self, code: str) -> None:
        self.send_response({"GatedRepo": 403, "RepoNotFound": 401}.get(code, 404))
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args: Any) -> None:
        pass


@contextlib.contextmanager
def serving(
    repositories: dict[tuple[str, str], tuple[str, Path]], private: dict[str, str]
) -> Iterator[str]:
    """The address of a hub.

    Args:
        repositories: by name and revision: the commit, of 40 digits, and the folder.
        private: repositories for which :data:`TOKEN` is needed, and the error of the hub without:
            ``RepoNotFound`` (private), ``GatedRepo``.
    """
    Hub.repositories, Hub.private, Hub.log = repositories, private, []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

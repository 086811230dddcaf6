"""A server on this machine that stands in for the Hugging Face hub and torchvision's address.

It answers as the hub does for a large file: HEAD gives the commit, the size, and the SHA-256 as
the "linked" ETag. What it tells and what it sends can be set apart, to play each kind of damage.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import http.server
import threading
from collections.abc import Iterator

COMMIT = "0123456789abcdef0123456789abcdef01234567"
PAGE = b"<!doctype html><html><title>Sign in to the network</title></html>" * 20


@dataclasses.dataclass
class File:
    """A file of the server."""

    content: bytes
    sent: list[bytes] = dataclasses.field(default_factory=list)
    """What the first, second, ... GET brings in place of the content; the last one again."""
    etag: str | None = None
    """In place of the SHA-256."""
    is_page: bool = False
    """Whether it is answered as a captive portal does: a page, and nothing of the hub's."""
    cut_at: int | None = None
    """After so many bytes the connection is closed, though the length promises more."""


class Server:
    """Its files by path, and the requests that it has answered."""

    def __init__(self) -> None:
        self.files: dict[str, File] = {}
        self.requests: list[tuple[str, str]] = []
        self.url = ""

    def downloads(self) -> int:
        return sum(method == "GET" for method, _ in self.requests)

    def put_hub(self, repository: str, file: File) -> None:
        self.files[f"/{repository}/resolve/main/model.safetensors"] = file


@contextlib.contextmanager
def serve() -> Iterator[Server]:
    server = Server()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def answer(self) -> None:
            file = server.files.get(self.path)
            if file is None:
                self.send_error(404)
                return
            server.requests.append((self.command, self.path))
            body = file.content
            if self.command == "GET" and file.sent:
                body = file.sent.pop(0) if len(file.sent) > 1 else file.sent[0]
            if file.is_page:
                body = PAGE
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            if not file.is_page:
                etag = file.etag or hashlib.sha256(file.content).hexdigest()
                self.send_header("ETag", f'"{etag}"')
                self.send_header("X-Repo-Commit", COMMIT)
                self.send_header("X-Linked-Etag", f'"{etag}"')
                self.send_header("X-Linked-Size", str(len(file.content)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body[: file.cut_at])

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        server.url = f"http://127.0.0.1:{httpd.server_address[1]}"
        thread = threading.Thread(target=httpd.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            httpd.shutdown()
            thread.join()

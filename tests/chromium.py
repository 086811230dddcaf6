"""Chromium without a window, driven over WebDriver: https://www.w3.org/TR/webdriver2/."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from base64 import b64decode
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from missing import missing

_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the specification's key of a reference
_LOG = ("POST", "/se/log", {"type": "browser"})
_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


def require() -> None:
    """Skips the test where there is no Chromium, but not in CI."""
    if shutil.which("chromium") is None or shutil.which("chromedriver") is None:
        missing("needs a browser: apt-get install chromium chromium-driver")


class Browser:
    """A browser with one page."""

    def __init__(self, address: str, folder: Path) -> None:
        self._address = address
        options = {
            "binary": shutil.which("chromium"),
            "args": [*_FLAGS, f"--user-data-dir={folder}", "--window-size=900,1100"],
        }
        wanted = {
            "browserName": "chrome",
            "goog:chromeOptions": options,
            "goog:loggingPrefs": {"browser": "ALL"},
        }
        session = self._ask("POST", "", {"capabilities": {"alwaysMatch": wanted}})
        self._address += f"/{session['sessionId']}"

    def open(self, address: str) -> None:
        self._ask("POST", "/url", {"url": address})

    def script(self, code: str, *arguments: object) -> Any:
        """What a function with this body returns."""
        return self._ask("POST", "/execute/sync", {"script": code, "args": arguments})

    def wait(self, condition: str, seconds: float = 60) -> None:
        """Until an expression is true."""
        end = time.monotonic() + seconds
        while not self.script(f"return Boolean({condition})"):
            assert time.monotonic() < end, (condition, self.text(), self.log())
            time.sleep(0.05)

    def text(self) -> str:
        """What the page shows."""
        return self.script("return document.body.innerText")

    def choose(self, selector: str, files: Sequence[Path]) -> None:
        """Files for an <input type="file">, as if chosen in its dialogue."""
        wanted = {"using": "css selector", "value": selector}
        reference = self._ask("POST", "/element", wanted)[_ELEMENT]
        self._ask("POST", f"/element/{reference}/value", {"text": "\n".join(map(str, files))})

    def log(self) -> list[str]:
        """What the console has said since it was last asked."""
        return [entry["message"][:500] for entry in self._ask(*_LOG)]

    def picture(self) -> bytes:
        """The page as it is seen, a PNG."""
        return b64decode(self._ask("GET", "/screenshot"))

    def close(self) -> None:
        self._ask("DELETE", "")

    def _ask(self, method: str, path: str, body: object = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._address + path, data, method=method)
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(error.read().decode(errors="replace")[:1000]) from error


@contextlib.contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """A browser whose profile lies in `folder`."""
    require()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with subprocess.Popen(
        ["chromedriver", f"--port={port}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"HOME": str(folder)},
    ) as driver:
        try:
            for _ in range(400):
                with contextlib.suppress(OSError):
                    socket.create_connection(("127.0.0.1", port)).close()
                    break
                time.sleep(0.05)
            found = Browser(f"http://127.0.0.1:{port}/session", folder / "profile")
            try:
                yield found
            finally:
                found.close()
        finally:
            driver.terminate()

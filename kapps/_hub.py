"""Fetching published weights: from the Hugging Face hub and from torchvision's address.

A file is used only after its SHA-256 was compared with what its publisher says: the hub tells it
with each large file, torchvision puts the first digits into the file's name. A file from the cache
is compared as well. One that differs is removed and fetched once more.

The hub's files lie in the hub's own cache, which timm shares; torchvision's in `KAPPS_HOME`
(~/.cache/kapps). `HF_ENDPOINT` and `KAPPS_TORCHVISION_ENDPOINT` name mirrors.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from kapps._errors import InputError
from kapps._files import atomic_write, sha256
from kapps._index import PublishedWeights

_TORCHVISION = "https://download.pytorch.org/models"
_HUB_FILE = "model.safetensors"
_CHUNK = 1 << 20  # bytes
_TIMEOUT = 30  # seconds without a byte


def fetch(weights: PublishedWeights) -> Path:
    """The file of published weights, from the cache or downloaded; its SHA-256 is right.

    Raises:
        InputError: there is no connection, or what comes is not that file. The message says how
            to go on without a connection.
    """
    source = _source(weights)
    file = _intact(source)
    if file is not None:
        return file
    # Within the lock nobody else removes or fetches the file.
    with _lock(weights.file_name):
        file = _intact(source)
        if file is not None:
            return file
        damaged = source.cached()
        if damaged is not None:
            _discard(damaged)
        for _ in range(2):
            try:
                return source.download()
            except _Damaged as error:
                cause = str(error)
    raise InputError(
        f"{source.url} came damaged, twice: {cause}; nothing was kept. Try again later or from "
        f"another network; or {_by_hand(weights)}"
    )


def remove(weights: PublishedWeights, file: Path) -> None:
    """Removes what `fetch` gave from its cache."""
    with _lock(weights.file_name):
        _discard(file)


def _intact(source: _Source) -> Path | None:
    """The file in the cache, if it is what was published."""
    file = source.cached()
    try:
        return file if file is not None and source.matches(file) else None
    except FileNotFoundError:  # another process has removed it just now
        return None


def _discard(file: Path) -> None:
    """Removes a file from its cache, and what it links to."""
    links = [file]
    while links[-1].is_symlink():
        links.append(links[-1].parent / os.readlink(links[-1]))
    for link in links:
        link.unlink(missing_ok=True)


def name_matches(file: Path, name: str) -> bool:
    """Whether a file's SHA-256 begins with the digits that torchvision put into its name."""
    digits = re.search(r"-([0-9a-f]{8,64})\.pth$", name)
    return digits is not None and sha256(file).startswith(digits[1])


class _Source(Protocol):
    url: str

    def cached(self) -> Path | None:
        """The file where an earlier download left it; unchecked."""

    def matches(self, file: Path) -> bool:
        """Whether the file's SHA-256 is the publisher's."""

    def download(self) -> Path:
        """Fetches the file into the cache. What came damaged raises `_Damaged`, and is not kept."""


class _Damaged(Exception):
    """What came has another SHA-256 than it should; the message says more."""


class _Hub:
    """A file on the Hugging Face hub, and in the hub's own cache."""

    def __init__(self, weights: PublishedWeights) -> None:
        self._hub = _package("huggingface_hub")
        self._weights = weights
        self.url: str = self._hub.hf_hub_url(weights.source, _HUB_FILE)

    def cached(self) -> Path | None:
        found = self._hub.try_to_load_from_cache(self._weights.source, _HUB_FILE)
        return Path(found) if isinstance(found, str) else None

    def matches(self, file: Path) -> bool:
        # The cache links to a blob that is named by its digest. Only the first link counts: the
        # blob may itself be a link, into a store that is named by another kind of digest.
        blob = Path(os.readlink(file)).name if file.is_symlink() else ""
        expected = blob if _is_sha256(blob) else self._published_sha256()
        return sha256(file) == expected

    def download(self) -> Path:
        self._published_sha256()  # refuses what has none before it is fetched
        try:
            file = Path(self._hub.hf_hub_download(self._weights.source, _HUB_FILE))
        except Exception as error:  # see below
            raise _unreachable(self.url, error, self._weights) from error
        if not self.matches(file):
            found = sha256(file)
            _discard(file)
            raise _Damaged(f"its SHA-256 is {found}, not what the hub says")
        return file

    def _published_sha256(self) -> str:
        try:
            digest = self._hub.get_hf_file_metadata(self.url).etag
        except Exception as error:  # the hub's kinds, and those of whichever HTTP client it uses
            raise _unreachable(self.url, error, self._weights) from error
        if not _is_sha256(digest):
            raise InputError(
                f"{self.url}: the server tells no SHA-256 for it ({digest!r}), so it is not the "
                f"hub's file; is it a proxy's page? Check HF_ENDPOINT and the network; or "
                f"{_by_hand(self._weights)}"
            )
        return str(digest)


class _Torchvision:
    """A file at torchvision's address, in the cache of kapps."""

    def __init__(self, weights: PublishedWeights) -> None:
        base = os.environ.get("KAPPS_TORCHVISION_ENDPOINT") or _TORCHVISION
        self._weights = weights
        self._file = _home() / "torchvision" / weights.source
        self.url = f"{base.rstrip('/')}/{weights.source}"

    def cached(self) -> Path | None:
        return self._file if self._file.is_file() else None

    def matches(self, file: Path) -> bool:
        return name_matches(file, self._weights.source)

    def download(self) -> Path:
        try:
            with atomic_write(self._file) as temporary:
                came = self._receive(temporary)
                if not name_matches(temporary, self._weights.source):
                    raise _Damaged(f"{came}, whose SHA-256 does not begin as the name says")
        except (OSError, http.client.HTTPException, ValueError) as error:
            if isinstance(error, InputError):  # of atomic_write, about the folder
                raise
            raise _unreachable(self.url, error, self._weights) from error
        return self._file

    def _receive(self, target: Path) -> str:
        """Writes what the server sends, and describes it."""
        hub = _package("huggingface_hub")
        if hub.constants.HF_HUB_OFFLINE:
            raise OSError("offline mode is on: unset HF_HUB_OFFLINE")
        with (
            urllib.request.urlopen(self.url, timeout=_TIMEOUT) as response,
            open(target, "wb") as file,
        ):
            length = int(response.headers.get("Content-Length") or 0)
            # The hub's progress bar, as for the other downloads: one look, one switch, and
            # `disable=None` for none where nobody looks at a terminal.
            with hub.utils.tqdm(
                total=length or None,
                unit="B",
                unit_scale=True,
                desc=self._weights.source,
                disable=None,
            ) as bar:
                start = b""
                while chunk := response.read(_CHUNK):
                    start = start or chunk[:100]
                    file.write(chunk)
                    bar.update(len(chunk))
                if start.lstrip().startswith(b"<"):
                    return "a web page"
                return f"{file.tell()} of {length or 'unknown'} bytes"


def _source(weights: PublishedWeights) -> _Source:
    return _Hub(weights) if "/" in weights.source else _Torchvision(weights)


def _home() -> Path:
    return Path(os.environ.get("KAPPS_HOME") or Path.home() / ".cache" / "kapps")


@contextlib.contextmanager
def _lock(name: str) -> Iterator[None]:
    """Held by one process at a time; the system frees it when a process dies."""
    folder = _home() / "locks"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = _package("filelock").FileLock(folder / f"{name}.lock")
        lock.acquire()
    except OSError as error:
        raise InputError(
            f"cannot write {folder}: {error.strerror}; set KAPPS_HOME to a folder that you may "
            "write"
        ) from error
    try:
        yield
    finally:
        lock.release()


def _is_sha256(digest: str | None) -> bool:
    return re.fullmatch("[0-9a-f]{64}", digest or "") is not None


def _unreachable(url: str, error: Exception, weights: PublishedWeights) -> InputError:
    cause = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return InputError(
        f"cannot fetch {url}: {cause}. Is there a connection? If not, {_by_hand(weights)}"
    )


def _by_hand(weights: PublishedWeights) -> str:
    # Under that name the file is recognized, and gets the mean and std that belong to it.
    return (
        f"fetch that address with another machine, name the file {weights.file_name}, and give "
        f"its path: weights='some/folder/{weights.file_name}'"
    )


def _package(name: str) -> Any:
    try:
        if name == "filelock":
            import filelock

            return filelock
        import huggingface_hub

        return huggingface_hub
    except ImportError as error:
        raise InputError(
            f"published weights are fetched with the package {name}: pip install 'kapps[weights]'; "
            "or give the path of a file"
        ) from error

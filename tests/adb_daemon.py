"""A phone for the genuine adb client: a small adbd whose commands run with `sh` in a folder.

The protocol: https://android.googlesource.com/platform/packages/modules/adb/+/refs/heads/main/docs/dev/
(protocol.md and sync.md), with the features shell_v2 and cmd, and the first version of sync.
"""

from __future__ import annotations

import contextlib
import errno
import os
import queue
import shutil
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from missing import missing

_MAX_DATA = 1 << 16
_VERSION = 0x01000001  # in which checksums are not looked at
_TOKEN = 1  # the kind of AUTH message that asks for a signature
_STDIN, _STDOUT, _STDERR, _EXIT, _CLOSE_STDIN = range(5)
_FOLDERS = ("/data/local/tmp", "/sys/devices")  # of the phone, which lie below `Phone.folder`

GETPROP = """case $1 in
  ro.product.manufacturer) echo Google;;
  ro.product.model) echo 'Pixel 8';;
  ro.build.version.release) echo 14;;
  ro.product.cpu.abilist) echo arm64-v8a,armeabi-v7a,armeabi;;
  ro.product.cpu.abi) echo arm64-v8a;;
  *) echo;;
esac"""

UNPLUG = "UNPLUG"  # a command that prints this loses its phone


def require():
    """Skips the test where there is no adb, but not in CI."""
    if shutil.which("adb") is None:
        missing("needs Android's debug bridge: apt-get install adb")


@contextlib.contextmanager
def server(home: Path) -> Iterator[None]:
    """An adb server of its own, far from the ports on which adb looks for emulators."""
    require()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("HOME", str(home))
        monkeypatch.setenv("ANDROID_ADB_SERVER_PORT", str(port))
        monkeypatch.delenv("ANDROID_SERIAL", raising=False)
        subprocess.run(["adb", "start-server"], check=True, capture_output=True, timeout=60)
        yield
        subprocess.run(["adb", "kill-server"], check=True, capture_output=True, timeout=60)


class Phone:
    """The daemon. `folder`/bin holds the phone's own commands, `space` is its disk's, in bytes.

    Its commands run on this machine unless `wrapped` says how they run elsewhere, with the rest of
    the PATH and more of the environment.
    """

    def __init__(
        self,
        folder: Path,
        *,
        trusts: bool = True,
        space: int = 1 << 30,
        features: str = "shell_v2,cmd",
        wrapped: Callable[[list[str]], list[str]] = lambda command: command,
        path: str = "/usr/bin:/bin",
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.folder, self.space, self.features = folder, space, features
        self.wrapped = wrapped
        self.environment = {"PATH": f"{folder}/bin:{path}", **(environment or {})}
        self._trusts = trusts
        for name in ("bin", *(below[1:] for below in _FOLDERS)):
            (folder / name).mkdir(parents=True)
        self.plug()

    def command(self, name: str, script: str) -> None:
        """Gives the phone a command."""
        path = self.folder / "bin" / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def plug(self) -> None:
        """Lets clients connect, under a new serial."""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.serial = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._connections: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def unplug(self) -> None:
        """Ends all connections, and takes no new one."""
        for one in (self._listener, *self._connections):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def local(self, text: str) -> str:
        """The phone's paths in a text, as they are here."""
        for below in _FOLDERS:
            text = text.replace(below, f"{self.folder}{below}")
        return text

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self._connections.append(connection)
                threading.Thread(target=_Connection(self, connection).serve, daemon=True).start()


class _Connection:
    def __init__(self, phone: Phone, connection: socket.socket) -> None:
        self._phone, self._connection = phone, connection
        self._lock = threading.Lock()
        self._streams: dict[int, _Stream] = {}

    def send(self, command: bytes, first: int, second: int, data: bytes = b"") -> None:
        code = struct.unpack("<I", command)[0]
        head = struct.pack("<6I", code, first, second, len(data), sum(data), code ^ 0xFFFFFFFF)
        with self._lock:
            self._connection.sendall(head + data)

    def serve(self) -> None:
        with self._ended(), contextlib.suppress(OSError, EOFError):
            while True:
                head = _exactly(self._connection.recv, 24)
                command, first, _, size, _, _ = struct.unpack("<4s5I", head)
                data = _exactly(self._connection.recv, size)
                if command in (b"CNXN", b"AUTH"):
                    if self._phone._trusts:
                        banner = f"device::ro.product.model=Test;features={self._phone.features}"
                        self.send(b"CNXN", _VERSION, _MAX_DATA, banner.encode())
                    else:
                        self.send(b"AUTH", _TOKEN, 0, os.urandom(20))
                elif command == b"OPEN":
                    stream = self._streams[first] = _Stream(self, first)
                    self.send(b"OKAY", first, first)
                    service = data.rstrip(b"\0").decode()
                    threading.Thread(target=self._run, args=(stream, service), daemon=True).start()
                elif first in self._streams:
                    self._streams[first].inbox[command].put(data)
                    if command == b"WRTE":
                        self.send(b"OKAY", first, first)
                    elif command == b"CLSE":
                        self._streams[first].inbox[b"WRTE"].put(b"")

    @contextlib.contextmanager
    def _ended(self):
        """What reads from a client that is gone comes to an end."""
        try:
            yield
        finally:
            for stream in list(self._streams.values()):
                stream.inbox[b"WRTE"].put(b"")

    def _run(self, stream: _Stream, service: str) -> None:
        with contextlib.suppress(OSError, EOFError, queue.Empty):
            if service.startswith("shell,v2"):
                _shell(self._phone, stream, service.partition(":")[2])
            elif service == "sync:":
                _sync(self._phone, stream)
        with contextlib.suppress(OSError):
            self.send(b"CLSE", stream.id, stream.id)


class _Stream:
    """One of a connection's; ours and the client's numbers of it are the same."""

    def __init__(self, connection: _Connection, number: int) -> None:
        self._connection, self.id, self._rest = connection, number, b""
        self.inbox: dict[bytes, queue.Queue[bytes]] = {
            command: queue.Queue() for command in (b"OKAY", b"WRTE", b"CLSE")
        }

    def write(self, data: bytes) -> None:
        for at in range(0, len(data), _MAX_DATA):
            self._connection.send(b"WRTE", self.id, self.id, data[at : at + _MAX_DATA])
            self.inbox[b"OKAY"].get(timeout=20)

    def read(self, size: int) -> bytes:
        while len(self._rest) < size:
            chunk = self.inbox[b"WRTE"].get()
            if not chunk:
                raise EOFError
            self._rest += chunk
        data, self._rest = self._rest[:size], self._rest[size:]
        return data


def _shell(phone: Phone, stream: _Stream, line: str) -> None:
    variables = [f"{name}={value}" for name, value in phone.environment.items()]
    inside = ["env", f"--chdir={phone.folder}", *variables, "sh", "-c", phone.local(line)]
    with subprocess.Popen(
        phone.wrapped(inside),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        threading.Thread(target=_feed, args=(stream, process.stdin), daemon=True).start()

        def pump(kind: int, pipe: object) -> None:
            with contextlib.suppress(OSError, queue.Empty):
                while data := os.read(pipe.fileno(), 4096):
                    if UNPLUG.encode() in data:
                        phone.unplug()
                    stream.write(struct.pack("<BI", kind, len(data)) + data)

        pumps = [
            threading.Thread(target=pump, args=pair, daemon=True)
            for pair in ((_STDOUT, process.stdout), (_STDERR, process.stderr))
        ]
        for one in pumps:
            one.start()
        for one in pumps:
            one.join()
    stream.write(struct.pack("<BIB", _EXIT, 1, process.returncode & 0xFF))


def _feed(stream: _Stream, stdin: object) -> None:
    """Passes on what the client sends, until it sends no more or is gone."""
    with contextlib.suppress(OSError, EOFError, ValueError), stdin:
        while True:
            kind, size = struct.unpack("<BI", stream.read(5))
            data = stream.read(size)
            if kind == _CLOSE_STDIN:
                return
            if kind == _STDIN:
                stdin.write(data)
                stdin.flush()


def _sync(phone: Phone, stream: _Stream) -> None:
    while True:
        request, size = struct.unpack("<4sI", stream.read(8))
        if request == b"QUIT":
            return
        name = phone.local(stream.read(size).decode())
        path = Path(name.rpartition(",")[0] if request == b"SEND" else name)
        if request == b"STAT":
            with contextlib.suppress(OSError):
                status = path.stat()
                parts = (status.st_mode, status.st_size, int(status.st_mtime))
                stream.write(b"STAT" + struct.pack("<3I", *parts))
                continue
            stream.write(b"STAT" + bytes(12))
        elif request == b"RECV":
            content = path.read_bytes()
            for at in range(0, len(content), _MAX_DATA):
                part = content[at : at + _MAX_DATA]
                stream.write(b"DATA" + struct.pack("<I", len(part)) + part)
            stream.write(b"DONE" + bytes(4))
        elif request == b"SEND":
            content = b""
            while (part := struct.unpack("<4sI", stream.read(8)))[0] == b"DATA":
                content += stream.read(part[1])
            phone.space -= len(content)
            try:
                if phone.space < 0:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                path.write_bytes(content)
                stream.write(b"OKAY" + bytes(4))
            except OSError as error:
                reason = f"couldn't write: {error.strerror}".encode()
                stream.write(b"FAIL" + struct.pack("<I", len(reason)) + reason)


def _exactly(receive: object, size: int) -> bytes:
    data = b""
    while len(data) < size:
        chunk = receive(size - len(data))
        if not chunk:
            raise EOFError
        data += chunk
    return data

"""A genuine sshd on loopback, with keys, config and port of its own, run by the current user."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from missing import missing

_SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
_PRIVILEGE_SEPARATION = Path("/run/sshd")  # which sshd wants when root starts it


def require():
    """Skips the test where there is no sshd, but not in CI."""
    if _SSHD is None or shutil.which("ssh") is None:
        missing("needs OpenSSH: apt-get install openssh-server openssh-client")
    if os.getuid() == 0:
        _PRIVILEGE_SEPARATION.mkdir(exist_ok=True)


class Board:
    """The daemon, a client's config for it in `config`, and a home for what it runs.

    Args:
        folder: of all its files.
        wrapped: the command that runs another on the board, if that is not this machine.
        path: the board's PATH, behind its `bin`.
        environment: of what runs there.
    """

    def __init__(
        self,
        folder: Path,
        *,
        wrapped: Callable[[list[str]], list[str]] = lambda command: command,
        path: str = "/usr/bin:/bin",
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder
        self.home = folder / "home"
        self.bin = folder / "bin"
        self.home.mkdir()
        self.bin.mkdir()
        self._wrapped, self._environment = wrapped, environment or {}
        for key in ("host_key", "user_key", "other_key"):
            _keygen(folder / key)
        self.port = _free_port()
        self._server: subprocess.Popen | None = None
        (folder / "authorized_keys").write_text((folder / "user_key.pub").read_text())
        (folder / "sshd_config").write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {folder}/host_key\n"
            f"AuthorizedKeysFile {folder}/authorized_keys\nPidFile none\nUsePAM no\n"
            "StrictModes no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n"
            "PermitRootLogin prohibit-password\nLogLevel ERROR\nPermitUserEnvironment no\n"
            f"SetEnv PATH={self.bin}:{path} HOME={self.home} TMPDIR={self.home}"
            + "".join(f" {name}={value}" for name, value in self._environment.items())
            + "\n"
        )
        self.write_config("user_key")
        self.know_host("host_key")
        self.start()

    @property
    def config(self) -> Path:
        return self.folder / "ssh_config"

    def write_config(self, key: str) -> None:
        self.config.write_text(
            f"Host board\n  HostName 127.0.0.1\n  Port {self.port}\n"
            f"  IdentityFile {self.folder / key}\n  IdentitiesOnly yes\n  IdentityAgent none\n"
            f"  UserKnownHostsFile {self.folder}/known_hosts\n  GlobalKnownHostsFile /dev/null\n"
        )

    def know_host(self, key: str | None) -> None:
        """What the client takes for the board's key."""
        line = "" if key is None else f"[127.0.0.1]:{self.port} {_public(self.folder / key)}\n"
        (self.folder / "known_hosts").write_text(line)

    def script(self, name: str, text: str) -> None:
        """A program on the board's PATH."""
        path = self.bin / name
        path.write_text("#!/bin/sh\n" + text)
        path.chmod(0o755)

    def start(self) -> None:
        with (self.folder / "sshd.log").open("ab") as log:
            self._server = subprocess.Popen(
                self._wrapped([_SSHD, "-D", "-e", "-f", str(self.folder / "sshd_config")]),
                env=os.environ | self._environment,
                stderr=log,
                start_new_session=True,
            )
        for _ in range(200):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port)):
                return
            if self._server.poll() is not None:
                break
            time.sleep(0.05)
        pytest.fail("sshd does not start: " + (self.folder / "sshd.log").read_text()[-500:])

    def kill(self) -> None:
        """The board is gone: the daemon and the connections, as without power."""
        assert self._server is not None
        for pid in [*_descendants(self._server.pid, "sshd"), self._server.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._server.wait()


def _descendants(pid: int, name: str) -> list[int]:
    """The processes below `pid` whose program's name starts so."""
    children: dict[int, list[tuple[int, str]]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            head, _, rest = stat.read_text().rpartition(")")
            number, _, command = head.partition(" (")
            children.setdefault(int(rest.split()[1]), []).append((int(number), command))
    found = []
    for child, command in children.get(pid, []):
        if command.startswith(name):
            found += [child, *_descendants(child, name)]
    return found


def _keygen(path: Path) -> None:
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", path], check=True
    )


def _public(path: Path) -> str:
    return " ".join(path.with_suffix(".pub").read_text().split()[:2])


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])

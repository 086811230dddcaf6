"""A Linux board over the system's `ssh` client, which knows the user's keys, agent and config.

A remote shell splits what it gets, so every argument is quoted and nothing else is sent to it.
Nobody is prompted, and a host whose key is not known is refused.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import subprocess
import tempfile
import threading
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

from kapps._errors import InputError, one_line
from kapps._files import unique
from kapps.tflite.measurement.transport import Completed, quoted

_CONNECT_SECONDS = 15
_PUSH_SECONDS = 600
_MAX_OUTPUT = 256 << 20  # bytes; a sample takes 10, a minute of a net of 0.1 ms is 6 MB
_HOST = re.compile(
    r"(?:[A-Za-z0-9_.][\w.-]*@)?(?:[A-Za-z0-9_.][\w.-]*|\[[0-9A-Fa-f:.]+(?:%\w+)?\])"
)

# Runs "$@" and tells its exit code on the last line of stderr: that line is missing if the
# connection broke, which the client's own code, 255, does not tell from a command's. The command
# ends with the connection: `cat` comes to an end when nobody holds the other end of stdin any more.
_RUN = """
token=$1; shift
exec 3<&0
"$@" </dev/null 3<&- & command=$!
{ cat; kill "$command"; } <&3 >/dev/null 2>&1 & watch=$!
exec 3<&-
wait "$command" 2>/dev/null; code=$?
kill "$watch" 2>/dev/null
printf '\\n%s %d\\n' "$token" "$code" >&2
"""
_PUSH = 'umask 077; cat >"$1" && wc -c <"$1"'


class Ssh:
    """A connection to a board, as a `Transport`; close it, or use `with`.

    Attributes:
        name: "ssh:HOST".

    Args:
        host: "board", "user@board" or "user@board:port", as in ~/.ssh/config or by name.
        config: a file in place of ~/.ssh/config.

    Raises:
        InputError: no `ssh` here, or the board cannot be reached, is not known or lets nobody in.
    """

    def __init__(self, host: str, *, config: str | os.PathLike[str] | None = None) -> None:
        address, port = _split(host)
        client = shutil.which("ssh")
        if client is None:
            raise InputError("there is no `ssh` on this machine; install OpenSSH's client")
        self.name = f"ssh:{host}"
        self._host = host
        folder = f"{_folder_of_sockets()}/kapps-ssh-{unique()}"
        self._command = [
            client,
            *(["-F", os.fspath(config)] if config is not None else []),
            *(["-p", port] if port else []),
            *_options(
                BatchMode="yes",
                StrictHostKeyChecking="yes",
                UpdateHostKeys="no",
                ConnectTimeout=_CONNECT_SECONDS,
                ServerAliveInterval=5,
                ServerAliveCountMax=3,
                ClearAllForwardings="yes",
                RequestTTY="no",
                LogLevel="ERROR",
                ControlPath=f"{folder}/c",
            ),
        ]
        self._address = address
        self._close = weakref.finalize(self, _hang_up, self._command, address, folder)
        try:
            os.mkdir(folder, 0o700)
            self._connect()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Ssh:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection."""
        self._close()

    def run(
        self,
        arguments: Sequence[str],
        *,
        time_limit: float,
        on_line: Callable[[str], object] = lambda line: None,
    ) -> Completed:
        """Runs a command on the board; it ends with the connection, or after `time_limit` seconds.

        A command that a signal ended has code 128 + signal. `on_line` is called with each line of
        its stdout as it comes.

        Raises:
            InputError: the board is gone, or the command took too long or said too much.
        """
        token = secrets.token_hex(16)
        remote = ["sh", "-c", _RUN, "sh", token, *arguments]
        stdout, stderr = self._session(remote, None, time_limit, arguments[0], on_line)
        told, mark, code = stderr.rpartition(f"\n{token} ".encode())
        if not mark or not re.fullmatch(rb"\d{1,3}\s*", code):
            raise self._lost(stderr.decode(errors="replace"))
        return Completed(int(code), stdout.decode(errors="replace"), told.decode(errors="replace"))

    def push(self, local: Path, remote: str) -> None:
        """Copies a file to the board, readable by the user alone.

        Raises:
            InputError: the file cannot be read, or the board is gone or has no space for it.
        """
        try:
            size = local.stat().st_size
            file = open(local, "rb")  # noqa: SIM115
        except OSError as error:
            raise InputError(f"cannot read {local}: {error.strerror}") from error
        with file:
            remote_command = ["sh", "-c", _PUSH, "sh", remote]
            limit = _PUSH_SECONDS
            stdout, stderr = self._session(remote_command, file, limit, f"copying {local.name}")
        said = stderr.decode(errors="replace").strip()
        if stdout.strip() == str(size).encode():
            return
        if "No space left" in said or "quota" in said:
            raise InputError(
                f"{self.name}: no space for {local.name} ({size:,} bytes) at {remote}; free some"
            )
        if not stdout.strip() and ("Connection" in said or "mux" in said or not said):
            raise self._lost(said)
        raise InputError(f"{self.name}: cannot write {remote}: {last_line(said) or 'cut short'}")

    def pull(self, remote: str) -> bytes:
        """A file of the board.

        Raises:
            InputError: there is no such file, it is too large, or the board is gone.
        """
        token = secrets.token_hex(16)
        command = ["sh", "-c", _RUN, "sh", token, "cat", "--", remote]
        stdout, stderr = self._session(command, None, _PUSH_SECONDS, f"reading {remote}")
        told, mark, code = stderr.rpartition(f"\n{token} ".encode())
        if not mark:
            raise self._lost(stderr.decode(errors="replace"))
        if code.strip() != b"0":
            said = last_line(told.decode(errors="replace"))
            raise InputError(f"{self.name}: cannot read {remote}: {said}")
        return stdout

    def _connect(self) -> None:
        """Opens the connection that all sessions share.

        It outlives this call by a minute at most, and with it what it holds: hence files, because
        the end of a pipe would not come.
        """
        shared = _options(ControlMaster="yes", ControlPersist=60)
        with tempfile.TemporaryFile() as errors:
            try:
                code = subprocess.run(
                    [*self._command, *shared, "--", self._address, "true"],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=errors,
                    env=_environment(),
                    timeout=4 * _CONNECT_SECONDS,
                ).returncode
            except subprocess.TimeoutExpired as error:
                raise InputError(f"{self.name} does not answer; is it the right host?") from error
            errors.seek(0)
            said = errors.read(_MAX_OUTPUT).decode(errors="replace")
        if code:
            raise self._refused(said)

    def _session(
        self,
        remote: Sequence[str],
        source: IO[bytes] | None,
        time_limit: float,
        what: str,
        on_line: Callable[[str], object] = lambda line: None,
    ) -> tuple[bytes, bytes]:
        """Stdout and stderr of a command on the board, whose stdin is `source`, or stays open."""
        if not self._close.alive:
            raise InputError(f"{self.name} is closed")
        command = [*self._command, "--", self._address, quoted(remote)]
        ended = ""
        with subprocess.Popen(
            command,
            stdin=subprocess.PIPE if source is None else source,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=_environment(),
        ) as client:

            def end(why: str) -> None:
                nonlocal ended
                ended = ended or why
                client.kill()

            parts: list[list[bytes]] = [[], []]

            def read(stream: IO[bytes], into: list[bytes], told: Callable[[str], object]) -> None:
                size = 0
                pieces: list[bytes] = []  # of a line
                while piece := stream.readline(1 << 16):
                    size += len(piece)
                    if size > _MAX_OUTPUT:
                        return end(f"said more than {_MAX_OUTPUT >> 20} MiB")
                    into.append(piece)
                    pieces.append(piece)
                    if piece.endswith(b"\n"):
                        told(b"".join(pieces).decode(errors="replace"))
                        pieces.clear()
                return None

            assert client.stdout is not None
            assert client.stderr is not None
            timer = threading.Timer(time_limit, end, [f"took over {time_limit:g} s"])
            errors = threading.Thread(
                target=read, args=(client.stderr, parts[1], lambda line: None)
            )
            timer.start()
            errors.start()
            try:
                read(client.stdout, parts[0], on_line)
                client.wait()
            finally:
                timer.cancel()
                client.kill()
                errors.join()
        if ended:
            raise InputError(f"{self.name}: {what} {ended} and was ended")
        return b"".join(parts[0]), b"".join(parts[1])

    def _refused(self, said: str) -> InputError:
        """Why there is no connection, and what to do."""
        for pattern, meaning in _REFUSALS:
            if re.search(pattern, said):
                return InputError(
                    f"{self.name} {meaning.format(host=self._host, ssh=self._by_hand)}"
                )
        return InputError(f"{self.name} cannot be reached: {last_line(said) or 'no reason given'}")

    def _lost(self, said: str) -> InputError:
        for pattern, _ in _REFUSALS:
            if re.search(pattern, said):
                return self._refused(said)
        why = last_line(said)
        return InputError(
            f"{self.name}: the connection broke{f' ({why})' if why else ''}; is the board still on?"
        )

    @property
    def _by_hand(self) -> str:
        port = self._command[self._command.index("-p") + 1] if "-p" in self._command else ""
        return f"ssh {f'-p {port} ' if port else ''}{self._address}"


# What OpenSSH says, and what it means to the user.
_REFUSALS = (
    (
        "REMOTE HOST IDENTIFICATION HAS CHANGED",
        "shows another host key than before: another board, or somebody in between; if you know "
        "why, remove the old key with ssh-keygen -R and connect once by hand: {ssh}",
    ),
    (
        "Host key verification failed|host key is known",
        "is not a known host; connect once by hand and compare its fingerprint: {ssh}",
    ),
    (
        "Permission denied|Too many authentication failures",
        "lets nobody in with the keys at hand; install yours there: ssh-copy-id {host}",
    ),
    ("Could not resolve", "is a name that nobody knows; check it, or add it to ~/.ssh/config"),
    (
        "Connection refused|No route to host|timed out|Network is unreachable",
        "cannot be reached; is it on, on the network, and does sshd run there? Try: {ssh}",
    ),
)


def _split(host: str) -> tuple[str, str]:
    """Address and port of "user@host:port"; brackets around an IPv6 address are taken off."""
    address, colon, port = host, "", ""
    if host.count(":") == 1 or "]:" in host:
        address, colon, port = host.rpartition(":")
    if not _HOST.fullmatch(address) or (colon and not _is_port(port)):
        raise InputError(
            f"{host!r} is no host; expected ssh:HOST, ssh:USER@HOST or ssh:USER@HOST:PORT"
        )
    return address.replace("[", "").replace("]", ""), port


def _is_port(text: str) -> bool:
    return re.fullmatch("[0-9]{1,5}", text) is not None and 0 < int(text) < 65536


def _folder_of_sockets() -> str:
    """The folder for temporary files, if a socket below can be named: in 104 bytes, all told.

    The rest of its path is of 40, of which 17 are ssh's own; and to ssh blanks, quotes and per cent
    signs say something else.
    """
    folder = tempfile.gettempdir()
    return folder if re.fullmatch(r"[\w./-]{1,64}", folder, re.ASCII) else "/tmp"


def _options(**values: object) -> list[str]:
    return [part for key, value in values.items() for part in ("-o", f"{key}={value}")]


def _environment() -> dict[str, str]:
    return os.environ | {"LC_ALL": "C"}  # its messages are told apart by their English words


def last_line(said: str) -> str:
    """The last line of what a board said, short and without control characters."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return one_line(lines[-1][:200]) if lines else ""


def _hang_up(command: Sequence[str], address: str, folder: str) -> None:
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        if Path(folder, "c").exists():
            silent: Any = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            end = [*command, "-O", "exit", "--", address]
            subprocess.run(end, stdin=subprocess.DEVNULL, timeout=5, **silent)
    shutil.rmtree(folder, ignore_errors=True)

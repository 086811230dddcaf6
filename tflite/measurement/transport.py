"""How commands and files reach a device: what adb and ssh have in common."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from kapps._errors import InputError


@dataclass(frozen=True)
class Completed:
    """A command that ran on a device.

    Attributes:
        code: its exit code; 128 + n if signal n ended it.
        stdout: what it printed there, as text; what is no UTF-8 is replaced.
        stderr: the same of its errors.
    """

    code: int
    stdout: str
    stderr: str


class Transport(Protocol):
    """A device on which commands run and to which files go.

    Each method raises `InputError` for what the user can mend: the device is gone, it does not
    trust this host, its disk is full, it takes longer than it may.
    """

    @property
    def name(self) -> str:
        """What the user calls it: "adb:SERIAL" or "ssh:HOST"."""

    def run(self, arguments: Sequence[str], *, time_limit: float) -> Completed:
        """Runs a command, and does not mind how it ends.

        Args:
            arguments: the program and its arguments; the device's shell sees each of them quoted.
            time_limit: seconds.

        Raises:
            InputError: the device is gone, or the command takes longer.
        """

    def push(self, local: Path, remote: str) -> None:
        """Copies a file to the device; its folder is there.

        Raises:
            InputError: the device is gone or has no space, or the file cannot be read.
        """

    def pull(self, remote: str) -> bytes:
        """The content of a file on the device.

        Raises:
            InputError: the device is gone, or has no such file.
        """


def quoted(arguments: Sequence[str]) -> str:
    """The arguments as one line for a POSIX shell, which takes each of them as it is.

    Raises:
        InputError: one holds what no command line can.
    """
    if any("\0" in argument for argument in arguments):
        raise InputError("a command line cannot hold a NUL character")
    return shlex.join(arguments)

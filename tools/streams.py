"""The standard streams of a program: readers that leave, disks that are full, TensorFlow's talk."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, TextIO

from kapps._errors import InputError

# What TensorFlow and its libraries say of themselves when they start, below fatal errors.
_TALK = (
    r"^([IWE][0-9]{4} [0-9]{2}:[0-9]{2}:|"
    r"[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9:.]+: [IWE] |"
    r"WARNING: All log messages before absl::InitializeLog|"
    r"To enable the following instructions: )"
)


class _Raw(io.FileIO):
    """Whoever reads it may leave: what is written then is dropped, and the work goes on."""

    def __init__(self, descriptor: int, name: str | None) -> None:
        super().__init__(descriptor, "wb", closefd=False)
        self._told = name
        self._lost = False

    def write(self, data: Any) -> int:
        if not self._lost:
            try:
                return super().write(data)
            except BrokenPipeError:
                self._lost = True
            except OSError as error:
                self._lost = True
                if self._told is not None:
                    raise InputError(f"cannot write to {self._told}: {error.strerror}") from error
        return memoryview(data).nbytes


@contextlib.contextmanager
def forgiving() -> Iterator[None]:
    """Within, stdout and stderr outlive their readers, and print every text in every locale.

    Raises:
        InputError: of a write or a flush of stdout that fails otherwise, once: the disk is full.
    """
    own: dict[str, TextIO | None] = {"stdout": sys.stdout, "stderr": sys.stderr}
    for name, stream in own.items():
        # Only Python's own: a test or a notebook has put another one there, and reads it itself.
        if type(stream) is not io.TextIOWrapper:
            continue
        with contextlib.suppress(OSError):
            stream.flush()
        raw = _Raw(stream.fileno(), "standard output" if name == "stdout" else None)
        wrapped = io.TextIOWrapper(
            raw if isinstance(stream.buffer, io.FileIO) else io.BufferedWriter(raw),  # python -u
            encoding=stream.encoding,
            errors="backslashreplace",
            line_buffering=stream.line_buffering,
            write_through=stream.write_through,
        )
        setattr(sys, name, wrapped)
    try:
        yield
    finally:
        for name, stream in own.items():
            setattr(sys, name, stream)


def start_keras() -> None:
    """Imports Keras, to compute in float32 with channels last whatever keras.json says.

    A program's figures are to be those of any other machine. What TensorFlow says when it starts is
    dropped, unless the environment's TF_CPP_MIN_LOG_LEVEL asks for it: 0 or 1.

    scikit-learn and matplotlib, which Keras imports where it finds them, for wrappers and galleries
    that no program has, are a third of the time that this takes: Keras does not find them here.
    """
    with _without_talk(), _hidden("matplotlib", "sklearn"):
        import keras

        if keras.backend.backend() == "tensorflow":
            import tensorflow as tf

            tf.config.list_physical_devices()  # finds no CUDA, and says so
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")
    keras.config.set_image_data_format("channels_last")


@contextlib.contextmanager
def _hidden(*modules: str) -> Iterator[None]:
    """Within, those that have not been imported yet cannot be."""
    hidden = [module for module in modules if module not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None: it is not there
    try:
        yield
    finally:
        for module in hidden:
            del sys.modules[module]


@contextlib.contextmanager
def _without_talk() -> Iterator[None]:
    """Leads stderr through grep: C++ writes there too, and even if it aborts the rest is seen."""
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL", "2") < "2" or "tensorflow" in sys.modules:
        yield
        return
    try:
        own = os.dup(2)
    except OSError:  # there is no stderr
        yield
        return
    try:
        grep = subprocess.Popen(
            ["grep", "-avE", "--line-buffered", _TALK], stdin=subprocess.PIPE, stdout=own
        )
    except OSError:  # there is no grep
        os.close(own)
        yield
        return
    assert grep.stdin is not None
    try:
        os.dup2(grep.stdin.fileno(), 2)
        yield
    finally:
        os.dup2(own, 2)
        os.close(own)
        grep.stdin.close()
        grep.wait()

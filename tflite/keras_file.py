"""A `.keras` file that may come from elsewhere, in a process of its own and with limits.

Keras's safe mode keeps code in the file from being run, but a crafted one can still ask for all
memory or never end. So the program that is given one starts itself anew (`start_anew`), and only
that process loads the file; the first one passes on its flags and the exit status. It is a fresh
process and no fork, as TensorFlow has threads (see `kapps.tflite.child` for .tflite files).
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from kapps._errors import InputError, printable

if TYPE_CHECKING:
    import keras

MEMORY_LIMIT = 32 << 30  # bytes of address space, of which TensorFlow reserves some at once
_GRACE = 10.0  # seconds in which a process that was asked to end may remove what it was writing

_limited = False  # whether this is the process that may load a file


def start_anew(program: str, file: str, *, time_limit: float) -> int:
    """Runs this program again, with the flags of this process, where it may `load` the file.

    Args:
        program: its module, below kapps.tflite.programs.
        file: the `.keras` file, for the message.
        time_limit: seconds after which it is ended.

    Returns:
        Its exit status, for this process to end with.

    Raises:
        InputError: there is no such file, or it is none of Keras; or the process was killed, or
            took too long.
    """
    _check(file)
    command = [sys.executable, __file__, program, *sys.argv]
    # A session of its own, so that all that it starts ends with it.
    with subprocess.Popen(command, start_new_session=True) as process:
        try:
            code = process.wait(time_limit)
        except subprocess.TimeoutExpired:
            raise InputError(f"{file}: took over {time_limit:g} s and was ended") from None
        finally:
            _end(process)
    if code < 0:
        raise InputError(
            f"{file} kills the process that loads it ({_name(-code)}): is the file intact? "
            f"It may use {MEMORY_LIMIT >> 30} GiB of memory"
        )
    return code


def in_limits() -> bool:
    """Whether this process was started by `start_anew`."""
    return _limited


def load(path: str) -> keras.Model:
    """The model in a `.keras` file, in Keras's safe mode. Only where `in_limits`.

    Layers of Keras and of kapps are known; code in the file is not run.

    Raises:
        InputError: there is no such file, it is damaged, or it has a layer that is not known.
    """
    if not _limited:
        raise RuntimeError("a .keras file is loaded in a process with limits only")
    _check(path)
    import keras

    from kapps import custom_layers  # noqa: F401  known by name from here on

    try:
        return keras.models.load_model(path, compile=False, safe_mode=True)
    except MemoryError as error:
        raise InputError(f"{path} asks for over {MEMORY_LIMIT >> 30} GiB of memory") from error
    except Exception as error:  # a damaged file raises whatever its reader stumbles over
        text = str(error)
        if ("Lambda" in text and "could not be deserialized" in text) or "`Lambda`" in text:
            raise InputError(
                f"{path} has a Lambda layer, which is code, and is not run: use a layer of Keras "
                "in its place, such as keras.layers.Rescaling, and save the model again"
            ) from error
        _, found, unknown = text.partition("Could not locate class ")
        if found:
            raise InputError(
                f"{path} has a layer of class {unknown.split('.')[0]}, which neither Keras nor "
                "kapps knows: build it from layers of Keras, or call kapps.tflite.convert where "
                "the class is defined"
            ) from error
        said = printable(text)[:200] or type(error).__name__
        raise InputError(f"{path} cannot be loaded ({said}): is the file intact?") from error


def _check(path: str) -> None:
    if not Path(path).is_file():
        raise InputError(f"no such file: {path}")
    if Path(path).suffix != ".keras" or not zipfile.is_zipfile(path):
        raise InputError(
            f"{path} is no .keras file: write one by Keras 3, model.save('model.keras')"
        )


def _end(process: subprocess.Popen[bytes]) -> None:
    """Asks it to end, and then ends it, with all that it has started."""
    with contextlib.suppress(ProcessLookupError):
        if process.poll() is None:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_GRACE)
        os.killpg(process.pid, signal.SIGKILL)


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _start(program: str, argv: list[str]) -> None:
    from kapps.tflite import child, keras_file

    child.limit_resources(MEMORY_LIMIT)
    keras_file._limited = True  # of the module that is imported, which this script is not
    sys.argv = argv
    importlib.import_module(f"kapps.tflite.programs.{program}").run()


if __name__ == "__main__":
    sys.path.pop(0)  # this folder, which a script has first: its modules are not to hide others
    _start(sys.argv[1], sys.argv[2:])

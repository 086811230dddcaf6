"""Imports names and modules of kapps, each in a process where neither kapps nor Keras was before.

As a program: a JSON list of statements on the standard input, and on the output a JSON object of
those that failed. Each runs in a fork of this process, which has the parts of Keras but not Keras
itself, so that to import it costs milliseconds and still is the first time.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
import traceback

import keras

# What takes seconds, and is no part of what is tested.
HEAVY = ("matplotlib.figure", "tensorflow_datasets", "tensorflow_model_optimization", "tf_keras")


def failure(statement: str) -> str:
    """What went wrong, or nothing."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        status = 1
        try:
            exec(statement, {})
            assert "keras" not in sys.modules or sys.modules["keras"] is not keras
            status = 0
        except BaseException:
            os.write(writer, traceback.format_exc().encode()[-2000:])
        finally:
            os._exit(status)
    os.close(writer)
    with open(reader, encoding="utf-8") as stream:
        said = stream.read()
    _, status = os.waitpid(child, 0)
    return said or (f"ended with {status}" if status else "")


def main() -> None:
    for module in HEAVY:
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
    del sys.modules["keras"]
    assert not any(name.partition(".")[0] == "kapps" for name in sys.modules)
    found = {statement: failure(statement) for statement in json.load(sys.stdin)}
    print(json.dumps({statement: said for statement, said in found.items() if said}))


if __name__ == "__main__":
    main()

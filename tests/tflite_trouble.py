"""A server of `kapps.tflite.child` whose task makes the trouble that it is asked for."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
import time
from typing import Any

from kapps import InputError
from kapps.tflite import child


def work(request: dict[str, Any], emit: Any) -> Any:
    if "at" in request:
        emit(at=request["at"])
    match request["trouble"]:
        case "none":
            return {"given": request, "pid": os.getpid()}
        case "emit":
            for n in range(3):
                emit(n=n)
            return "done"
        case "signal":
            os.kill(os.getpid(), getattr(signal, request["name"]))
        case "real-time signal":
            os.kill(os.getpid(), signal.SIGRTMIN + 1)
        case "segfault":
            ctypes.string_at(0)
        case "hang":
            while True:
                time.sleep(1)
        case "hang with closed pipes":
            os.closerange(0, 4)
            time.sleep(1000)
        case "deaf hang":
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)
            while True:
                pass
        case "endless output":
            while True:
                os.write(3, b"x" * 65536)
        case "endless lines":
            while True:
                os.write(3, b'{"n": 1}\n' * 6000)
        case "endless noise":
            os.write(1, b"noise\n" * 1000)
            while True:
                os.write(2, b"x" * 65536)
        case "noise":
            os.system("echo noise; echo more >&2")
            print('{"result": "forged"}', flush=True)
            return "right"
        case "garbage":
            os.write(3, b"\x00\xff{garbage\n")
        case "no object":
            os.write(3, b"[1, 2]\n")
        case "deep":
            os.write(3, b"[" * 1_000_000 + b"\n")
        case "half a line":
            os.write(3, b'{"result": 1')
            os._exit(0)
        case "silence":
            os._exit(0)
        case "memory":
            return len(bytes(child.MEMORY_LIMIT))
        case "core":
            return resource.getrlimit(resource.RLIMIT_CORE)[0]
        case "exit":
            os._exit(3)
        case "exception":
            raise KeyError("two\nlines")
        case "input error":
            raise InputError(
                f"{request.get('says', request['at'])}: two\nlines \x1b[31m{'x' * 10_000}"
            )
        case "nameless error":
            raise InputError("tensor 7 of 3 is referred to")
        case "limits":
            kinds = (resource.RLIMIT_AS, resource.RLIMIT_FSIZE, resource.RLIMIT_CORE)
            return [resource.getrlimit(kind) for kind in kinds]
        case "pipes":
            return sorted(int(name) for name in os.listdir("/proc/self/fd"))
        case "stdin":
            return sys.stdin.read() + os.read(0, 100).decode()
    return None


if __name__ == "__main__":
    sys.modules["kapps.tflite.trouble"] = sys.modules["__main__"]
    child._serve("trouble")

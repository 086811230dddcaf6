"""Work on files that may come from elsewhere, in a process of its own and with limits.

A malformed file can kill the interpreter, hang it, flood its output or ask for all memory: that
ends the child, and becomes one clear `InputError` here. A task is a module of this package with a
function `work(request, emit)`: `request` is a JSON object, what it returns is JSON, and
`emit(name=value)` tells the parent something on the way; `emit(at=path)` names the file at hand
before it is touched. The module must not start threads when it is imported (no tensorflow).

Two processes stand behind it. A server, a fresh Python, imports the task once; for each request it
forks a child, which is the only one that opens a file. The child's memory, core dumps and files are
limited, it holds no other end of the server's pipes, and what it sends is cut off at `OUTPUT_LIMIT`
and passed on only if it is JSON.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NoReturn

from kapps._errors import InputError, one_line
from kapps.tflite.memory import give_back_free_memory

MEMORY_LIMIT = 8 << 30  # bytes of address space; the largest network of kapps takes a fifth
OUTPUT_LIMIT = 64 << 20  # bytes that a child may send; samples and tensors go into files
_LEAST = 256  # bytes that a line counts for: many short ones are work for the parent too
FILE_LIMIT = 2 << 30  # bytes of any file that it writes
_ERRORS_KEPT = 4096  # bytes of what it says on stderr; the rest is dropped
_START_LIMIT = 120.0  # seconds in which the server has to be there
MOST_SECONDS = 1e6  # of a time limit; timers and select() take no endless one
_GRACE = 30.0  # seconds beyond the time limit after which the server itself is given up


def run(
    task: str,
    request: Mapping[str, Any],
    *,
    time_limit: float,
    on_message: Callable[[dict[str, Any]], object] = lambda message: None,
) -> Any:
    """What the `work` of the module `kapps.tflite.<task>` returns for `request`.

    Args:
        task: the module's name.
        request: what it is given, a JSON object.
        time_limit: seconds after which the process is ended.
        on_message: called with what the task emits on the way, {name: value}.

    Raises:
        InputError: the task raised one, or the process died, took too long or sent no sense; the
            message names the file at hand. Or the time limit is none.
        RuntimeError: the task failed before it came to a file: a mistake of ours.
    """
    check_time_limit(time_limit)
    with _server(task) as server:
        return _outcome(task, _answer(server, request, time_limit, on_message), time_limit)


def run_each(
    task: str, requests: Sequence[Mapping[str, Any]], *, time_limit: float
) -> list[Any | InputError]:
    """What `run` returns or raises for each request, each in a child of its own.

    The task is imported once for all, so that a request costs milliseconds.

    Args:
        task: the module's name.
        requests: what it is given, one JSON object after the other.
        time_limit: seconds that one request may take.

    Raises:
        InputError: the time limit is none.
        RuntimeError: the task failed before it came to a file: a mistake of ours.
    """
    check_time_limit(time_limit)
    results: list[Any | InputError] = []
    if not requests:
        return results
    with _server(task) as server:
        for request in requests:
            end = _answer(server, request, time_limit, lambda message: None)
            try:
                results.append(_outcome(task, end, time_limit))
            except InputError as error:
                results.append(error)
    return results


@contextlib.contextmanager
def opened(task: str) -> Iterator[Callable[[Mapping[str, Any], float], Any]]:
    """A function of a request and its time limit that does as `run`, time and again.

    It is for requests that depend on earlier answers; as in `run_each`, one costs milliseconds.
    """
    with _server(task) as server:

        def ask(request: Mapping[str, Any], time_limit: float) -> Any:
            check_time_limit(time_limit)
            end = _answer(server, request, time_limit, lambda message: None)
            return _outcome(task, end, time_limit)

        yield ask


def check_time_limit(seconds: float) -> None:
    """Refuses what is no time limit: not-a-number, infinity, 0.

    Raises:
        InputError: it is none, or longer than `MOST_SECONDS`.
    """
    if not 0 < seconds <= MOST_SECONDS:
        raise InputError(
            f"time_limit: expected seconds above 0, at most {MOST_SECONDS:,.0f}, not {seconds:g}"
        )


def check_input_shape(shape: Sequence[int] | None) -> list[int] | None:
    """The shape as a list of whole numbers above 0.

    Raises:
        InputError: it is none.
    """
    if shape is None:
        return None
    if not shape or not all(type(n) is int and 0 < n < 1 << 31 for n in shape):
        raise InputError(f"input_shape: expected whole numbers above 0, not {list(shape)}")
    return list(shape)


# The parent.


@contextlib.contextmanager
def _server(task: str) -> Iterator[subprocess.Popen[bytes]]:
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(
            [sys.executable, __file__, task],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,  # so that its children end with it
            # A fork keeps only the thread that forks; numpy's own would start at the import.
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
        ) as server,
    ):
        try:
            with _deadline(server, _START_LIMIT):
                ready = _next_line(server.stdout)
            if ready != {"ready": task}:
                code = server.wait() if ready is None else None
                errors.seek(0)
                said = errors.read(4096).decode(errors="replace").strip()
                raise RuntimeError(f"the child process failed with exit code {code}: {said}")
            yield server
        finally:
            _end(server)
            assert server.stdin is not None
            with contextlib.suppress(BrokenPipeError):  # what it did not come to read
                server.stdin.close()


def _answer(
    server: subprocess.Popen[bytes],
    request: Mapping[str, Any],
    time_limit: float,
    on_message: Callable[[dict[str, Any]], object],
) -> dict[str, Any]:
    """How the server's child ended, and the last of each that it emitted."""
    assert server.stdin is not None
    last: dict[str, Any] = {}
    with _deadline(server, time_limit + _GRACE):
        with contextlib.suppress(BrokenPipeError):  # seen below
            line = json.dumps({"request": request, "time_limit": time_limit})
            server.stdin.write(line.encode() + b"\n")
            server.stdin.flush()
        while (message := _next_line(server.stdout)) is not None:
            if "end" in message:
                return {"last": last, **message["end"]}
            last |= message["message"]
            on_message(message["message"])
    return {"last": last, "end": "lost"}


def _next_line(stream: IO[bytes] | None) -> dict[str, Any] | None:
    assert stream is not None
    line = stream.readline()
    return json.loads(line) if line.endswith(b"\n") else None


@contextlib.contextmanager
def _deadline(server: subprocess.Popen[bytes], seconds: float) -> Iterator[None]:
    """Ends the server, should it take longer: reading from it then comes to an end too."""
    timer = threading.Timer(seconds, _end, [server])
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _end(server: subprocess.Popen[bytes]) -> None:
    if server.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)


def _outcome(task: str, end: Mapping[str, Any], time_limit: float) -> Any:
    """The result, or the error that says how the child ended."""
    last, how = end["last"], end["end"]
    if isinstance(last.get("error"), str):
        raise InputError(one_line(last["error"]))
    if how == "exit 0" and "result" in last:
        return last["result"]
    at = one_line(last["at"]) if "at" in last else None
    if how == "overdue":
        raise InputError(f"{at or task}: took over {time_limit:g} s and was ended")
    if at is None or how == "lost":
        said = one_line(end.get("said", ""))
        raise RuntimeError(f"the child process failed ({how}) at {at}: {said}")
    if how == "flood":
        raise InputError(f"{at} makes its reader send over {OUTPUT_LIMIT >> 20} MiB: refused")
    if how == "garbage" or how == "exit 0":
        raise InputError(f"{at} makes its reader send garbage: is the file intact?")
    raise InputError(f"{at} kills the interpreter ({how}): is the file intact?")


# The server.


def _serve(task: str) -> None:
    # What C++ code prints on stdout must not come between the lines.
    with os.fdopen(os.dup(1), "w") as lines:
        os.dup2(2, 1)

        def send(**message: object) -> None:
            print(json.dumps(message), file=lines, flush=True)

        work = importlib.import_module(f"kapps.tflite.{task}").work
        # What the imports have freed is not to serve a child unseen: its growth is what it uses.
        # There are tens of MB of it where Python compiles what it imports.
        give_back_free_memory()
        send(ready=task)
        for line in sys.stdin:
            received = json.loads(line)
            (reader, writer), (errors, errors_writer) = os.pipe(), os.pipe()
            child = os.fork()
            if not child:
                _be_child(work, received["request"], writer, errors_writer)
            os.close(writer)
            os.close(errors_writer)
            how, said = _follow(child, reader, errors, received["time_limit"], send)
            os.close(reader)
            os.close(errors)
            send(end={"end": how, "said": said.decode(errors="replace").strip()})


def _follow(
    child: int, reader: int, errors: int, time_limit: float, send: Callable[..., None]
) -> tuple[str, bytes]:
    """Passes on what the child sends until it ends or has to be ended; how that was, and stderr."""
    deadline = time.monotonic() + time_limit
    how, said, size, parts = "", b"", 0, [b""]
    open_pipes = [reader, errors]
    while open_pipes and not how:
        left = deadline - time.monotonic()
        ready = select.select(open_pipes, [], [], max(left, 0))[0]
        if left <= 0:
            how = "overdue"
        for pipe in ready:
            chunk = os.read(pipe, 1 << 16)
            if not chunk:
                open_pipes.remove(pipe)
                continue
            if pipe == errors:
                said = (said + chunk)[:_ERRORS_KEPT]
                continue
            size += max(len(chunk), _LEAST * chunk.count(b"\n"))
            parts.append(chunk)
            if size > OUTPUT_LIMIT:
                how = "flood"
            elif b"\n" in chunk:
                *complete, rest = b"".join(parts).split(b"\n")
                parts = [rest]
                for line in complete:
                    message = _message(line)
                    if message is None:
                        how = "garbage"
                        break
                    send(message=message)
    while not how:  # its pipes are closed: it should be gone
        if (ended := os.waitpid(child, os.WNOHANG))[0]:
            return _how(ended[1]), said
        if time.monotonic() > deadline:
            how = "overdue"
        time.sleep(0.0005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return how, said


def _message(line: bytes) -> dict[str, Any] | None:
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return message if isinstance(message, dict) else None


def _how(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return f"exit {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


# The child.


def _be_child(
    work: Callable[[dict[str, Any], Callable[..., None]], Any],
    request: dict[str, Any],
    writer: int,
    errors: int,
) -> NoReturn:
    code = 1
    try:
        os.dup2(errors, 1)
        os.dup2(errors, 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(writer, 3)
        os.closerange(4, 1024)  # among them the server's pipes
        memory = limit_resources()
        at = ""

        def emit(**message: object) -> None:
            nonlocal at
            at = str(message.get("at", at))
            line = memoryview(json.dumps(message).encode() + b"\n")
            while line:
                line = line[os.write(3, line) :]

        try:
            emit(result=work(request, emit))
        except InputError as error:
            text = str(error)
            named = not at or at in text or str(Path(at)) in text
            emit(error=text if named else f"{at}: {text}")
        except MemoryError:
            if not at:
                raise
            emit(error=f"{at} asks for over {memory / (1 << 30):g} GiB of memory: refused")
        except Exception as error:
            if not at:
                raise
            what = one_line(f"{type(error).__name__}: {error}")
            emit(error=f"{at}: cannot be worked on ({what}): is the file intact?")
        code = 0
    except BaseException as error:
        os.write(2, one_line(f"{type(error).__name__}: {error}").encode())
    os._exit(code)  # nothing of the server is to be flushed or closed here


def limit_resources(memory: int = MEMORY_LIMIT) -> int:
    """Limits this process for good: so many bytes of address space, files of 2 GiB, no core dump.

    Returns:
        The bytes of address space that are left to it.
    """
    import resource

    limit = 0
    for kind, most in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, FILE_LIMIT),
        (resource.RLIMIT_AS, memory),
    ):
        hard = resource.getrlimit(kind)[1]  # what may not be raised
        limit = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (limit, limit))
    # Linux: if memory runs out, this one goes first.
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")
    return limit


if __name__ == "__main__":
    sys.path.pop(0)  # this folder, which a script has first: its modules are not to hide others
    _serve(sys.argv[1])

"""A child process that makes trouble: the parent gets one clear line, and goes on."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kapps import InputError
from kapps.tflite import child

FILE = "some model.tflite"


@pytest.fixture(autouse=True)
def trouble(monkeypatch):
    monkeypatch.setattr(child, "__file__", str(Path(__file__).with_name("tflite_trouble.py")))


def ask(trouble, *, time_limit=60.0, at=FILE, **request):
    request |= {"trouble": trouble} | ({"at": at} if at else {})
    (answer,) = child.run_each("trouble", [request], time_limit=time_limit)
    return answer


TROUBLE = {
    "segfault": "kills the interpreter (SIGSEGV): is the file intact?",
    "real-time signal": "kills the interpreter (signal 35): is the file intact?",
    "exit": "kills the interpreter (exit 3): is the file intact?",
    "garbage": "makes its reader send garbage: is the file intact?",
    "no object": "makes its reader send garbage: is the file intact?",
    "deep": "makes its reader send garbage: is the file intact?",
    "half a line": "makes its reader send garbage: is the file intact?",
    "silence": "makes its reader send garbage: is the file intact?",
    "endless output": "makes its reader send over 64 MiB: refused",
    "endless lines": "makes its reader send over 64 MiB: refused",
    "memory": "asks for over 8 GiB of memory: refused",
}


@pytest.mark.parametrize("kind", TROUBLE)
def test_one_line_that_names_the_file(kind):
    answer = ask(kind)
    assert isinstance(answer, InputError)
    assert str(answer) == f"{FILE} {TROUBLE[kind]}"


@pytest.mark.parametrize("name", ["SIGABRT", "SIGBUS", "SIGFPE", "SIGILL", "SIGKILL"])
def test_signals(name):
    assert (
        str(ask("signal", name=name))
        == f"{FILE} kills the interpreter ({name}): is the file intact?"
    )


@pytest.mark.parametrize("kind", ["hang", "deaf hang", "hang with closed pipes", "endless noise"])
def test_what_takes_too_long_is_ended(kind):
    assert str(ask(kind, time_limit=2)) == f"{FILE}: took over 2 s and was ended"


def test_what_hangs_before_the_first_file_is_ended_too():
    assert str(ask("hang", at=None, time_limit=2)) == "trouble: took over 2 s and was ended"


def test_an_exception_is_one_line():
    expected = f"{FILE}: cannot be worked on (KeyError: 'two\\nlines'): is the file intact?"
    assert str(ask("exception")) == expected


def test_the_error_of_a_task_is_one_printable_line_of_limited_length():
    message = str(ask("input error"))
    assert message.startswith(f"{FILE}: two lines ")
    assert message.isprintable()
    assert len(message) == 500


def test_the_error_of_a_task_names_the_file():
    assert str(ask("nameless error")) == f"{FILE}: tensor 7 of 3 is referred to"
    assert str(ask("input error")).count(FILE) == 1
    assert str(ask("input error", at=f"./{FILE}", says=FILE)).count(FILE) == 1
    assert str(ask("nameless error", at=None)) == "tensor 7 of 3 is referred to"


def test_limits_that_are_lower_already():
    """Those of a batch system: what it forbids cannot be raised."""
    script = f"""
import resource
from pathlib import Path
from kapps.tflite import child
limits = {{resource.RLIMIT_AS: 3 << 30, resource.RLIMIT_FSIZE: 1 << 20, resource.RLIMIT_CORE: 0}}
for kind, limit in limits.items():
    resource.setrlimit(kind, (limit, limit))
child.__file__ = {child.__file__!r}
requests = [{{"trouble": kind, "at": "x"}} for kind in ("limits", "memory")]
limits, error = child.run_each("trouble", requests, time_limit=60)
assert limits == [[3 << 30] * 2, [1 << 20] * 2, [0, 0]], limits
assert str(error) == "x asks for over 3 GiB of memory: refused", error
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("kind", ["exception", "exit", "segfault"])
def test_a_failure_before_the_first_file_is_no_mistake_of_the_user(kind):
    with pytest.raises(RuntimeError, match="the child process failed"):
        ask(kind, at=None)


def test_a_task_that_does_not_import_is_no_mistake_of_the_user(monkeypatch):
    monkeypatch.undo()
    with pytest.raises(
        RuntimeError, match="(?s)exit code 1: .*No module named 'kapps.tflite.none'"
    ):
        child.run_each("none", [{}], time_limit=10)


@pytest.mark.parametrize("seconds", [float("nan"), float("inf"), 1e10, 0, -1])
def test_what_is_no_time_limit(seconds):
    for run in (
        lambda: child.run("trouble", {"trouble": "none"}, time_limit=seconds),
        lambda: child.run_each("trouble", [{"trouble": "none"}], time_limit=seconds),
    ):
        with pytest.raises(InputError, match="time_limit: expected seconds above 0, at most 1,000"):
            run()


def test_no_request():
    assert child.run_each("none", [], time_limit=1) == []


def test_each_request_has_a_process_of_its_own():
    requests = [
        {"trouble": kind, "at": kind} for kind in ("none", "segfault", "none", "hang", "none")
    ]
    answers = child.run_each("trouble", requests, time_limit=3)
    good = [answer for answer in answers if not isinstance(answer, InputError)]
    assert [answer["given"] for answer in good] == [requests[0], requests[2], requests[4]]
    assert len({answer["pid"] for answer in good} | {os.getpid()}) == 4
    assert [str(answer).split()[0] for answer in answers[1:4:2]] == ["segfault", "hang:"]


def test_what_is_printed_comes_not_between_the_lines(capfd):
    assert ask("noise") == "right"
    assert capfd.readouterr() == ("", "")


def test_what_the_child_holds():
    assert ask("core") == 0
    assert ask("stdin") == ""
    pipes = ask("pipes")
    assert len(pipes) == 5, pipes  # the standard three, its own, and that of the listing


def test_a_large_request_and_a_large_answer():
    text = "x" * 5_000_000
    assert ask("none", text=text)["given"]["text"] == text


def test_messages_on_the_way():
    messages = []
    request = {"trouble": "emit", "at": FILE}
    answer = child.run("trouble", request, time_limit=10, on_message=messages.append)
    assert answer == "done"
    assert messages == [{"at": FILE}, {"n": 0}, {"n": 1}, {"n": 2}, {"result": "done"}]


def test_run_raises():
    with pytest.raises(InputError, match="SIGSEGV"):
        child.run("trouble", {"trouble": "segfault", "at": FILE}, time_limit=10)


def test_nothing_is_left_when_the_parent_gives_up(tmp_path, monkeypatch):
    """An interrupt while a child hangs: the server and the child end."""
    # By its path its processes are told from those of others.
    server = shutil.copy(child.__file__, tmp_path)
    monkeypatch.setattr(child, "__file__", server)
    seen = []

    def interrupt(message):
        seen.extend(_processes(server))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        request = {"trouble": "hang", "at": FILE}
        child.run("trouble", request, time_limit=1000, on_message=interrupt)
    deadline = time.monotonic() + 20
    while (pids := list(_processes(server))) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(seen) == 2 and not pids


def _processes(server):
    """Those that run it."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if os.fsencode(server) in (folder / "cmdline").read_bytes():
                yield folder.name
        except OSError:
            continue  # it ended


def test_a_server_that_hangs_is_given_up(monkeypatch):
    monkeypatch.setattr(child, "_GRACE", 0.2)
    with child._server("trouble") as server:
        server.send_signal(signal.SIGSTOP)
        answer = child._answer(server, {"trouble": "none"}, 0.1, lambda message: None)
    assert answer == {"last": {}, "end": "lost"}

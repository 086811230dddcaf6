"""The time of each operation: here by LiteRT's own profiler, and as the tools print it."""

from __future__ import annotations

import functools
import shlex
import sys

import pytest
import sshd
import tool_texts
from hypothesis import given
from hypothesis import strategies as st
from programs import run_here
from tflite_crafted import crafted_file

from kapps import InputError
from kapps.tflite.measurement import profile, profile_on_board, ssh
from kapps.tflite.measurement.benchmark import benchmark, read_results
from kapps.tflite.measurement.latency import STOP_RULES, StopRule


@pytest.fixture(scope="module")
def nets(tmp_path_factory):
    """One that XNNPACK takes whole, and one of which it leaves the first operation."""
    folder = tmp_path_factory.mktemp("nets")
    whole, part = folder / "whole.tflite", folder / "part.tflite"
    whole.write_bytes(crafted_file([1, 3 * 128**2], side=256))
    part.write_bytes(crafted_file([1, 3 * 128**2], "UINT8", side=256))
    return [whole, part]


def _host(paths, **settings):
    given = {"threads": 1, "input_shape": None, "time_limit": 60.0} | settings
    return profile.on_host(paths, **given)


def test_on_this_machine(nets):
    """Pooling is nearly all of it, inside the delegate by the delegate's name."""
    whole, part = _host(nets)
    assert "Pooling" in whole[0].operation
    assert whole[0].name == "piece 0, 0"
    assert (part[0].operation, part[0].name) == ("AVERAGE_POOL_2D", "operation 0")
    for found in (whole, part):
        assert len(found) == 2
        assert sum(each.share for each in found) == pytest.approx(1)
        assert found[0].share > 0.5
        assert found[0].mean_ms >= found[1].mean_ms


@pytest.mark.alone
def test_the_parts_are_the_whole(tmp_path):
    """The profiler times the run as well: what is between the operations is little.

    Of milliseconds of work, for each run costs some 20 us, and where system calls are dear 100 us
    and more, whatever is in it. Where others have the processor, that is between them too: not so
    in each of ten tries.
    """
    path = tmp_path / "large.tflite"
    path.write_bytes(crafted_file([1, 3 * 512**2], side=1024))
    shares = []
    for _ in range(10):
        found = profile_on_board.profile(str(path), 1, None, 50, 0.2)
        shares.append(sum(total for *_, total in found["operations"]) / found["whole_us"])
        assert 0 < shares[-1] <= 1
        if shares[-1] > 0.5:
            return
    pytest.fail(f"the operations' shares of the whole time were {shares}")


def test_a_file_of_any_size_and_one_that_does_not_run(tmp_path):
    paths = [tmp_path / "any.tflite", tmp_path / "custom.tflite"]
    paths[0].write_bytes(crafted_file([1, 12], any_size=True))
    paths[1].write_bytes(crafted_file([1, 12], custom="Odd"))
    (found,) = _host(paths[:1], input_shape=(1, 4, 4, 3), threads=2)
    assert len(found) == 2
    with pytest.raises(InputError, match="custom.tflite: no profile of it: LiteRT does not run it"):
        _host(paths[1:])


def test_a_runtime_that_is_too_old(nets, monkeypatch):
    monkeypatch.setattr(profile_on_board, "_version", lambda: (2, 0))
    with pytest.raises(OSError, match="needs ai-edge-litert 2.3 or newer: install that"):
        profile_on_board.profile(str(nets[0]), 1, None, 1, 0)


def test_the_program(nets, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(STOP_RULES, "quick", StopRule(8, 0.05))
    output = tmp_path / "r.json"
    flags = f"--profile --output={output} {nets[0]} {nets[1]}"
    done = run_here("tflite.programs.benchmark", flags, capsys)
    assert done.code in (None, 0), done.stderr
    assert "part.tflite, by operation:" in done.stdout
    results = read_results(output)
    assert [len(result.profile) for result in results] == [2, 2]
    done = run_here("tflite.programs.report", f"{output} --output={tmp_path / 'page'}", capsys)
    assert done.code in (None, 0), done.stderr
    page = (tmp_path / "page" / "report.md").read_text()
    assert "## Slowest operations" in page
    assert "AVERAGE_POOL_2D" in page.partition("## Slowest operations")[2]


def test_a_board_with_python_only(nets, tmp_path, monkeypatch):
    """The same as here, and nothing of it stays there."""
    sshd.require()
    board = sshd.Board(tmp_path)
    try:
        monkeypatch.setattr(ssh, "Ssh", functools.partial(ssh.Ssh, config=board.config))
        monkeypatch.setitem(STOP_RULES, "quick", StopRule(8, 0.05))
        board.script("python3", f'exec {shlex.quote(sys.executable)} "$@"\n')
        results = benchmark(nets, device="ssh:board", profile=True)
        assert [result.profile[0].name for result in results] == ["piece 0, 0", "operation 0"]
        assert list(board.home.glob("kapps-*")) == []
        script = 'case "$1" in *profile.py) echo garbage;; *) exec {} "$@";; esac\n'
        board.script("python3", script.format(shlex.quote(sys.executable)))
        with pytest.raises(InputError, match="ssh:board: no profile of .*whole.tfl.*: exit code 0"):
            benchmark(nets, device="ssh:board", profile=True)
    finally:
        board.kill()


# What the tools print.


def test_the_classic_tool():
    rows = [("QUANTIZE", 0.1, "[a, b]:0"), ("TfLiteXNNPackDelegate", 3.0, "[Softmax]:66")]
    found = profile.of_tool(tool_texts.classic_profile(rows))
    assert [(each.operation, each.mean_ms, each.name) for each in found] == [
        ("TfLiteXNNPackDelegate", 3.0, "[Softmax]:66"),
        ("QUANTIZE", 0.1, "[a, b]:0"),
    ]
    within = [("Convolution (NHWC, F32) IGEMM", 2.0, "Delegate/Convolution (NHWC, F32) IGEMM:0")]
    found = profile.of_tool(tool_texts.classic_profile(rows, within))
    assert [each.operation for each in found] == ["Convolution (NHWC, F32) IGEMM", "QUANTIZE"]
    assert found[0].share == pytest.approx(2.0 / 2.1)


def test_an_older_build_tells_the_start_as_well():
    """tensorflow/core/util/stats_calculator.cc of TensorFlow 2.9."""
    text = tool_texts.classic_profile([("CONV_2D", 3.0, "[x]:0")])
    text = text.replace("\t  [first]", "\t          [start]\t  [first]").replace(
        "CONV_2D\t", "CONV_2D\t            0.012\t"
    )
    (found,) = profile.of_tool(text)
    assert (found.operation, found.mean_ms) == ("CONV_2D", 3.0)


def test_the_newer_tool():
    text = tool_texts.COUNTS + tool_texts.NEWER_END + tool_texts.NEWER_PROFILE
    found = profile.of_tool(text)
    assert [(each.operation, round(each.mean_ms, 3)) for each in found] == [
        ("Delegate/Convolution (NHWC, QC8) IGEMM", 0.106),  # two in each run
        ("QUANTIZE", 0.003),
        ("SOFTMAX", 0.001),
    ]


@given(st.text(max_size=300), st.integers(0, 2000))
def test_no_text_does_harm(noise, at):
    text = tool_texts.classic_profile([("CONV_2D", 3.0, "[x]:0"), ("ADD", 1.0, "[y]:1")])
    for each in (text[:at] + noise + text[at:], noise):
        for found in profile.of_tool(each):
            assert found.operation.isprintable()
            assert 0 <= found.share <= 1


@pytest.mark.parametrize(
    "answer",
    [
        {"runs": 0, "operations": []},
        {"runs": 1, "operations": [["ADD", 0, None, -1]]},
        {"runs": 1, "operations": [["ADD", 0, "x", 1]]},
        {"runs": 1, "operations": [[1, 0, None, 1]]},
        {"runs": True, "operations": []},
        {"operations": []},
        [],
    ],
)
def test_an_answer_that_cannot_be_true(answer):
    with pytest.raises((KeyError, TypeError, ValueError)):
        profile.of_runs(answer)

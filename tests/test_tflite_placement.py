"""Where the operations of a file ran: what the tools say of it, and what becomes of that."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tool_texts
from hypothesis import given
from hypothesis import strategies as st
from programs import run_here
from tflite_crafted import crafted_file

from kapps import InputError
from kapps.tflite.measurement.benchmark import read_results
from kapps.tflite.measurement.latency import STOP_RULES, StopRule
from kapps.tflite.measurement.placement import CPU_DELEGATES, XNNPACK
from kapps.tflite.measurement.tool_output import CLASSIC, NEWER, parse_text, which_tool
from kapps.tflite.measurement.tool_placement import read

GPU, ML_DRIFT = "TfLiteGpuDelegateV2", "LITERT_CL"
REFUSALS = [
    "CAST: Not supported cast case",
    "PACK: OP is supported, but tensor type/shape isn't compatible.",
    "DEQUANTIZE: ",
    "PACK: Operation is not supported.",
]


def test_the_newer_tool_with_nearly_all_on_the_gpu():
    """It prints no "Explicitly applied"; XNNPACK's line tells how many pieces there were before."""
    text = (
        tool_texts.replacing(63, 65, ML_DRIFT, 2)
        + tool_texts.replacing(2, 3, XNNPACK, 2)
        + tool_texts.COUNTS
        + tool_texts.NEWER_END
    )
    assert which_tool(text) == NEWER
    placement, pieces = read(text, None, "gpu", "GPU")
    assert (placement.placed, placement.operations, pieces) == (63, 65, 1)
    assert (placement.delegate, placement.complete, placement.outside) == (ML_DRIFT, False, ())
    words = placement.words("gpu", pieces)
    assert words == (
        "63 of 65 operations on gpu (LITERT_CL), in 1 piece; which are outside is not told"
    )
    launch = parse_text(text)
    assert (launch.runs, launch.p50_ms, launch.p95_ms) == (160, 7.43, 7.446)
    assert (launch.initialization_ms, launch.peak_memory_mb) == (23.74, 64.5)


def test_the_classic_tool_with_little_on_the_gpu():
    text = (
        tool_texts.refused(REFUSALS, 3, 62)
        + tool_texts.replacing(3, 65, GPU, 3)
        + tool_texts.applied("GPU", 1)
        + tool_texts.COUNTS
        + tool_texts.CLASSIC_END
    )
    assert which_tool(text) == CLASSIC
    placement, pieces = read(text, None, "gpu", "GPU")
    assert (placement.placed, placement.operations, placement.complete, pieces) == (3, 65, False, 1)
    assert {each.operation: (each.count, each.reason) for each in placement.outside} == {
        "CAST": (None, "Not supported cast case"),
        "PACK": (
            None,
            "OP is supported, but tensor type/shape isn't compatible / Operation is not supported",
        ),
        "DEQUANTIZE": (None, ""),
    }
    assert "3 of 65 operations on gpu" in placement.words("gpu", 1)
    assert "DEQUANTIZE (why is not told)" in placement.words("gpu", 1)


def test_the_file_of_the_runtime_says_which_they_are():
    operations = [("CONV_2D", GPU)] * 3 + [("PACK", XNNPACK), ("ADD", GPU), ("SHAPE", "")]
    text = tool_texts.refused(REFUSALS, 4, 2) + tool_texts.replacing(4, 6, GPU, 4)
    placement, pieces = read(text, tool_texts.runtime_info(operations), "gpu", "GPU")
    assert (placement.placed, placement.operations, pieces) == (4, 6, 2)
    assert [str(each) for each in placement.outside] == [
        f"1 PACK on {XNNPACK} (OP is supported, but tensor type/shape isn't compatible / "
        "Operation is not supported)",
        "1 SHAPE (why is not told)",
    ]
    assert "model_runtime_info" in placement.told_by
    on_cpu, pieces = read("", tool_texts.runtime_info(operations), "cpu", "XNNPACK")
    assert (on_cpu.placed, on_cpu.delegate, pieces) == (1, XNNPACK, 1)
    assert on_cpu.outside[0].ran_on == GPU


@pytest.mark.parametrize(
    ("text", "placed", "operations", "complete", "pieces"),
    [
        (tool_texts.applied("GPU", None), None, None, True, 1),
        (tool_texts.applied("GPU", 3), None, None, False, 3),
        (tool_texts.applied("GPU", 0), 0, None, False, 0),
        (tool_texts.replacing(65, 65, GPU, 1), 65, 65, True, 1),
        (tool_texts.replacing(40, 65, GPU, 8), 40, 65, False, 4),
        (tool_texts.replacing(40, 65, GPU, 7), 40, 65, False, None),  # 3 or 4
        # Builds for Linux print no line of that kind, but the delegate's own.
        (tool_texts.refused(REFUSALS, 60, 5) + tool_texts.applied("GPU", 1), 60, 65, False, 1),
        # Before 2023: tflite/core/subgraph.cc of TensorFlow 2.10.
        (
            "INFO: Replacing 64 node(s) with delegate (TfLiteGpuDelegateV2) node, yielding 1 "
            "partitions.\n" + tool_texts.applied("GPU", None),
            *(64, 64, True, 1),
        ),
        # The same function, after a delegate that could not prepare what it had taken.
        (
            tool_texts.replacing(65, 65, ML_DRIFT, 1)
            + "VERBOSE: Restored original execution plan after delegate application failure.\n",
            *(0, None, False, 0),
        ),
    ],
)
def test_what_the_log_says(text, placed, operations, complete, pieces):
    placement, found = read(text, None, "gpu", "GPU")
    assert (placement.placed, placement.operations) == (placed, operations)
    assert (placement.complete, found) == (complete, pieces)


@pytest.mark.parametrize("delegate", CPU_DELEGATES)
def test_the_delegate_of_the_cpu_is_not_the_gpu(delegate):
    """It takes what the GPU leaves, and all where there is none."""
    text = tool_texts.replacing(65, 65, delegate, 1) + tool_texts.NEWER_END
    assert read(text, None, "gpu", "GPU") == (None, None)
    placement, pieces = read(text, None, "cpu", "XNNPACK")
    assert (placement.placed, placement.complete, pieces) == (65, True, 1)


def test_a_graph_that_is_not_the_main_one():
    text = tool_texts.replacing(5, 5, GPU, 1).replace("subgraph 0 (main)", "subgraph 1 (body)")
    assert read(text, None, "gpu", "GPU") == (None, None)


def test_no_content_of_the_runtimes_file_does_harm():
    rng = np.random.default_rng(0)
    good = tool_texts.runtime_info([("ADD", GPU), ("PACK", "")])
    for _ in range(1000):
        content = bytearray(good)
        content[rng.integers(len(content))] = rng.integers(256)
        for each in (bytes(content), bytes(content[: rng.integers(len(content))])):
            placement, _ = read("", each, "gpu", "GPU")
            assert placement is None or str(placement.words("gpu", 1)).isprintable()


@given(st.text(max_size=300), st.integers(0, 200))
def test_no_text_does_harm(noise, at):
    text = tool_texts.refused(REFUSALS, 3, 62) + tool_texts.replacing(3, 65, GPU, 3)
    text = text[:at] + noise + text[at:]
    for accelerator, name in (("gpu", "GPU"), ("cpu", "XNNPACK")):
        placement, _ = read(text, None, accelerator, name)
        assert placement is None or not placement.is_contradictory


def test_a_part_that_falls_off_here(tmp_path, monkeypatch, capsys):
    """XNNPACK pools no uint8, and reshapes it: it is told, and required in vain."""
    monkeypatch.setitem(STOP_RULES, "quick", StopRule(8, 0.05))
    whole, part = tmp_path / "whole.tflite", tmp_path / "part.tflite"
    whole.write_bytes(crafted_file([1, 12]))
    part.write_bytes(crafted_file([1, 12], "UINT8"))
    output = tmp_path / "r.json"
    done = run_here("tflite.programs.benchmark", f"--require_full {whole}", capsys)
    assert done.code in (None, 0), done.stderr
    assert "whole.tflite: 2 of 2 operations on cpu" in done.stdout
    flags = f"--require_full --output={output} {whole} {part}"
    done = run_here("tflite.programs.benchmark", flags, capsys)
    assert done.code == 3
    assert "part.tflite" in done.stderr.splitlines()[-1]
    assert "whole.tflite" not in done.stderr.splitlines()[-1]
    first, second = read_results(output)
    assert (first.placement.placed, first.placement.complete) == (2, True)
    (outside,) = second.placement.outside
    assert (outside.operation, outside.count) == ("AVERAGE_POOL_2D", 1)
    assert outside.reason == "XNNPACK has it for float only, and here it is uint8"
    # The report has it as well.
    folder = tmp_path / "report"
    done = run_here("tflite.programs.report", f"{output} --output={folder}", capsys)
    assert done.code in (None, 0), done.stderr
    page = (folder / "report.md").read_text()
    assert "1 of 2" in page
    assert outside.reason in page
    # And a file that was changed by hand is told from one that was measured.
    content = json.loads(output.read_text())
    content["results"][1]["placement"]["placed"] = 3
    output.write_text(json.dumps(content))
    with pytest.raises(InputError, match="placement contradicts itself: 3 of 2"):
        read_results(output)

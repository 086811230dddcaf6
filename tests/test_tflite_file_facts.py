"""What a file is: one answer, whoever is asked."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from tflite_crafted import crafted_file, crafted_sine

from kapps.tflite import child, float_operations, inspect
from kapps.tflite.accuracy import describe, evaluate_file, write_accuracy
from kapps.tflite.file_facts import (
    PlainGraph,
    PlainOperation,
    PlainTensor,
    quantization,
    read_graph,
    too_fine,
    variant,
)
from kapps.tflite.file_facts import float_operations as in_float
from kapps.tflite.report import read_overview, write_overview


def _graph(*operations, weights=("INT8",), names=""):
    """A chain of operations "NAME type", each with weights of a type if it takes any."""
    tensors = [PlainTensor(names, "FLOAT32", False)]
    tensors += [PlainTensor(names, dtype, True) for dtype in weights]
    chain = []
    for number, text in enumerate(operations):
        name, dtype = text.split()
        tensors.append(PlainTensor(names, dtype, False))
        before = len(tensors) - 2 if number else 0
        chain.append(PlainOperation(name, (before, 1, -1), (len(tensors) - 1,)))
    return PlainGraph(tuple(tensors), tuple(chain))


CONV8, CONV32 = "CONV_2D INT8", "CONV_2D FLOAT32"


@pytest.mark.parametrize(
    ("expected", "graph"),
    [
        ("float32", _graph(CONV32, weights=["FLOAT32"])),
        ("float16", _graph("DEQUANTIZE FLOAT32", CONV32, weights=["FLOAT16"])),
        ("dynamic", _graph(CONV32, "SOFTMAX FLOAT32", weights=["INT8", "FLOAT32"])),
        # More is computed in float than in integers, but for the weights.
        ("int8", _graph(CONV8, *["DEQUANTIZE FLOAT32", "SIN FLOAT32", "QUANTIZE INT8"] * 3)),
        ("int8", _graph(CONV8, *["BATCH_MATMUL FLOAT32"] * 2, weights=[])),  # attention
        ("mixed", _graph(CONV8, CONV8, CONV32)),
        ("int16x8", _graph("QUANTIZE INT16", "CONV_2D INT16", "SIN FLOAT32", "SIN FLOAT32")),
        ("int8", _graph("AVERAGE_POOL_2D UINT8", "RESHAPE UINT8", weights=["INT32"])),
        ("float32", _graph("AVERAGE_POOL_2D FLOAT32", weights=["INT32"])),
        ("float32", _graph(weights=["INT32"])),
    ],
)
def test_quantization(expected, graph):
    assert quantization(graph) == expected
    assert variant(graph, "net", "") == expected


def test_training_that_knew():
    plain = _graph(CONV8)
    assert variant(plain, "net_qat") == variant(plain, "n", "Quantization-aware.") == "int8-qat"
    assert variant(plain, "qatar") == "int8"
    assert variant(_graph(CONV8, names="net/quant_stem/Conv2D")) == "int8-qat"
    assert quantization(_graph(CONV8, names="net/quant_stem/Conv2D")) == "int8"
    assert variant(_graph(CONV32, weights=["FLOAT32"]), "net_qat") == "float32"


def test_a_conversion_computes_nothing():
    graph = _graph("QUANTIZE INT8", CONV8, "DEQUANTIZE FLOAT32", "SIN FLOAT32", "QUANTIZE INT8")
    assert [op.name for op in in_float(graph)] == ["SIN"]


@pytest.mark.parametrize(("output", "found"), [(0.26, []), (0.24, ["CONV_2D"])])
def test_an_output_of_less_than_a_256th(output, found):
    """Of a step of the input times one of the weights, the coarsest of all filters."""
    scales = (64.0, 1.0, output)
    names = ("image", "kernel", "map")
    tensors = [PlainTensor(n, "INT8", n == "kernel", s) for n, s in zip(names, scales, strict=True)]
    conv, pool = PlainOperation("CONV_2D", (0, 1, -1), (2,)), PlainOperation("MUL", (0, 1), (2,))
    graph = PlainGraph(tuple(tensors), (conv, pool))
    assert [op.name for op in too_fine(graph)] == found
    floats = PlainGraph(tuple(PlainTensor(n, "FLOAT32", False) for n in names), (conv,))
    assert too_fine(floats) == []


def test_the_graph_of_a_file():
    graph = read_graph(crafted_sine())
    assert [op.name for op in graph.operations][2:] == ["SIN", "QUANTIZE", "RESHAPE"]
    assert graph.operations[0] == PlainOperation("CONV_2D", (0, 6, 7), (1,))
    assert graph.tensors[6] == PlainTensor("kernel", "INT8", True, 1.0)
    assert graph.tensors[2] == PlainTensor("real", "FLOAT32", False)
    assert read_graph(crafted_file([1, 12], custom="Odd")).operations[1].name == "Odd"


def test_one_layer_in_float_is_told_the_same_everywhere(tmp_path):
    path = tmp_path / "net.tflite"
    path.write_bytes(crafted_sine())
    inspection = inspect(path)
    assert inspection.variant == inspection.to_json()["variant"] == "int8"
    assert [op.name for op in inspection.float_operations] == ["SIN"]
    assert float_operations(path) == ["SIN 2 (sine)"]
    assert "  variant     int8\n  arithmetic  1 of 5 operations in float\n" in str(inspection)
    assert describe(path).variant == "int8"
    np.savez(tmp_path / "images.npz", images=np.zeros((1, 4, 4, 3), "uint8"))
    request = {"file": str(path), "folder": str(tmp_path)}
    assert child.run("comparison_task", request, time_limit=60)["quantization"] == "int8"
    image, label = np.zeros((1, 4, 4, 3), "uint8"), np.zeros(1, int)
    write_accuracy(
        evaluate_file(path, [(image, label)], dataset="d", split="test"), tmp_path / "a.json"
    )
    written = write_overview(read_overview([tmp_path / "a.json"]), tmp_path, title="t")
    assert json.loads(written[0].read_text())["files"][0]["variant"] == "int8"
    (row,) = re.findall(r"^\| net +\|.*$", written[1].read_text(), re.MULTILINE)
    cells = [cell.strip() for cell in row.split("|")[2:5]]  # top-1 float32, PTQ, QAT
    assert cells == ["\N{EN DASH}", "100.00", "\N{EN DASH}"]

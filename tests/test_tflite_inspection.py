"""What kapps-inspect tells of a file, held against what the interpreter and the converter say."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf
from programs import run_here
from tflite_crafted import crafted_file
from tflite_net import LABELS
from tflite_plain import plain_file, plain_net

from kapps import InputError
from kapps.tflite import Metadata
from kapps.tflite.inspection import Inspection, float_operations, inspect, inspect_each, task
from kapps.tflite.inspection.gpu import pieces_of, refusals
from kapps.tflite.inspection.reasons import UNKNOWN
from kapps.tflite.inspection.versions import newest, oldest_runtime
from kapps.tflite.interpreter import load_interpreter
from kapps.tflite.metadata import with_metadata

pytest_plugins = ["tflite_fixtures"]

_KERNEL = np.random.default_rng(0).random((3, 3, 6, 6), "float32")


def _conv(x):
    return tf.nn.conv2d(x, _KERNEL, 1, "SAME")


def _depthwise(x):
    kernel = np.random.default_rng(0).random((3, 3, 256, 1), "float32")
    return tf.nn.depthwise_conv2d(tf.concat([x] * 2, -1), kernel, [1, 1, 1, 1], "SAME")


def _quantizable(x):
    x = _conv(x)
    x = x * tf.nn.relu6(x + 3) / 6  # becomes HARD_SWISH
    x = tf.nn.avg_pool2d(x, 3, 1, "SAME")
    x = x + tf.nn.relu(x * x)  # becomes part of MUL
    return tf.nn.softmax(tf.reduce_mean(x, [1, 2]))


def _awkward(x):
    parts = tf.split(x, 6, -1)
    x = tf.concat([parts[i] for i in (5, 3, 1, 0, 2, 4)], -1)
    return _conv(tf.gather(x, [3, 1, 0, 2, 5, 4], axis=-1)[:, ::2, ::2])


def _custom(x):
    return tf.linalg.inv(tf.transpose(_conv(x), [0, 3, 1, 2]))


def _odd(x):
    y = tf.where(x > 0.5, x, 2 * x)  # a comparison that the one SELECT behind it takes along
    z = tf.cast(tf.argmax(y, -1), tf.float32)
    w = tf.reverse(y, [1])[0, :, :, 0]
    return tf.nn.softmax(tf.slice(w, [0, 1], [8, 4])) + tf.reduce_sum(z) + tf.reduce_sum(tf.sin(y))


_FILES = {
    "odd": (_odd, (1, 8, 8, 6), "float32"),
    "int8": (_quantizable, (1, 8, 8, 6), "int8"),
    "uint8": (_quantizable, (1, 8, 8, 6), "uint8"),
    "float ends": (_quantizable, (1, 8, 8, 6), "float32 I/O"),
    "float": (_quantizable, (1, 8, 8, 6), "float32"),
    "awkward": (_awkward, (1, 8, 8, 6), "float32"),
    "dynamic": (_depthwise, (1, 8, 8, 128), "dynamic"),
    "batch": (
        lambda x: 2 * tf.reshape(_conv(x), [tf.shape(x)[0], 384]),
        (None, 8, 8, 6),
        "float32",
    ),
    "flex": (_custom, (1, 8, 8, 6), "flex"),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inspection")
    paths = {name: folder / f"{name}.tflite" for name in _FILES}
    for name, path in paths.items():
        path.write_bytes(plain_file(*_FILES[name]))
    return paths


@pytest.fixture(scope="module")
def inspections(files):
    found = dict(zip(files, inspect_each(list(files.values())), strict=True))
    assert all(isinstance(inspection, Inspection) for inspection in found.values()), found
    return found


_FLOAT_ONLY = "XNNPACK has it for float only, and here it is int8"
_IO = "XNNPACK does not go from uint8 to int8 or back; take int8 or float32 I/O"
_NONE = "XNNPACK has no such operation"
_DEPTHWISE = "int8 weights for float activations: XNNPACK has no depthwise form of it"

REASONS = {
    "int8": [
        ("HARD_SWISH", _FLOAT_ONLY),
        ("AVERAGE_POOL_2D", _FLOAT_ONLY),
        ("SOFTMAX", _FLOAT_ONLY),
    ],
    "uint8": [
        ("QUANTIZE", _IO),
        ("HARD_SWISH", _FLOAT_ONLY),
        ("AVERAGE_POOL_2D", _FLOAT_ONLY),
        ("SOFTMAX", _FLOAT_ONLY),
        ("QUANTIZE", _IO),
    ],
    "float": [],
    "awkward": [
        ("SPLIT", "XNNPACK splits into 2 to 4 tensors, and here are 6"),
        ("CONCATENATION", "XNNPACK joins 2 to 5 tensors, and here are 6"),
        ("GATHER", _NONE),
        ("STRIDED_SLICE", "XNNPACK slices with stride 1 only"),
    ],
    "dynamic": [("DEPTHWISE_CONV_2D", _DEPTHWISE)],
    "batch": [
        ("SHAPE", "a shape is not known before it runs; convert with a static batch"),
        ("STRIDED_SLICE", "XNNPACK computes in float and 8 bits only, and here it is int32"),
        ("PACK", _NONE),
        ("RESHAPE", "its shape is computed; convert with a static batch"),
    ],
}


@pytest.mark.parametrize("name", REASONS)
def test_what_falls_off_the_delegate_and_why(name, inspections):
    inspection = inspections[name]
    assert [(op.name, op.reason) for op in inspection.fallen_off] == REASONS[name]
    inside = [op for op in inspection.operations if op.piece is not None]
    assert len(inside) + len(inspection.fallen_off) == len(inspection.operations)
    assert {op.piece for op in inside} == set(range(inspection.pieces))
    assert not any(op.reason for op in inside)


_SMALLER = "in a smaller piece: the delegate takes one, the largest (max_delegated_partitions=1)"
_NO_GPU = "the GPU delegate has no such operation"

GPU_REASONS = {
    **dict.fromkeys(("int8", "uint8", "float ends", "float", "awkward", "dynamic"), ()),
    "batch": (
        ("SHAPE", _NO_GPU),
        ("STRIDED_SLICE", "1 dimensions, and the GPU delegate slices 3 or 4"),
        ("PACK", "the GPU delegate computes in float and 8 bits only, here is int32"),
        ("RESHAPE", "its shape is computed; convert with a static batch"),
        ("MUL", _SMALLER),
    ),
    "flex": (("FlexMatrixInverse", "a custom operation that the GPU delegate lacks"),),
    "odd": (
        ("ARG_MAX", _NO_GPU),
        ("CAST", "the GPU delegate does not go from int64 to float32"),
        ("SUM", _SMALLER),
        ("REVERSE_V2", _NO_GPU),
        ("STRIDED_SLICE", "it adds or drops a dimension"),
        ("SLICE", "2 dimensions, and the GPU delegate slices 3 or 4"),
        *(("SOFTMAX", _SMALLER), ("ADD", _SMALLER), ("ADD", _SMALLER)),
    ),
}


@pytest.mark.parametrize("name", GPU_REASONS)
def test_what_the_gpu_would_leave_and_why(name, inspections):
    """By the delegate's source, read by hand: there is no GPU to ask."""
    found = inspections[name].refused("gpu")
    assert tuple((op.name, reason) for op, reason in found) == GPU_REASONS[name]
    assert inspections[name].to_json()["refused_by_gpu"] == [op.index for op, _ in found]


def _gpu(name, inputs, outputs, **settings):
    """Why the GPU delegate leaves an operation of tensors (type, shape, a scale a channel)."""
    listed = [
        {
            "dtype": kind,
            "shape": shape,
            "constant": constant,
            "quantization": {"axis": 3 if channels else None} if "INT8" in kind else None,
        }
        for kind, shape, constant, channels in (*inputs, *outputs)
    ]
    op = {"name": name, "version": 1, "custom": False, "options": {}} | settings
    op["inputs"], op["outputs"] = list(range(len(inputs))), [len(inputs)]
    return refusals([op], listed)[0]


def _t(shape, kind="FLOAT32", constant=False, channels=False):
    return (kind, list(shape), constant, channels)


_IMAGE, _KERNEL_ = _t((1, 8, 8, 4)), _t((4, 1, 1, 4), constant=True)


@pytest.mark.parametrize(
    ("expected", "name", "inputs", "outputs", "settings"),
    [
        ("", "CONV_2D", [_IMAGE, _KERNEL_], [_IMAGE], {"version": 6}),
        ("version 7.*up to 6", "CONV_2D", [_IMAGE, _KERNEL_], [_IMAGE], {"version": 7}),
        ("over 4 dimensions", "ABS", [_t((1, 2, 2, 2, 2))], [_t((1, 2, 2, 2, 2))], {}),
        ("here is int16", "ABS", [_t((1, 4), "INT16")], [_t((1, 4), "INT16")], {}),
        ("", "ADD", [_IMAGE, _t((1, 4))], [_IMAGE], {}),
        ("does not broadcast 1x8x8x4 and 8x4", "ADD", [_IMAGE, _t((8, 4))], [_IMAGE], {}),
        ("", "MUL", [_t((1, 8, 8, 4), "INT8"), _t((1, 4), "INT8")], [_IMAGE], {"version": 3}),
        (
            "a scale for each channel",
            *("ABS", [_t((1, 8, 8, 4), "INT8", channels=True)], [_IMAGE], {}),
        ),
        ("its beta is not 1", "SOFTMAX", [_IMAGE], [_IMAGE], {"options": {"Beta": 2.0}}),
        ("", "SOFTMAX", [_IMAGE], [_IMAGE], {"options": {"Beta": 1.0}}),
        ("axes are no constant int32", "MEAN", [_IMAGE, _t((2,), "INT64", True)], [_t((1, 4))], {}),
        ("", "MEAN", [_IMAGE, _t((2,), "INT32", True)], [_t((1, 4))], {}),
        ("pads others", "PAD", [_IMAGE, _t((5, 2), "INT32", True)], [_IMAGE], {}),
        ("elsewhere than into one CAST", "GREATER", [_IMAGE, _IMAGE], [_t((1, 4), "BOOL")], {}),
        (
            "activation is SIGN_BIT",
            "CONV_2D",
            [_IMAGE, _KERNEL_],
            [_IMAGE],
            {"options": {"FusedActivationFunction": 5}},
        ),
        ("", "Resampler", [_IMAGE, _IMAGE], [_IMAGE], {"custom": True}),
    ],
)
def test_a_rule_of_the_gpu_delegate(expected, name, inputs, outputs, settings):
    found = _gpu(name, inputs, outputs, **settings)
    assert re.search(expected, found) if expected else found == ""


def test_half_weights_go_along_with_all_or_stay():
    """They are on the GPU if all is; the weights themselves are read there in any case."""
    half, image = _t((4, 1, 1, 4), "FLOAT16", True), _IMAGE
    tensors = [
        {"dtype": kind, "shape": shape, "constant": constant, "quantization": None}
        for kind, shape, constant, _ in (half, _t((4, 1, 1, 4), constant=True), image, image)
    ]
    ops = [
        {"name": "DEQUANTIZE", "inputs": [0], "outputs": [1]},
        {"name": "CONV_2D", "inputs": [2, 1], "outputs": [3]},
    ]
    ops = [{"version": 1, "custom": False, "options": {}} | op for op in ops]
    assert refusals(ops, tensors) == ["", ""]
    ops[1]["version"] = 9
    first, second = refusals(ops, tensors)
    assert first.startswith("float16 weights") and "version 9" in second


@pytest.mark.parametrize("name", [*REASONS, "odd"])
def test_pieces_are_those_that_the_runtime_makes(name, inspections):
    """Of what XNNPACK takes here: the same rule as for a GPU."""
    inspection = inspections[name]
    ops = [{"inputs": op.inputs, "outputs": op.outputs} for op in inspection.operations]
    pieces = pieces_of(ops, [op.piece is not None for op in inspection.operations])
    assert len(pieces) == inspection.pieces
    assert {frozenset(piece) for piece in pieces} == {
        frozenset(op.index for op in inspection.operations if op.piece == number)
        for number in range(inspection.pieces)
    }


def test_the_program_of_a_target(files, capsys):
    flags = f"--target=gpu --require_full {files['odd']}"
    done = run_here("tflite.programs.inspect", flags, capsys)
    assert done.code == 3
    assert "9 of 14 operations outside" in done.stdout
    assert "the GPU delegate slices 3 or 4" in done.stdout
    for target, name in (("gpu", "int8"), ("cpu", "float")):
        flags = f"--target={target} --require_full {files[name]}"
        assert run_here("tflite.programs.inspect", flags, capsys).code in (None, 0)
    assert run_here("tflite.programs.inspect", f"--require_full {files['int8']}", capsys).code == 3


@pytest.mark.parametrize("name", [name for name in REASONS if name != "batch"])
def test_the_pieces_are_those_of_the_running_graph(name, inspections, files):
    """What passes inside a piece never gets memory from the interpreter; all else does."""
    interpreter = load_interpreter(files[name], 1)
    interpreter.invoke()
    graph = inspections[name].subgraphs[0]
    maker = {t: op for op in graph.operations for t in op.outputs}
    outside = set(graph.outputs)
    for op in graph.operations:
        taken = [t for t in op.inputs if t in maker]
        outside |= {t for t in taken if op.piece is None or maker[t].piece != op.piece}
        outside |= set(op.outputs) if op.piece is None else set()
    assert {t for t in maker if _has_memory(interpreter, t)} == outside


def _has_memory(interpreter, tensor):
    try:
        interpreter.get_tensor(tensor)
    except ValueError:
        return False
    return True


def test_an_operation_that_only_tensorflow_has(inspections):
    inspection = inspections["flex"]
    assert "FlexMatrixInverse" in inspection.failure
    assert inspection.pieces == 0
    told = [(op.name, op.custom, op.reason.partition(":")[0]) for op in inspection.fallen_off]
    assert told == [("FlexMatrixInverse", True, "a TensorFlow operation")]
    assert "FlexMatrixInverse version 1" in inspection.unknown_age
    assert "delegate    not tried: " in str(inspection)


def test_text_of_the_file_does_not_reach_the_terminal_as_it_is(tmp_path):
    path = tmp_path / "a: b\udcff.tflite"
    path.write_bytes(crafted_file([1, 12], custom="\x1b[7m\x07\nX"))
    i = inspect(path)
    assert i.failure.startswith("Encountered unresolved custom op: ")
    assert i.failure.isprintable()
    assert all(line.isprintable() for line in str(i).splitlines())
    (line,) = (line for line in str(i).splitlines() if "delegate  " in line)
    assert line.startswith("  delegate    not tried: Encountered unresolved custom op: ")


@pytest.mark.slow
def test_no_operation_of_a_real_file_falls_off_for_unknown_reasons(conversions):
    for inspection in inspect_each([conversion.path for conversion in conversions.values()]):
        assert UNKNOWN not in {op.reason for op in inspection.fallen_off}


@pytest.mark.parametrize("name", [name for name in _FILES if name != "flex"])
def test_the_oldest_runtime_is_what_the_converter_notes(name, inspections):
    """It has a table of its own, in C++."""
    inspection = inspections[name]
    noted = inspection.min_runtime_version.removesuffix(".0")
    assert newest([op.oldest_runtime for op in inspection.operations]) == noted
    assert inspection.oldest_runtime == noted
    assert inspection.unknown_age == ()


@pytest.mark.parametrize(
    ("note", "expected"),
    [("", "1.15"), ("1.5.0", "1.15"), ("2.99.0", "2.99"), ("99", "1.15"), ("x" * 16, "1.15")],
)
def test_the_note_and_what_is_known_of_the_operations(note, expected, inspections):
    inspection = dataclasses.replace(inspections["int8"], min_runtime_version=note)
    assert inspection.oldest_runtime == expected
    assert f"loads on    TensorFlow Lite {expected} or newer" in str(inspection)


def test_runtimes():
    assert oldest_runtime("CONV_2D", 5) == "2.4"
    assert oldest_runtime("DEQUANTIZE", 1) == "1.13.1"
    assert oldest_runtime("BROADCAST_TO", 1) is None  # it was taken back
    assert oldest_runtime("CONV_2D", 99) is oldest_runtime("CONV_2D", 0) is None
    assert oldest_runtime("FlexErf", 1) is None
    assert newest(["1.15", "2.3", "1.5", "2.10"]) == "2.10"
    assert newest([]) is None


def test_float_operations(files):
    assert float_operations(files["int8"]) == float_operations(files["uint8"]) == []
    assert [told.split()[0] for told in float_operations(files["awkward"])] == [
        "SPLIT",
        "CONCATENATION",
        "GATHER",
        "STRIDED_SLICE",
        "CONV_2D",
    ]


def test_float_input_and_output_do_not_count(inspections):
    inspection = inspections["float ends"]
    assert [t.dtype for t in (*inspection.inputs, *inspection.outputs)] == ["FLOAT32"] * 2
    names = [op.name for op in inspection.operations]
    assert "QUANTIZE" in names and "DEQUANTIZE" in names
    assert inspection.float_operations == ()


def test_tensors(inspections):
    inspection = inspections["int8"]
    (image,), (scores,) = inspection.inputs, inspection.outputs
    assert (image.dtype, image.shape) == ("INT8", (1, 8, 8, 6))
    assert image.name == "serving_default_image:0"
    assert image.quantization.scales == 1 and image.quantization.axis is None
    assert scores.quantization.scale == (1 / 256, 1 / 256)
    assert scores.quantization.zero_point == (-128, -128)
    kernel = next(t for t in inspection.subgraphs[0].tensors if t.shape == (6, 3, 3, 6))
    assert kernel.constant and kernel.bytes == 324
    assert kernel.quantization.scales == 6 and kernel.quantization.axis == 0
    low, high = kernel.quantization.scale
    assert 0 < low < high < 1 / 100
    assert inspections["batch"].inputs[0].signature == (-1, 8, 8, 6)
    assert str(inspections["batch"].inputs[0]) == "float32 ?x8x8x6"


def test_sizes_and_metadata(tmp_path):
    path = tmp_path / "net.tflite"
    path.write_bytes(plain_net())
    i = inspect(path)
    assert i.size_bytes == path.stat().st_size
    assert 0 < i.weight_bytes + i.metadata_bytes + i.attached_bytes < i.size_bytes
    assert i.attached == {"labels.txt": sum(len(label) + 1 for label in LABELS)}
    assert i.entries["TFLITE_METADATA"] <= i.metadata_bytes
    assert i.metadata["name"] == "small_net"
    assert tuple(i.metadata["labels"]) == LABELS
    assert i.metadata_error == ""
    assert "10: zero, one, two, three, four, ..." in str(i)


def test_metadata_of_others_and_none(files, inspections, tmp_path):
    assert inspections["int8"].metadata is None
    assert set(inspections["int8"].entries) == {"min_runtime_version", "CONVERSION_METADATA"}
    content = with_metadata(files["int8"].read_bytes(), Metadata(name="net", labels=("a",)))
    path = tmp_path / f"{'a' * 200}.tflite"  # longer than a line of the page may be
    path.write_bytes(content.replace(b"M001", b"M999"))
    i = inspect(path)
    assert i.metadata is None
    assert "not of the M001 format" in i.metadata_error
    assert "not of the M001 format" in str(i)


def test_one_bad_file_does_not_hide_the_others(files, tmp_path):
    bad = tmp_path / "bad.tflite"
    bad.write_bytes(files["int8"].read_bytes()[:1000])
    found = inspect_each([files["int8"], bad, files["float"]])
    assert [type(i) for i in found] == [Inspection, InputError, Inspection]
    with pytest.raises(InputError, match="bad.tflite is no .tflite file"):
        inspect(bad)


def test_text(inspections):
    text = str(inspections["int8"])
    assert "XNNPACK of LiteRT" in text and "2 pieces, 3 of 7 operations outside" in text
    assert "arithmetic  integers only" in text
    assert text.index("Outside the delegate") < text.index("Operations:")
    assert max(map(len, text.splitlines()[1:])) < 160  # the first is the path
    assert "Outside the delegate" not in str(inspections["float"])
    assert "none of" in str(inspections["float"])


def test_the_page_of_a_long_chain_takes_no_longer_than_the_chain(inspections):
    """Half a minute for 8,000 operations, when each asked for the oldest runtime of all."""
    short = inspections["float"]
    graph = short.subgraphs[0]
    chain = dataclasses.replace(graph, operations=graph.operations[:1] * 8000)
    start = time.process_time()
    assert "8000" in str(dataclasses.replace(short, subgraphs=(chain,)))
    assert time.process_time() - start < 2


def _run(*arguments):
    command = [sys.executable, "-m", "kapps.tflite.programs.inspect", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def test_the_program(files, tmp_path):
    answer = _run(files["int8"], files["float"])
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.startswith(f"{files['int8']}\n")
    assert f"\n{files['float']}\n" in answer.stdout
    bad = tmp_path / "bad.tflite"
    bad.write_text("hello")
    answer = _run("--json=-", files["int8"], bad)
    assert answer.returncode == 2
    assert answer.stderr == (
        f"kapps-inspect: error: {bad} is no .tflite file: it lacks the identifier TFL3\n"
    )
    found = json.loads(answer.stdout)
    assert found[str(files["int8"])]["pieces"] == 2
    assert found[str(files["int8"])]["oldest_runtime"] == "1.15"
    assert found[str(bad)]["error"] in answer.stderr
    answer = _run()
    assert answer.returncode == 2
    assert answer.stderr == "kapps-inspect: error: FILE... must be given; --help says more\n"


def test_a_file_for_images_of_any_size(tmp_path):
    path = tmp_path / "any.tflite"
    path.write_bytes(crafted_file([1, 12], any_size=True))
    i = inspect(path)
    assert [op.name for op in i.operations] == ["AVERAGE_POOL_2D", "RESHAPE"]
    assert i.failure.startswith("takes an input of ?x?x?x3, which is no size: give --input_shape")
    assert "  input       float32 ?x?x?x3  not quantized" in str(i)
    assert "delegate    not tried: takes an input of ?x?x?x3" in str(i)
    sized = inspect(path, input_shape=(1, 4, 4, 3))
    assert (sized.failure, sized.pieces) == ("", 1)
    answer = _run("--input_shape=1,4,4,3", path)
    assert (answer.returncode, answer.stderr) == (0, "")
    assert "1 piece, none of 2 operations outside" in answer.stdout
    with pytest.raises(InputError, match=r"any\.tflite takes an input of \?x\?x\?x3, not 1x4x4x1"):
        inspect(path, input_shape=(1, 4, 4, 1))
    with pytest.raises(InputError, match=r"any\.tflite does not run on an input of 1,8,8,3: "):
        inspect(path, input_shape=(1, 8, 8, 3))
    with pytest.raises(InputError, match=r"expected whole numbers above 0, not \[1, 0\]"):
        inspect(path, input_shape=(1, 0))
    fixed = tmp_path / "fixed.tflite"
    fixed.write_bytes(crafted_file([1, 12]))
    assert inspect(fixed, input_shape=(1, 224, 224, 3)).pieces == 1  # it has a size


@pytest.mark.parametrize("mean", [float("nan"), float("inf")])
def test_metadata_of_no_number(mean, files, tmp_path):
    """JSON has no such number."""
    path = tmp_path / "a.tflite"
    metadata = Metadata(name="net", labels=("a",), mean=(mean,))
    path.write_bytes(with_metadata(files["int8"].read_bytes(), metadata))
    i = inspect(path)
    assert (i.metadata, i.metadata_error) == (None, "its mean or std is no finite number")
    json.dumps(i.to_json(), allow_nan=False)


@pytest.mark.parametrize("scale", [float("nan"), float("inf")])
def test_a_scale_that_is_no_number(scale, tmp_path):
    """JSON has no such number."""
    path = tmp_path / "a.tflite"
    path.write_bytes(crafted_file([1, 12], scale=scale))
    with pytest.raises(InputError, match=r"a\.tflite: tensor 1 has a scale that is no finite"):
        inspect(path)


def test_an_error_in_the_flatbuffer_is_the_one_that_is_told(tmp_path, monkeypatch):
    """What its traceback holds of the file does not hide it."""
    path = tmp_path / "a.tflite"
    path.write_bytes(crafted_file([1, 12], reads=(1, 9999)))

    def refuse(path, threads, input_shape):
        raise InputError(f"{path}: Encountered unresolved custom op: X")

    monkeypatch.setattr(task, "load_interpreter", refuse)
    with pytest.raises(InputError, match="tensor 9999 of 4 is referred to"):
        task.work({"path": str(path), "input_shape": None}, lambda **message: None)

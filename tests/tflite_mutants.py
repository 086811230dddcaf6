"""Damaged and crafted .tflite files, made from a sound one: the same ones each time."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from tflite_crafted import packed

Rng = np.random.Generator

_INTEGERS = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**32 - 4, 2**28)


def byte_mutants(content: bytes, count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """(what was done, the damaged file) `count` times; ways of damage take turns."""
    ways = (_flip, _truncate, _insert, _swap, _zero, _integer, _integer, _noise)
    for index in range(count):
        rng = np.random.default_rng([seed, index])
        way = ways[index % len(ways)]
        data = bytearray(content)
        for _ in range(rng.integers(1, 4)):
            way(data, _place(data, rng), rng)
        yield way.__name__.strip("_"), bytes(data)


def _place(data: bytearray, rng: Rng) -> int:
    """Anywhere; every second time in the first 4 KiB, where the tables are."""
    most = len(data) if rng.random() < 0.5 else min(len(data), 4096)
    return int(rng.integers(0, max(most, 1)))


def _flip(data: bytearray, place: int, rng: Rng) -> None:
    if data:
        data[place] ^= 1 << int(rng.integers(0, 8))


def _truncate(data: bytearray, place: int, rng: Rng) -> None:
    del data[place:]


def _insert(data: bytearray, place: int, rng: Rng) -> None:
    data[place:place] = rng.bytes(int(rng.integers(1, 65)))


def _swap(data: bytearray, place: int, rng: Rng) -> None:
    size = int(rng.integers(4, 257))
    other = _place(data, rng)
    first, second = bytes(data[place : place + size]), bytes(data[other : other + size])
    data[place : place + len(second)] = second
    data[other : other + len(first)] = first


def _zero(data: bytearray, place: int, rng: Rng) -> None:
    size = min(int(rng.integers(1, 1025)), len(data) - place)
    data[place : place + size] = bytes(size)


def _integer(data: bytearray, place: int, rng: Rng) -> None:
    place -= place % 4
    if place + 4 <= len(data):
        struct.pack_into("<I", data, place, int(rng.choice(_INTEGERS)))


def _noise(data: bytearray, place: int, rng: Rng) -> None:
    size = min(int(rng.integers(1, 257)), len(data) - place)
    data[place : place + size] = rng.bytes(size)


# Valid flatbuffers with something wrong in them.


def structure_mutants(content: bytes, count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """(what was done, the crafted file) `count` times; each way takes its turn."""
    ways = (*_MODEL_WAYS, *_ZIP_WAYS)
    for index in range(count):
        rng = np.random.default_rng([seed, index])
        way = ways[index % len(ways)]
        yield way.__name__.strip("_"), _mutant(content, way, rng)


def _mutant(content: bytes, way: Callable[..., None], rng: Rng) -> bytes:
    if way in _ZIP_WAYS:
        output = io.BytesIO(packed(schema.ModelT.InitFromPackedBuf(content, 0)))
        output.seek(0, io.SEEK_END)
        way(output, rng)
        return output.getvalue()
    model = schema.ModelT.InitFromPackedBuf(content, 0)
    way(model, rng)
    return packed(model)


def _any(items: Any, rng: Rng) -> Any:
    return items[int(rng.integers(0, len(items)))]


def _graph(model: Any) -> Any:
    return model.subgraphs[0]


def _tensor(model: Any, rng: Rng) -> Any:
    return _any(_graph(model).tensors, rng)


def _operator(model: Any, rng: Rng) -> Any:
    return _any(_graph(model).operators, rng)


def _indices(values: Any) -> list[int]:
    return [int(v) for v in values]


_WRONG = (-(2**31), -2, 9999, 2**24, 2**31 - 1)


def _buffer_index(model: Any, rng: Rng) -> None:
    _tensor(model, rng).buffer = _any((9999, 2**24, 2**31 - 1, 2**32 - 1), rng)


def _buffer_of_another(model: Any, rng: Rng) -> None:
    _tensor(model, rng).buffer = _tensor(model, rng).buffer


def _shape(model: Any, rng: Rng) -> None:
    shapes = ([-1, 8], [0], [], [2**31 - 1] * 4, [-(2**31)], [1] * 1000, [2**20, 2**12], [3, -7, 2])
    _tensor(model, rng).shape = _any(shapes, rng)


def _side(model: Any, rng: Rng) -> None:
    tensor = _tensor(model, rng)
    shape = _indices(tensor.shape) if tensor.shape is not None else []
    if shape:
        place = int(rng.integers(0, len(shape)))
        shape[place] = _any((-1, 0, shape[place] + 1, 2 * shape[place], 2**16, 2**31 - 1), rng)
        tensor.shape = shape


def _shape_signature(model: Any, rng: Rng) -> None:
    _tensor(model, rng).shapeSignature = _any(([-5], [2**31 - 1], [-1] * 4, [1] * 99), rng)


def _tensor_type(model: Any, rng: Rng) -> None:
    _tensor(model, rng).type = int(rng.integers(0, 30))


def _tensor_name(model: Any, rng: Rng) -> None:
    names = ("", "x" * 100_000, "two\nlines \x1b[31m", "\u202e" * 50, None)
    _tensor(model, rng).name = _any(names, rng)


def _variable(model: Any, rng: Rng) -> None:
    _tensor(model, rng).isVariable = True


def _sparsity(model: Any, rng: Rng) -> None:
    sparsity = schema.SparsityParametersT()
    sparsity.traversalOrder = _any(([], [0, 1, 2, 3], [9, -1], [2**31 - 1]), rng)
    sparsity.blockMap = _any((None, [0], [77]), rng)
    dimension = schema.DimensionMetadataT()
    dimension.format = int(rng.integers(0, 3))
    dimension.denseSize = int(_any((-1, 0, 4, 2**31 - 1), rng))
    sparsity.dimMetadata = [dimension] * int(rng.integers(0, 6))
    _tensor(model, rng).sparsity = sparsity


def _operator_inputs(model: Any, rng: Rng) -> None:
    operator = _operator(model, rng)
    inputs = _indices(operator.inputs)
    inputs[int(rng.integers(0, len(inputs)))] = int(_any(_WRONG, rng))
    operator.inputs = inputs


def _operator_outputs(model: Any, rng: Rng) -> None:
    operator = _operator(model, rng)
    operator.outputs = _any(([], [-1], [9999], [-(2**31)], [2**31 - 1], [0, 0, 0]), rng)


def _input_left_out(model: Any, rng: Rng) -> None:
    operator = _operator(model, rng)
    inputs = _indices(operator.inputs)
    inputs[int(rng.integers(0, len(inputs)))] = -1
    operator.inputs = inputs


def _input_count(model: Any, rng: Rng) -> None:
    operator = _operator(model, rng)
    inputs = _indices(operator.inputs)
    operator.inputs = _any(([], inputs[:1], inputs * 2, inputs * 1000), rng)


def _other_input(model: Any, rng: Rng) -> None:
    operator = _operator(model, rng)
    inputs = _indices(operator.inputs)
    inputs[int(rng.integers(0, len(inputs)))] = int(rng.integers(0, len(_graph(model).tensors)))
    operator.inputs = inputs


def _cycle(model: Any, rng: Rng) -> None:
    operators = _graph(model).operators
    first, second = sorted(rng.integers(0, len(operators), 2))
    inputs = _indices(operators[first].inputs)
    inputs[0] = int(operators[second].outputs[0])
    operators[first].inputs = inputs


def _order(model: Any, rng: Rng) -> None:
    operators = _graph(model).operators
    _graph(model).operators = [operators[i] for i in rng.permutation(len(operators))]


def _twice(model: Any, rng: Rng) -> None:
    _operator(model, rng).outputs = _operator(model, rng).outputs


def _opcode_index(model: Any, rng: Rng) -> None:
    _operator(model, rng).opcodeIndex = _any((77, 2**31 - 1, 2**32 - 1), rng)


def _other_opcode(model: Any, rng: Rng) -> None:
    _operator(model, rng).opcodeIndex = int(rng.integers(0, len(model.operatorCodes)))


def _builtin_code(model: Any, rng: Rng) -> None:
    code = _any(model.operatorCodes, rng)
    code.builtinCode = int(rng.integers(0, 215))
    code.deprecatedBuiltinCode = min(code.builtinCode, 127)


def _no_such_code(model: Any, rng: Rng) -> None:
    code = _any(model.operatorCodes, rng)
    code.builtinCode, code.deprecatedBuiltinCode = _any(((9999, 127), (-1, -1), (0, -128)), rng)


def _code_version(model: Any, rng: Rng) -> None:
    _any(model.operatorCodes, rng).version = int(_any((0, -1, 99, 2**31 - 1, -(2**31)), rng))


def _custom(model: Any, rng: Rng) -> None:
    code = _any(model.operatorCodes, rng)
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.CUSTOM
    code.customCode = _any((None, "", "FlexErf", "x" * 10_000, "two\nlines"), rng)


def _codes(model: Any, rng: Rng) -> None:
    model.operatorCodes = _any(([], model.operatorCodes[:1], None), rng)


def _recursion(model: Any, rng: Rng) -> None:
    """An operation that calls its own graph."""
    code = schema.OperatorCodeT()
    code.version = 1
    operator = _operator(model, rng)
    kind, kind_options, options = _any(
        (
            ("WHILE", schema.BuiltinOptions.WhileOptions, schema.WhileOptionsT()),
            ("IF", schema.BuiltinOptions.IfOptions, schema.IfOptionsT()),
            ("CALL_ONCE", schema.BuiltinOptions.CallOnceOptions, schema.CallOnceOptionsT()),
        ),
        rng,
    )
    code.builtinCode = getattr(schema.BuiltinOperator, kind)
    code.deprecatedBuiltinCode = min(code.builtinCode, 127)
    for name in vars(options):
        setattr(options, name, int(_any((0, 1, 9999, -1), rng)))
    model.operatorCodes.append(code)
    operator.opcodeIndex = len(model.operatorCodes) - 1
    operator.builtinOptionsType, operator.builtinOptions = kind_options, options


def _no_graph(model: Any, rng: Rng) -> None:
    model.subgraphs = _any(([], None), rng)


def _more_graphs(model: Any, rng: Rng) -> None:
    model.subgraphs = [_graph(model)] * int(_any((2, 50), rng))


def _empty_graph(model: Any, rng: Rng) -> None:
    name = _any(("tensors", "operators", "inputs", "outputs"), rng)
    setattr(_graph(model), name, _any(([], None), rng))


def _graph_ends(model: Any, rng: Rng) -> None:
    name = _any(("inputs", "outputs"), rng)
    ends = (
        [-1],
        [9999],
        [-(2**31)],
        [2**31 - 1],
        [0] * 500,
        list(range(len(_graph(model).tensors))),
    )
    setattr(_graph(model), name, _any(ends, rng))


def _quantization(model: Any, rng: Rng) -> None:
    tensor = _tensor(model, rng)
    parameters = tensor.quantization = tensor.quantization or schema.QuantizationParametersT()
    scales = ([], [0.0], [-1.0], [np.nan], [np.inf], [1e-45], [3e38], [1.0] * 7, [1.0] * 5000)
    parameters.scale = _any(scales, rng)
    parameters.zeroPoint = _any(([], [0], [2**62], [-(2**63)], [0] * 7, [1] * 5000), rng)
    parameters.quantizedDimension = int(_any((0, 1, 3, 77, -1, 2**31 - 1), rng))


def _quantized_dimension(model: Any, rng: Rng) -> None:
    parameters = _tensor(model, rng).quantization
    if parameters is not None:
        parameters.quantizedDimension = int(_any((-1, 4, 77, 2**31 - 1, -(2**31)), rng))


def _option(model: Any, rng: Rng) -> None:
    """An extreme number in an operation's options."""
    options = _operator(model, rng).builtinOptions
    names = [name for name, value in vars(options or object).items() if isinstance(value, int)]
    if options is not None and names:
        name = _any(names, rng)
        for value in (_any((0, -1, 1000, 2**31 - 1), rng), 99, 1):
            setattr(options, name, value)
            try:
                options.Pack(flatbuffers.Builder(0))
                return
            except TypeError:
                continue  # the field is smaller than that


def _option_type(model: Any, rng: Rng) -> None:
    operator = _operator(model, rng)
    operator.builtinOptionsType = int(rng.integers(0, 126))


def _no_options(model: Any, rng: Rng) -> None:
    operator = _operator(model, rng)
    operator.builtinOptionsType, operator.builtinOptions = 0, None


def _large_options(model: Any, rng: Rng) -> None:
    operator = _operator(model, rng)
    operator.largeCustomOptionsOffset = int(_any((1, 2**31, 2**63), rng))
    operator.largeCustomOptionsSize = int(_any((1, 2**31, 2**63), rng))


def _constant(model: Any, rng: Rng) -> None:
    """Extreme numbers in a constant of whole numbers: axes, paddings, shapes."""
    numbers = [t for t in _graph(model).tensors if t.type == schema.TensorType.INT32]
    buffer = model.buffers[_any(numbers or _graph(model).tensors, rng).buffer]
    if buffer.data is not None and len(buffer.data) >= 4:
        data = np.array(buffer.data, "uint8").tobytes()
        data = np.frombuffer(data[: len(data) // 4 * 4], "<i4").copy()
        data[rng.integers(0, len(data))] = _any((-1, 0, 5, 77, 2**20, 2**31 - 1, -(2**31)), rng)
        buffer.data = np.frombuffer(data.tobytes(), "uint8")


def _constant_size(model: Any, rng: Rng) -> None:
    buffer = model.buffers[_tensor(model, rng).buffer]
    if buffer.data is not None:
        data = np.array(buffer.data, "uint8")
        buffer.data = _any((data[: len(data) // 2], data[:1], np.tile(data, 3), data[:0]), rng)


def _constant_far_away(model: Any, rng: Rng) -> None:
    """A constant of gigabytes, behind the end of the file."""
    buffer = model.buffers[_tensor(model, rng).buffer]
    buffer.data = None
    buffer.offset = int(_any((2, 1000, 2**32, 2**40, 2**63), rng))
    buffer.size = int(_any((4, 2**32, 2**40, 2**63), rng))


def _signature(model: Any, rng: Rng) -> None:
    signature = _any(model.signatureDefs, rng)
    signature.subgraphIndex = int(_any((0, 0, 77, 2**32 - 1), rng))
    for ends in (signature.inputs, signature.outputs):
        for end in ends:
            end.tensorIndex = int(_any((0, 9999, 2**32 - 1), rng))
            end.name = _any(("", "x" * 1000, "two\nlines", None), rng)


def _many_signatures(model: Any, rng: Rng) -> None:
    model.signatureDefs = model.signatureDefs * int(_any((2, 1000), rng))


def _metadata_entry(model: Any, rng: Rng) -> None:
    entry = _any(model.metadata, rng)
    entry.buffer = int(_any((0, 1, 9999, 2**32 - 1), rng))
    entry.name = _any((entry.name, None, "", "x" * 10_000, "TFLITE_METADATA"), rng)


def _many_entries(model: Any, rng: Rng) -> None:
    model.metadata = model.metadata * int(_any((2, 1000, 4000), rng))


def _metadata(model: Any, rng: Rng) -> None:
    """Damage inside the metadata, which is a flatbuffer of its own."""
    for entry in model.metadata:
        if entry.name in (b"TFLITE_METADATA", "TFLITE_METADATA"):
            data = bytearray(np.array(model.buffers[entry.buffer].data, "uint8").tobytes())
            way = _any((_flip, _truncate, _integer, _zero, _noise), rng)
            for _ in range(3):
                way(data, _place(data, rng), rng)
            model.buffers[entry.buffer].data = np.frombuffer(bytes(data), "uint8")


def _huge_metadata(model: Any, rng: Rng) -> None:
    for entry in model.metadata:
        buffer = model.buffers[entry.buffer]
        buffer.data = np.tile(np.array(buffer.data, "uint8"), 500)


def _description(model: Any, rng: Rng) -> None:
    model.description = _any(("", "x" * 100_000, "two\nlines \x1b[2J", None), rng)
    model.version = int(_any((0, 3, 4, 2**32 - 1), rng))


def _zip_bomb(output: io.BytesIO, rng: Rng) -> None:
    """Labels of 17 MiB, packed into some KiB; 16 MiB are the most that is read."""
    with zipfile.ZipFile(output, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("labels.txt", bytes(17 << 20))


def _zip_names(output: io.BytesIO, rng: Rng) -> None:
    name = _any(("../../labels.txt", "/etc/passwd", "labels.txt/", "two\nlines", "x" * 60_000), rng)
    with zipfile.ZipFile(output, "a") as archive:
        archive.writestr(name, "a\nb\n")


def _zip_claims(output: io.BytesIO, rng: Rng) -> None:
    """Label files of 4 GB, far away, or of another size than the archive's list says."""
    with zipfile.ZipFile(output, "a") as archive:
        archive.writestr("labels.txt", "a\nb\n")
    data = bytearray(output.getvalue())
    entry = data.rindex(b"PK\x01\x02")
    place = entry + int(_any((20, 24, 28, 42), rng))  # sizes, length of the name, offset
    struct.pack_into("<I", data, place, int(_any((0, 1, 2**31, 2**32 - 2), rng)))
    output.seek(0)
    output.write(data)


def _zip_damage(output: io.BytesIO, rng: Rng) -> None:
    start = output.tell()
    with zipfile.ZipFile(output, "a") as archive:
        archive.writestr("labels.txt", "a\nb\n" * 50)
    data = bytearray(output.getvalue())
    tail = data[start:]
    for _ in range(3):
        _noise(tail, _place(tail, rng), rng)
    output.seek(start)
    output.write(tail)


_ZIP_WAYS = (_zip_bomb, _zip_names, _zip_claims, _zip_damage)
_MODEL_WAYS = (
    _buffer_index,
    _buffer_of_another,
    _shape,
    _side,
    _shape_signature,
    _tensor_type,
    _tensor_name,
    _variable,
    _sparsity,
    _operator_inputs,
    _operator_outputs,
    _input_left_out,
    _input_count,
    _other_input,
    _cycle,
    _order,
    _twice,
    _opcode_index,
    _other_opcode,
    _builtin_code,
    _no_such_code,
    _code_version,
    _custom,
    _codes,
    _recursion,
    _no_graph,
    _more_graphs,
    _empty_graph,
    _graph_ends,
    _quantization,
    _quantized_dimension,
    _option,
    _option_type,
    _no_options,
    _large_options,
    _constant,
    _constant_size,
    _constant_far_away,
    _signature,
    _many_signatures,
    _metadata_entry,
    _many_entries,
    _metadata,
    _huge_metadata,
    _description,
)

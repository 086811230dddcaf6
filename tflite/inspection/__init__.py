"""What is in a .tflite file, and what becomes of it at run time.

    inspection = inspect("model.tflite")
    print(inspection)

The file may come from elsewhere: it is opened in a child process with a time limit.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kapps._errors import InputError
from kapps.tflite import child, file_facts
from kapps.tflite.inspection.versions import is_version, newest

_TIME_LIMIT = 60.0  # seconds a file; EfficientNetB7 takes 1


@dataclass(frozen=True)
class Quantization:
    """How integers stand for real numbers: scale * (integer - zero point).

    Attributes:
        scales: how many: 1 if the tensor has one for all, otherwise one a channel.
        axis: the dimension of the channels; None if there is one scale.
        scale: the smallest and the largest.
        zero_point: the same.
    """

    scales: int
    axis: int | None
    scale: tuple[float, float]
    zero_point: tuple[int, int]

    def __str__(self) -> str:
        low, high = self.scale
        if self.axis is None:
            return f"scale {low:.6g}, zero point {self.zero_point[0]}"
        return f"{self.scales} scales along axis {self.axis}, {low:.3g} to {high:.3g}"


@dataclass(frozen=True)
class Tensor:
    """A tensor of a graph.

    Attributes:
        index: its number in the graph.
        name: cut off at 200 characters.
        dtype: as the schema has it, such as INT8.
        shape: of its allocation.
        signature: the same with -1 for a dimension that is not fixed.
        constant: its content is in the file.
        bytes: how much of the file that takes.
        quantization: None for floats, plain integers, and weights with scales by block.
        block: how many weights share a scale, of those whose scales lie in a tensor of their own;
            0 of all others.
    """

    index: int
    name: str
    dtype: str
    shape: tuple[int, ...]
    signature: tuple[int, ...]
    constant: bool
    bytes: int
    quantization: Quantization | None
    block: int

    def __str__(self) -> str:
        sides = ("?" if side < 0 else str(side) for side in self.signature)
        return f"{self.dtype.lower()} {'x'.join(sides) or 'scalar'}"


@dataclass(frozen=True)
class Operation:
    """An operation of a graph.

    Attributes:
        index: its number in the graph.
        name: as the schema has it, such as CONV_2D; for a custom one its own.
        custom: it is none of the schema's.
        version: of the operation, as the file demands it.
        inputs: numbers of tensors, -1 for one that is left out.
        outputs: numbers of tensors.
        oldest_runtime: the oldest TensorFlow Lite that has this version; None if not known.
        piece: the number of the delegate piece that runs it here; None if none does.
        reason: why none does; "" if one does, or if this is not known.
        gpu_reason: why the GPU delegate would not run it; "" if it would
            (`kapps.tflite.inspection.gpu`).
    """

    index: int
    name: str
    custom: bool
    version: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    oldest_runtime: str | None
    piece: int | None
    reason: str
    gpu_reason: str


TARGETS = ("cpu", "gpu")


@dataclass(frozen=True)
class Subgraph:
    """A graph of the file; convolutional networks have one."""

    name: str
    tensors: tuple[Tensor, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    operations: tuple[Operation, ...]


@dataclass(frozen=True)
class Signature:
    """A named entrance: the number of its graph, and {name: number of the tensor}."""

    name: str
    subgraph: int
    inputs: dict[str, int]
    outputs: dict[str, int]


@dataclass(frozen=True)
class Inspection:
    """What a .tflite file is.

    Attributes:
        path: the file.
        size_bytes: all of it: weights, metadata and attached files, the rest is the graph.
        weight_bytes: its constants.
        metadata_bytes: its metadata entries.
        attached_bytes: the files in the zip behind the model, such as labels.
        schema_version: 3.
        description: what the converter wrote, such as "MLIR Converted.".
        subgraphs: its graphs, the main one first.
        signatures: its named entrances.
        runtime: what it was tried on, here.
        failure: why that cannot run it (an operation that it lacks, an input of any size); "" if
            it can.
        pieces: into how many pieces the CPU delegate (XNNPACK) takes the main graph: 1 is best.
        min_runtime_version: the oldest runtime by the converter's own note; "" without one.
        entries: the bytes of each metadata entry, by name.
        attached: the bytes of each file in the zip behind the model, by name.
        metadata: what the file says about itself, as `kapps.tflite.Metadata` has it; None if
            nothing.
        metadata_error: why that cannot be read; "" if it can, or is not there.
    """

    path: str
    size_bytes: int
    weight_bytes: int
    metadata_bytes: int
    attached_bytes: int
    schema_version: int
    description: str
    subgraphs: tuple[Subgraph, ...]
    signatures: tuple[Signature, ...]
    runtime: str
    failure: str
    pieces: int
    min_runtime_version: str
    entries: dict[str, int]
    attached: dict[str, int]
    metadata: dict[str, Any] | None
    metadata_error: str

    @property
    def operations(self) -> tuple[Operation, ...]:
        """Those of the main graph."""
        return self.subgraphs[0].operations

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """Those of the main graph."""
        return tuple(self.subgraphs[0].tensors[i] for i in self.subgraphs[0].inputs if i >= 0)

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        """Those of the main graph."""
        return tuple(self.subgraphs[0].tensors[i] for i in self.subgraphs[0].outputs if i >= 0)

    @property
    def fallen_off(self) -> tuple[Operation, ...]:
        """The operations of the main graph that no delegate piece runs, each with its reason."""
        return tuple(op for op in self.operations if op.piece is None and op.reason)

    def refused(self, target: str = "cpu") -> tuple[tuple[Operation, str], ...]:
        """The operations of the main graph that a target does not take, each with the reason.

        Args:
            target: "cpu", XNNPACK, on which it was tried here; or "gpu", TensorFlow Lite's GPU
                delegate, by its rules (`kapps.tflite.inspection.gpu`).
        """
        if target not in TARGETS:
            raise InputError(f"unknown target {target!r}: {', '.join(TARGETS)}")
        if target == "cpu":
            return tuple((op, op.reason) for op in self.fallen_off)
        return tuple((op, op.gpu_reason) for op in self.operations if op.gpu_reason)

    @property
    def oldest_runtime(self) -> str | None:
        """The oldest TensorFlow Lite that loads the file; None if nothing tells it.

        The converter's note and what is known of each operation: the later of the two, since notes
        are missing in files of other tools, and out of date where one has changed the file.
        """
        known = [op.oldest_runtime for graph in self.subgraphs for op in graph.operations]
        noted = self.min_runtime_version if is_version(self.min_runtime_version) else ""
        return newest([runtime for runtime in (*known, noted.removesuffix(".0")) if runtime])

    @property
    def unknown_age(self) -> tuple[str, ...]:
        """The operations, with their versions, of which no runtime is known."""
        ops = (op for graph in self.subgraphs for op in graph.operations if not op.oldest_runtime)
        return tuple(dict.fromkeys(f"{op.name} version {op.version}" for op in ops))

    @property
    def float_operations(self) -> tuple[Operation, ...]:
        """The operations of the main graph that compute in float, input and output aside.

        See `kapps.tflite.file_facts.float_operations`.
        """
        return tuple(file_facts.float_operations(self.subgraphs[0]))

    @property
    def variant(self) -> str:
        """As `kapps.tflite.convert` calls it; "int8-qat" after quantization-aware training."""
        said = (self.metadata or {}).get("description", "")
        return file_facts.variant(self.subgraphs[0], Path(self.path).stem, said)

    def __str__(self) -> str:
        return self.text()

    def text(self, target: str = "cpu") -> str:
        """All of it for people, with what a target does not take; see `refused`."""
        from kapps.tflite.inspection.text import text

        return text(self, target)

    def to_json(self) -> dict[str, Any]:
        """All of it, and what follows from it, as what `json.dumps` takes."""
        return {
            **dataclasses.asdict(self),
            "variant": self.variant,
            "oldest_runtime": self.oldest_runtime,
            "unknown_age": self.unknown_age,
            "fallen_off": [op.index for op in self.fallen_off],
            "refused_by_gpu": [op.index for op, _ in self.refused("gpu")],
            "float_operations": [op.index for op in self.float_operations],
        }


def inspect(
    path: str | os.PathLike[str],
    *,
    input_shape: Sequence[int] | None = None,
    time_limit: float = _TIME_LIMIT,
) -> Inspection:
    """What is in the .tflite file at `path`, and how it runs here.

    Args:
        path: the file; it is not trusted.
        input_shape: with which it is tried, if its input has no fixed size.
        time_limit: seconds after which it is given up.

    Raises:
        InputError: no such file, no .tflite file, or one that is malformed; one line, with the
            file's name.
    """
    (found,) = inspect_each([path], input_shape=input_shape, time_limit=time_limit)
    if isinstance(found, InputError):
        raise found
    return found


def inspect_each(
    paths: Sequence[str | os.PathLike[str]],
    *,
    input_shape: Sequence[int] | None = None,
    time_limit: float = _TIME_LIMIT,
) -> list[Inspection | InputError]:
    """What `inspect` returns or raises for each file, in milliseconds a file."""
    shape = child.check_input_shape(input_shape)
    requests = [{"path": os.fspath(path), "input_shape": shape} for path in paths]
    answers = child.run_each("inspection.task", requests, time_limit=time_limit)
    return [answer if isinstance(answer, InputError) else _inspection(answer) for answer in answers]


def float_operations(path: str | os.PathLike[str]) -> list[str]:
    """The operations of the .tflite file at `path` that compute in float, input and output aside.

    Empty for a file that was quantized throughout. Each is told as "HARD_SWISH 12 (name of its
    output)"; `Inspection.float_operations` says which count.

    Raises:
        InputError: as for `inspect`.
    """
    inspection = inspect(path)
    tensors = inspection.subgraphs[0].tensors
    return [
        f"{op.name} {op.index} ({', '.join(tensors[i].name for i in op.outputs if i >= 0)})"
        for op in inspection.float_operations
    ]


def _inspection(answer: dict[str, Any]) -> Inspection:
    """From the child's JSON."""
    subgraphs = tuple(
        Subgraph(
            name=graph["name"],
            tensors=tuple(_tensor(tensor) for tensor in graph["tensors"]),
            inputs=tuple(graph["inputs"]),
            outputs=tuple(graph["outputs"]),
            operations=tuple(
                Operation(**{**op, "inputs": tuple(op["inputs"]), "outputs": tuple(op["outputs"])})
                for op in graph["operations"]
            ),
        )
        for graph in answer["subgraphs"]
    )
    signatures = tuple(Signature(**signature) for signature in answer["signatures"])
    return Inspection(**{**answer, "subgraphs": subgraphs, "signatures": signatures})


def _tensor(answer: dict[str, Any]) -> Tensor:
    quantization = answer["quantization"]
    if quantization is not None:
        low_high = {name: tuple(quantization[name]) for name in ("scale", "zero_point")}
        quantization = Quantization(**{**quantization, **low_high})
    shapes = {name: tuple(answer[name]) for name in ("shape", "signature")}
    return Tensor(**{**answer, **shapes, "quantization": quantization})

"""Running a .tflite file over images, on the LiteRT interpreter of this machine."""

from __future__ import annotations

import collections
import os
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from kapps._errors import InputError, one_line
from kapps.tflite.metadata import Metadata, find_metadata, pixels_to_input


class NoSize(InputError):
    """A file that takes an input of any size, and none was given."""


def load_interpreter(
    path: str | os.PathLike[str],
    threads: int,
    input_shape: Sequence[int] | None = None,
    *,
    delegate: bool = True,
) -> Interpreter:
    """An interpreter with its tensors allocated, and so with its delegate applied.

    Args:
        path: the file.
        threads: of the interpreter.
        input_shape: of the input, if that has dimensions which are not fixed. Without one a batch
            is 1, and other such dimensions are refused.
        delegate: whether XNNPACK takes what it can, with a copy of the weights; it is three times
            as fast as what is built in.

    Raises:
        NoSize: the file needs an `input_shape`.
        InputError: no such file, not a .tflite file that the interpreter takes, or not a shape that
            this file takes.
    """
    if threads < 1:
        raise InputError(f"threads: expected 1 or more, got {threads}")
    if not Path(path).is_file():
        raise InputError(f"no such file: {path}")
    try:
        # Bytes: not every name is text, and as such it would be refused.
        interpreter = Interpreter(
            os.fsencode(path),
            num_threads=threads,
            experimental_op_resolver_type=(
                OpResolverType.AUTO
                if delegate
                else OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
            ),
        )
        _fix_size(interpreter, path, input_shape)
        interpreter.allocate_tensors()
    except InputError:
        raise
    except (RuntimeError, ValueError) as error:
        if "builtin opcode" in str(error):
            raise InputError(
                f"{path} needs a newer runtime than LiteRT {version('ai-edge-litert')}: "
                f"pip install -U ai-edge-litert ({one_line(str(error))})"
            ) from error
        if input_shape is not None:
            shape = ",".join(map(str, input_shape))
            raise InputError(f"{path} does not run on an input of {shape}: {error}") from error
        raise InputError(f"{path} is no .tflite file that runs here: {error}") from error
    return interpreter


def _fix_size(
    interpreter: Interpreter, path: str | os.PathLike[str], input_shape: Sequence[int] | None
) -> None:
    inputs = interpreter.get_input_details()
    free = [detail for detail in inputs if -1 in detail["shape_signature"][1:]]
    if input_shape is None and free:
        sides = "x".join("?" if n < 0 else str(n) for n in free[0]["shape_signature"])
        raise NoSize(
            f"{path} takes an input of {sides}, which is no size: give --input_shape=1,224,224,3 "
            "or the like, or convert it with a fixed size"
        )
    if input_shape is None or not any(-1 in detail["shape_signature"] for detail in inputs):
        return
    if len(inputs) != 1:
        raise InputError(f"{path} has {len(inputs)} inputs: a shape is given to a single one")
    shape = list(input_shape)
    signature = inputs[0]["shape_signature"].tolist()
    fits = [side in (-1, n) for side, n in zip(signature, shape, strict=False)]
    if len(shape) != len(signature) or not all(fits):
        sides = "x".join("?" if n < 0 else str(n) for n in signature)
        raise InputError(f"{path} takes an input of {sides}, not {'x'.join(map(str, shape))}")
    interpreter.resize_tensor_input(inputs[0]["index"], shape)


def operations(interpreter: Interpreter) -> list[dict[str, Any]]:
    """The operations of the graph as it runs, delegates included."""
    return list(interpreter._get_ops_details())  # the only way to see delegates


def delegate_pieces(interpreter: Interpreter) -> int:
    """Into how many pieces the delegate (XNNPACK) took the graph: 1 is best, 0 is not at all.

    Each further piece costs a way to the plain kernels and back.
    """
    return sum(op["op_name"] == "DELEGATE" for op in operations(interpreter))


def delegated(operations: Sequence[Mapping[str, Any]]) -> list[int | None]:
    """For each operation of the file the number of the delegate piece that runs it; None if none.

    The interpreter lists the file's operations and behind them the pieces with their inputs and
    outputs; a piece holds what leads from these to those.

    Args:
        operations: as the function of this name gives them.
    """
    own = len(operations)
    while own and operations[own - 1]["op_name"] == "DELEGATE":
        own -= 1
    maker = {int(t): number for number in range(own) for t in operations[number]["outputs"]}
    found: list[int | None] = [None] * own
    for piece, delegate in enumerate(operations[own:]):
        known = {int(t) for t in delegate["inputs"]}
        todo = collections.deque(int(t) for t in delegate["outputs"])
        while todo:
            tensor = todo.popleft()
            if tensor < 0 or tensor in known or tensor not in maker:
                continue
            known.add(tensor)
            number = maker[tensor]
            if found[number] is None:
                found[number] = piece
                todo.extend(int(t) for t in operations[number]["inputs"])
    return found


class Runner:
    """A .tflite image classifier, loaded and ready.

    It runs in this process: give it files of your own. A malformed file from elsewhere can kill
    the interpreter, and the process with it.

    Args:
        path: the file.
        threads: of the interpreter.
        delegate: see `load_interpreter`.

    Attributes:
        path: the file.
        input_shape: (1, height, width, channels).
        input_dtype: what the file takes: uint8, int8 or float32.
        input_quantization: (scale, zero point) of the input; (0.0, 0) if it is float.
        output_quantization: the same of the output.
        metadata: what the file says about itself; None if it says nothing. The normalization that
            it states is applied to the images.

    Raises:
        InputError: no such file, not a .tflite file with one input and one output, or malformed
            metadata in it.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, threads: int = 1, delegate: bool = True
    ) -> None:
        self.path = Path(path)
        self._interpreter = load_interpreter(self.path, threads, delegate=delegate)
        inputs = self._interpreter.get_input_details()
        outputs = self._interpreter.get_output_details()
        if len(inputs) != 1 or len(outputs) != 1 or len(inputs[0]["shape"]) != 4:
            raise InputError(f"{self.path} is no image classifier: expected one image in, one out")
        self._input, self._output = inputs[0], outputs[0]
        self.input_shape: tuple[int, ...] = tuple(int(n) for n in self._input["shape"])
        self.input_dtype = np.dtype(self._input["dtype"])
        self.input_quantization: tuple[float, int] = self._input["quantization"]
        self.output_quantization: tuple[float, int] = self._output["quantization"]
        self.metadata: Metadata | None = find_metadata(self.path)

    @property
    def output_shape(self) -> tuple[int, ...]:
        """What one run gives: (1, classes) of a classifier."""
        return tuple(int(n) for n in self._interpreter.get_output_details()[0]["shape"])

    @property
    def delegate_pieces(self) -> int:
        """See the function of this name."""
        return delegate_pieces(self._interpreter)

    def predict(self, images: np.ndarray) -> np.ndarray:
        """The outputs for images (n, height, width, channels) in 0..255: float32 (n, classes).

        Raises:
            InputError: the images have another shape.
        """
        images = np.asarray(images)
        if images.ndim != 4 or images.shape[1:] != self.input_shape[1:]:
            raise InputError(
                f"{self.path}: expected images of shape (n, {_shape(self.input_shape)}), "
                f"got ({_shape((0, *images.shape))})"
            )
        outputs = [self._run(image) for image in images]
        return np.stack(outputs) if outputs else np.zeros((0, self._output["shape"][-1]), "float32")

    def _run(self, image: np.ndarray) -> np.ndarray:
        value = pixels_to_input(
            image[None], self.metadata, self.input_dtype, self.input_quantization
        )
        self._interpreter.set_tensor(self._input["index"], value)
        self._interpreter.invoke()
        output = self._interpreter.get_tensor(self._output["index"])[0].astype("float32")
        scale, zero_point = self.output_quantization
        return (output - zero_point) * scale if scale else output


def _shape(shape: tuple[int, ...]) -> str:
    return ", ".join(str(n) for n in shape[1:])

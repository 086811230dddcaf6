"""The inner tensors of a .tflite file as it runs on images; a task of `child`.

The file may come from elsewhere, so this runs in a child process: images and tensors pass as .npz
files in a folder that the parent made, everything else as JSON.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from kapps._errors import InputError
from kapps.tflite.file_facts import quantization, read_graph
from kapps.tflite.metadata import find_metadata, pixels_to_input

_MOST_BYTES = 1 << 30  # of all tensors, for one image; EfficientNetB7 at 600 px takes a third


def work(request: dict[str, Any], emit: Callable[..., None]) -> dict[str, Any]:
    """Runs the file over the images, on plain kernels: a delegate keeps its tensors to itself.

    Args:
        request: `file`, the path of the .tflite; `folder`, with "images.npz" in it, whose `images`
            are (n, height, width, channels) in 0..255. Beside it goes "0.npz", "1.npz", ... for
            each image, with the result of each operation under the tensor's number.

    Returns:
        `tensors`, in the order in which they are computed: for each its number, name, shape,
        operation, and scale and zero_point (None for floats); `output`, the number of the file's
        output; `mean` and `std`, the normalization that its metadata states; and `quantization`, as
        `convert` calls it.
    """
    file, folder = request["file"], Path(request["folder"])
    if not Path(file).is_file():
        raise InputError(f"no such file: {file}")
    with np.load(folder / "images.npz", allow_pickle=False) as saved:
        images = saved["images"]
    emit(at=file)
    metadata = find_metadata(file)
    try:
        interpreter = Interpreter(
            os.fsencode(file),
            experimental_preserve_all_tensors=True,
            experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        )
        interpreter.allocate_tensors()
    except (RuntimeError, ValueError) as error:
        raise InputError(f"{file} is no .tflite file that runs here: {error}") from error
    inputs, outputs = interpreter.get_input_details(), interpreter.get_output_details()
    if len(inputs) != 1 or len(outputs) != 1 or len(inputs[0]["shape"]) != 4:
        raise InputError(f"{file} is no image classifier: expected one image in, one output")
    if tuple(inputs[0]["shape"]) != (1, *images.shape[1:]):
        raise InputError(
            f"{file} takes images of shape {_shape(inputs[0])}, not {[1, *images.shape[1:]]}: "
            "compare it with the model that it was converted from, or with a file for such images"
        )
    details = {tensor["index"]: tensor for tensor in interpreter.get_tensor_details()}
    computed: dict[int, str] = {}
    for operation in interpreter._get_ops_details():  # the only way to see the operations
        for number in operation["outputs"]:
            # As Python sees it, a string tensor is an object.
            if number in details and np.dtype(details[number]["dtype"]).kind in "iuf":
                computed[int(number)] = operation["op_name"]
    size = sum(
        int(np.prod(details[n]["shape"], dtype=float)) * np.dtype(details[n]["dtype"]).itemsize
        for n in computed
    )
    if size > _MOST_BYTES:
        raise InputError(f"{file}: its tensors take {size >> 20} MiB an image, too much to compare")
    for index, image in enumerate(images):
        value = pixels_to_input(
            image[None], metadata, inputs[0]["dtype"], inputs[0]["quantization"]
        )
        try:
            interpreter.set_tensor(inputs[0]["index"], value)
            interpreter.invoke()
        except (RuntimeError, ValueError) as error:
            raise InputError(f"{file} does not run: {error}") from error
        values = {}
        for number in list(computed):
            try:
                values[str(number)] = interpreter.get_tensor(number)
            except ValueError:  # no data: it was folded away
                del computed[number]
        np.savez(folder / f"{index}.npz", **values)
    return {
        "tensors": [
            {
                "number": number,
                "name": details[number]["name"],
                "shape": _shape(details[number]),
                "operation": operation,
                **_quantization(details[number]),
            }
            for number, operation in computed.items()
        ],
        "mean": list(metadata.mean) if metadata else [0.0],
        "std": list(metadata.std) if metadata else [1.0],
        "output": int(outputs[0]["index"]),
        "quantization": quantization(read_graph(Path(file).read_bytes())),
    }


def _is_integer(detail: dict[str, Any]) -> bool:
    return np.dtype(detail["dtype"]).kind in "iu"


def _shape(detail: dict[str, Any]) -> list[int]:
    return [int(n) for n in detail["shape"]]


def _quantization(detail: dict[str, Any]) -> dict[str, float | int | None]:
    scale, zero_point = detail["quantization"]
    if not scale or not _is_integer(detail):  # a foreign file may give floats a scale
        return {"scale": None, "zero_point": None}
    return {"scale": float(scale), "zero_point": int(zero_point)}

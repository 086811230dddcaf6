"""The task that `kapps.tflite.accuracy` runs in a child process (`kapps.tflite.child`)."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from kapps._errors import InputError
from kapps.tflite.interpreter import Runner
from kapps.tflite.metadata import Metadata, read_metadata

_TOP = 5  # classes


def work(request: dict[str, Any], emit: Callable[..., None]) -> dict[str, Any]:
    """What the file is, or, given "images" (a .npy file), its five best classes for each."""
    path = request["path"]
    emit(at=path)
    runner = Runner(path, threads=request["threads"])
    if "images" not in request:
        return _description(runner, path)
    images = np.load(request["images"], allow_pickle=False, mmap_mode="r")
    best = []
    for index, image in enumerate(images):
        scores = runner.predict(image[None])[0]
        if not np.isfinite(scores).all():
            raise InputError(f"{path} gives nan or infinity for image {index}")
        # Stable: among equal scores, which int8 files often give, the first class wins.
        best.append(np.argsort(-scores, kind="stable")[:_TOP].tolist())
        emit(done=index + 1)
    return {"best": best}


def _description(runner: Runner, path: str) -> dict[str, Any]:
    try:
        metadata = read_metadata(path)
    except InputError:
        metadata = Metadata(name="", labels=())
    runner.predict(np.zeros((1, *runner.input_shape[1:]), np.uint8))
    shape = runner.output_shape
    if len(shape) != 2 or shape[0] != 1:
        raise InputError(f"{path} gives {list(shape)}: expected [1, classes]")
    return {
        "name": metadata.name,
        "description": metadata.description,
        "labels": list(metadata.labels),
        "input_shape": list(runner.input_shape),
        "classes": shape[1],
        "quantization": _quantization(path),
    }


def _quantization(path: str) -> str:
    """As `kapps.tflite.convert` calls it, from the types of the tensors between input and output.

    Without delegates, which bring tensors of their own.
    """
    plain = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    interpreter = Interpreter(os.fsencode(path), experimental_op_resolver_type=plain)
    ends = {
        end["index"]
        for end in (*interpreter.get_input_details(), *interpreter.get_output_details())
    }
    types = {
        np.dtype(tensor["dtype"]).name
        for tensor in interpreter.get_tensor_details()
        if tensor["index"] not in ends
    }
    if "int16" in types:
        return "int16x8"
    if types & {"int8", "uint8"}:  # uint8: of TensorFlow 1
        return "dynamic" if "float32" in types else "int8"
    return "float16" if "float16" in types else "float32"

"""The task that `kapps.tflite.accuracy` runs in a child process (`kapps.tflite.child`)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from kapps._errors import InputError
from kapps.tflite import file_facts
from kapps.tflite.interpreter import Runner
from kapps.tflite.metadata import Metadata

_TOP = 5  # classes


def work(request: dict[str, Any], emit: Callable[..., None]) -> dict[str, Any]:
    """What the file is, or, given "images" (a .npy file), its five best classes for each.

    Given "scores" as well, a .npy file of that name gets all scores, float32 (n, classes).
    """
    path = request["path"]
    emit(at=path)
    runner = Runner(path, threads=request["threads"])
    if "images" not in request:
        return _description(runner, path, request["stem"])
    images = np.load(request["images"], allow_pickle=False, mmap_mode="r")
    best, kept = [], []
    for index, image in enumerate(images):
        scores = runner.predict(image[None])[0]
        if not np.isfinite(scores).all():
            raise InputError(f"{path} gives nan or infinity for image {index}")
        # Stable: among equal scores, which int8 files often give, the first class wins.
        best.append(np.argsort(-scores, kind="stable")[:_TOP].tolist())
        if "scores" in request:
            kept.append(scores)
        emit(done=index + 1)
    if "scores" in request:
        np.save(request["scores"], np.stack(kept).astype("float32"), allow_pickle=False)
    return {"best": best}


def _description(runner: Runner, path: str, stem: str) -> dict[str, Any]:
    metadata = runner.metadata or Metadata(name="", labels=())
    graph = file_facts.read_graph(Path(path).read_bytes())
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
        "variant": file_facts.variant(graph, stem, metadata.name, metadata.description),
    }

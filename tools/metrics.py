"""What a run tells while it goes: metrics.jsonl, and the files of TensorBoard."""

from __future__ import annotations

import datetime
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from kapps._errors import InputError
from kapps.tools.history import METRICS
from kapps.tools.json_files import finite


class Metrics:
    """Appends to the files of a run's folder; of a worker that is not the chief, to none.

    Args:
        folder: of the run.
        writes: whether this process is the one that writes.
        title: the part of the run, where it has several: a folder of TensorBoard's.
    """

    def __init__(self, folder: Path, writes: bool, title: str = "") -> None:
        self._path = folder / METRICS if writes else None
        self._part = {"phase": title} if title else {}
        self._writer = (
            tf.summary.create_file_writer(os.fspath(folder / "tensorboard" / title))
            if writes
            else tf.summary.create_noop_writer()
        )
        if self._path is not None:
            _mend(self._path)

    def write(self, kind: str, row: dict[str, Any]) -> None:
        """Notes figures, of a "step" or an "epoch", which `row` numbers.

        Raises:
            InputError: metrics.jsonl cannot be written.
        """
        if self._path is None:
            return
        now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        line = json.dumps(finite({"kind": kind, **self._part, **row, "time": now}))
        try:
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            raise InputError(f"cannot write {self._path}: {error.strerror}; make room") from error
        with self._writer.as_default():
            for name, value in row.items():
                if name not in ("epoch", "step"):
                    tag = name.replace("_", "/", 1) if kind == "epoch" else f"step/{name}"
                    _write(tag, tf.constant(value, tf.float32), int(row[kind]), "scalars")
        self._writer.flush()

    def images(self, name: str, pixels: np.ndarray, step: int) -> None:
        """Shows images, uint8 (n, height, width, 3), side by side in TensorBoard."""
        if self._path is None:
            return
        columns = int(np.ceil(np.sqrt(len(pixels))))
        blank = np.zeros((-len(pixels) % columns, *pixels.shape[1:]), np.uint8)
        rows = np.concatenate([pixels, blank]).reshape(-1, columns, *pixels.shape[1:])
        grid = np.concatenate([np.concatenate(row, axis=1) for row in rows])
        sides = [str(side).encode() for side in grid.shape[1::-1]]
        with self._writer.as_default():
            _write(name, tf.constant([*sides, tf.io.encode_png(grid).numpy()]), step, "images")
        self._writer.flush()

    def histograms(self, values: dict[str, np.ndarray], step: int) -> None:
        """Shows how numbers are distributed, by name, in TensorBoard."""
        with self._writer.as_default():
            for name, numbers in values.items():
                counts, edges = np.histogram(numbers[np.isfinite(numbers)], bins=30)
                table = np.stack([edges[:-1], edges[1:], counts], axis=1)
                _write(name, tf.constant(table, tf.float64), step, "histograms")
        self._writer.flush()


def _mend(path: Path) -> None:
    """Takes off half a line, of a run that was killed as it wrote."""
    if not path.exists():
        return
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)


def _write(name: str, value: tf.Tensor, step: int, plugin: str) -> None:
    """As `tf.summary.scalar` and its like, which are part of the package tensorboard."""
    data = tf.compat.v1.SummaryMetadata.PluginData(plugin_name=plugin)
    tf.summary.write(name, value, step, tf.compat.v1.SummaryMetadata(plugin_data=data))

"""What is in the folder of a run that was killed, and of one that has ended."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.numpy
import tensorflow as tf

from kapps._files import sha256
from kapps.tools.history import METRICS

_OF_THE_TIME = ("time", "images_per_second")


def unreadable(root: Path) -> list[str]:
    """A line for each file that cannot be read, but for those that were just being written."""
    found = []
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        check = next((check for pattern, check in _CHECKS if re.search(pattern, name)), None)
        if path.is_dir() or check is None or _is_temporary(name):
            continue
        try:
            check(path)
        except Exception as error:  # of half a dozen readers
            found.append(f"{name}: {type(error).__name__}: {str(error)[:100]}")
    return found


def leftovers(root: Path, uninterrupted: Path) -> list[str]:
    """The files that a run which was not interrupted does not have, and those that it has alone."""
    return sorted(_names(root) ^ _names(uninterrupted))


def differences(root: Path, uninterrupted: Path) -> list[str]:
    """What differs between the results of two runs, but for times and speeds."""
    files = [p.relative_to(uninterrupted) for p in uninterrupted.rglob("*.safetensors")]
    found = [
        str(name)
        for name in sorted(files)
        if not (root / name).exists()
        or (root / name).read_bytes() != (uninterrupted / name).read_bytes()
    ]
    figures = [epochs(folder) for folder in (root, uninterrupted)]
    return found if figures[0] == figures[1] else [*found, METRICS]


def epochs(root: Path) -> list[dict[str, Any]]:
    """What metrics.jsonl tells of each epoch: of one that was repeated, the later line."""
    (path,) = root.rglob(METRICS)
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    last = {row["epoch"]: row for row in rows if row["kind"] == "epoch"}
    return [{k: v for k, v in row.items() if k not in _OF_THE_TIME} for row in last.values()]


def _is_temporary(name: str) -> bool:
    return bool(re.search(r"(^|/)\.|/unfinished/|_temp/|\.tmp", name))


def _names(root: Path) -> set[str]:
    """Each start has a file of TensorBoard's, with the time in its name."""
    names = (str(path.relative_to(root)) for path in root.rglob("*"))
    return {re.sub(r"(events\.out\.tfevents)\..*", r"\1", name) for name in names}


def _check_json(path: Path) -> None:
    json.loads(path.read_text(encoding="utf-8"))


def _check_lock(path: Path) -> None:
    """Empty where nobody holds it."""
    json.loads(path.read_text(encoding="utf-8") or "{}")


def _check_lines(path: Path) -> None:
    """The next start takes off half a line at the end."""
    for line in path.read_text(encoding="utf-8").split("\n")[:-1]:
        json.loads(line)


def _check_weights(path: Path) -> None:
    safetensors.numpy.load_file(path)
    beside = path.with_name(path.name + ".sha256")
    if beside.exists() and beside.read_text(encoding="utf-8").split()[0] != sha256(path):
        raise ValueError(f"not of the sum in {beside.name}")


def _check_checkpoint(index: Path) -> None:
    reader = tf.train.load_checkpoint(str(index.with_suffix("")))
    for key in reader.get_variable_to_shape_map():
        reader.get_tensor(key)  # compares its checksum


def _check_record(path: Path) -> None:
    if tf.train.get_checkpoint_state(str(path.parent)) is None:
        raise ValueError("no record of TensorFlow's")


def _check_events(path: Path) -> None:
    """TensorBoard reads one that ends in half a record up to there."""
    try:
        for _ in tf.data.TFRecordDataset(str(path)):
            pass
    except tf.errors.DataLossError as error:
        if "truncated" not in str(error):
            raise


_CHECKS: tuple[tuple[str, Callable[[Path], None]], ...] = (
    (r"\.json$", _check_json),
    (r"(^|/)lock$", _check_lock),
    (r"\.jsonl$", _check_lines),
    (r"\.safetensors$", _check_weights),
    (r"/ckpt-\d+\.index$", _check_checkpoint),
    (r"/checkpoint$", _check_record),
    (r"events\.out\.tfevents", _check_events),
)

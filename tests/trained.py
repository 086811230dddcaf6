"""Networks of the tests, trained once for all processes and runs that would train the same."""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import keras
import numpy as np

import kapps

_FOLDER = Path(__file__).parent.parent / "build" / "trained"
_KEPT = 8  # files; each change of a source makes another one


def trained_once(
    model: keras.Model, train: Callable[[keras.Model], object], *sources: str
) -> keras.Model:
    """The model, trained; its weights come from an earlier process if nothing has changed since.

    Args:
        model: with the weights to start from.
        train: trains it in place.
        sources: the files that say what is trained, and how.
    """
    package = sorted(Path(kapps.__file__).parent.glob("*.py"))
    digest = hashlib.sha256()
    for path in [*package, *map(Path, sources)]:
        digest.update(path.read_bytes())
    for weight in model.get_weights():  # of the random start
        digest.update(weight.tobytes())
    for package_name in ("keras", "numpy", "tensorflow"):
        digest.update(version(package_name).encode())
    try:
        _FOLDER.mkdir(parents=True, exist_ok=True)
        lock = open(_FOLDER / "lock", "w")  # noqa: SIM115  closed below
    except OSError:  # a checkout that may not be written
        train(model)
        return model
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the second process waits for what the first one trains
        file = _FOLDER / f"{model.name}-{digest.hexdigest()[:16]}.npz"
        if file.exists():
            with np.load(file, allow_pickle=False) as saved:
                model.set_weights([saved[name] for name in saved.files])
            os.utime(file)
            return model
        train(model)
        temporary = file.with_suffix(".tmp.npz")
        np.savez(temporary, *model.get_weights())
        temporary.replace(file)
        for old in sorted(_FOLDER.glob("*.npz"), key=os.path.getmtime)[:-_KEPT]:
            old.unlink()
    return model

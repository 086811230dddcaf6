"""Saving a run as it goes, and going on from there."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kapps._errors import InputError
from kapps.tools.distribution import Devices


@dataclasses.dataclass(eq=False)
class State(tf.train.experimental.PythonState):
    """What a run has to remember beside its variables."""

    step: int = 0
    """Finished steps: with the recipe they tell the epoch, and the place in it."""
    sums: list[float] = dataclasses.field(default_factory=lambda: [0.0, 0.0])
    """Of the steps of the epoch that was begun: loss and hits."""
    good_epochs: int = 0
    """How many epochs in a row have reached the recipe's `stop_at`."""
    best_top1: float = -1.0
    """Of the validation images, of all epochs."""
    plateau: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Of the schedule of that name."""
    validation: dict[str, Any] = dataclasses.field(default_factory=dict)
    """The last `Evaluation`."""
    history: list[dict[str, float]] = dataclasses.field(default_factory=list)
    """An entry for each epoch."""

    @property
    def epoch(self) -> int:
        """Finished epochs."""
        return len(self.history)

    def serialize(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    def deserialize(self, string_value: str) -> None:
        for name, value in json.loads(string_value).items():
            setattr(self, name, value)


class Checkpoints:
    """The last states of a run on disk: all variables of model and optimizer, and the state.

    TensorFlow writes them, into a folder of their own, and they are moved to their place when they
    are complete, the index last: where TensorFlow writes an index it empties it first, and a run
    that was killed in between left one that could not be read. Which one is the last is read from
    the files themselves and not from TensorFlow's record, so that a user can delete a damaged one.

    Args:
        folder: of the files, which are numbered by step.
        devices: of the run.
        variables: groups of them, by name; see `by_path`.
        kept: how many last ones stay.
    """

    def __init__(
        self,
        folder: Path,
        devices: Devices,
        variables: Mapping[str, Mapping[str, tf.Variable]],
        kept: int = 3,
    ) -> None:
        self.state = State()
        self.folder, self._devices, self._kept = folder, devices, kept
        # All workers take part in saving, but only the chief's files are to last. The others' name
        # is the same at the next start, which so finds what was left.
        place = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]
        self._unfinished = (
            folder / "unfinished"
            if devices.is_chief
            else Path(tempfile.gettempdir(), f"kapps-{place}-{devices.worker}")
        )
        self._checkpoint = tf.train.Checkpoint(
            state=self.state, **{name: dict(group) for name, group in variables.items() if group}
        )

    @property
    def last(self) -> int | None:
        """The step of the last one on disk."""
        return max(self._steps(), default=None)

    def restore(self) -> None:
        """Takes up the last state that was saved, if there is one.

        Raises:
            InputError: its files are damaged; or the workers see different ones.
        """
        last = self.last
        if last is not None:
            prefix = self.folder / f"ckpt-{last}"
            try:
                status = self._checkpoint.restore(str(prefix))
                try:
                    status.assert_existing_objects_matched().assert_consumed()
                finally:
                    status.expect_partial()  # else TensorFlow adds a page of warnings
            except Exception as error:  # TensorFlow's readers raise half a dozen kinds
                raise self._damaged(prefix, error) from error
        steps = self._devices.gathered(np.array(self.state.step))
        if len(set(steps.tolist())) > 1:
            raise InputError(
                f"the workers do not see the same checkpoints: {self.folder} ends with step "
                f"{self.state.step} here; --workdir must be a folder that all workers share"
            )
        with contextlib.suppress(OSError):  # saving will tell
            self._remove_leftovers()

    def save(self) -> None:
        """Writes the variables and the state. To be called by all workers, after `restore`.

        Raises:
            InputError: they cannot be written; the earlier ones are untouched.
        """
        folder = self.folder if self._devices.is_chief else self._unfinished.parent
        try:
            self._unfinished.mkdir(mode=0o700, parents=True)  # fails where it is someone else's
            manager = tf.train.CheckpointManager(
                self._checkpoint, str(self._unfinished), max_to_keep=1, checkpoint_name="ckpt"
            )
            manager.save(checkpoint_number=self.state.step)
            if self._devices.is_chief:
                self._publish()
            self._remove_leftovers()
        except (tf.errors.OpError, OSError) as error:
            raise InputError(
                f"cannot write a checkpoint to {folder}: {reason(error)}; make room there, and run "
                "the same command again"
            ) from error
        finally:
            shutil.rmtree(self._unfinished, ignore_errors=True)

    def _publish(self) -> None:
        """Moves the files to their place: a checkpoint is there when its index is."""
        name = f"ckpt-{self.state.step}"
        files = [*self._unfinished.glob(f"{name}.data-*"), self._unfinished / f"{name}.index"]
        for file in files:
            with open(file, "rb") as written:
                os.fsync(written.fileno())
        for file in (*files, self._unfinished / "checkpoint"):  # TensorFlow's record
            os.replace(file, self.folder / file.name)

    def _remove_leftovers(self) -> None:
        """All but the last checkpoints, and what a run that was killed has left."""
        shutil.rmtree(self._unfinished, ignore_errors=True)
        if not self._devices.is_chief:
            return
        last = {f"ckpt-{step}" for step in sorted(self._steps())[-self._kept :]}
        for pattern in ("ckpt-*.index", "ckpt-*.data-*"):  # without index it is no checkpoint
            for file in self.folder.glob(pattern):
                if file.name.rpartition(".")[0] not in last:
                    file.unlink(missing_ok=True)
        for folder in self.folder.glob("ckpt-*_temp"):  # of earlier versions, as is the next
            shutil.rmtree(folder, ignore_errors=True)
        for file in self.folder.glob("checkpoint.tmp*"):
            file.unlink(missing_ok=True)

    def _steps(self) -> list[int]:
        names = (path.name for path in self.folder.glob("ckpt-*.index"))
        return [
            int(match[1]) for name in names if (match := re.fullmatch(r"ckpt-(\d+).index", name))
        ]

    def _damaged(self, prefix: Path, error: Exception) -> InputError:
        earlier = sorted(self._steps())[:-1]
        fallback = f"step {earlier[-1]}" if earlier else "the start"
        return InputError(
            f"checkpoint {prefix} is damaged ({reason(error)}); delete {prefix}.* to go on from "
            f"{fallback}, or choose another --workdir"
        )


def by_path(variables: list[keras.Variable], owner: str) -> dict[str, tf.Variable]:
    """The variables by names that do not depend on what else this process has built.

    Keras counts optimizers and seed generators through ("adam_w_1"). The generators' states are
    left out: what is random in training depends on the step alone.

    Args:
        variables: of a model or an optimizer.
        owner: its name.
    """
    named = {
        variable.path.removeprefix(f"{owner}/"): variable.value
        for variable in variables
        if variable.name != "seed_generator_state"
    }
    assert len(named) >= sum(variable.name != "seed_generator_state" for variable in variables)
    return named


_CAUSES = ("No space left on device", "Disk quota exceeded", "Permission denied", "Read-only")


def reason(error: Exception) -> str:
    """What went wrong, in a few words: TensorFlow puts long paths and codes before the cause."""
    text = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
    known = next((cause for cause in _CAUSES if cause in text), None)
    return known or text.splitlines()[0][:200]

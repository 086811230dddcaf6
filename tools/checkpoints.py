"""Saving a run after each epoch, and going on from there."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from kapps._errors import InputError
from kapps.tools.distribution import is_chief

_KEPT = 3


@dataclasses.dataclass(eq=False)
class State(tf.train.experimental.PythonState):
    """What a run has to remember beside its variables."""

    epoch: int = 0
    """Finished epochs."""
    good_epochs: int = 0
    """How many epochs in a row have reached the recipe's `stop_at`."""
    validation: dict[str, Any] = dataclasses.field(default_factory=dict)
    """The last `Evaluation`."""
    history: list[dict[str, float]] = dataclasses.field(default_factory=list)
    """An entry for each epoch."""

    def serialize(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    def deserialize(self, string_value: str) -> None:
        for name, value in json.loads(string_value).items():
            setattr(self, name, value)


class Checkpoints:
    """The last epochs of a run on disk: all variables of model and optimizer, and the state.

    TensorFlow's CheckpointManager writes them: the one writer of several that lost nothing when it
    was killed in mid-write. Which one is the last is read from the files themselves and not from
    the manager's record, so that a user can delete a damaged one.
    """

    def __init__(
        self,
        folder: Path,
        strategy: tf.distribute.Strategy,
        model: keras.Model,
        optimizer: keras.optimizers.Optimizer,
    ) -> None:
        self.state = State()
        self._folder, self._strategy = folder, strategy
        self._checkpoint = tf.train.Checkpoint(
            state=self.state,
            model=_by_path(model.variables, model.name),
            optimizer=_by_path(optimizer.variables, optimizer.name),
        )
        self._chief = is_chief(strategy)

    def restore(self) -> None:
        """Takes up the last epoch that was saved, if there is one.

        Raises:
            InputError: its files are damaged; or the workers see different ones.
        """
        last = max(self._epochs(), default=None)
        if last is not None:
            prefix = self._folder / f"ckpt-{last}"
            try:
                status = self._checkpoint.restore(str(prefix))
                try:
                    status.assert_existing_objects_matched().assert_consumed()
                finally:
                    status.expect_partial()  # else TensorFlow adds a page of warnings
            except Exception as error:  # TensorFlow's readers raise half a dozen kinds
                raise self._damaged(prefix, error) from error

        @tf.function
        def sum_of_epochs() -> tf.Tensor:
            epochs = self._strategy.run(lambda: tf.constant(self.state.epoch))
            return self._strategy.reduce("SUM", epochs, axis=None)

        total = int(sum_of_epochs())
        if total != self.state.epoch * self._strategy.num_replicas_in_sync:
            raise InputError(
                f"the workers do not see the same checkpoints: {self._folder} ends with epoch "
                f"{self.state.epoch} here; --workdir must be a folder that all workers share"
            )

    def save(self) -> None:
        """Writes the variables and the state. To be called by all workers.

        Raises:
            InputError: they cannot be written; the earlier ones are untouched.
        """
        # All workers take part in saving, but only the chief's files are to last.
        folder = self._folder if self._chief else Path(tempfile.mkdtemp(prefix="kapps-"))
        try:
            if self._chief:
                folder.mkdir(parents=True, exist_ok=True)
                for leftover in folder.glob("ckpt-*_temp"):  # of a run that was killed in here
                    shutil.rmtree(leftover, ignore_errors=True)
            manager = tf.train.CheckpointManager(
                self._checkpoint, str(folder), max_to_keep=_KEPT, checkpoint_name="ckpt"
            )
            manager.save(checkpoint_number=self.state.epoch)
        except (tf.errors.OpError, OSError) as error:
            raise InputError(
                f"cannot write a checkpoint to {folder}: {_first_line(error)}; make room there, "
                "and run the same command again"
            ) from error
        finally:
            if not self._chief:
                shutil.rmtree(folder, ignore_errors=True)

    def _epochs(self) -> list[int]:
        names = (path.name for path in self._folder.glob("ckpt-*.index"))
        return [
            int(match[1]) for name in names if (match := re.fullmatch(r"ckpt-(\d+).index", name))
        ]

    def _damaged(self, prefix: Path, error: Exception) -> InputError:
        earlier = sorted(self._epochs())[:-1]
        fallback = f"epoch {earlier[-1]}" if earlier else "the start"
        return InputError(
            f"checkpoint {prefix} is damaged ({_first_line(error)}); delete {prefix}.* to go on "
            f"from {fallback}, or choose another --workdir"
        )


def _by_path(variables: list[keras.Variable], owner: str) -> dict[str, tf.Variable]:
    """The variables by names that do not depend on what else this process has built.

    Keras counts optimizers and seed generators through ("adam_w_1"). The generators' states are
    left out: what is random in training depends on the step alone.
    """
    named = {
        variable.path.removeprefix(f"{owner}/"): variable.value
        for variable in variables
        if variable.name != "seed_generator_state"
    }
    assert len(named) >= sum(variable.name != "seed_generator_state" for variable in variables)
    return named


def _first_line(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]

"""From one device to many: all that this package knows of tf.distribute."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kapps._errors import InputError, unknown
from kapps.tools import cluster

STRATEGIES = ("none", "mirrored", "multi_worker", "tpu")


class Devices:
    """What a run computes on: one replica of the model a device, on one or several workers."""

    def __init__(self, strategy: tf.distribute.Strategy, worker: int = 0, workers: int = 1) -> None:
        self._strategy = strategy
        self.worker, self.workers = worker, workers
        self.replicas: int = strategy.num_replicas_in_sync
        """Of all workers."""
        self.local_replicas = self.replicas // workers
        self.first_replica = worker * self.local_replicas

    @property
    def is_chief(self) -> bool:
        """Whether this process is the one that writes the run's files."""
        return self.worker == 0

    def scope(self) -> AbstractContextManager[Any]:
        """Where variables are made that all replicas have."""
        return self._strategy.scope()

    def compiled(self, step: Callable[..., tf.Tensor]) -> Callable[..., tf.Tensor]:
        """A step of a replica as one of all of them: from a `batch` to what the first returns.

        Within the step, `summed` and `update_each` reach the other replicas.

        The step is compiled without knowing how many images a batch has. Where TensorFlow knows all
        shapes, and expects a CPU to need more than 205 MB, Grappler's memory optimizer turns each
        sum of three or more gradients (in front of branches, in batch norm that is not fused) into
        additions in the order in which threads finish, and no two runs are alike.
        """

        def of_replica(parts: Any, shared: Any, count: tf.Tensor) -> tf.Tensor:
            return step(*(part[:count] for part in parts), *shared)

        # No XLA: it makes the training of convolutions on a CPU ten times slower.
        @tf.function(autograph=False)
        def of_all(batch: Any) -> tf.Tensor:
            values = self._strategy.run(of_replica, args=batch)
            return self._strategy.experimental_local_results(values)[0]

        return of_all

    def batch(
        self, shared: Sequence[np.ndarray], *parts: np.ndarray
    ) -> tuple[tuple[Any, ...], tuple[Any, ...], Any]:
        """What a compiled step takes.

        Args:
            shared: what each replica gets whole, as its last arguments.
            parts: what this worker's replicas get equal parts of, as their first arguments.
        """
        each = len(parts[0]) // self.local_replicas if parts else 0

        def given(value: Callable[[int], np.ndarray | np.int32]) -> Any:
            return self._strategy.experimental_distribute_values_from_function(
                lambda context: tf.constant(
                    value(context.replica_id_in_sync_group - self.first_replica)
                )
            )

        def part(array: np.ndarray) -> Any:
            return given(lambda place: array[place * each : (place + 1) * each])

        def whole(array: np.ndarray) -> Any:
            return given(lambda place: array)

        count = given(lambda place: np.int32(each))
        return tuple(map(part, parts)), tuple(map(whole, shared)), count

    def gathered(self, values: np.ndarray) -> np.ndarray:
        """What each worker has given: (workers, ...) of int64 (...)."""

        @tf.function(autograph=False)
        def gather(own: Any) -> tf.Tensor:
            return self._strategy.gather(own, axis=0)

        own = self.batch([values[None]])[1][0]
        every = np.asarray(gather(own)) if self.replicas > 1 else values[None]
        return every[:: self.local_replicas]


def summed(values: Any) -> Any:
    """Tensors of any structure, summed over the replicas. In a replica's step only."""
    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, values)


def update_each(
    function: Callable[..., None],
    variables: Sequence[Any],
    values: Sequence[Any],
    *shared: Any,
    when: tf.Tensor | None = None,
) -> None:
    """Calls `function(variable, value, *shared)` for each pair, with those of each device.

    In a replica's step only. The values must be the same on all replicas, as `summed` makes them.

    Args:
        function: changes the variable.
        variables: of Keras or TensorFlow.
        values: tensors or variables, one for each of them.
        shared: tensors.
        when: whether to do so at all.
    """

    def update(strategy: tf.distribute.Strategy, values: Any, shared: Any, when: Any) -> None:
        def every() -> tf.Tensor:
            for variable, value in zip(variables, values, strict=True):
                strategy.extended.update(
                    _raw(variable), function, args=(_raw(value), *shared), group=False
                )
            return tf.constant(True)

        if when is None:
            every()
        else:
            first = strategy.experimental_local_results(when)[0]
            tf.cond(first, every, lambda: tf.constant(False))

    context = tf.distribute.get_replica_context()
    context.merge_call(update, args=(list(values), shared, when))


def _raw(variable: Any) -> Any:
    return variable.value if isinstance(variable, keras.Variable) else variable


def replica() -> Any:
    """The number of the replica that computes, from 0, of all workers; 0 outside of a step."""
    context = tf.distribute.get_replica_context()
    return 0 if context is None else context.replica_id_in_sync_group


def make_devices(name: str) -> Devices:
    """What a strategy computes on.

    Args:
        name: "none": one device. "mirrored": all GPUs of this machine, or all logical CPU devices
            if there is no GPU. "multi_worker": the machines that TF_CONFIG or SLURM names; to be
            made before TensorFlow has computed anything. "tpu": the TPU that this machine drives,
            or that TPU_NAME names.

    Raises:
        InputError: the name is unknown, or the environment does not have what it needs.
    """
    if name not in STRATEGIES:
        raise unknown("strategy", name, STRATEGIES)
    if keras.backend.backend() != "tensorflow":
        raise InputError(
            f"kapps trains on Keras's TensorFlow backend, and this is {keras.backend.backend()}; "
            "set KERAS_BACKEND=tensorflow"
        )
    if name == "mirrored":
        gpus = tf.config.list_logical_devices("GPU")
        devices = gpus or tf.config.list_logical_devices("CPU")
        return Devices(tf.distribute.MirroredStrategy([device.name for device in devices]))
    if name == "multi_worker":
        found = cluster.required(os.environ)
        os.environ["TF_CONFIG"] = cluster.tf_config(found)
        strategy = tf.distribute.MultiWorkerMirroredStrategy()
        return Devices(strategy, found.index, len(found.addresses))
    if name == "tpu":
        return Devices(_tpu())
    return Devices(tf.distribute.get_strategy())


def _tpu() -> tf.distribute.Strategy:
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(
            tpu=os.environ.get("TPU_NAME", "local")
        )
        tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
        return tf.distribute.TPUStrategy(resolver)
    except Exception as error:  # of the resolver, the cloud's client or the runtime
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"strategy tpu: no TPU is within reach ({reason[:200]}); run on a TPU machine, or set "
            "TPU_NAME"
        ) from error

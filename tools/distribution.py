"""From one device to many: the strategies, and what this process is among the workers."""

from __future__ import annotations

import json
import os
from typing import Any

import keras
import tensorflow as tf

from kapps._errors import InputError, unknown

STRATEGIES = ("none", "mirrored", "multi_worker")


def make_strategy(name: str) -> tf.distribute.Strategy:
    """The distribution strategy of that name.

    Args:
        name: "none": one device. "mirrored": all GPUs of this machine, or all logical CPU devices
            if there is no GPU. "multi_worker": the machines that TF_CONFIG names; to be made before
            TensorFlow has computed anything.

    Raises:
        InputError: the name is unknown, or TF_CONFIG does not describe this worker.
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
        return tf.distribute.MirroredStrategy([device.name for device in devices])
    if name == "multi_worker":
        _check_tf_config()
        return tf.distribute.MultiWorkerMirroredStrategy()
    return tf.distribute.get_strategy()


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Whether this process is the one that writes the run's files."""
    resolver = strategy.cluster_resolver
    if resolver is None or resolver.task_type is None:
        return True
    if "chief" in resolver.cluster_spec().as_dict():
        return resolver.task_type == "chief"
    return resolver.task_id == 0


def _check_tf_config() -> None:
    """TensorFlow's own words for a wrong TF_CONFIG are a traceback, or silence."""
    text = os.environ.get("TF_CONFIG", "")
    example = (
        '{"cluster": {"worker": ["host1:2222", "host2:2222"]}, '
        '"task": {"type": "worker", "index": 0}}'
    )
    if not text:
        raise InputError(
            "strategy multi_worker: the environment variable TF_CONFIG is not set; on the first of "
            f"two machines it is {example}"
        )
    try:
        config: Any = json.loads(text)
        cluster, task = config["cluster"], config["task"]
        addresses = cluster[task["type"]]
        index = int(task["index"])
        if not (set(cluster) <= {"chief", "worker"} and 0 <= index < len(addresses)):
            raise ValueError
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"strategy multi_worker: TF_CONFIG does not describe this worker: {text}; it should "
            f"be like {example}"
        ) from error

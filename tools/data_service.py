"""Training images that tf.data service's workers read and augment, on machines of their own.

A worker, kapps-data-worker, has the data set, and a function that makes a batch of places
in it; the run that trains sends it those places, with what the batch depends on. That is a function
of seed, epoch and place, so that a batch is the same whoever reads it. tf.data service gives each
batch at most once, in any order: a run puts them in order, and itself reads one that is lost with
its worker.

A graph cannot carry a Python function to another process, but it can name one: TensorFlow numbers
those of a process from 0, and a worker makes its own before all others, and checks the name.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import queue
import socket
import sys
import threading
import time
from collections.abc import Callable, Generator
from typing import Any

import numpy as np
import tensorflow as tf

from kapps._errors import InputError
from kapps.tools import data, pipeline, runs
from kapps.tools.recipe import Recipe

_TOKEN = "pyfunc_0"
_SAMPLE = 16  # pictures that a data set is told by
_AHEAD = 8  # batches that may have come before their turn
_PATIENCE = 10.0  # seconds that a run waits for a batch
_HEARTBEAT = 1000  # milliseconds in which a worker learns of a run; the default is half a minute
_SERVICE = tf.data.experimental.service
# What the service says when a part of it is not there, or was begun anew.
_GONE = (
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
    tf.errors.NotFoundError,
    tf.errors.UnavailableError,
)


def identity(dataset: data.Dataset) -> str:
    """What tells the training images of a data set from others, on any machine."""
    source = dataset.train
    digest = hashlib.sha256(json.dumps([dataset.class_names, len(source)]).encode())
    for label, pixels in data.sample(source, _SAMPLE):
        digest.update(f"{label} {pixels.shape}".encode() + pixels.tobytes())
    return digest.hexdigest()[:16]


class ServiceLoader(pipeline.Loader):
    """A loader of training images whose batches come from a service, as far as it gives them.

    Args:
        address: of the dispatcher: grpc://HOST:PORT.
        dataset: whose training images are read.
        pixels: what becomes of each.
        bad: what to do about those that cannot be read.

    Raises:
        InputError: there is no dispatcher.
    """

    def __init__(
        self,
        address: str,
        dataset: data.Dataset,
        pixels: pipeline.TrainingPixels,
        bad: pipeline.BadImages | None = None,
    ) -> None:
        super().__init__(dataset.train, pixels, bad=bad, replace=True)
        self._address = checked(address)
        about = {"dataset": identity(dataset), "versions": runs.versions()}
        self._about = json.dumps(about | {"pixels": dataclasses.asdict(pixels)})
        self._arrivals: _Arrivals | None = None

    def batches(
        self, order: np.ndarray, seed: int = 0, epoch: int = 0
    ) -> Generator[pipeline.Batch, None, None]:
        """See `Loader.batches`.

        Raises:
            InputError: likewise; or the workers read other images, or otherwise.
        """
        # A service that is gone holds the thread that waits for it; one of them is enough.
        if self._arrivals is not None and self._arrivals.is_asking():
            _tell(self._address)
            yield from super().batches(order, seed, epoch)
            return
        self._arrivals = _Arrivals(self._address, self._requests(order, seed, epoch))
        with self._arrivals as arrivals:
            for step, row in enumerate(order):
                batch = arrivals.take(step)
                if batch is None:
                    batch = next(super().batches(row[None], seed, epoch))
                yield batch

    def _requests(self, order: np.ndarray, seed: int, epoch: int) -> tf.data.Dataset:
        about, key, size = self._about, np.array([seed, epoch], np.int64), self._transform.size

        def read(step: Any, row: Any) -> Any:
            kinds = [tf.int64, tf.uint8, tf.int64, tf.string]
            found = tf.raw_ops.PyFunc(input=[step, row, key, about], token=_TOKEN, Tout=kinds)
            shapes = [(), (None, size, size, 3), (None,), ()]
            return tuple(map(tf.ensure_shape, found, shapes))

        steps = np.arange(len(order), dtype=np.int64)
        return tf.data.Dataset.from_tensor_slices((steps, order.astype(np.int64))).map(read)


class _Arrivals:
    """What a service gives, by step; within it a thread asks for more."""

    def __init__(self, address: str, requests: tf.data.Dataset) -> None:
        self._address, self._requests = address, requests
        self._waiting: queue.Queue[Any] = queue.Queue(maxsize=2)
        self._early: dict[int, pipeline.Batch | None] = {}
        self._left, self._silent, self._told, self._next = threading.Event(), False, False, 0
        self._thread = threading.Thread(target=self._ask, name="kapps-data-service", daemon=True)

    def __enter__(self) -> _Arrivals:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._left.set()

    def is_asking(self) -> bool:
        """Whether the thread waits for the service a second after it was left."""
        self._thread.join(timeout=1)
        return self._thread.is_alive()

    def take(self, step: int) -> pipeline.Batch | None:
        """The batch of a step, each in its turn; None if the caller has to read it."""
        self._next, deadline = step, time.monotonic() + _PATIENCE
        while step not in self._early and len(self._early) < _AHEAD:
            left = 0.0 if self._silent else max(deadline - time.monotonic(), 0.0)
            try:
                self._note(self._waiting.get(timeout=left) if left else self._waiting.get_nowait())
            except queue.Empty:
                if not self._told:
                    _tell(self._address)
                self._silent = self._told = True
                return None
        return self._early.pop(step, None)

    def _note(self, found: Any) -> None:
        if isinstance(found, Exception):
            reason = (str(found).strip() or type(found).__name__).splitlines()[0]
            raise InputError(f"data service {self._address}: {reason[:300]}") from found
        step, pixels, labels, problem = found
        if problem:
            raise InputError(f"data service {self._address}: {problem.decode()}")
        self._silent = False
        if step >= self._next:  # else it was read here
            self._early[int(step)] = (pixels, labels) if len(labels) else None

    def _ask(self) -> None:
        try:
            service = _SERVICE.distribute(
                _SERVICE.ShardingPolicy.DYNAMIC, self._address, compression=None
            )
            with tf.device("CPU:0"):
                for found in self._requests.apply(service).as_numpy_iterator():
                    if not self._put(found):
                        return
        except _GONE:
            return
        except Exception as error:  # whatever it is, the run has to know
            self._put(error)

    def _put(self, found: Any) -> bool:
        while not self._left.is_set():
            try:
                self._waiting.put(found, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False


def _tell(address: str) -> None:
    """At most once an epoch."""
    text = f"data service {address} gives no batches; this process reads until it does"
    print(text, file=sys.stderr, flush=True)


def checked(address: str) -> str:
    """The address of a dispatcher, which answers.

    Raises:
        InputError: it is no address, or nobody listens there.
    """
    protocol, _, place = address.rpartition("://")
    host, _, port = place.rpartition(":")
    if protocol not in ("", "grpc") or not host or not port.isdecimal():
        raise InputError(f"--data_service={address}: give grpc://HOST:PORT")
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise InputError(
            f"--data_service={address}: no dispatcher answers there ({error}); start one with "
            f"kapps-data-worker --dispatch={port}"
        ) from error
    return f"grpc://{host}:{port}"


class Reader:
    """What a worker does: rows of places to batches of a data set."""

    def __init__(self, dataset: data.Dataset) -> None:
        self._dataset = dataset
        self._own = {"dataset": identity(dataset), "versions": runs.versions()}
        self._loaders = functools.lru_cache(maxsize=16)(self._loader)

    def __call__(self, step: Any, row: Any, key: Any, about: bytes) -> tuple[Any, Any, Any, bytes]:
        """A batch, with its step; one that cannot be read is empty, and one of others refused."""
        size, problem = json.loads(about)["pixels"]["size"], b""
        batch = np.zeros((0, size, size, 3), np.uint8), np.zeros(0, np.int64)
        try:
            batch = next(self._loaders(about).batches(row[None], *map(int, key)))
        except data.BadImage:
            pass  # whoever trains knows what is to be done about it, and reads it again
        except InputError as error:
            problem = str(error).encode()
        return step, *batch, problem

    def _loader(self, about: bytes) -> pipeline.Loader:
        told = json.loads(about)
        for name, value in self._own.items():
            if told[name] != value:
                raise InputError(
                    f"a worker has the {name} {value}, and the run that trains {told[name]}; start "
                    "the worker with the same --dataset, and the same packages"
                )
        pixels = told["pixels"]
        pixels |= {name: tuple(pixels[name]) for name in ("fill", "deviation")}
        recipe = Recipe(**pixels.pop("recipe"))
        return pipeline.Loader(
            self._dataset.train, pipeline.TrainingPixels(recipe, **pixels), replace=True
        )


def named(reader: Callable[..., Any]) -> Any:
    """Gives a function the name that runs call it by, as long as the result is kept.

    Raises:
        InputError: TensorFlow has been given another one before, or names them otherwise.
    """
    kinds = [tf.int64, tf.uint8, tf.int64, tf.string]

    @tf.function(autograph=False)
    def read(*inputs: Any) -> Any:
        return tf.numpy_function(reader, inputs, kinds)

    inputs = [tf.TensorSpec((), tf.int64), tf.TensorSpec((None,), tf.int64)]
    inputs += [tf.TensorSpec((2,), tf.int64), tf.TensorSpec((), tf.string)]
    function = read.get_concrete_function(*inputs)
    operations = function.graph.get_operations()
    names = [op.get_attr("token").decode() for op in operations if op.type == "PyFunc"]
    if names != [_TOKEN]:
        raise InputError(
            f"TensorFlow {tf.__version__} calls the reader {', '.join(names)}, and not {_TOKEN}: "
            "there is no data service with this version"
        )
    return function


class Worker:
    """A process's part of a service, as long as the object is there.

    To be made before TensorFlow is given any other Python function.

    Args:
        reader: what it does.
        dispatcher: HOST:PORT of one that runs; None: it is made.
        port: of the one that is made.
        address: HOST:PORT that others reach this worker at; by default this machine alone.

    Raises:
        InputError: an address is none, or taken, or there is no dispatcher.
    """

    def __init__(
        self, reader: Reader, dispatcher: str | None, port: int | None, address: str | None
    ) -> None:
        self._function = named(reader)
        own = None if address is None else address.rpartition(":")[2]
        if own is not None and not own.isdecimal():
            raise InputError(f"--address={address}: give HOST:PORT")
        try:
            self._server = None
            if dispatcher is None:
                self._server = _SERVICE.DispatchServer(_SERVICE.DispatcherConfig(port=port or 0))
                dispatcher = self._server.target
            self.dispatcher = checked(dispatcher)
            self._worker = _SERVICE.WorkerServer(
                _SERVICE.WorkerConfig(
                    dispatcher_address=self.dispatcher.removeprefix("grpc://"),
                    worker_address=address,
                    port=int(own or 0),
                    heartbeat_interval_ms=_HEARTBEAT,
                )
            )
        except (tf.errors.OpError, RuntimeError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise InputError(
                f"the worker cannot serve ({reason[:200]}); choose other ports"
            ) from error

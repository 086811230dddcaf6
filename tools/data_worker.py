"""Reads and augments the images of a training run for it: a worker of tf.data service.

Start one on each machine that is to help, and train with --data_service; the run asks them for its
training images, and its result is the same. One of them may be the dispatcher as well. Example:

  kapps-data-worker --dataset=folder:photos --dispatch=5050 --address=host1:5051
  kapps-data-worker --dataset=folder:photos --dispatcher=host1:5050 --address=host2:5051
  kapps-train --dataset=folder:photos --data_service=grpc://host1:5050 ...

It runs until SIGTERM or Ctrl-C. Whoever reaches its port can run code on the machine: keep it
within a network that you trust.
"""

from __future__ import annotations

import signal
import sys

from absl import flags

from kapps._errors import InputError
from kapps.tools import cli
from kapps.tools.streams import start_keras

_DATASET = flags.DEFINE_string("dataset", None, "that of kapps-train")
flags.DEFINE_string("data_dir", None, "where the TensorFlow data sets lie")
flags.DEFINE_boolean("nested", False, "whether folders within class folders are classes too")
_BAD = flags.DEFINE_enum("on_bad_image", "error", ["error", "skip"], "that of kapps-train")
_DISPATCHER = flags.DEFINE_string("dispatcher", None, "HOST:PORT of the service's dispatcher")
_DISPATCH = flags.DEFINE_integer(
    "dispatch", None, "port to be the dispatcher at, in place of --dispatcher", 1, 65535
)
_ADDRESS = flags.DEFINE_string(
    "address", None, "HOST:PORT that this worker is reached at; by default this machine alone"
)


def main(argv: list[str]) -> None:
    """Serves until it is ended."""
    cli.required(_DATASET)
    if (_DISPATCHER.value is None) == (_DISPATCH.value is None):
        raise InputError("give --dispatcher, or --dispatch to be one")
    start_keras()
    from kapps.tools import data
    from kapps.tools.data_service import Reader, Worker

    dataset = data.load(
        _DATASET.value,
        flags.FLAGS.data_dir,
        nested=flags.FLAGS.nested,
        on_bad_image=_BAD.value,
    )
    worker = Worker(Reader(dataset), _DISPATCHER.value, _DISPATCH.value, _ADDRESS.value)
    print(
        f"{_DATASET.value}: {len(dataset.train)} training images are read for {worker.dispatcher}",
        file=sys.stderr,
        flush=True,
    )
    while True:
        signal.pause()


def run() -> None:
    cli.run(main)


if __name__ == "__main__":
    run()

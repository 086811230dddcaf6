"""What the training loop costs, beside a bare step and beside keras.applications under `fit`.

    python benchmarks/loop.py [--processes=3] [--rounds=4] [--output=docs/loop.md]

Six sides, each in a process that stays:

loop: `kapps.tools.training.run` on the data set synthetic, as kapps-train calls it, with its
    pipeline, progress bar, metrics.jsonl and TensorBoard's files.
bare step: a `tf.function` of the same network, its batch norm fused as the loop has it, loss and
    optimizer on one batch that never changes.
same under fit: the network as it is under Keras's `fit` with Keras's SGD, on a `tf.data` set that
    repeats one batch.
keras.applications: its network of that name under the same, its `preprocess_input` in the set.
one core: the loop again, its steps on one thread of TensorFlow, so that a core is left.
augmented: the same on JPEG files of 500 x 375 pixels, with random parts, flips and RandAugment.

None is compiled by XLA, which Keras chooses by default and which is slower here.

Where a process's memory comes to lie makes the same step up to a tenth quicker or slower, for as
long as the process lives, so each side has several processes, one after the other.

They run in turns of a few steps, in another order each round, and so share the machine's drift. A
side is held between two steps, by the callback that a run tells its steps to: nothing of it is
taken apart or called otherwise than in training. What the pipeline reads ahead is read in the turn
before, and as much in this one for the next. The turns are all within one epoch, so validation and
the checkpoint after it are not in them.

Processor time is that of all threads of the process: it leaves out what others had the cores for.
A figure is the median of all rounds, and a ratio the median of the rounds' ratios; beside it stand
those of the processes that had the lowest and the highest.

The exit code is 1 where, by wall clock, the loop has less than 0.97 of the images/s of the bare
step, or less than those of fit, or with augmentation less than 0.95 of those without.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from machine import measured_on
from photographs import write_photographs

if TYPE_CHECKING:
    from kapps.tools.recipe import Recipe

BATCHES = {"ResNet50": 8, "MobileNetV2": 32}  # images a step; by network
CLASSES = 10
IMAGES = 10**6  # of an epoch: no run comes to its end
WARM_UP = 3  # steps
RATE, MOMENTUM, DECAY = 0.01, 0.9, 1e-4
COMPARED = (
    ("loop", "bare step", 0.97),
    ("loop", "same under fit", 1.0),
    ("loop", "keras.applications", 1.0),
    ("augmented", "one core", 0.95),
)

Step = Callable[[], None]
Times = tuple[float, float]  # seconds by wall clock, and of the processor
Measured = dict[str, list[Times]]  # of an image, by side and round


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=int, default=3, help="of a side")
    parser.add_argument("--rounds", type=int, default=4, help="of a process")
    parser.add_argument("--steps", type=int, default=3, help="of a turn")
    parser.add_argument("--size", type=int, default=224, help="pixels")
    parser.add_argument("--networks", nargs="+", choices=BATCHES, default=list(BATCHES))
    parser.add_argument("--output", help="Markdown; by default it is printed")
    parser.add_argument("--side", choices=SIDES, help="only for the process of a side")
    parser.add_argument("--workdir", help="likewise")
    options = parser.parse_args()
    if options.side:
        SIDES[options.side](options.networks[0], options.size, Path(options.workdir))
        return 0
    rows, low = [], False
    with tempfile.TemporaryDirectory() as folder:
        for split in ("train", "val", "test"):
            for label in range(CLASSES):
                write_photographs(Path(folder) / "photographs" / split / str(label), [(500, 375)])
        for network in options.networks:
            sets = []
            for number in range(options.processes):
                workdir = Path(folder) / f"{network}-{number}"
                workdir.mkdir()
                sets.append(measure(network, options, workdir))
            for side, other, least in COMPARED:
                rows.append(row(network, side, other, sets))
                print(rows[-1], file=sys.stderr, flush=True)
                low = low or ratios(sets, side, other)[0] < least
    text = page(options, rows)
    if options.output:
        Path(options.output).write_text(text, encoding="utf-8")
    else:
        print(text)
    return int(low)


def measure(network: str, options: argparse.Namespace, folder: Path) -> Measured:
    """Of one process a side."""
    times: Measured = {name: [] for name in SIDES}
    images = options.steps * BATCHES[network]
    with contextlib.ExitStack() as stack:
        sides = {
            name: stack.enter_context(Side(name, network, options.size, folder)) for name in SIDES
        }
        for side in sides.values():
            side.answer()  # has warmed up
        for turn in range(options.rounds):
            names = list(SIDES)
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                wall, processor = sides[name].take(options.steps)
                times[name].append((wall / images, processor / images))
    return times


class Side:
    """The process of a side; it ends with the context."""

    def __init__(self, name: str, network: str, size: int, folder: Path) -> None:
        workdir = folder / name
        workdir.mkdir()
        self._name, self._log = name, workdir / "log"
        threads = dict.fromkeys(("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"), "1")
        command = [sys.executable, __file__, f"--side={name}", f"--networks={network}"]
        with open(self._log, "w", encoding="utf-8") as log:
            self._process = subprocess.Popen(
                [*command, f"--size={size}", f"--workdir={workdir}"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=os.environ | (threads if name in ("one core", "augmented") else {}),
            )

    def __enter__(self) -> Side:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.communicate()

    def take(self, steps: int) -> Times:
        """Lets it take so many steps; returns their seconds."""
        assert self._process.stdin
        print(steps, file=self._process.stdin, flush=True)
        return self.answer()

    def answer(self) -> Times:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._name}: {self._log.read_text(encoding='utf-8')}")
        wall, processor = map(float, line.split())
        return wall, processor


class Gate:
    """Lets as many steps pass as each line of stdin says, and answers with their seconds."""

    def __init__(self) -> None:
        self._answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # for the progress bar of Keras
        self._left, self._begun = WARM_UP, clocks()

    def passed(self) -> None:
        """To be called after each step."""
        self._left -= 1
        while not self._left:
            now = clocks()
            print(*(b - a for a, b in zip(self._begun, now, strict=True)), file=self._answers)
            self._answers.flush()
            self._left = int(sys.stdin.readline())
            self._begun = clocks()

    # What a run tells a `kapps.tools.watch.Watch`.

    def beat(self, step: int) -> None:
        self.passed()

    def phase(self, name: str) -> None:
        pass


def clocks() -> Times:
    return time.perf_counter(), time.process_time()


def recipe(network: str, size: int, **augmentation: Any) -> Recipe:
    from kapps.tools.recipes import get_recipe

    return dataclasses.replace(
        get_recipe("default"),
        optimizer="sgd",
        learning_rate=RATE,
        momentum=MOMENTUM,
        weight_decay=DECAY,
        batch_size=BATCHES[network],
        epochs=2,
        image_size=size,
        **{"train_crop": "none", "flip": 0.0, **augmentation},
    )


def run_loop(network: str, size: int, workdir: Path) -> None:
    train(network, "synthetic", recipe(network, size), workdir)


def run_augmented(network: str, size: int, workdir: Path) -> None:
    augmentation = {"train_crop": "random", "flip": 0.5, "policy": "randaugment"}
    dataset = f"folder:{workdir.parents[1] / 'photographs'}"
    train(network, dataset, recipe(network, size, **augmentation), workdir)


def train(network: str, name: str, recipe: Recipe, workdir: Path) -> None:
    import numpy as np

    from kapps.tools import data, runs, training

    gate: Any = Gate()
    config = runs.TrainConfig(network, name, str(workdir / "run"), recipe=recipe)
    with training.session(config) as begun:
        images = begun.dataset.train
        longer = data.Subset(images, np.arange(IMAGES) % len(images))
        dataset = dataclasses.replace(begun.dataset, train=longer)
        training.run(dataclasses.replace(begun, dataset=dataset, watched=gate))


def run_bare_step(network: str, size: int, workdir: Path) -> None:
    import keras
    import tensorflow as tf

    import kapps
    from kapps.tools import layers, optimizers

    model = kapps.get_builder(network)(
        weights=None, input_shape=(size, size, 3), classes=CLASSES, classifier_activation=None
    )
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layers.fuse(layer)
    variables = model.trainable_variables
    optimizer = optimizers.make_optimizer(
        "sgd", RATE, variables, momentum=MOMENTUM, weight_decay=DECAY
    )

    @tf.function(autograph=False)
    def step(images: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            logits = model(images, training=True)
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
            loss = tf.reduce_mean(losses)
        optimizer.apply(tape.gradient(loss, variables), variables)
        return loss

    images, labels = batch(network, size)
    gate = Gate()
    while True:
        step(images, labels).numpy()
        gate.passed()


def run_same_under_fit(network: str, size: int, workdir: Path) -> None:
    import kapps

    build = kapps.get_builder(network)
    fit(build(weights=None, input_shape=(size, size, 3), classes=CLASSES), network, size)


def run_keras_applications(network: str, size: int, workdir: Path) -> None:
    from keras import applications

    module = {"ResNet50": applications.resnet, "MobileNetV2": applications.mobilenet_v2}[network]
    model = getattr(module, network)(weights=None, input_shape=(size, size, 3), classes=CLASSES)
    fit(model, network, size, module.preprocess_input)


def fit(
    model: Any, network: str, size: int, preprocess: Callable[[Any], Any] = lambda images: images
) -> None:
    import keras
    import tensorflow as tf

    class Held(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            gate.passed()

    model.compile(
        keras.optimizers.SGD(RATE, MOMENTUM, weight_decay=DECAY),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
        jit_compile=False,
    )
    pairs = tf.data.Dataset.from_tensors(batch(network, size)).repeat()
    pairs = pairs.map(lambda images, labels: (preprocess(tf.cast(images, tf.float32)), labels))
    gate = Gate()
    model.fit(
        pairs.prefetch(tf.data.AUTOTUNE),
        steps_per_epoch=IMAGES,
        shuffle=False,
        callbacks=[Held()],
    )


def batch(network: str, size: int) -> tuple[Any, Any]:
    """Images of noise, uint8, and labels, as TensorFlow's tensors."""
    import numpy as np
    import tensorflow as tf

    random = np.random.default_rng(0)
    images = random.integers(0, 256, (BATCHES[network], size, size, 3), np.uint8)
    return tf.constant(images), tf.constant(np.arange(len(images)) % CLASSES)


SIDES = {
    "loop": run_loop,
    "bare step": run_bare_step,
    "same under fit": run_same_under_fit,
    "keras.applications": run_keras_applications,
    "one core": run_loop,
    "augmented": run_augmented,
}


def ratios(sets: list[Measured], side: str, other: str) -> Times:
    """How many images a side does in the time of one of the other's."""
    pairs = [pair for times in sets for pair in zip(times[side], times[other], strict=True)]
    wall, processor = (statistics.median(b[i] / a[i] for a, b in pairs) for i in range(2))
    return wall, processor


def row(network: str, side: str, other: str, sets: list[Measured]) -> str:
    def cells(name: str) -> str:
        wall, processor = (
            statistics.median(each[i] for times in sets for each in times[name]) for i in range(2)
        )
        return f"{1 / wall:.1f} | {1e3 * processor:.1f}"

    def compared(i: int) -> str:
        every = [ratios([times], side, other)[i] for times in sets]
        return f"{ratios(sets, side, other)[i]:.3f} ({min(every):.3f} to {max(every):.3f})"

    return (
        f"| `{network}` | {side} | {cells(side)} | {other} | {cells(other)} "
        f"| {compared(0)} | {compared(1)} |"
    )


def page(options: argparse.Namespace, rows: list[str]) -> str:
    batches = " and ".join(f"{BATCHES[name]} of {name}" for name in options.networks)
    wanted = ", ".join(f"{side} to {other} {least}" for side, other, least in COMPARED)
    lines = [
        "# What the training loop costs",
        "",
        f"`benchmarks/loop.py`, {measured_on('keras', 'tensorflow', 'numpy')}: {options.size} px, "
        f"batches of {batches}, float32, SGD with momentum. Medians of {options.processes} "
        f"processes a side, of {options.rounds} interleaved rounds of {options.steps} steps each; "
        "the script tells what the sides are. "
        "Ratios are of images in the same time: above 1, the first side is the faster. That by "
        "processor time tells nothing of augmentation, which is meant to take the other core.",
        "",
        "| Network | Side | images/s | CPU ms/image | Beside | images/s | CPU ms/image "
        "| Ratio by wall clock | Ratio by processor time |",
        "|---|---|---:|---:|---|---:|---:|---:|---:|",
        *rows,
        "",
        f"Wanted at least, by wall clock: {wanted}.",
        "",
        "ResNet50 of keras.applications has a bottleneck's stride on its first convolution, that "
        "of kapps on the 3x3, as torchvision: 3.9 and 4.1 thousand million multiply-adds an image "
        "of 224 px.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())

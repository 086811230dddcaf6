"""What each export pass gains: a network with all passes against the same without one of them.

    python benchmarks/passes.py [--nets=MobileNet,...] [--size=224] > docs/tflite_passes.md

The files of a network run in turns in one process, on one thread, so that they share the machine's
drift. Weights are random: they change no latency.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.metadata
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

import kapps
from kapps.tflite.measurement.latency import Latency, host_device, measure
from kapps.tflite.passes import PASSES, Pass, run_passes

# Between them they have all that the passes change.
NETS = ("MobileNetV2", "MobileNetV3Small", "ShuffleNet", "ShuffleNetV2_x1_0")

_EXPLANATION = """The ratio is the median time with all passes to that without the one, in one
interleaved run: below 1 the pass gains. Not listed are passes that find nothing to do in a network,
or that leave the same file: the converter, too, folds batch norm and fuses ReLU. Pieces are those
into which the XNNPACK delegate takes the graph, with all passes : without.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nets", default=",".join(NETS))
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--seconds", type=float, default=3.0, help="for each file")
    parser.add_argument("--passes", default="", help="only these, by default all")
    arguments = parser.parse_args()
    only = set(filter(None, arguments.passes.split(",")))
    print("# What the export passes gain\n")
    versions = {
        name: importlib.metadata.version(name) for name in ("tensorflow", "keras", "ai-edge-litert")
    }
    print(f"`benchmarks/passes.py`, {datetime.date.today()}, {arguments.size} px, one thread, ")
    print(f"on {host_device()}; kapps {kapps.__version__}, ", end="")
    print(", ".join(" ".join(item) for item in versions.items()) + ".\n")
    print(_EXPLANATION)
    folded, plain = _normalization(arguments.size, arguments.seconds)
    print("The normalization alone, of a file that does nothing else:", end=" ")
    print(f"{folded.p50_ms:.3f} ms with `fold_normalization`, {plain.p50_ms:.3f} ms without.\n")
    print("| Network | File | Without | ms with all | ms without | Ratio | Pieces |")
    print("|---|---|---|---:|---:|---:|---:|", flush=True)
    for net in arguments.nets.split(","):
        keras.utils.set_random_seed(0)
        model = kapps.get_builder(net)(weights=None, input_shape=(arguments.size,) * 2 + (3,))
        for quantization in ("float32", "int8"):
            with tempfile.TemporaryDirectory() as folder:
                rows = _rows(model, quantization, Path(folder), arguments.seconds, only)
                for name, without, everything, other in rows:
                    print(
                        f"| {name} | {without} | {everything.p50_ms:.2f} | {other.p50_ms:.2f} "
                        f"| {everything.p50_ms / other.p50_ms:.2f} "
                        f"| {everything.delegate_pieces} : {other.delegate_pieces} |",
                        flush=True,
                    )


def _normalization(size: int, seconds: float) -> list[Latency]:
    """Of what the normalization by ImageNet's mean and std becomes, with the pass and without."""
    model = kapps.MobileNetV3Small(weights=None, input_shape=(size, size, 3))
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / "folded.tflite", Path(folder) / "plain.tflite"]
        for path, passes in zip(paths, (PASSES, PASSES[-1:]), strict=True):
            exported = run_passes(model, passes=passes)
            normalized = exported.get_layer("normalization").output
            path.write_bytes(_content(keras.Model(exported.inputs, normalized), "float32", ()))
        return measure(paths, min_seconds=seconds)


def _rows(
    model: keras.Model, quantization: str, folder: Path, seconds: float, only: set[str]
) -> Iterator[tuple[str, str, Latency, Latency]]:
    """(network and file, the pass left out, with all passes, without it)."""
    contents = {"": _content(model, quantization, PASSES)}
    for step in _active(model, quantization):
        if not only or step.name in only:
            rest = tuple(other for other in PASSES if other is not step)
            contents[step.name] = _content(model, quantization, rest)
    contents["any of them"] = _content(model, quantization, PASSES[-1:])  # but the static batch
    paths = {}
    for name, content in contents.items():
        if name and content == contents[""]:
            continue
        paths[name] = folder / f"{name}.tflite"
        paths[name].write_bytes(content)
    print(f"{model.name} {quantization}: {', '.join(paths)[2:]}", file=sys.stderr)
    results = dict(zip(paths, measure(list(paths.values()), min_seconds=seconds), strict=True))
    for name, latency in results.items():
        if name:
            yield f"{model.name} | {quantization}", name, results[""], latency


def _active(model: keras.Model, quantization: str) -> Iterator[Pass]:
    """The passes that change the model."""
    for step in PASSES:
        changed = run_passes(model, quantization=quantization, passes=(step,))
        if changed is not model:
            yield step
        model = changed


def _content(model: keras.Model, quantization: str, passes: tuple[Pass, ...]) -> bytes:
    """The .tflite file of the model after these passes."""
    model = run_passes(model, quantization=quantization, passes=passes)
    holder = tf.Module()
    holder.weights = [variable.value for variable in model.variables]
    function = tf.function(
        lambda image: {"probability": model(image, training=False)},
        input_signature=[tf.TensorSpec(model.input_shape, tf.float32, name="image")],
        autograph=False,
    ).get_concrete_function()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function], holder)
    if quantization == "int8":
        images = np.random.default_rng(0).uniform(0, 255, (2, 1, *model.input_shape[1:]))
        images[0, 0, 0, 0], images[0, 0, -1, -1] = 0, 255
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.representative_dataset = lambda: ([image] for image in images.astype("float32"))
        converter.inference_input_type = converter.inference_output_type = tf.uint8
    with contextlib.redirect_stdout(sys.stderr):
        return bytes(converter.convert())


if __name__ == "__main__":
    main()

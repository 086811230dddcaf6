"""Do the tests find faults? Puts one after the other into a copy of the code, and says who noticed.

    python tests/seeded_faults.py --output=docs/seeded_faults.md    # all, some ten minutes
    python tests/seeded_faults.py --only=batch-norm-epsilon         # one
    python tests/seeded_faults.py --check                           # whether all can still be made

A fault is a small change such as a slip of the pen makes: an index off by one, two names swapped.
It is found by its text, wherever in the packages that lies: the text has to be there exactly once,
or the fault no longer applies, which is an error, to be mended in the table below. First run the
tests that the fault names, which takes seconds; where they notice nothing, the whole suite. In the
end those tests that noticed something run on the code as it is: who fails there too has found
nothing.

Everything happens in a copy, which has a Python environment of its own over that of this
interpreter: child processes of the tests see the fault as well. The exit status is 1 if a fault was
not noticed.
"""

from __future__ import annotations

import argparse
import atexit
import concurrent.futures
import contextlib
import datetime
import functools
import importlib
import importlib.metadata
import itertools
import json
import os
import platform
import queue
import re
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("kapps", "tools", "tflite")

# What pytest's -m leaves: the tests of `make test-quick`, of `make test`, and all.
SUITES = {"quick": "not slow and not nightly", "short": "not nightly", "nightly": ""}

# Of the checkout as a whole: wheels, what the README runs, and whether the faults can be made.
_ASIDE = ("tests/test_packaging.py", "tests/test_readme.py", "tests/test_seeded_faults.py")

# What takes long to import. Not the plugins of pytest, which it wants to import itself; and nothing
# may be computed before the process forks.
_IMPORTED = ("pytest", "keras", "tensorflow", "sklearn.datasets", "ai_edge_litert.interpreter")

_LIMIT = 1200.0  # seconds for the named tests of one fault: one that hangs is noticed


class Fault(NamedTuple):
    """A change of the code that the tests have to notice."""

    name: str
    old: str
    """Stands exactly once in the packages."""
    new: str
    tests: tuple[str, ...]
    """Arguments of pytest below tests/: who is likely to notice, first the cheapest."""


# Small networks and single tests, so that each takes seconds; names that outlive a new id.
FAULTS: dict[str, tuple[Fault, ...]] = {
    "models": (
        Fault(
            "bottleneck-stride-on-the-1x1",
            "(first, 1, 1, 1),\n                (inner, 3, stride, self.cardinality),",
            "(first, 1, stride, 1),\n                (inner, 3, 1, self.cardinality),",
            ("test_models.py -k 'peers and [ResNet50]'",),
        ),
        Fault(
            "batch-norm-epsilon",
            "epsilon: float = 1e-5, momentum: float = 0.9)",
            "epsilon: float = 1e-3, momentum: float = 0.9)",
            ("test_models.py -k 'peers and [ResNet18]'",),
        ),
        Fault(
            "batch-norm-epsilon-of-efficientnet",
            "norm = functools.partial(bn, epsilon=1e-3",
            "norm = functools.partial(bn, epsilon=1e-5",
            ("test_models.py -k 'peers and [EfficientNetLite0]'",),
        ),
        Fault(
            "include-top-ignored",
            "include_top:\n",
            "include_top or True:\n",
            ("test_models.py -k 'without_top and MobileNetV3Small'", "test_builders.py"),
        ),
        Fault(
            "pooling-max-averages",
            '"max": layers.GlobalMaxPooling2D',
            '"max": layers.GlobalAveragePooling2D',
            ("test_models.py -k 'without_top and MobileNetV3Small'",),
        ),
        Fault(
            "drop-rate-off-by-one-block",
            '"efficientnet": lambda i, n: i / n,',
            '"efficientnet": lambda i, n: (i + 1) / n,',
            ("test_efficientnet_family.py -k stochastic_depth_counts",),
        ),
        Fault(
            "drop-rate-of-huang-spares-the-first-block",
            '"huang": lambda i, n: (i + 1) / n,',
            '"huang": lambda i, n: i / n,',
            ("test_regularization.py -k has_the_rates",),
        ),
        Fault(
            "drop-block-in-the-third-last-stage",
            "0 if last is None else len(repeats) - last",
            "0 if last is None else len(repeats) - last - 1",
            ("test_efficientnet_family.py -k stochastic_depth_counts",),
        ),
        Fault(
            "drop-rate-constant-is-linear",
            '"constant": lambda i, n: 1.0,',
            '"constant": lambda i, n: (i + 1) / n,',
            ("test_regularization.py -k has_the_rates",),
        ),
        Fault(
            "stochastic-depth-scales-down",
            "return x / (1 - self.rate)",
            "return x * (1 - self.rate)",
            ("test_regularization.py -k rows_are_dropped",),
        ),
        Fault(
            "drop-block-rate-of-the-positions",
            "gamma = rate * pixels / (block**2 * positions)",
            "gamma = rate / block**2",
            ("test_regularization.py -k 'drop_block_drops_about or drop_block_follows'",),
        ),
        Fault(
            "squeeze-without-rounding",
            "reduced = _layers.make_divisible(channels / 16)",
            "reduced = channels // 16",
            ("test_models.py -k '(default or peers) and [SEResNet18]'",),
        ),
        Fault(
            "make-divisible-loses-a-fifth",
            "rounded < 0.9 * value",
            "rounded < 0.8 * value",
            (
                "test_builders.py -k make_divisible",
                "test_models.py -k 'default and [MobileNetV3Small]'",
            ),
        ),
        Fault(
            "same-padding-for-symmetric",
            "if strides == (1, 1) and all(2 * side",
            "if all(2 * side",
            ("test_models.py -k 'peers and [ResNet18]'",),
        ),
        Fault(
            "shuffle-by-the-wrong-side",
            "ops.reshape(x, (-1, height * width, self.groups, channels // self.groups))",
            "ops.reshape(x, (-1, height * width, channels // self.groups, self.groups))",
            ("test_builders.py -k shuffle", "test_models.py -k 'peers and ShuffleNetV2_x0_5'"),
        ),
        Fault(
            "odd-gates-repeat-their-last-row",
            "x = ops.concatenate([x[:, :1], x], axis=1)",
            "x = ops.concatenate([x, x[:, -1:]], axis=1)",
            ("test_custom_layers.py -k doubling", "test_models.py -k 'peers and [GhostNetV2]'"),
        ),
        Fault(
            "stem-of-shufflenet-grouped",
            "== 0 else groups",
            "== 99 else groups",
            ("test_models.py -k 'default and [ShuffleNet]'", "test_mobile_families.py -k cost"),
        ),
        Fault(
            "relu-for-hard-swish",
            '(5, 96, 40, True, "hard_silu", 2),',
            '(5, 96, 40, True, "relu", 2),',
            ("test_models.py -k 'peers and [MobileNetV3Small]'",),
        ),
        Fault(
            "dense-layer-before-its-input",
            'name=f"{_layers.layer_name(path)}_concat")([x, y])',
            'name=f"{_layers.layer_name(path)}_concat")([y, x])',
            ("test_mobile_families.py -k behind_the_input",),
        ),
        Fault(
            "input-mean-is-the-std",
            'weight("mean", self.initial_mean)',
            'weight("mean", self.initial_std)',
            ("test_builders.py -k normalization_layer",),
        ),
        Fault(
            "response-normalization-by-the-mean",
            "self.k + self.alpha * total",
            "self.k + self.alpha / self.size * total",
            ("test_response_normalization.py",),
        ),
        Fault(
            "whole-batch-never-skips",
            "return BlockSkippingModel(inputs, outputs, name=name)",
            "return keras.Model(inputs, outputs, name=name)",
            ("test_regularization.py -k 'whole_batch or saved'",),
        ),
    ),
    "weights": (
        Fault(
            "kernel-transposed-when-read",
            "value.reshape((outputs, -1, height, width)).transpose(2, 3, 1, 0)",
            "value.reshape((outputs, -1, height, width)).transpose(3, 2, 1, 0)",
            ("test_models.py -k 'peers and [MobileNetV3Small]'",),
        ),
        Fault(
            "depthwise-kernel-transposed-both-ways",
            "value.transpose(2, 3, 0, 1).reshape(-1, 1, height, width),\n"
            "            lambda value: value.reshape(split).transpose(2, 3, 0, 1),",
            "value.transpose(2, 3, 1, 0).reshape(-1, 1, height, width),\n"
            "            lambda value: value.reshape(split).transpose(3, 2, 0, 1),",
            ("test_models.py -k 'peers and [MobileNetV3Small]'",),
        ),
        Fault(
            "moving-variance-under-another-name",
            'vector(layer, layer.moving_variance, "running_var")',
            'vector(layer, layer.moving_mean, "running_var")',
            ("test_models.py -k 'peers and [ResNet18]'",),
        ),
        Fault(
            "sum-beside-the-file-not-checked",
            "if sha256(file) != words[0].lower():",
            "if sha256(file) != sha256(file):",
            ("test_weights.py -k sum_beside",),
        ),
        Fault(
            "sum-of-the-hub-not-checked",
            "return sha256(file) == expected",
            "return bool(expected)",
            ("test_hub.py -k flipped_byte",),
        ),
        Fault(
            "more-channels-answer-louder",
            "return repeated * (published / channels)",
            "return repeated",
            ("test_weights.py -k 'stem or channels'", "test_models.py -k 'channels and LeNet5'"),
        ),
        Fault(
            "gray-stem-averages",
            "return kernel.sum(axis=1, keepdims=True)",
            "return kernel.mean(axis=1, keepdims=True)",
            ("test_weights.py -k gray_stem_without",),
        ),
        Fault(
            "gray-constant-of-the-means-left-in",
            "changed[key] = tensors[key] + constant",
            "changed[key] = tensors[key]",
            ("test_weights.py -k 'channel_by_channel or edges_alone'",),
        ),
        Fault(
            "early-exit-without-the-exits-before",
            "computed |= needed[output]",
            "computed = needed[output]",
            ("test_heads.py -k order_of_depth",),
        ),
        Fault(
            "early-exit-never-at-the-end",
            "sure[-1] = True",
            "sure[0] = True",
            ("test_heads.py -k likely_enough",),
        ),
        Fault(
            "auxiliary-loss-of-another-weight",
            'auxiliary=("aux1.", "aux2."), auxiliary_weight=0.3',
            'auxiliary=("aux1.", "aux2."), auxiliary_weight=0.4',
            ("test_heads.py -k of_the_papers",),
        ),
        Fault(
            "normalization-of-the-file-ignored",
            "if normalization is not None and mean:",
            "if normalization is not None and not mean:",
            ("test_weights.py -k normalization_travels",),
        ),
        Fault(
            "bfloat16-shifted-by-15",
            "bits.astype(np.uint32) << 16",
            "bits.astype(np.uint32) << 15",
            ("test_weights.py -k brain_floats",),
        ),
        Fault(
            "pth-tensor-from-the-storages-start",
            "values[tensor.offset :],",
            "values,",
            ("test_pth.py -k 'golden or equals_pytorchs'",),
        ),
    ),
    "loop": (
        Fault(
            "order-ignores-the-seed",
            "np.random.default_rng([seed, epoch]).permutation(images)",
            "np.random.default_rng([epoch]).permutation(images)",
            ("test_pipeline.py -k function_of_seed",),
        ),
        Fault(
            "labels-of-the-neighbour",
            "return self.images[index], int(self.labels[index])",
            "return self.images[index], int(self.labels[index - 1])",
            ("test_data.py -k digits",),
        ),
        Fault(
            "subset-ignores-its-indices",
            "return self.source[int(self.indices[index])]",
            "return self.source[index]",
            ("test_data.py -k object_of_two_methods",),
        ),
        Fault(
            "mirrored-upside-down",
            "return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)",
            "return image.transpose(Image.Transpose.FLIP_TOP_BOTTOM)",
            ("test_pipeline.py -k flip",),
        ),
        Fault(
            "crop-off-the-center",
            "top, left = (round((side - self.size) / 2) for side in pixels.shape[:2])",
            "top, left = (side - self.size for side in pixels.shape[:2])",
            ("test_pipeline.py -k 'all_sizes or center'",),
        ),
        Fault(
            "augmentation-ignores-the-epoch",
            "np.random.default_rng((*key, place))",
            "np.random.default_rng((key[0], place))",
            ("test_pipeline.py -k depends_on_seed",),
        ),
        Fault(
            "worker-reads-the-firsts-share",
            "return order[:, first * each : (first + count) * each]",
            "return order[:, : count * each]",
            ("test_pipeline.py -k any_workers",),
        ),
        Fault(
            "fused-batch-norm-remembers-a-samples-variance",
            "variance *= (count - 1) / count",
            "pass",
            ("test_training_loop.py -k remembers_it",),
        ),
        Fault(
            "fused-batch-norm-moves-when-frozen",
            "(training and layer.trainable and fits",
            "(training and fits",
            ("test_training_loop.py -k is_frozen",),
        ),
        Fault(
            "batch-norm-frozen-in-training",
            "self._outputs(images, mix, training=True)",
            "self._outputs(images, mix, training=False)",
            ("test_training_loop.py -k normalizes_by_the_batch",),
        ),
        Fault(
            "batch-norm-trains-in-evaluation",
            "self._model(images, training=False)",
            "self._model(images, training=True)",
            ("test_training.py -k counts_as_numpy",),
        ),
        Fault(
            "warmup-one-step-late",
            "(1 - self._warmup_start) * epoch / self._warmup_epochs",
            "(1 - self._warmup_start) * epoch / (1 + self._warmup_epochs)",
            ("test_schedules.py",),
        ),
        Fault(
            "schedule-one-step-early",
            "(epoch - self._warmup_epochs) / length",
            "(epoch + 1 / self._steps_per_epoch - self._warmup_epochs) / length",
            ("test_schedules.py",),
        ),
        Fault(
            "biases-decay",
            "return len(variable.shape) >= 2",
            "return len(variable.shape) >= 1",
            ("test_training.py -k only_kernels_decay",),
        ),
        Fault(
            "label-smoothing-over-one-class-less",
            "recipe.label_smoothing / classes",
            "recipe.label_smoothing / (classes - 1)",
            ("test_training_loop.py -k smoothed",),
        ),
        Fault(
            "gradient-of-the-sum",
            "return loss * scale / self._recipe.batch_size",
            "return loss * scale",
            ("test_training_loop.py -k smoothed",),
        ),
        Fault(
            "five-best-are-four",
            "min(5, outputs.shape[-1])",
            "min(4, outputs.shape[-1])",
            ("test_training.py -k counts_as_numpy",),
        ),
        Fault(
            "dropout-of-every-step-alike",
            "return part * self.replicas + tf.cast(replica, tf.int64)",
            "return 0 * part + tf.cast(replica, tf.int64)",
            ("test_training.py -k dropout_differs",),
        ),
        Fault(
            "checkpoint-without-optimizer",
            '"optimizer": by_path(optimizer.variables, optimizer.name),',
            '"optimizer": by_path([], optimizer.name),',
            ("test_training.py -k resumed_is_uninterrupted",),
        ),
        Fault(
            "repetitions-augmented-alike",
            "places = blocks + images * np.arange(repeats)[None, :, None]",
            "places = blocks + 0 * np.arange(repeats)[None, :, None]",
            ("test_pipeline.py -k repetitions",),
        ),
        Fault(
            "skipped-image-counts-in-evaluation",
            "np.full(len(row), PADDING, np.int64)",
            "np.full(len(row), 0, np.int64)",
            ("test_pipeline.py -k bad_images",),
        ),
        Fault(
            "auxiliary-loss-left-out",
            "losses += weight * self._of_images(logits, smooth)",
            "losses += 0 * self._of_images(logits, smooth)",
            ("test_training_loop.py -k auxiliary_heads",),
        ),
        Fault(
            "overflowing-step-is-taken",
            "optimizers.apply_summed(self._optimizer, gradients, variables, when=when)",
            "optimizers.apply_summed(self._optimizer, gradients, variables)",
            ("test_training_loop.py -k overflow",),
        ),
        Fault(
            "parts-of-a-batch-draw-alike",
            "* self._parts + self.part",
            "* self._parts",
            ("test_training_loop.py -k parts_of_a_batch",),
        ),
        Fault(
            "resumed-epoch-forgets-its-sums",
            "self._train(epoch, state.step - epoch * loop.steps_per_epoch)",
            "self._train(epoch, 0)",
            ("test_training.py -k mid_epoch",),
        ),
        Fault(
            "validation-without-the-average",
            "with averaged(self.average):",
            "with averaged(None):",
            ("test_training.py -k average",),
        ),
        Fault(
            "gradients-added-in-the-order-of-threads",
            "*(part[:count] for part in parts)",
            "*parts",
            ("test_exactness.py -k GoogLeNet",),
        ),
        Fault(
            "patience-counts-in-all",
            "state.good_epochs + 1 if good else 0",
            "state.good_epochs + 1 if good else state.good_epochs",
            ("test_training_loop.py -k good_epochs_in_a_row",),
        ),
        Fault(
            "split-depends-on-the-order",
            "key=lambda i: (labels[i], digests[i])",
            "key=lambda i: (labels[i], i)",
            ("test_data.py -k 'stratified or digits'",),
        ),
        Fault(
            "evaluation-crop-off-by-one",
            "(round((side - self.size) / 2) for side in pixels.shape[:2])",
            "(1 + round((side - self.size) / 2) for side in pixels.shape[:2])",
            ("test_transform.py -k facts",),
        ),
        Fault(
            "an-interrupt-is-lost-in-a-finalizer",
            "issubclass(ignored.exc_type, KeyboardInterrupt)",
            "issubclass(ignored.exc_type, GeneratorExit)",
            ("test_cli.py -k swallowed",),
        ),
    ),
    "transfer": (
        Fault(
            "features-in-training-mode",
            "tf.cast(model(images, training=False), tf.float32)",
            "tf.cast(model(images, training=True), tf.float32)",
            ("test_transfer.py -k evaluates_exactly",),
        ),
        Fault(
            "features-of-other-weights-are-taken",
            "            digest.update(keras.ops.convert_to_numpy(variable).tobytes())\n",
            "",
            ("test_transfer.py -k computed_once",),
        ),
        Fault(
            "mean-of-features-is-forgotten",
            "bias=head.bias - mean @ kernel)",
            "bias=head.bias)",
            ("test_transfer.py -k at_the_minimum",),
        ),
        Fault(
            "whole-network-at-the-full-rate",
            "rate = begun.recipe.learning_rate * config.all_rate",
            "rate = begun.recipe.learning_rate",
            ("test_transfer.py -k one_like_any_other",),
        ),
        Fault(
            "batch-norm-learns-in-transfer",
            "frozen_statistics=config.freeze_statistics",
            "frozen_statistics=False",
            ("test_transfer.py -k 'rates_reach or evaluates_exactly or frozen_statistics'",),
        ),
        Fault(
            "index-moved-before-the-data",
            "for file in (*files, self._unfinished",
            "for file in (*files[::-1], self._unfinished",
            ("test_leftovers.py -k killed",),
        ),
        Fault(
            "manifold-mixup-of-the-next-stage",
            "mixing.share_at(mix, place))",
            "mixing.share_at(mix, place - 1))",
            ("test_manifold.py -k numpy",),
        ),
        Fault(
            "batches-of-a-service-in-any-order",
            "return self._early.pop(step, None)",
            "return self._early.popitem()[1]",
            ("test_data_service.py -k in_order",),
        ),
        Fault(
            "tuning-moves-what-transfer-has-frozen",
            "if settings.get(_FROZEN):",
            "if not settings:",
            ("test_tune_main.py -k has_frozen",),
        ),
    ),
    "passes": (
        Fault(
            "folding-drops-the-bias",
            "_bias(graph, layer) * scale + offset)",
            "offset)",
            ("test_tflite_passes.py -k batch_norm_goes",),
        ),
        Fault(
            "folding-of-depthwise-by-the-wrong-channel",
            "factors = scale.reshape(layer.kernel.shape[2:])",
            "factors = scale.reshape(layer.kernel.shape[2:][::-1]).T",
            ("test_tflite_passes.py -k batch_norm_goes",),
        ),
        Fault(
            "std-multiplied-into-the-kernel",
            "factors = 1 / std[:, None]",
            "factors = std[:, None]",
            ("test_tflite_passes.py -k 'normalization_before or normalization_is_exact'",),
        ),
        Fault(
            "hard-sigmoid-shifted-by-two-and-a-half",
            "biases[source] = 3.0",
            "biases[source] = 2.5",
            ("test_tflite_passes.py -k hard_swish_goes_through_gates",),
        ),
        Fault(
            "hard-swish-keeps-its-sixth",
            '"hard_silu" and graph.once(layer) and scaling.undo(layer, 6.0)',
            '"hard_silu" and graph.once(layer) and scaling.undo(layer, 1.0)',
            ("test_tflite_passes.py -k hard_swish_goes_through_gates",),
        ),
        Fault(
            "pooling-pads-the-other-end",
            "copy_layer(end, padding=((1, 0), (1, 0)))",
            "copy_layer(end, padding=((0, 1), (0, 1)))",
            ("test_tflite_pooling.py -k exact",),
        ),
        Fault(
            "slice-of-the-first-channels",
            "np.asarray(w)[..., start:stop]",
            "np.asarray(w)[..., : stop - start]",
            ("test_tflite_split.py -k exact",),
        ),
        Fault(
            "shuffle-undone-the-wrong-way",
            "for i in range(size) for j in range(mover.groups)]",
            "for j in range(mover.groups) for i in range(size)]",
            ("test_tflite_passes.py -k 'folded_units_too or into_the_kernel'",),
        ),
        Fault(
            "pairs-of-pixels-shifted",
            "divmod(offset - left, 2)",
            "divmod(offset + left, 2)",
            ("test_tflite_stem.py -k exact",),
        ),
        Fault(
            "luma-of-blue-for-red",
            "_LUMA = (0.299, 0.587, 0.114)",
            "_LUMA = (0.114, 0.587, 0.299)",
            ("test_tflite_passes.py -k rgb_input_is_the_luma",),
        ),
    ),
    "quantization": (
        Fault(
            "factors-of-the-first-filters",
            "(self._kernel[index] * self._factors[index])",
            "((part := self._kernel[index]) * self._factors[..., : part.shape[-1]])",
            ("test_tflite_large.py -k any_part_of_a_kernel",),
        ),
        Fault(
            "version-of-another-convolution",
            "return 5 if len(kernel.quantization.scale) > 1 else 2",
            "return 2",
            ("test_tflite_large.py -k 'converter and dynamic'",),
        ),
        Fault(
            "output-of-any-fineness",
            "given * weights / output >= FINEST",
            "given * weights / output >= 256 * FINEST",
            ("test_tflite_file_facts.py -k less_than_a_256th",),
        ),
        Fault(
            "dead-layer-left-too-fine",
            "low, min(low, 0.0) + needed",
            "low, high",
            ("test_tflite_conversion.py -k zeros_alone",),
        ),
        Fault(
            "kernel-filled-in-the-wrong-order",
            "kernel[..., some].transpose(3, 0, 1, 2)",
            "kernel[..., some].transpose(3, 1, 0, 2)",
            ("test_tflite_large.py -k 'converter and float32'",),
        ),
        Fault(
            "weights-rounded-down",
            "np.trunc(part + np.copysign(0.5, part))",
            "np.trunc(part)",
            ("test_tflite_large.py -k 'converter and int8'",),
        ),
        Fault(
            "ranges-of-tensors-that-others-overwrite",
            "inputs, sorted({*outputs, *found})",
            "inputs, outputs",
            ("test_tflite_large.py -k ranges",),
        ),
        Fault(
            "ranges-of-the-last-image",
            "min(low, float(values.min())), max(high, float(values.max()))",
            "float(values.min()), float(values.max())",
            ("test_tflite_large.py -k ranges",),
        ),
        Fault(
            "calibration-stops-at-254",
            "value[0, -1, -1] = 255",
            "value[0, -1, -1] = 254",
            ("test_tflite_conversion.py -k int8_takes_the_bytes",),
        ),
        Fault(
            "zero-point-of-the-input-subtracted",
            "np.rint(value / scale) + zero_point,",
            "np.rint(value / scale) - zero_point,",
            ("test_tflite_runner.py",),
        ),
        Fault(
            "zero-point-of-the-output-added",
            "return (output - zero_point) * scale if scale else output",
            "return (output + zero_point) * scale if scale else output",
            ("test_tflite_runner.py",),
        ),
        Fault(
            "drift-is-not-judged",
            "figures.regret <= limit.regret and figures.drift <= limit.drift",
            "figures.regret <= limit.regret and figures.drift <= 1",
            ("test_tflite_verification.py",),
        ),
        Fault(
            "drift-counted-twice",
            "drift=float(error.sum(axis=1).mean() / 2),",
            "drift=float(error.sum(axis=1).mean()),",
            ("test_tflite_conversion.py -k figures_of_a_comparison",),
        ),
        Fault(
            "bgr-is-not-undone",
            "found.append((lambda x: x[..., ::-1], ",
            "found.append((lambda x: x, ",
            ("test_tflite_conversion.py -k mistake_in_the_pixels",),
        ),
        Fault(
            "pruned-weights-come-back",
            "return kernel if self.mask is None else kernel * self.mask",
            "return kernel",
            ("test_tflite_projection.py", "test_tflite_tuning.py -k pruned"),
        ),
        Fault(
            "clusters-move-by-their-sum",
            "tf.math.unsorted_segment_mean(flat, self.cluster, number)",
            "tf.math.unsorted_segment_sum(flat, self.cluster, number)",
            ("test_tflite_projection.py", "test_tflite_tuning.py -k clustered"),
        ),
        Fault(
            "sparsity-counts-what-is-left",
            "sum(int((k == 0).sum()) for k in kernels)",
            "sum(int((k != 0).sum()) for k in kernels)",
            ("test_tflite_projection.py", "test_tflite_tuning.py -k pruned"),
        ),
        Fault(
            "layers-compared-with-the-wrong-zero",
            'value.astype("float32") - tensor["zero_point"]',
            'value.astype("float32") + tensor["zero_point"]',
            ("test_tflite_comparison.py -k 'sound_file and int8'",),
        ),
    ),
    "metadata": (
        Fault(
            "labels-sorted",
            'f"{label}\\n" for label in metadata.labels)',
            'f"{label}\\n" for label in sorted(metadata.labels))',
            ("test_tflite_metadata.py -k round_trip",),
        ),
        Fault(
            "width-and-height-swapped",
            '{0: ("uint32", width), 1: ("uint32", height)}',
            '{0: ("uint32", height), 1: ("uint32", width)}',
            ("test_tflite_metadata_schema.py",),
        ),
        Fault(
            "gray-said-to-be-color",
            "_RGB, _GRAYSCALE = 1, 2",
            "_RGB, _GRAYSCALE = 2, 1",
            ("test_tflite_metadata_schema.py",),
        ),
        Fault(
            "largest-pixel-is-one",
            '5: ("offset", _range(b, 0.0, 255.0)),',
            '5: ("offset", _range(b, 0.0, 1.0)),',
            ("test_tflite_metadata_schema.py",),
        ),
        Fault(
            "mean-written-as-std",
            '1: ("offset", _floats(b, metadata.std))}',
            '1: ("offset", _floats(b, metadata.mean))}',
            ("test_tflite_metadata.py -k round_trip",),
        ),
        Fault(
            "sum-of-the-weights-without-shapes",
            'digest.update(struct.pack(f"<{value.ndim + 1}q", value.ndim, *value.shape))',
            'digest.update(struct.pack("<q", value.size))',
            ("test_tflite_metadata_schema.py -k sum",),
        ),
    ),
    "devices": (
        Fault(
            "percentile-off-by-one",
            "np.percentile(times, [50, 90, 95, 99])",
            "np.percentile(times, [50, 91, 95, 99])",
            ("test_tflite_benchmark.py -k what_samples_give",),
        ),
        Fault(
            "mean-of-the-launches",
            "return statistics.median(told) if told else None",
            "return statistics.fmean(told) if told else None",
            ("test_tflite_adb.py -k launches_spread",),
        ),
        Fault(
            "warm-up-taken-for-the-runs",
            'r"(\\w+)=([\\w.+-]+)", lines[-1])}',
            'r"(\\w+)=([\\w.+-]+)", lines[0])}',
            ("test_tflite_benchmark.py -k tools_text",),
        ),
        Fault(
            "median-of-the-tool-in-seconds",
            "p50_ms=None if median is None else median / 1e3,",
            "p50_ms=None if median is None else median / 1e6,",
            ("test_tflite_benchmark.py -k tools_text",),
        ),
        Fault(
            "samples-in-microseconds",
            "- began) / 1e6\n                samples[number].append(took)",
            "- began) / 1e3\n                samples[number].append(took)",
            ("test_tflite_latency.py -k 'milliseconds'",),
        ),
        Fault(
            "time-of-an-emulated-device",
            "mean_ms=None,\n            std_ms=None,\n            initialization_ms=None,",
            "std_ms=None,\n            initialization_ms=None,",
            ("test_tflite_machine.py -k has_no_times",),
        ),
        Fault(
            "emulator-of-another-name",
            "int(elf) not in _FAMILIES[family]",
            "int(elf) == 0",
            ("test_tflite_machine.py -k device_tells",),
        ),
        Fault(
            "core-of-another-maker",
            "if implementer == _ARM and part in _CORES:",
            "if part in _CORES:",
            ("test_tflite_machine.py -k device_tells",),
        ),
        Fault(
            "pinned-to-the-next-core",
            "sum(1 << core for core in big)",
            "sum(2 << core for core in big)",
            ("test_tflite_adb.py -k which_cores",),
        ),
        Fault(
            "little-cores-for-big-ones",
            "if speed > min(speeds.values()))",
            "if speed < max(speeds.values()))",
            ("test_tflite_adb.py -k which_cores",),
        ),
        Fault(
            "exit-code-of-adb-lost",
            "return Completed(int(code), said, stderr)",
            "return Completed(0, said, stderr)",
            ("test_tflite_adb.py -k exit_codes",),
        ),
        Fault(
            "exit-code-of-ssh-lost",
            'return Completed(int(code), stdout.decode(errors="replace"), ',
            'return Completed(0, stdout.decode(errors="replace"), ',
            ("test_tflite_ssh.py -k exit_codes",),
        ),
        Fault(
            "port-of-ssh-ignored",
            '*(["-p", port] if port else []),',
            "*([] if port else []),",
            ("test_tflite_ssh.py -k the_port",),
        ),
    ),
    "explaining": (
        Fault(
            "a-channel-by-its-largest-gradient",
            "weights = ops.mean(gradients, axis=(1, 2), keepdims=True)",
            "weights = ops.max(gradients, axis=(1, 2), keepdims=True)",
            ("test_explain_maps.py -k 'equal_the_peers and lite0-grad_cam-56'",),
        ),
        Fault(
            "grad-cam-plus-plus-by-halves",
            "square / (2 * square + activations",
            "square / (square + activations",
            ("test_explain_maps.py -k 'equal_the_peers and plus_plus and 56'",),
        ),
        Fault(
            "layer-cam-of-both-signs",
            "ops.relu(ops.sum(ops.relu(gradients) * maps, axis=-1))",
            "ops.relu(ops.sum(gradients * maps, axis=-1))",
            ("test_explain_maps.py -k 'equal_the_peers and layer_cam and 56'",),
        ),
        Fault(
            "score-cam-without-softmax",
            "weights = np.exp(scores - scores.max(-1, keepdims=True))",
            "weights = scores - scores.min(-1, keepdims=True)",
            ("test_explain_maps.py -k 'equal_the_peers and score_cam and 56'",),
        ),
        Fault(
            "probability-explained-for-a-logit",
            "            if call is self._linear:\n",
            "            if call is None:\n",
            ("test_explain_graph.py -k whatever_the_model_ends_in",),
        ),
        Fault(
            "explained-as-in-training",
            'keywords["training"] = False',
            'keywords["training"] = True',
            ("test_explain_graph.py -k learning_phase",),
        ),
        Fault(
            "gradient-guided-by-the-input-alone",
            "ops.where(passes, ops.relu(upstream),",
            "ops.where(passes, upstream,",
            ("test_explain_maps.py -k by_hand",),
        ),
        Fault(
            "quadrature-beyond-the-way",
            "shares = ((nodes + 1) / 2)",
            "shares = nodes",
            ("test_explain_maps.py -k completeness",),
        ),
        Fault(
            "noise-of-a-fixed-size",
            "deviations = noise * np.ptp(images, axis=(1, 2, 3))",
            "deviations = noise * np.full(len(images), 255.0)",
            ("test_explain_maps.py -k share_of_the_images_range",),
        ),
        Fault(
            "deletion-inserts",
            '(images, others) if caller == "deletion"',
            '(images, others) if caller == "insertion"',
            ("test_explain_scores.py -k perfect_map",),
        ),
        Fault(
            "equal-values-in-their-order",
            "np.lexsort((lots, -values.ravel()))",
            "np.lexsort((np.arange(values.size), -values.ravel()))",
            ("test_explain_scores.py -k no_order_of_their_own",),
        ),
        Fault(
            "shuffled-from-the-first-layer",
            "    for call in reversed(net.calls):\n        own = []",
            "    for call in net.calls:\n        own = []",
            ("test_explain_scores.py -k shuffled_from_the_top",),
        ),
        Fault(
            "statistics-of-the-trained-network",
            "layer.moving_variance.assign(variance)",
            "layer.moving_variance.assign(layer.moving_variance)",
            ("test_explain_scores.py -k shuffled_from_the_top",),
        ),
        Fault(
            "patch-without-its-last-pixel",
            "(int(low), int(high) + 1) if math",
            "(int(low), int(high)) if math",
            ("test_explain_units.py -k strongest_unit",),
        ),
        Fault(
            "branch-kept-for-the-shortcut",
            "    least = min(own)\n    kept = inputs[",
            "    least = max(own)\n    kept = inputs[",
            ("test_lesion.py -k without_its_branch",),
        ),
        Fault(
            "attack-without-end",
            "change = ops.clip(change, -eps, eps)",
            "change = ops.clip(change, -2 * eps, 2 * eps)",
            ("test_attacks.py -k budget_range",),
        ),
        Fault(
            "away-from-the-wanted-class",
            "size = -size if self._targeted else size",
            "size = size",
            ("test_attacks.py -k takes_the_class_and_gives",),
        ),
        Fault(
            "squeezed-by-the-weakest",
            "np.max(apart, axis=0)",
            "np.min(apart, axis=0)",
            ("test_squeezing.py -k largest_distance",),
        ),
        Fault(
            "adversarial-training-on-clean-images",
            "seen = given if self._attack is None else",
            "seen = given if given is not None else",
            ("test_adversarial_training.py -k learns_from_the_worst",),
        ),
        Fault(
            "attack-at-its-full-budget-at-once",
            "share = tf.cast(self._clock.step + 1, tf.float32) / max(self._growth, 1.0)",
            "share = tf.cast(self._clock.step + 1, tf.float32)",
            ("test_adversarial_training.py -k budget_grows",),
        ),
        Fault(
            "one-restart-of-many-suffices",
            "hits &= scores(attacked).argmax(axis=1) == labels",
            "hits[:] = scores(attacked).argmax(axis=1) == labels",
            ("test_tflite_robustness.py -k every_restart",),
        ),
    ),
    "inspection and reports": (
        Fault(
            "macs-without-groups",
            "window = math.prod(op.kernel_size) * channels // op.groups",
            "window = math.prod(op.kernel_size) * channels",
            ("test_profile.py -k macs_are_those_of_the_definition",),
        ),
        Fault(
            "field-without-dilation",
            "(i * stride - before + j * dilation for j in range(size))",
            "(i * stride - before + j for j in range(size))",
            ("test_profile.py -k 'receptive_fields_by_hand or depend_on'",),
        ),
        Fault(
            "memory-freed-one-layer-late",
            "if last[key] > i}",
            "if last[key] >= i}",
            ("test_profile.py -k activation_memory",),
        ),
        Fault(
            "scale-by-channel-for-one-of-all",
            "int(parameters.QuantizedDimension()) if len(scales) > 1 else None",
            "int(parameters.QuantizedDimension()) if len(scales) > 0 else None",
            ("test_tflite_inspection.py -k 'test_tensors'",),
        ),
        Fault(
            "six-tensors-are-not-joined",
            "not 2 <= len(inputs) <= 5",
            "not 2 <= len(inputs) <= 6",
            ("test_tflite_inspection.py -k falls_off_the_delegate_and_why",),
        ),
        Fault(
            "first-class-alone-is-top-5",
            "right5 += int(hits.any(axis=1).sum())",
            "right5 += int(hits[:, 0].sum())",
            ("test_report_main.py -k 'accuracy_of_a_file and float32'",),
        ),
        Fault(
            "equal-and-slower-is-on-the-front",
            "if not kept or of(point)[1] > of(kept[-1])[1]:",
            "if not kept or of(point)[1] >= of(kept[-1])[1]:",
            ("test_tflite_report.py -k pareto",),
        ),
        Fault(
            "kib-of-a-thousand-bytes",
            'f"{entry.size_bytes / 1024:,.0f}"',
            'f"{entry.size_bytes / 1000:,.0f}"',
            ("test_report_main.py -k table_of_models",),
        ),
    ),
}


class Place(NamedTuple):
    """Where a fault goes."""

    file: Path
    """Below the checkout."""
    line: int
    content: str
    """Of the whole file, with the fault."""


class Outcome(NamedTuple):
    """What became of a fault."""

    caught_by: str
    """The id of the first test that failed; "" for none, or where something else went wrong."""
    seconds: float
    remark: str = ""
    """What went wrong: the fault says nothing of the tests then."""


def place_of(fault: Fault, root: Path = ROOT) -> Place:
    """Finds the text of a fault.

    Raises:
        ValueError: it is not there exactly once; the message says where it is.
    """
    found = _texts(root)
    counts = [(file, text.count(fault.old)) for file, text in found if fault.old in text]
    if [count for _, count in counts] != [1]:
        where = ", ".join(f"{file.relative_to(root)} ({n}x)" for file, n in counts) or "nowhere"
        raise ValueError(
            f"{fault.name} no longer applies: its text has to be there once, and is {where}; "
            f"mend it in {Path(__file__).name}: {fault.old!r}"
        )
    file, text = next((file, text) for file, text in found if fault.old in text)
    line = text[: text.index(fault.old)].count("\n") + 1
    return Place(file.relative_to(root), line, text.replace(fault.old, fault.new))


@functools.cache
def _texts(root: Path) -> list[tuple[Path, str]]:
    """The files of the packages."""
    return [
        (file, file.read_text(encoding="utf-8"))
        for package in PACKAGES
        for folder, _, names in os.walk(root / package)
        for file in sorted(Path(folder, name) for name in names)
        if file.suffix == ".py"
    ]


class Copy:
    """A copy of the checkout as it lies there, with an interpreter that imports kapps from it."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "checkout"
        listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        names = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True).stdout
        for name in map(os.fsdecode, filter(None, names.split(b"\0"))):
            if (ROOT / name).is_file():  # what is deleted is listed all the same
                target = self.root / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / name, target)
        # The packages under the names that they install as; pytest runs in the checkout, and finds
        # `kapps` there first.
        for package in PACKAGES[1:]:
            (self.root / "kapps" / package).symlink_to(f"../{package}")
        venv.create(folder / "environment", symlinks=True)
        self._python = folder / "environment/bin/python"
        site = next((folder / "environment/lib").glob("python*/site-packages"))
        whole = "; ".join(
            f"site.addsitedir({path!r})"
            for path in dict.fromkeys(sysconfig.get_path(kind) for kind in ("purelib", "platlib"))
        )
        (site / "seeded_faults.pth").write_text(f"{self.root}\nimport site; {whole}\n")
        self._clock = itertools.count(int(time.time()))
        self._said = folder / "said"
        self._verify()
        self._server = self._serving()

    def _verify(self) -> None:
        """That an editable install of the checkout does not win."""
        code = (
            "import kapps, kapps.tools, kapps.tflite\n"
            "print(*(m.__file__ for m in (kapps, kapps.tools, kapps.tflite)), sep='\\n')"
        )
        # From elsewhere: so do the child processes of the tests.
        run = subprocess.run(
            [self._python, "-c", code], cwd="/", env=_environment(), capture_output=True, text=True
        )
        files = run.stdout.splitlines()
        if run.returncode or not all(Path(f).is_relative_to(self.root) for f in files):
            raise RuntimeError(f"kapps is not imported from the copy: {files} {run.stderr}")

    @contextlib.contextmanager
    def changed(self, place: Place) -> Iterator[None]:
        """Has the fault while it lasts."""
        file = self.root / place.file
        before = file.read_text(encoding="utf-8")
        self._write(file, place.content)
        try:
            yield
        finally:
            self._write(file, before)

    def _write(self, file: Path, content: str) -> None:
        file.write_text(content, encoding="utf-8")
        # Python takes compiled code by time, in whole seconds, and size: each time is another one.
        moment = next(self._clock)
        os.utime(file, (moment, moment))

    def pytest(self, arguments: Sequence[str], marker: str, limit: float) -> tuple[int, list[str]]:
        """The exit code of pytest, and the ids of the tests that failed; code -1: it took too long.

        Code 1 is that of failed tests, 4 that of a file or id that is not there, 5 that of no test.
        """
        assert self._server.stdin is not None and self._server.stdout is not None
        request = {
            "arguments": [
                # As in the checkout, but that a marker need not be known: older ones have fewer.
                *("-o", "addopts=", "-q", "-rfE", "--tb=short", "-p", "no:cacheprovider"),
                *("--hypothesis-seed=0", "-m", marker, *arguments),
            ],
            "output": str(self._said),
            "limit": limit,
        }
        print(json.dumps(request), file=self._server.stdin, flush=True)
        code = json.loads(self._server.stdout.readline())
        output = self._said.read_text(encoding="utf-8", errors="replace")
        failed = re.findall(r"^(?:FAILED|ERROR) (\S+?\.py::.+?)(?: - .*)?$", output, re.MULTILINE)
        if code not in (0, 1, 5):
            print(f"pytest {shlex.join(arguments)}\n{output[-3000:]}", file=sys.stderr)
        return code, failed

    def _serving(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [self._python, Path(__file__).resolve(), "--serve"],
            cwd=self.root,
            env=_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def close(self) -> None:
        """Ends the process that runs the tests."""
        self._server.communicate()


def serve() -> None:
    """Runs pytest as the lines of stdin ask for, each time in a child of this process.

    So the packages that take seconds to import are imported once, and kapps, of which this process
    has nothing, anew each time.
    """
    errors = os.dup(2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # TensorFlow greets each process with six lines
    for name in _IMPORTED:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    os.dup2(errors, 2)
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if not child:
            os.setsid()
            output = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            for old, new in ((os.open(os.devnull, os.O_RDONLY), 0), (output, 1), (output, 2)):
                os.dup2(old, new)
            code = 3  # pytest's own for what should not be
            try:
                import pytest

                code = int(pytest.main(request["arguments"], [_WithoutShrinking()]))
            finally:
                atexit._run_exitfuncs()
                sys.stdout.flush()
                os._exit(code)
        print(json.dumps(_exit_code(child, request["limit"])), flush=True)


class _WithoutShrinking:
    """A plugin of pytest: that an example fails is enough, and the simplest one takes minutes."""

    def pytest_sessionstart(self) -> None:
        from hypothesis import Phase, settings

        phases = (Phase.explicit, Phase.generate)
        settings.register_profile("seeded faults", settings.default, phases=phases)
        settings.load_profile("seeded faults")


def _exit_code(child: int, limit: float) -> int:
    """What the process ends with, the signal and 128 if it was one; -1 if it had to be ended."""
    end = time.monotonic() + limit
    while time.monotonic() < end:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return -1


def _environment() -> dict[str, str]:
    own = {"COLUMNS": "2000", "TF_CPP_MIN_LOG_LEVEL": "2"}  # pytest cuts its lines to the columns
    away = ("PYTHONPATH", "PYTEST_ADDOPTS", "PYTHONSAFEPATH", "VIRTUAL_ENV")
    return {name: value for name, value in os.environ.items() if name not in away} | own


def seed(copy: Copy, fault: Fault, place: Place, suite: str, named: bool) -> Outcome:
    """Puts the fault into the copy, and runs tests until one notices."""
    start, marker = time.monotonic(), SUITES[suite]
    rest = ["tests", *(f"--ignore={path}" for path in _ASIDE)]
    selections = [(_below_tests(selection), _LIMIT) for selection in fault.tests]
    with copy.changed(place):
        for arguments, limit in [*selections, *([] if named else [(rest, 4 * _LIMIT)])]:
            code, failed = copy.pytest(["-x", *arguments], marker, limit)
            seconds = time.monotonic() - start
            if code == -1:
                return Outcome(f"{shlex.join(arguments)} (hangs)", seconds)
            if code == 1 and failed:
                return Outcome(failed[0], seconds)
            if code not in (0, 4, 5):
                return Outcome("", seconds, f"pytest ends with {code}: does it import at all?")
    return Outcome("", time.monotonic() - start)


def _below_tests(selection: str) -> list[str]:
    file, *others = shlex.split(selection)
    return [f"tests/{file}", *others]


def run(
    faults: Sequence[Fault], places: Sequence[Place], suite: str, named: bool, jobs: int
) -> list[Outcome]:
    """What became of each fault."""
    with (
        tempfile.TemporaryDirectory(prefix="kapps-seeded-") as folder,
        contextlib.ExitStack() as stack,
    ):
        copies: queue.Queue[Copy] = queue.Queue()
        for number in range(jobs):
            copies.put(stack.enter_context(contextlib.closing(Copy(Path(folder, str(number))))))
        done = itertools.count(1)

        def work(fault: Fault, place: Place) -> Outcome:
            copy = copies.get()
            try:
                outcome = seed(copy, fault, place, suite, named)
            finally:
                copies.put(copy)
            told = outcome.remark or outcome.caught_by or "NOT NOTICED"
            print(
                f"{next(done):3} of {len(faults)}  {fault.name}  {outcome.seconds:.0f} s  {told}",
                flush=True,
            )
            return outcome

        with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
            outcomes = list(pool.map(work, faults, places))
        ids = {outcome.caught_by for outcome in outcomes if "::" in outcome.caught_by}
        broken: set[str] = set()
        if ids:
            print(f"{len(ids)} tests have noticed something: now without any fault", flush=True)
            code, failed = copies.get().pytest(sorted(ids), "", 4 * _LIMIT)
            broken = ids & set(failed)
            if code not in (0, 1) or bool(code) != bool(failed):
                raise RuntimeError(f"the tests without any fault: pytest ends with {code}")
    return [
        outcome._replace(caught_by="", remark=f"`{outcome.caught_by}` fails without a fault too")
        if outcome.caught_by in broken
        else outcome
        for outcome in outcomes
    ]


def table(
    faults: Sequence[tuple[str, Fault]],
    places: Sequence[Place],
    outcomes: Sequence[Outcome],
    suite: str,
    jobs: int,
) -> str:
    """The result as Markdown."""
    versions = ", ".join(
        f"{name} {importlib.metadata.version(name)}"
        for name in ("kapps", "keras", "tensorflow", "tf_keras", "ai-edge-litert", "pytest")
    )
    caught = sum(bool(outcome.caught_by) for outcome in outcomes)
    lines = [
        "# Seeded faults",
        "",
        "Do the tests find faults? `tests/seeded_faults.py` puts one slip after the other into a",
        "copy of the code, and runs the tests until one fails. Written by",
        "",
        "    python tests/seeded_faults.py --output=docs/seeded_faults.md",
        "",
        f"{caught} of {len(faults)} faults are noticed by the {suite} suite. "
        f"{datetime.date.today().isoformat()}; Python {platform.python_version()}, {versions}; "
        f"{_processor()}, {jobs} at a time.",
        "",
        "Seconds are those until the test failed, the start of pytest included, wherever the named",
        "tests of a fault suffice.",
    ]
    area = ""
    for (own_area, fault), place, outcome in zip(faults, places, outcomes, strict=True):
        if own_area != area:
            area = own_area
            lines += ["", f"## {area.capitalize()}", ""]
            lines += ["| fault | place | noticed by | s |", "|---|---|---|---:|"]
        test = outcome.caught_by.replace("|", r"\|")
        noticed = f"`{test}`" if test else outcome.remark or "**nobody**"
        lines.append(
            f"| {fault.name.replace('-', ' ')} | `{place.file.as_posix()}` | {noticed} "
            f"| {outcome.seconds:.0f} |"
        )
    return "\n".join(lines) + "\n"


def _processor() -> str:
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):  # no Linux
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    return f"{name}, {os.cpu_count()} cores"


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--suite", choices=SUITES, default="short", help="which tests may notice")
    parser.add_argument("--only", action="append", metavar="NAME", help="this fault alone")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="so many at a time")
    parser.add_argument("--named", action="store_true", help="the named tests only, no suite")
    parser.add_argument("--output", type=Path, metavar="FILE", help="a table, in Markdown")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--check", action="store_true", help="only whether each can still be made")
    options = parser.parse_args(argv)
    if options.serve:
        serve()
        return 0
    chosen = [
        (area, fault)
        for area, faults in FAULTS.items()
        for fault in faults
        if not options.only or fault.name in options.only
    ]
    unknown = set(options.only or ()) - {fault.name for _, fault in chosen}
    if unknown:
        parser.error(f"no such fault: {', '.join(sorted(unknown))}")
    faults, places, troubles = [fault for _, fault in chosen], [], []
    for fault in faults:
        try:
            places.append(place_of(fault))
        except ValueError as error:
            troubles.append(str(error))
    if troubles or options.check:
        print("\n".join(troubles) or f"all {len(faults)} can be made")
        return bool(troubles)
    start = time.monotonic()
    outcomes = run(faults, places, options.suite, options.named, options.jobs)
    if options.output is not None:
        text = table(chosen, places, outcomes, options.suite, options.jobs)
        options.output.write_text(text, encoding="utf-8")
    missed = [(f.name, o.remark) for f, o in zip(faults, outcomes, strict=True) if not o.caught_by]
    print(f"{len(faults) - len(missed)} of {len(faults)} noticed, {time.monotonic() - start:.0f} s")
    for name, remark in missed:
        print(f"not noticed: {name} {remark}".rstrip())
    return bool(missed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Networks with auxiliary classifiers: the network without them, and with them as early exits."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import keras
import numpy as np

from kapps._block_skipping import any_depth
from kapps._errors import InputError, is_number
from kapps._network import has_auxiliary_heads
from kapps._profile import Walk, inputs_of

# What the builders, and the weights that were loaded, tell of a model.
_FACTS = (
    "kapps_builder",
    "kapps_evaluation",
    "kapps_weights",
    "features_layer",
    "checkpoint_auxiliary",
    "checkpoint_before",
    "checkpoint_headless",
)


def without_auxiliary_heads(model: keras.Model) -> keras.Model:
    """The model with its main output only; the model itself where it has no auxiliary classifiers.

    The layers, and so the weights, are those of the model: what is trained in one is trained in the
    other. A model of several outputs that kapps has not built keeps them all.
    """
    if not has_auxiliary_heads(model):
        return model
    with any_depth():
        # Of the same class: it may have residual blocks that are not to be computed.
        main = type(model)(model.input, model.outputs[0], name=model.name)
    keep_facts(model, main)
    return main


def keep_facts(model: keras.Model, other: keras.Model) -> None:
    """Tells another model what is known of this one, whose layers it consists of."""
    for name in _FACTS:
        if hasattr(model, name):
            setattr(other, name, getattr(model, name))


@dataclasses.dataclass(frozen=True)
class EarlyExit:
    """A classifier of a network, at which the computation may end."""

    output: int
    """Its place among the model's outputs; 0 is the main one."""
    name: str
    """That of the layer that classifies."""
    macs: int
    """Multiply-accumulate operations for one image of all that is computed up to here, the exits
    before this one included."""


def early_exits(
    model: keras.Model, input_shape: Sequence[int | None] | None = None
) -> tuple[EarlyExit, ...]:
    """The classifiers of a network in the order of their depth, the main one last.

        exits = kapps.early_exits(model)
        outputs = model.predict(images)
        predictions, taken = kapps.early_exit([outputs[exit.output] for exit in exits], 0.9)
        macs = numpy.mean([exits[i].macs for i in taken])

    An image that leaves at an exit has cost what was computed on the way: `macs`, counted as
    `kapps.profile` does, and at the main one those of the whole network with its auxiliary
    classifiers.

    Args:
        model: GoogLeNet, GoogLeNetOriginal or InceptionV3 of kapps, built with aux=True.
        input_shape: (height, width, channels) for a model that takes images of any size.

    Raises:
        InputError: the model has no auxiliary classifiers, or its size is not fixed.
    """
    if not has_auxiliary_heads(model):
        raise InputError(
            f"{model.name} has no auxiliary classifiers, so that its only exit is its end; "
            "GoogLeNet, GoogLeNetOriginal and InceptionV3 have some if built with aux=True"
        )
    values = inputs_of(model, input_shape, "kapps.early_exits")
    walk = Walk([value.shape for value in values])
    needed = [_steps_of(walk.steps, value) for value in walk.run(model, values, "")]

    def macs(steps: Iterable[int]) -> int:
        return sum(walk.steps[i].profile.macs for i in steps)

    order = [*sorted(range(1, len(needed)), key=lambda output: macs(needed[output])), 0]
    exits, computed = [], set[int]()
    for output in order:
        computed |= needed[output]
        name = model.outputs[output]._keras_history.operation.name
        exits.append(EarlyExit(output, name, macs(computed)))
    return tuple(exits)


def _steps_of(steps: Sequence[Any], output: Any) -> set[int]:
    """The numbers of the calls that a tensor depends on; those before a call have lower ones."""
    wanted, found = {id(output)}, set()
    for i, step in reversed(list(enumerate(steps))):
        if not wanted.isdisjoint(map(id, step.outputs)):
            found.add(i)
            wanted.update(map(id, step.inputs))
    return found


def early_exit(
    probabilities: Sequence[np.ndarray], confidence: float
) -> tuple[np.ndarray, np.ndarray]:
    """The answer of the first exit that is sure enough of one, for each image.

    That is the first whose largest probability is at least `confidence`; the last where none is
    (Teerapittayanon et al. 2016, "BranchyNet", with the largest probability in place of the
    entropy).

    Args:
        probabilities: of each exit, (images, classes), in the order of `early_exits`.
        confidence: 0 to 1.

    Returns:
        The predicted classes, (images,), and the exits that they come from, (images,), counted
        from 0.

    Raises:
        InputError: the confidence, or what should be probabilities, is none.
    """
    if not is_number(confidence) or not 0 <= confidence <= 1:
        raise InputError(f"the confidence must be 0 to 1, not {confidence!r}")
    exits = [np.asarray(values) for values in probabilities]
    if not exits or any(x.ndim != 2 or x.shape != exits[0].shape for x in exits):
        shapes = ", ".join(str(x.shape) for x in exits) or "none"
        raise InputError(
            f"early_exit takes the probabilities of each exit, all (images, classes), not {shapes}"
        )
    stacked = np.stack(exits)
    # Sums of many rounded numbers may be a little beyond 1.
    if stacked.size and not (stacked.min() >= 0 and stacked.max() <= 1.01):
        raise InputError(
            "early_exit takes probabilities, and these are not all within 0 and 1: build the model "
            "with classifier_activation='softmax'"
        )
    sure = stacked.max(-1) >= confidence
    sure[-1] = True
    taken = sure.argmax(0)
    return stacked[taken, np.arange(stacked.shape[1])].argmax(-1), taken

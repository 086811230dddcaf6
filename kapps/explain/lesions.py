"""What a network loses with each of its blocks (Veit et al. 2016, section 4.1 and figure 3)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from kapps._anatomy import Anatomy, Removal
from kapps._errors import InputError
from kapps.explain._classifier import Classifier
from kapps.explain._differentiation import without_gradients
from kapps.explain._graph import Tensor


@dataclasses.dataclass(frozen=True)
class Lesion:
    """What a network without one block does, beside the intact one."""

    name: str
    """Of the block, as `kapps.lesion` takes it; in a nested model "model/block"."""
    loss: float
    """Mean cross-entropy, nats."""
    accuracy: float
    """Top-1, 0 to 1."""
    intact_loss: float
    intact_accuracy: float

    @property
    def loss_rise(self) -> float:
        """Nats."""
        return self.loss - self.intact_loss

    @property
    def accuracy_fall(self) -> float:
        """Of top-1, 0 to 1."""
        return self.intact_accuracy - self.accuracy


def lesions(
    model: keras.Model, images: Any, labels: Any, *, blocks: Sequence[str] | None = None
) -> list[Lesion]:
    """Loss and accuracy of a network without each of its blocks in turn.

    The networks are those of `kapps.lesion`, and none is built: each goes on from what the intact
    one has computed before its block.

    Args:
        model: classifier.
        images: (N, height, width, channels) in the model's own range.
        labels: (N,), class numbers.
        blocks: by default all of `kapps.removable_blocks`, also those of nested models.

    Returns:
        One for each block, in the order of execution, or that of `blocks`.

    Raises:
        InputError: the model has no such block, or none at all; or images and labels do not fit.
    """
    net = Classifier(model, "lesions")
    images = net.images(images)
    labels = net.labels(labels, len(images), "labels")
    anatomy = Anatomy(model, net.calls, [net.logits])
    removals = [anatomy.removal(name) for name in (anatomy.names if blocks is None else blocks)]
    if not removals:
        raise InputError(
            f"lesions: {model.name} has no block that can be removed: none with a shortcut, and no "
            "convolution that keeps the shape of its map"
        )
    figures = np.zeros((1 + len(removals), 2))
    for batch, classes in net.batches(images, labels):
        outputs = _logits(net, batch, removals)
        figures += [_sums(net, logits, classes) for logits in outputs]
    intact, *others = (figures / len(images)).tolist()
    return [
        Lesion(removal.name, loss, accuracy, intact[0], intact[1])
        for removal, (loss, accuracy) in zip(removals, others, strict=True)
    ]


def _logits(net: Classifier, batch: Any, removals: Sequence[Removal]) -> list[Any]:
    """Of the intact network, and without each block."""
    needed = [[removal.kept, *net.between(removal.removed, net.logits)] for removal in removals]
    wanted = list(dict.fromkeys(tensor for tensors in needed for tensor in tensors))
    logits, *rest = net.maps_of(batch, [net.logits, *wanted])
    known = dict(zip(wanted, rest, strict=True))
    net.check_logits(ops.convert_to_numpy(logits))
    return [
        logits,
        *(
            _without(net, removal, {tensor: known[tensor] for tensor in tensors})
            for removal, tensors in zip(removals, needed, strict=True)
        ),
    ]


def _without(net: Classifier, removal: Removal, values: dict[Tensor, Any]) -> Any:
    def logits() -> Any:
        stand_in = removal.stand_in(values[removal.kept])
        return net.run({**values, removal.removed: stand_in}, [net.logits])[0]

    return without_gradients(logits)


def _sums(net: Classifier, logits: Any, classes: Any) -> tuple[float, float]:
    """Over a batch: the loss, and how often it is right."""
    right = ops.sum(ops.cast(ops.equal(net.predicted(logits), classes), "float32"))
    return float(ops.sum(net.cross_entropy(logits, classes))), float(right)

"""Class activation maps: which places of a feature map speak for a class."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from kapps.explain._classifier import Classifier


def grad_cam(
    model: keras.Model, images: Any, classes: Any = None, layer: str | None = None
) -> np.ndarray:
    """Grad-CAM (Selvaraju et al. 2017)."""
    net = Classifier(model, "grad_cam")
    images = net.images(images)
    chosen = None if classes is None else net.labels(classes, len(images))
    at = net.features() if layer is None else net.map(layer)
    found = []
    for batch, wanted in net.batches(images, chosen):
        maps, gradients, _ = net.gradients(batch, wanted, at)
        weights = ops.mean(gradients, axis=(1, 2), keepdims=True)
        found.append(ops.convert_to_numpy(ops.relu(ops.sum(weights * maps, axis=-1))))
    return np.concatenate(found)

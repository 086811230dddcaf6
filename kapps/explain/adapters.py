"""A model, or a .tflite file, as foolbox and the adversarial-robustness-toolbox (ART) take it.

Both see logits, whatever the model ends in, and images (N, height, width, channels) in the model's
own range, on every backend.
"""

from __future__ import annotations

import contextlib
import os
import weakref
from typing import Any

import keras
import numpy as np
from keras import ops

from kapps._errors import InputError
from kapps._lazy import imported
from kapps.explain._attacked import Attacked


def foolbox_model(model: keras.Model, bounds: tuple[float, float] | None = None) -> Any:
    """The model as foolbox takes it, for all of its attacks.

    Budgets of foolbox are in the unit of the images: 0..255 for models of kapps.

    Args:
        model: a classifier.
        bounds: the lowest and the highest number of an image; None for those that the model tells.

    Returns:
        A foolbox.TensorFlowModel, JAXModel or PyTorchModel. It takes tensors of the backend,
        channels last also on PyTorch.

    Raises:
        InputError: the model is no classifier, its range is not known, or foolbox is not installed.
    """
    net = Attacked(model, "foolbox_model", bounds)
    foolbox = imported("foolbox", net.caller, "attack")
    given = (net.low, net.high)
    backend = keras.backend.backend()
    if backend == "tensorflow":
        return foolbox.TensorFlowModel(net.class_logits, given)
    if backend == "jax":
        return foolbox.JAXModel(net.class_logits, given)
    wrapped = foolbox.PyTorchModel(_torch_module(net), given, device=_torch_device())
    wrapped.data_format = "channels_last"
    return wrapped


def art_classifier(model: keras.Model, bounds: tuple[float, float] | None = None) -> Any:
    """The model as ART takes it, for its attacks. It gives logits.

    Args:
        model: a classifier of images of one size.
        bounds: the lowest and the highest number of an image; None for those that the model tells.

    Returns:
        A TensorFlowV2Classifier or a PyTorchClassifier. On JAX, for which ART has no gradients, a
        BlackBoxClassifierNeuralNetwork: attacks that need gradients refuse it.

    Raises:
        InputError: the model is no classifier, its range or size are not known, or ART is not
            installed.
    """
    net = Attacked(model, "art_classifier", bounds)
    art = imported("art.estimators.classification", net.caller, "attack")
    shape = net.image.shape[1:]
    if None in shape:
        raise InputError(
            f"{net.caller}: {model.name} takes images of any size, and ART asks for one: build the "
            "model with input_shape=(height, width, channels)"
        )
    common = {
        "nb_classes": net.classes,
        "input_shape": shape,
        "channels_first": False,
        "clip_values": (net.low, net.high),
    }
    backend = keras.backend.backend()
    if backend == "tensorflow":
        # In inference whatever ART says: it asks for the other mode only to train.
        return art.TensorFlowV2Classifier(
            lambda images, training: net.class_logits(images),
            loss_object=keras.losses.CategoricalCrossentropy(from_logits=True),
            **common,
        )
    if backend == "jax":
        return art.BlackBoxClassifierNeuralNetwork(
            lambda images: np.asarray(net.class_logits(ops.convert_to_tensor(images))), **common
        )
    import torch

    device = "cpu" if _torch_device().type == "cpu" else "gpu"
    loss = torch.nn.CrossEntropyLoss()
    return art.PyTorchClassifier(_torch_module(net), loss, device_type=device, **common)


def art_blackbox(path: str | os.PathLike[str]) -> Any:
    """A .tflite image classifier as ART takes it, for attacks that only ask, such as Square.

    The file may come from anywhere: it runs in a process of its own, with limits, which ends with
    the classifier.

    Args:
        path: the file.

    Returns:
        A BlackBoxClassifierNeuralNetwork: images (N, height, width, channels) in 0..255 to the
        file's probabilities. A file that takes bytes rounds the images.

    Raises:
        InputError: no such file, not an image classifier, or what runs it, or ART, is not
            installed. An attack raises it where the file kills its process.
    """
    art = imported("art.estimators.classification", "art_blackbox", "attack")
    accuracy = imported("kapps.tflite.accuracy", "art_blackbox", "tflite")
    described = accuracy.describe(path)
    stack = contextlib.ExitStack()
    scores = stack.enter_context(accuracy.opened(path))
    classifier = art.BlackBoxClassifierNeuralNetwork(
        scores,
        (*described.image_size, 3),
        described.classes,
        channels_first=False,
        clip_values=(0, 255),
    )
    weakref.finalize(classifier, stack.close)
    return classifier


def _torch_device() -> Any:
    return ops.convert_to_tensor(0.0).device


def _torch_module(net: Attacked) -> Any:
    import torch

    class Logits(torch.nn.Module):
        def forward(self, images: Any) -> Any:
            return net.class_logits(images)

    return Logits().eval()

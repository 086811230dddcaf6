"""Gradients on any backend of Keras, which has none of its own for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

from kapps._errors import InputError

Objective = Callable[[list[Any]], tuple[Any, Any]]
"""Takes tensors; returns a number to differentiate, and whatever else was computed on the way."""


def value_and_gradients(function: Objective, inputs: Sequence[Any]) -> tuple[Any, Any, list[Any]]:
    """What the function returns, and the gradient of its first result by each input.

    The gradient by what it does not depend on is zero.
    """
    backend = keras.backend.backend()
    tensors = [ops.convert_to_tensor(value) for value in inputs]
    if backend == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(tensors)
            value, rest = function(tensors)
        zero = tf.UnconnectedGradients.ZERO
        return value, rest, tape.gradient(value, tensors, unconnected_gradients=zero)
    if backend == "jax":
        import jax

        (value, rest), gradients = jax.value_and_grad(function, has_aux=True)(tensors)
        return value, rest, gradients
    if backend == "torch":
        import torch

        leaves = [tensor.detach().requires_grad_() for tensor in tensors]
        with torch.enable_grad():
            value, rest = function(leaves)
            found = torch.autograd.grad(value, leaves, allow_unused=True)
        gradients = [
            torch.zeros_like(leaf) if gradient is None else gradient
            for leaf, gradient in zip(leaves, found, strict=True)
        ]
        return value.detach(), keras.tree.map_structure(_detached, rest), gradients
    raise InputError(
        f"gradients need TensorFlow, JAX or PyTorch, and Keras runs on {backend}: set "
        "KERAS_BACKEND before it is imported"
    )


def _detached(value: Any) -> Any:
    return value.detach() if hasattr(value, "detach") else value


def compiled(function: Callable[..., Any], variables: Sequence[Any]) -> Callable[..., Any]:
    """The function of tensors, compiled where the backend compiles: for what runs many times.

    It sees the values that `variables` have when it is called.
    """
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        return tf.function(function, reduce_retracing=True, autograph=False)
    if backend == "jax":
        import jax

        @jax.jit
        def stateless(values: list[Any], *arguments: Any) -> Any:
            with keras.StatelessScope(zip(variables, values, strict=True)):
                return function(*arguments)

        return lambda *arguments: stateless([v.value for v in variables], *arguments)
    return function


def without_gradients(function: Callable[[], Any]) -> Any:
    """What the function returns; PyTorch remembers nothing of how it was computed."""
    if keras.backend.backend() == "torch":
        import torch

        with torch.no_grad():
            return function()
    return function()

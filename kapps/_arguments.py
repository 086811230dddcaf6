"""The arguments that all builders share, checked."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import keras
from keras import KerasTensor, layers

from kapps._errors import InputError, check_whole, is_number, is_whole, unknown
from kapps._network import DROP_BLOCK_SCHEDULES, DROP_PATH_SCHEDULES, Regularization

POOLING = {"avg": layers.GlobalAveragePooling2D, "max": layers.GlobalMaxPooling2D}

ImageShape = tuple[int | None, int | None, int]
"""(height, width, channels)"""


@dataclasses.dataclass(frozen=True)
class Arguments:
    """The shared arguments of one call, but for `Regularization`; `Builder` describes them."""

    include_top: bool
    weights: str | os.PathLike[str] | None
    input_tensor: KerasTensor | None
    input_shape: ImageShape | None
    pooling: str | None
    classes: int
    classifier_activation: Any
    name: str | None
    include_preprocessing: bool


def checked(
    builder: str, given: Arguments, dropped: Regularization
) -> tuple[Arguments, Regularization]:
    """The arguments, whole numbers as Python's own; the input is left to `image`.

    Raises:
        InputError: for the first one that cannot be meant.
    """
    if keras.config.image_data_format() != "channels_last":
        raise InputError(
            f"{builder}: Keras is set to channels_first; kapps builds channels_last models only: "
            "keras.config.set_image_data_format('channels_last')"
        )
    if given.pooling is not None and given.pooling not in POOLING:
        raise unknown("pooling", given.pooling, POOLING)
    classes = check_whole(builder, "classes", given.classes)
    try:
        keras.activations.get(given.classifier_activation)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{builder}: unknown classifier_activation {given.classifier_activation!r}; it is "
            "'softmax', None for logits, or another of keras.activations"
        ) from error
    name = given.name
    if name is not None and (not isinstance(name, str) or not name or "/" in name):
        raise InputError(f"{builder}: name must be a text without slashes, not {name!r}")
    given = dataclasses.replace(given, classes=classes)
    return given, _checked_regularization(builder, dropped)


def _checked_regularization(builder: str, dropped: Regularization) -> Regularization:
    for rate in ("dropout_rate", "drop_path_rate", "drop_block_rate"):
        value = getattr(dropped, rate)
        if not is_number(value) or not 0 <= value < 1:
            raise InputError(f"{builder}: {rate} must be at least 0 and below 1, not {value!r}")
    for parameter, choices in (
        ("drop_path_schedule", DROP_PATH_SCHEDULES),
        ("drop_path_mode", ("row", "batch")),
        ("drop_block_schedule", DROP_BLOCK_SCHEDULES),
    ):
        value = getattr(dropped, parameter)
        if value not in choices:
            *others, last = choices
            raise InputError(
                f"{builder}: {parameter} must be {', '.join(others)} or {last}, not {value!r}"
            )
    if dropped.drop_block_stages is not None:
        stages = check_whole(builder, "drop_block_stages", dropped.drop_block_stages)
        dropped = dataclasses.replace(dropped, drop_block_stages=stages)
    return dataclasses.replace(
        dropped,
        drop_block_size=check_whole(builder, "drop_block_size", dropped.drop_block_size, least=1),
        drop_block_steps=check_whole(
            builder, "drop_block_steps", dropped.drop_block_steps, least=0
        ),
    )


def check_residual(builder: str, dropped: Regularization) -> None:
    """Raises an `InputError` if blocks are to be dropped; for a network that has none."""
    for name in ("drop_path_rate", "drop_block_rate"):
        rate = getattr(dropped, name)
        if rate:
            raise InputError(
                f"{builder}: {name}={rate}, but the network has no residual blocks to drop; leave "
                "it at 0"
            )


def shape_of(sizes: Any) -> tuple[int | None, ...] | None:
    """A shape as plain integers, whoever's type it is: a tuple, NumPy's, a `tf.TensorShape`.

    None if it is no sequence of whole numbers and None.
    """
    try:
        found = tuple(sizes)
    except (TypeError, ValueError):  # no sequence, or a TensorShape of unknown rank
        return None
    if not all(side is None or is_whole(side) for side in found):
        return None
    return tuple(None if side is None else int(side) for side in found)


def image(builder: str, given: Arguments, default: ImageShape, min_size: int) -> KerasTensor:
    """The image tensor to build upon, checked; a new input unless the caller has given one."""
    tensor, wanted = given.input_tensor, given.input_shape
    shape: tuple[int | None, ...] | None = default
    if wanted is not None:
        shape = shape_of(wanted)
        if shape is None:
            raise InputError(
                f"{builder}: input_shape must be (height, width, channels), such as "
                f"(224, 224, 3), not {wanted!r}"
            )
    if tensor is not None:
        if not keras.utils.is_keras_tensor(tensor):
            raise InputError(
                f"{builder}: input_tensor must be a Keras tensor (keras.Input or a layer's "
                f"output), not {type(tensor).__name__}"
            )
        own = tuple(tensor.shape[1:])
        if wanted is not None and shape != own:
            raise InputError(
                f"{builder}: input_shape {shape} is not that of input_tensor, {own}; give one of "
                "the two"
            )
        shape = own
    _check_image_shape(builder, shape or (), min_size)
    return keras.Input(shape, name="image") if tensor is None else tensor


def _check_image_shape(builder: str, shape: tuple[int | None, ...], min_size: int) -> None:
    if len(shape) != 3 or shape[2] is None:
        raise InputError(
            f"{builder}: the input must be (height, width, channels), such as (224, 224, 3), "
            f"not {shape}"
        )
    if any(side is not None and side < min_size for side in shape[:2]):
        raise InputError(
            f"{builder}: an input of {shape[0]}x{shape[1]} pixels is too small; "
            f"the smallest is {min_size}x{min_size}"
        )
    if shape[2] < 1 or shape[2] > 1024 or (shape[0] in (1, 3) and shape[2] > 4):
        raise InputError(
            f"{builder}: {shape} has {shape[2]} channels; kapps takes (height, width, channels), "
            "channels last"
        )

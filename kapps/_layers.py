"""The vocabulary of the families: one short function or layer for each part that they share.

Every function takes and returns a Keras tensor (batch, height, width, channels), channels last.
`path` is the part's name in the published checkpoint, dots included ("blocks.0.0.conv_dw"); the
layer is named by `layer_name(path)`, and remembers the path so that weights can be written back
under their published names.
"""

from __future__ import annotations

from typing import Literal

import keras
from keras import KerasTensor, layers

from kapps._errors import InputError
from kapps.custom_layers import AdaptiveAveragePooling2D, LayerScale, MirrorPadding2D

Padding = Literal["symmetric", "same", "valid"]
"""symmetric: as PyTorch pads, (k - 1) // 2 on every side. same: as TensorFlow pads, uneven at
stride 2. They differ only at strides above 1."""

PoolPadding = Literal["symmetric", "same", "valid", "ceil", "mirror"]
"""For pooling also ceil: PyTorch's ceil_mode, a last window may reach beyond the edge; and mirror:
symmetric, but of pixels that the window has anyway (see `max_pool`)."""


def _he_normal() -> keras.initializers.Initializer:
    """He et al. 2015, over fan_out: what PyTorch's reference implementations start from.

    A new one for each layer: a Keras initializer draws its seed once, so that layers of one shape
    that share it would start with the same numbers.
    """
    return keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal")


def layer_name(path: str) -> str:
    """The layer's name for a checkpoint path. Keras on PyTorch takes no dot in a layer's name."""
    return path.replace(".", "_")


def _published(layer: keras.Layer, path: str) -> keras.Layer:
    layer.checkpoint_path = path
    return layer


def make_divisible(value: float, divisor: int = 8) -> int:
    """Rounds to the nearest multiple of `divisor`, never down by more than 10 %.

    The rule of the MobileNet and EfficientNet reference code for scaled channel counts.
    """
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


def _pad(
    x: KerasTensor,
    kernel: tuple[int, int],
    strides: tuple[int, int],
    padding: Padding | int,
    path: str,
) -> tuple[KerasTensor, str]:
    """The input and the `padding` argument for a Keras layer that is to pad as `padding` says."""
    if padding == "same" or padding == "valid":
        return x, padding
    sides = [(k - 1) // 2 if padding == "symmetric" else int(padding) for k in kernel]
    if strides == (1, 1) and all(2 * side == k - 1 for side, k in zip(sides, kernel, strict=True)):
        return x, "same"  # the same thing, and one layer less
    if not any(sides):
        return x, "valid"
    return layers.ZeroPadding2D(tuple(sides), name=layer_name(path) + "_pad")(x), "valid"


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


def conv(
    x: KerasTensor,
    filters: int,
    kernel: int | tuple[int, int],
    path: str,
    *,
    stride: int = 1,
    groups: int = 1,
    bias: bool = False,
    padding: Padding | int = "symmetric",
) -> KerasTensor:
    """A convolution; a whole number for `padding` is that many zeros on every side."""
    x, keras_padding = _pad(x, _pair(kernel), _pair(stride), padding, path)
    layer = layers.Conv2D(
        filters,
        kernel,
        strides=stride,
        padding=keras_padding,
        groups=groups,
        use_bias=bias,
        kernel_initializer=_he_normal(),
        name=layer_name(path),
    )
    return _published(layer, path)(x)


def depthwise(
    x: KerasTensor,
    kernel: int | tuple[int, int],
    path: str,
    *,
    stride: int = 1,
    padding: Padding | int = "symmetric",
) -> KerasTensor:
    """A depthwise convolution without bias."""
    x, keras_padding = _pad(x, _pair(kernel), _pair(stride), padding, path)
    layer = layers.DepthwiseConv2D(
        kernel,
        strides=stride,
        padding=keras_padding,
        use_bias=False,
        depthwise_initializer=_he_normal(),
        name=layer_name(path),
    )
    return _published(layer, path)(x)


def bn(x: KerasTensor, path: str, *, epsilon: float = 1e-5, momentum: float = 0.9) -> KerasTensor:
    """Batch normalization; `momentum` is the share that the old statistics keep (PyTorch: 0.1)."""
    layer = layers.BatchNormalization(epsilon=epsilon, momentum=momentum, name=layer_name(path))
    return _published(layer, path)(x)


def layer_scale(x: KerasTensor, path: str) -> KerasTensor:
    """A trained factor for each channel, which starts at 1e-5."""
    return _published(LayerScale(name=layer_name(path)), path)(x)


def dense(x: KerasTensor, units: int, path: str, activation: str | None = None) -> KerasTensor:
    """A fully connected layer with bias."""
    layer = layers.Dense(units, activation=activation, name=layer_name(path))
    return _published(layer, path)(x)


def check_fixed(x: KerasTensor) -> None:
    """Raises an `InputError` if the height or width of a feature map is not known."""
    if None in x.shape[1:3]:
        raise InputError(
            "the classifier is fully connected to the feature map and needs a fixed height and "
            "width: give input_shape such as (224, 224, 3), or include_top=False"
        )


def flat_dense(x: KerasTensor, units: int, path: str) -> KerasTensor:
    """A fully connected layer over a whole feature map of fixed size: (batch, 1, 1, units).

    It is built as a valid convolution, so that PyTorch's weights, which count the channels first,
    fit without a special case; the file holds them as a 2-D tensor.
    """
    check_fixed(x)
    layer = layers.Conv2D(
        units, tuple(x.shape[1:3]), kernel_initializer=_he_normal(), name=layer_name(path)
    )
    layer.checkpoint_flat = True
    return _published(layer, path)(x)


def act(x: KerasTensor, kind: str, path: str) -> KerasTensor:
    """An activation by its Keras name ("relu", "relu6", "hard_silu", "sigmoid" ...)."""
    return layers.Activation(kind, name=layer_name(path))(x)


def _pad_pool(
    x: KerasTensor, size: int, stride: int, padding: PoolPadding, path: str
) -> tuple[KerasTensor, str]:
    name = layer_name(path) + "_pad"
    if padding == "symmetric":
        return layers.ZeroPadding2D((size - 1) // 2, name=name)(x), "valid"
    if padding == "mirror":
        return MirrorPadding2D((size - 1) // 2, name=name)(x), "valid"
    if padding == "ceil":
        return layers.ZeroPadding2D(((0, stride - 1), (0, stride - 1)), name=name)(x), "valid"
    return x, padding


def max_pool(
    x: KerasTensor, size: int, stride: int, path: str, *, padding: PoolPadding = "valid"
) -> KerasTensor:
    """Max-pooling, equal to PyTorch's, which pads with minus infinity.

    Symmetric and ceil padding are with zeros here, so they belong behind a ReLU only, where that is
    the same, and TFLite has it as a plain PAD. Elsewhere mirror, for 3x3: the pixel beyond the
    edge repeats one that its window has already, so the maximum is that of the window's own.
    """
    x, keras_padding = _pad_pool(x, size, stride, padding, path)
    return layers.MaxPooling2D(size, stride, padding=keras_padding, name=layer_name(path))(x)


def avg_pool(
    x: KerasTensor, size: int, stride: int, path: str, *, padding: PoolPadding = "valid"
) -> KerasTensor:
    """The mean of each window; symmetric padding counts its zeros, as PyTorch does."""
    x, keras_padding = _pad_pool(x, size, stride, padding, path)
    return layers.AveragePooling2D(size, stride, padding=keras_padding, name=layer_name(path))(x)


def adaptive_pool(x: KerasTensor, size: tuple[int, int], path: str) -> KerasTensor:
    """A map of fixed size averaged, or repeated, to (height, width); no layer where it is so."""
    check_fixed(x)
    if tuple(x.shape[1:3]) == size:
        return x
    return AdaptiveAveragePooling2D(size, name=layer_name(path))(x)


def global_pool(x: KerasTensor, path: str, *, keepdims: bool = False) -> KerasTensor:
    """The mean over height and width: (batch, channels), or (batch, 1, 1, channels)."""
    return layers.GlobalAveragePooling2D(keepdims=keepdims, name=layer_name(path))(x)


def se(
    x: KerasTensor,
    reduced: int,
    path: str,
    *,
    activation: str = "relu",
    gate: str = "sigmoid",
    names: tuple[str, str] = ("conv_reduce", "conv_expand"),
) -> KerasTensor:
    """Squeeze-and-excitation (Hu et al. 2018): mean, 1x1, act, 1x1, gate, times the input."""
    channels = x.shape[-1]
    y = global_pool(x, f"{path}.pool", keepdims=True)
    y = conv(y, reduced, 1, f"{path}.{names[0]}", bias=True)
    y = act(y, activation, f"{path}.act1")
    y = conv(y, channels, 1, f"{path}.{names[1]}", bias=True)
    y = act(y, gate, f"{path}.gate")
    return layers.Multiply(name=layer_name(path) + "_scale")([x, y])

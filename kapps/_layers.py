"""The vocabulary of the families: one short function or layer for each part that they share.

Every function takes and returns a Keras tensor (batch, height, width, channels), channels last.
`path` is the part's name in the published checkpoint, dots included ("blocks.0.0.conv_dw"); the
layer is named by `layer_name(path)`, and remembers the path so that weights can be written back
under their published names.
"""

from __future__ import annotations

from typing import Any, Literal

import keras
from keras import KerasTensor, layers, ops

Padding = Literal["symmetric", "same", "valid"]
"""symmetric: as PyTorch pads, (k - 1) // 2 on every side. same: as TensorFlow pads, uneven at
stride 2. They differ only at strides above 1."""


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
    x: KerasTensor, kernel: int, stride: int, padding: Padding, path: str
) -> tuple[KerasTensor, Padding]:
    """The input and the `padding` argument for a Keras layer that is to pad as `padding` says."""
    if padding != "symmetric":
        return x, padding
    if stride == 1:
        return x, "same"  # the same thing for odd kernels, and one layer less
    return layers.ZeroPadding2D((kernel - 1) // 2, name=layer_name(path) + "_pad")(x), "valid"


def conv(
    x: KerasTensor,
    filters: int,
    kernel: int,
    path: str,
    *,
    stride: int = 1,
    groups: int = 1,
    bias: bool = False,
    padding: Padding = "symmetric",
) -> KerasTensor:
    """A convolution."""
    x, padding = _pad(x, kernel, stride, padding, path)
    layer = layers.Conv2D(
        filters,
        kernel,
        strides=stride,
        padding=padding,
        groups=groups,
        use_bias=bias,
        kernel_initializer=_he_normal(),
        name=layer_name(path),
    )
    return _published(layer, path)(x)


def depthwise(
    x: KerasTensor, kernel: int, path: str, *, stride: int = 1, padding: Padding = "symmetric"
) -> KerasTensor:
    """A depthwise convolution without bias."""
    x, padding = _pad(x, kernel, stride, padding, path)
    layer = layers.DepthwiseConv2D(
        kernel,
        strides=stride,
        padding=padding,
        use_bias=False,
        depthwise_initializer=_he_normal(),
        name=layer_name(path),
    )
    return _published(layer, path)(x)


def bn(x: KerasTensor, path: str, *, epsilon: float = 1e-5, momentum: float = 0.9) -> KerasTensor:
    """Batch normalization; `momentum` is the share that the old statistics keep (PyTorch: 0.1)."""
    layer = layers.BatchNormalization(epsilon=epsilon, momentum=momentum, name=layer_name(path))
    return _published(layer, path)(x)


def dense(x: KerasTensor, units: int, path: str, activation: str | None = None) -> KerasTensor:
    """A fully connected layer with bias."""
    layer = layers.Dense(units, activation=activation, name=layer_name(path))
    return _published(layer, path)(x)


def flat_dense(x: KerasTensor, units: int, path: str) -> KerasTensor:
    """A fully connected layer over a whole feature map of fixed size: (batch, 1, 1, units).

    It is built as a valid convolution, so that PyTorch's weights, which count the channels first,
    fit without a special case; the file holds them as a 2-D tensor.
    """
    layer = layers.Conv2D(
        units, tuple(x.shape[1:3]), kernel_initializer=_he_normal(), name=layer_name(path)
    )
    layer.checkpoint_flat = True
    return _published(layer, path)(x)


def act(x: KerasTensor, kind: str, path: str) -> KerasTensor:
    """An activation by its Keras name ("relu", "relu6", "hard_silu", "sigmoid" ...)."""
    return layers.Activation(kind, name=layer_name(path))(x)


def max_pool(
    x: KerasTensor, size: int, stride: int, path: str, *, padding: Padding = "valid"
) -> KerasTensor:
    """Max-pooling. Symmetric padding is with zeros, so it belongs behind a ReLU only.

    There zero equals PyTorch's minus infinity, and TFLite has it as a plain PAD.
    """
    if padding == "symmetric":
        x = layers.ZeroPadding2D((size - 1) // 2, name=layer_name(path) + "_pad")(x)
        padding = "valid"
    return layers.MaxPooling2D(size, stride, padding=padding, name=layer_name(path))(x)


def global_pool(x: KerasTensor, path: str, *, keepdims: bool = False) -> KerasTensor:
    """The mean over height and width: (batch, channels), or (batch, 1, 1, channels)."""
    return layers.GlobalAveragePooling2D(keepdims=keepdims, name=layer_name(path))(x)


def se(
    x: KerasTensor, reduced: int, path: str, *, activation: str = "relu", gate: str = "sigmoid"
) -> KerasTensor:
    """Squeeze-and-excitation (Hu et al. 2018): mean, 1x1, act, 1x1, gate, times the input."""
    channels = x.shape[-1]
    y = global_pool(x, f"{path}.pool", keepdims=True)
    y = conv(y, reduced, 1, f"{path}.conv_reduce", bias=True)
    y = act(y, activation, f"{path}.act1")
    y = conv(y, channels, 1, f"{path}.conv_expand", bias=True)
    y = act(y, gate, f"{path}.gate")
    return layers.Multiply(name=layer_name(path) + "_scale")([x, y])


@keras.saving.register_keras_serializable("kapps")
class ImageNormalization(layers.Layer):
    """(image / 255 - mean) / std, for images in 0..255 of any dtype.

    `mean` and `std` (in 0..1, one for each channel or one for all) are the weights of the layer
    and not trained: they belong to the published weights, and are set with them.
    """

    def __init__(
        self, mean: tuple[float, ...] | float, std: tuple[float, ...] | float, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.initial_mean, self.initial_std = mean, std

    def build(self, input_shape: tuple[Any, ...]) -> None:
        def weight(name: str, value: tuple[float, ...] | float) -> keras.Variable:
            values = (value,) if isinstance(value, (int, float)) else tuple(value)
            if len(values) != input_shape[-1]:  # gray, RGBA, ...: the mean of the published ones
                values = (sum(values) / len(values),) * input_shape[-1]
            return self.add_weight(
                shape=(input_shape[-1],),
                initializer=lambda shape, dtype: ops.convert_to_tensor(values, dtype=dtype),
                trainable=False,
                name=name,
            )

        self.mean = weight("mean", self.initial_mean)
        self.std = weight("std", self.initial_std)

    def call(self, images: Any) -> Any:
        images = ops.cast(images, self.compute_dtype)
        return (images * (1 / 255) - self.mean) / self.std

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "mean": self.initial_mean, "std": self.initial_std}


@keras.saving.register_keras_serializable("kapps")
class ChannelSlice(layers.Layer):
    """The channels `start` to `stop` (exclusive) of a feature map."""

    def __init__(self, start: int, stop: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.start, self.stop = start, stop

    def call(self, x: Any) -> Any:
        return x[..., self.start : self.stop]

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return (*input_shape[:-1], self.stop - self.start)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "start": self.start, "stop": self.stop}


@keras.saving.register_keras_serializable("kapps")
class ChannelShuffle(layers.Layer):
    """Interleaves `groups` groups of channels (Zhang et al. 2018, figure 1).

    Of 4 dimensions all the way: old TFLite runtimes refuse a transpose of 5.
    """

    def __init__(self, groups: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.groups = groups

    def call(self, x: Any) -> Any:
        _, height, width, channels = ops.shape(x)
        x = ops.reshape(x, (-1, height * width, self.groups, channels // self.groups))
        return ops.reshape(ops.transpose(x, (0, 1, 3, 2)), (-1, height, width, channels))

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "groups": self.groups}


@keras.saving.register_keras_serializable("kapps")
class StochasticDepth(layers.Layer):
    """In training, zeroes whole samples with probability `rate` and scales up those that survive.

    Huang et al. 2016, "Deep Networks with Stochastic Depth"; the scaling by 1 / (1 - rate) in
    training is that of the later reference implementations, and leaves inference untouched.
    """

    def __init__(self, rate: float, seed: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.rate, self.seed = rate, seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    def call(self, x: Any, training: bool = False) -> Any:
        if not training or self.rate == 0:
            return x
        shape = (ops.shape(x)[0],) + (1,) * (len(x.shape) - 1)
        draw = keras.random.uniform(shape, dtype=self.compute_dtype, seed=self.seed_generator)
        return x * ops.cast(draw >= self.rate, self.compute_dtype) / (1 - self.rate)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "rate": self.rate, "seed": self.seed}

"""Layers that Keras lacks. Saved models name them as "kapps>ChannelShuffle": the names stay.

Unless said otherwise they take and return feature maps (batch, height, width, channels), channels
last. The module is loaded as soon as Keras is, see `kapps._lazy.load_with`: it imports nothing of
kapps.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import layers, ops


def _at_least_float32(dtype: str) -> str:
    """What to compute in where the numbers of 16 bits, or their digits, do not suffice."""
    return dtype if dtype == "float64" else "float32"


class _SameShape(layers.Layer):
    """A layer whose output has the shape of its input."""

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return input_shape


@keras.saving.register_keras_serializable("kapps")
class ImageNormalization(_SameShape):
    """(image / 255 - mean) / std, for images in 0..255 of any dtype.

    `mean` and `std` (in 0..1, one for each channel or one for all) are the weights of the layer
    and not trained: they belong to the published weights, and are set with them. In bfloat16 a
    pixel less the mean would keep few of its 8 bits: the result alone is of the layer's dtype.
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
                autocast=False,
                name=name,
            )

        self.mean = weight("mean", self.initial_mean)
        self.std = weight("std", self.initial_std)

    def call(self, images: Any) -> Any:
        dtype = _at_least_float32(self.compute_dtype)
        mean, std = ops.cast(self.mean, dtype), ops.cast(self.std, dtype)
        images = ops.cast(images, dtype)
        return ops.cast((images * (1 / 255) - mean) / std, self.compute_dtype)

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
class ChannelShuffle(_SameShape):
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

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "groups": self.groups}


@keras.saving.register_keras_serializable("kapps")
class ChannelPad(layers.Layer):
    """Zero channels behind those of the input: the shortcut without parameters that widens.

    He et al. 2016, section 3.3, option A; Han et al. 2017, section 3.2.
    """

    def __init__(self, channels: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.channels = channels

    def call(self, x: Any) -> Any:
        return ops.pad(x, ((0, 0), (0, 0), (0, 0), (0, self.channels - x.shape[-1])))

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return (*input_shape[:-1], self.channels)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "channels": self.channels}


@keras.saving.register_keras_serializable("kapps")
class LayerScale(_SameShape):
    """Each channel times a trained factor, which starts at `start`.

    Touvron et al. 2021, "Going deeper with Image Transformers", section 2.
    """

    def __init__(self, start: float = 1e-5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.start = start

    def build(self, input_shape: tuple[Any, ...]) -> None:
        start = keras.initializers.Constant(self.start)
        self.gamma = self.add_weight(shape=(input_shape[-1],), initializer=start, name="gamma")
        self.checkpoint_variables = {"gamma": self.gamma}

    def call(self, x: Any) -> Any:
        return x * self.gamma

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "start": self.start}


@keras.saving.register_keras_serializable("kapps")
class MultiQueryAttention(layers.Layer):
    """Of each position and head the mean of all values, weighted by how well their keys fit.

    Shazeer 2019, "Fast Transformer Decoding: One Write-Head is All You Need": the heads differ in
    their queries only. Takes three maps, the projections of one or more others: queries (batch,
    height, width, heads * channels), head by head; keys (batch, height', width', channels); and
    values, of the same height and width as the keys. Gives (batch, height, width, heads * channels
    of the values). The weights are softmax(query . key / sqrt(channels)).

    There is no transpose of a map in it, and no tensor of more than 4 dimensions.
    """

    def __init__(self, heads: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.heads = heads

    def call(self, maps: Any) -> Any:
        queries, keys, values = maps
        # The products of float16 numbers, and the sums of a softmax, may be beyond float16.
        dtype = _at_least_float32(self.compute_dtype)
        _, height, width, _ = ops.shape(queries)
        _, rows, columns, channels = ops.shape(keys)
        depth = values.shape[-1]
        queries = ops.cast(queries, dtype) * channels**-0.5
        queries = ops.reshape(queries, (-1, height * width * self.heads, channels))
        keys = ops.reshape(ops.cast(keys, dtype), (-1, rows * columns, channels))
        values = ops.reshape(values, (-1, rows * columns, depth))
        fit = ops.softmax(ops.matmul(queries, ops.transpose(keys, (0, 2, 1))))
        means = ops.matmul(ops.cast(fit, self.compute_dtype), values)
        return ops.reshape(means, (-1, height, width, self.heads * depth))

    def compute_output_shape(self, input_shape: Any) -> tuple[int | None, ...]:
        queries, _, values = input_shape
        return (*queries[:-1], self.heads * values[-1])

    def compute_macs(self, input_shape: Any) -> int:
        """Of queries with keys, and of weights with values."""
        (*_, height, width, _), (*_, rows, columns, channels), (*_, depth) = input_shape
        return height * width * self.heads * rows * columns * (channels + depth)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "heads": self.heads}


@keras.saving.register_keras_serializable("kapps")
class MirrorPadding2D(layers.Layer):
    """`width` rows and columns on every side that mirror those inside of the edge's own."""

    def __init__(self, width: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.width = width

    def call(self, x: Any) -> Any:
        sides = (self.width, self.width)
        return ops.pad(x, ((0, 0), sides, sides, (0, 0)), mode="reflect")

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        batch, *sides, channels = input_shape
        return (batch, *(s if s is None else s + 2 * self.width for s in sides), channels)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "width": self.width}


@keras.saving.register_keras_serializable("kapps")
class NearestDoubling2D(layers.Layer):
    """The first of two maps, enlarged to the height and width of the second by nearest neighbours.

    These are twice its own, or one more: the first is what a 2x2 pooling at stride 2 left of a map
    of the second's size. Of the n pixels of a side, pixel i of the m comes from floor(i n / m), as
    in PyTorch's `interpolate`: each is there twice, and the first a third time where m is odd.

    Of concatenations and a reshape, which XNNPACK takes, floats or integers; a resize it does not.
    """

    def build(self, input_shape: Any) -> None:
        (_, *sides, _), (_, *wanted, _) = input_shape
        if any(None not in (n, m) and n != m // 2 for n, m in zip(sides, wanted, strict=True)):
            raise ValueError(
                f"layer {self.name!r} doubles the height and width of a map: {tuple(sides)} cannot "
                f"become {tuple(wanted)}"
            )

    def call(self, maps: Any) -> Any:
        x, like = maps
        _, height, width, channels = ops.shape(x)
        x = ops.concatenate([x, x], axis=-1)  # the columns twice, once this is two pixels
        x = ops.concatenate([x, x], axis=2)  # and the rows, once this is two of them
        x = ops.reshape(x, (-1, 2 * height, 2 * width, channels))
        if like.shape[1] is None or like.shape[1] % 2:
            x = ops.concatenate([x[:, :1], x], axis=1)
        if like.shape[2] is None or like.shape[2] % 2:
            x = ops.concatenate([x[:, :, :1], x], axis=2)
        if None in like.shape[1:3]:  # one too many where it is even
            _, rows, columns, _ = ops.shape(like)
            x = x[:, -rows:, -columns:]
        return x

    def compute_output_shape(self, input_shape: Any) -> tuple[int | None, ...]:
        (batch, *_, channels), (_, height, width, _) = input_shape
        return (batch, height, width, channels)


@keras.saving.register_keras_serializable("kapps")
class AdaptiveAveragePooling2D(layers.Layer):
    """The means of (height, width) = `size` windows that cover a map of fixed size, as in PyTorch.

    Window i of n over a side of s pixels goes from floor(i s / n) to ceil((i + 1) s / n): they
    overlap where s is no multiple of n, and repeat pixels where it is smaller. Keras has no such
    layer in the series for Python 3.10.
    """

    def __init__(self, size: tuple[int, int], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.size = tuple(size)

    def _windows(self, pixels: int, windows: int) -> Any:
        """(pixels, windows): the share of each pixel in each window."""
        shares = np.zeros((pixels, windows))
        for i in range(windows):
            start, stop = i * pixels // windows, -(-(i + 1) * pixels // windows)
            shares[start:stop, i] = 1 / (stop - start)
        return ops.convert_to_tensor(shares, dtype=self.compute_dtype)

    def call(self, x: Any) -> Any:
        _, height, width, _ = x.shape
        x = ops.einsum("bhwc,hi->biwc", x, self._windows(height, self.size[0]))
        return ops.einsum("biwc,wj->bijc", x, self._windows(width, self.size[1]))

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return (input_shape[0], *self.size, input_shape[-1])

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "size": self.size}


@keras.saving.register_keras_serializable("kapps")
class LocalResponseNormalization(_SameShape):
    """x / (k + alpha * sum of x^2 over the `size` nearest channels) ^ beta.

    Krizhevsky et al. 2012, section 3.3, with their constants. PyTorch and Caffe divide alpha by
    the number of channels; here it stands as the paper writes it.
    """

    def __init__(
        self, size: int = 5, k: float = 2.0, alpha: float = 1e-4, beta: float = 0.75, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.size, self.k, self.alpha, self.beta = size, k, alpha, beta

    def call(self, x: Any) -> Any:
        reach, channels = self.size // 2, x.shape[-1]
        # The square of 256 is beyond float16.
        wide = ops.cast(x, _at_least_float32(self.compute_dtype))
        squares = ops.pad(ops.square(wide), ((0, 0), (0, 0), (0, 0), (reach, reach)))
        total = squares[..., :channels]
        for i in range(1, self.size):
            total = total + squares[..., i : i + channels]
        return ops.cast(
            wide * ops.power(self.k + self.alpha * total, -self.beta), self.compute_dtype
        )

    def get_config(self) -> dict[str, Any]:
        own = {"size": self.size, "k": self.k, "alpha": self.alpha, "beta": self.beta}
        return {**super().get_config(), **own}


@keras.saving.register_keras_serializable("kapps")
class StochasticDepth(_SameShape):
    """In training, zeroes its input with probability `rate`, and scales up what survives.

    Huang et al. 2016, "Deep Networks with Stochastic Depth"; the scaling by 1 / (1 - rate) in
    training is that of the later reference implementations, and leaves inference untouched.

    Args:
        rate: the probability, 0 to below 1.
        mode: "row" draws for each sample. "batch" draws once for the whole batch, as the paper
            does; the models of kapps then do not compute the dropped block at all.
        seed: of the draws.
    """

    def __init__(
        self, rate: float, mode: str = "row", seed: int | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.rate, self.mode, self.seed = rate, mode, seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    def survives(self, shape: tuple[Any, ...]) -> Any:
        """Draws that many survivals."""
        # In float32 whatever `floatx` is: of bfloat16 there are 128 numbers below 1.
        drawn = keras.random.uniform(shape, dtype="float32", seed=self.seed_generator)
        return drawn >= self.rate

    def scale(self, x: Any) -> Any:
        """What survived, so that its mean over many draws is that of the input."""
        return x / (1 - self.rate)

    def call(self, x: Any, training: bool = False) -> Any:
        if not training or self.rate == 0:
            return x
        rows = 1 if self.mode == "batch" else ops.shape(x)[0]
        survives = self.survives((rows,) + (1,) * (len(x.shape) - 1))
        return self.scale(x * ops.cast(survives, self.compute_dtype))

    def get_config(self) -> dict[str, Any]:
        own = {"rate": self.rate, "mode": self.mode, "seed": self.seed}
        return {**super().get_config(), **own}


@keras.saving.register_keras_serializable("kapps")
class DropBlock2D(_SameShape):
    """In training, zeroes square regions of a feature map, the same ones in all channels.

    Ghiasi et al. 2018, "DropBlock: A regularization method for convolutional networks". What
    survives is scaled by the share that did.

    Args:
        rate: the share of the map that is dropped, about, 0 to below 1.
        block_size: side of the regions, pixels; that of the map where the map is smaller.
        schedule_steps: the rate grows linearly from 0 to `rate` over so many training steps, as
            the paper found best; 0 for the full rate from the start.
        seed: of the draws.
    """

    def __init__(
        self,
        rate: float,
        block_size: int = 7,
        schedule_steps: int = 0,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.rate, self.block_size, self.schedule_steps = rate, block_size, schedule_steps
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.checkpoint_variables: dict[str, keras.Variable] = {}  # the step is not published

    def build(self, input_shape: tuple[Any, ...]) -> None:
        if self.schedule_steps:
            self.step = self.add_weight(
                shape=(),
                dtype="int32",
                initializer="zeros",
                trainable=False,
                aggregation="only_first_replica",
                name="step",
            )

    def current_rate(self) -> Any:
        """The rate at the present step of the schedule."""
        if not self.schedule_steps:
            return self.rate
        return self.rate * ops.minimum(ops.cast(self.step, "float32") / self.schedule_steps, 1.0)

    def call(self, x: Any, training: bool = False) -> Any:
        if not training or self.rate == 0:
            return x
        rate = self.current_rate()
        if self.schedule_steps:
            self.step.assign(self.step + 1)
        block = min(self.block_size, *(s for s in x.shape[1:3] if s is not None))
        batch, height, width, _ = ops.shape(x)
        # A region is known by its upper left corner, and lies inside of the map (section 3, gamma).
        rows, columns = height - block + 1, width - block + 1
        positions = ops.cast(rows * columns, "float32")
        pixels = ops.cast(height * width, "float32")
        gamma = rate * pixels / (block**2 * positions)
        places = (batch, rows, columns, 1)
        corners = keras.random.uniform(places, dtype="float32", seed=self.seed_generator) < gamma
        reach = (block - 1, block - 1)
        corners = ops.pad(ops.cast(corners, "float32"), ((0, 0), reach, reach, (0, 0)))
        keep = 1 - ops.max_pool(corners, block, strides=1, padding="valid")
        scale = 1 / ops.maximum(ops.mean(keep), 1e-7)
        return x * ops.cast(keep * scale, self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        own = {
            "rate": self.rate,
            "block_size": self.block_size,
            "schedule_steps": self.schedule_steps,
            "seed": self.seed,
        }
        return {**super().get_config(), **own}


# The targets of F6: the digits drawn on 7x12 pixels, in the manner of the paper's figure 3.
_BITMAPS = """
....... ....... ....... ....... ....... ....... ....... ....... ....... .......
..###.. ...##.. ..###.. .#####. ....##. ####### ..####. ####### .#####. .#####.
.##.##. ..###.. .##.##. ##...## ...###. ##..... .##.... .....## ##...## ##...##
##...## .####.. ##...## .....## ..####. ##..... ##..... .....## ##...## ##...##
##...## ...##.. .....## .....## .##.##. ##..... ##..... ....##. ##...## ##...##
##...## ...##.. ....##. ..####. ##..##. ######. ######. ....##. .#####. .######
##...## ...##.. ...##.. ..####. ##..##. .....## ##...## ...##.. ##...## .....##
##...## ...##.. ..##... .....## ####### .....## ##...## ...##.. ##...## .....##
##...## ...##.. .##.... .....## ....##. .....## ##...## ..##... ##...## .....##
.##.##. ...##.. ##..... ##...## ....##. ##...## ##...## ..##... ##...## ....##.
..###.. .###### ####### .#####. ....##. .#####. .#####. ..##... .#####. .####..
....... ....... ....... ....... ....... ....... ....... ....... ....... .......
"""


def digit_bitmaps() -> np.ndarray:
    """The ten digits, (10, 84), row by row of 7 pixels: 1 for ink, -1 for the ground."""
    digits = zip(*(line.split() for line in _BITMAPS.strip().splitlines()), strict=True)
    return np.array([[1 if p == "#" else -1 for p in "".join(rows)] for rows in digits], "float32")


@keras.saving.register_keras_serializable("kapps")
def scaled_tanh(x: Any) -> Any:
    """1.7159 tanh(2/3 x): the paper's squashing function, 1 at 1 and -1 at -1 (appendix A)."""
    return 1.7159 * ops.tanh(x * (2 / 3))


@keras.saving.register_keras_serializable("kapps")
class ChannelGather(layers.Layer):
    """The channels of these indices, in this order; one may come several times."""

    def __init__(self, indices: tuple[int, ...], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.indices = tuple(indices)

    def call(self, x: Any) -> Any:
        return ops.take(x, self.indices, axis=-1)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return (*input_shape[:-1], len(self.indices))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "indices": self.indices}


@keras.saving.register_keras_serializable("kapps")
class Subsampling(layers.Layer):
    """The sum of every 2x2 pixels, times a coefficient, plus a bias; both trained, one a channel.

    The coefficients start as the paper's weights do: within 2.4 / fan-in, which is 4 (appendix A).
    """

    pool_size, strides, padding = (2, 2), (2, 2), "valid"  # for kapps.profile

    def build(self, input_shape: tuple[Any, ...]) -> None:
        shape = (input_shape[-1],)
        start = keras.initializers.RandomUniform(-0.6, 0.6)
        self.coefficient = self.add_weight(shape=shape, initializer=start, name="coefficient")
        self.bias = self.add_weight(shape=shape, initializer="zeros", name="bias")
        self.checkpoint_variables = {"weight": self.coefficient, "bias": self.bias}

    def call(self, x: Any) -> Any:
        return ops.average_pool(x, 2, 2, "valid") * (4 * self.coefficient) + self.bias

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        batch, *sides, channels = input_shape
        return (batch, *(None if s is None else s // 2 for s in sides), channels)

    def compute_macs(self, input_shape: tuple[int, ...]) -> int:
        """One multiplication an output; a batch dimension, if there is one, is not counted."""
        height, width, channels = input_shape[-3:]
        return (height // 2) * (width // 2) * channels


@keras.saving.register_keras_serializable("kapps")
class BitmapDistance(layers.Layer):
    """Minus the squared distance of 84 features to the bitmap of each digit: (batch, classes).

    The paper's output units, Euclidean radial basis functions, give the distance itself, a penalty
    that is smallest at the answer. The sign makes it the logit of a class. There is nothing to
    train.
    """

    def __init__(self, classes: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.classes = classes

    def call(self, x: Any) -> Any:
        dtype = _at_least_float32(self.compute_dtype)
        bitmaps = ops.convert_to_tensor(digit_bitmaps()[: self.classes], dtype=dtype)
        apart = ops.cast(ops.expand_dims(x, 1), dtype) - bitmaps
        return ops.cast(-ops.sum(ops.square(apart), axis=-1), self.compute_dtype)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return (input_shape[0], self.classes)

    def compute_macs(self, input_shape: tuple[int, ...]) -> int:
        """A square for each feature and class."""
        return input_shape[-1] * self.classes

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "classes": self.classes}

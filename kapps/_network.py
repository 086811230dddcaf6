"""What a family describes its network with: its two parts, and the form that the caller chose."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping

import keras
from keras import KerasTensor, layers

from kapps import _layers, custom_layers


@dataclasses.dataclass(frozen=True)
class Regularization:
    """What is dropped in training; the builders' docstring describes the fields."""

    dropout_rate: float = 0.0
    spatial_dropout: bool = False
    drop_path_rate: float = 0.0
    drop_path_schedule: str = "linear"
    drop_path_mode: str = "row"
    drop_block_rate: float = 0.0
    drop_block_size: int = 7
    drop_block_steps: int = 0
    drop_block_stages: int | None = 2
    drop_block_schedule: str = "constant"


# The share of a rate that block i of n has, counted from 0, as in Huang et al. 2016, section 3; in
# EfficientNet's code, and timm's builder of it; in timm's ResNets, which use torch.linspace.
_SHARES: Mapping[str, Callable[[int, int], float]] = {
    "huang": lambda i, n: (i + 1) / n,
    "efficientnet": lambda i, n: i / n,
    "linspace": lambda i, n: i / max(1, n - 1),
    "constant": lambda i, n: 1.0,
}
DROP_PATH_SCHEDULES = ("linear", *_SHARES)
DROP_BLOCK_SCHEDULES = ("constant", "linear")


class Net:
    """The parts of a graph whose form the caller chose: residual paths, dropout, classifier."""

    def __init__(
        self,
        regularization: Regularization,
        classes: int,
        activation: str | None,
        drop_path_schedule: str = "huang",
    ):
        self.regularization = regularization
        self.classes, self.activation = classes, activation
        self.has_residual = False
        self._linear = drop_path_schedule  # what "linear" is here
        # Of a sum outside of `blocks`, in a network that is not made of stages.
        self._drop_path_rate = regularization.drop_path_rate
        self._drop_block_rate = regularization.drop_block_rate

    def blocks(self, repeats: Iterable[int], behind: int = 0) -> Iterator[tuple[int, int]]:
        """Stage and number of each block, both from 0, where stage i has `repeats[i]` blocks.

        A residual sum made before the next block is asked for belongs to this one: `add` drops it
        as its place in the network says. `behind` them are so many layers that the reference counts
        as blocks for stochastic depth, too.
        """
        repeats, chosen = tuple(repeats), self.regularization
        places = [(stage, block) for stage, count in enumerate(repeats) for block in range(count)]
        schedule, last = chosen.drop_path_schedule, chosen.drop_block_stages
        drop_path = _SHARES[self._linear if schedule == "linear" else schedule]
        drop_block = _SHARES["huang" if chosen.drop_block_schedule == "linear" else "constant"]
        first = 0 if last is None else len(repeats) - last
        for i, (stage, block) in enumerate(places):
            self._drop_path_rate = chosen.drop_path_rate * drop_path(i, len(places) + behind)
            share = drop_block(i, len(places)) if stage >= first else 0.0
            self._drop_block_rate = chosen.drop_block_rate * share
            yield stage, block

    def add(self, x: KerasTensor, shortcut: KerasTensor, path: str) -> KerasTensor:
        """The residual sum; `x` is dropped in training as stochastic depth and DropBlock say.

        DropBlock acts on both summands (Ghiasi et al. 2018, section 4.1).
        """
        self.has_residual = True
        name, chosen = _layers.layer_name(path), self.regularization
        if self._drop_block_rate > 0:
            sizes = (self._drop_block_rate, chosen.drop_block_size, chosen.drop_block_steps)
            x = custom_layers.DropBlock2D(*sizes, name=f"{name}_drop_block")(x)
            shortcut = custom_layers.DropBlock2D(*sizes, name=f"{name}_drop_block_shortcut")(
                shortcut
            )
        if self._drop_path_rate > 0:
            layer = custom_layers.StochasticDepth(
                self._drop_path_rate, chosen.drop_path_mode, name=f"{name}_drop_path"
            )
            x = layer(x)
        return layers.Add(name=f"{name}_add")([x, shortcut])

    def dropout(
        self, x: KerasTensor, path: str = "dropout", *, rate: float | None = None
    ) -> KerasTensor:
        """Dropout at the caller's rate, or at one of the architecture's; no layer at rate 0.

        A feature map loses whole channels where the caller wants spatial dropout.
        """
        rate = self.regularization.dropout_rate if rate is None else rate
        if rate == 0:
            return x
        spatial = self.regularization.spatial_dropout and len(x.shape) == 4
        kind = layers.SpatialDropout2D if spatial else layers.Dropout
        return kind(rate, name=_layers.layer_name(path))(x)

    def classifier(self, x: KerasTensor, path: str) -> KerasTensor:
        """The last layer: (batch, features) to (batch, classes)."""
        return _head_layer(_layers.dense(x, self.classes, path, self.activation))

    def conv_classifier(self, x: KerasTensor, path: str) -> KerasTensor:
        """A last layer that classifies every position, a 1x1 convolution, without activation.

        (batch, height, width, features) to (batch, height, width, classes); `activate` follows,
        once the positions are averaged.
        """
        return _head_layer(_layers.conv(x, self.classes, 1, path, bias=True))

    def activate(self, x: KerasTensor) -> KerasTensor:
        """The activation that the caller wants of the classifier, as a layer of its own."""
        return x if self.activation is None else _layers.act(x, self.activation, "predictions")


def _head_layer(x: KerasTensor) -> KerasTensor:
    """Marks the layer that made `x` as a classifier: weights for other classes leave it random."""
    x._keras_history.operation.checkpoint_head = True
    return x


def pooled_head(x: KerasTensor, net: Net, classifier: str = "classifier") -> KerasTensor:
    """Global mean, dropout, classifier."""
    return net.classifier(net.dropout(_layers.global_pool(x, "global_pool")), classifier)


def hidden_head(x: KerasTensor, net: Net, filters: int, activation: str) -> KerasTensor:
    """Global mean, 1x1 with bias, activation, dropout, classifier."""
    x = _layers.global_pool(x, "global_pool", keepdims=True)
    x = _layers.act(_layers.conv(x, filters, 1, "conv_head", bias=True), activation, "act2")
    x = layers.Flatten(name="flatten")(x)
    return net.classifier(net.dropout(x), "classifier")


@dataclasses.dataclass(frozen=True)
class Architecture:
    """How a network is built: `features` makes the image its feature map, `head` that the output.

    Both take and return Keras tensors. The feature map, (batch, height, width, channels), is what
    `include_top=False` gives.
    """

    features: Callable[[KerasTensor, Net], KerasTensor]
    head: Callable[[KerasTensor, Net], KerasTensor | list[KerasTensor]] = pooled_head
    """A list where the network has auxiliary outputs: the main one first."""
    size: int | None = None
    """Default height and width of the input, pixels, where the builder's parameters decide it."""
    auxiliary: tuple[str, ...] = ()
    """Paths of the heads that exist for training only: checkpoints may have them or not."""
    auxiliary_weight: float = 0.0
    """What the loss of each of these heads is multiplied by where it was published."""
    drop_path_schedule: str = "huang"
    """Of stochastic depth, what "linear" means: that of the family's reference implementation, or
    Huang et al.'s where it has none."""


def has_auxiliary_heads(model: keras.Model) -> bool:
    """Whether a model of kapps, built or loaded, has outputs for training behind its main one.

    GoogLeNet, GoogLeNetOriginal and InceptionV3 have them if asked to (`aux`). The outputs of a
    model from elsewhere all count.
    """
    return bool(getattr(model, "checkpoint_auxiliary", ())) and len(model.outputs) > 1

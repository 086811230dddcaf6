"""What every model shares: signature, input, preprocessing, head, pooling, naming, weights.

A family's function says only what its architecture is:

    @model(size=224)
    def ResNet18() -> Architecture:
        '''11,689,512 parameters, 224 px.'''
        return resnet(blocks=(2, 2, 2, 2), ...)

and the decorator makes it the public builder with the signature that all models share.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import os
from collections.abc import Callable
from typing import Any, Literal, Protocol, cast

import keras
from keras import KerasTensor, layers

from kapps import _custom_layers, _layers
from kapps._errors import InputError, check_whole, is_number, unknown
from kapps._models import BlockSkippingModel, DeepModel
from kapps.weights import initialize

# Of the ImageNet training set, RGB in 0..1: what torchvision and most of timm normalize with.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# To -1..1, as TensorFlow's Inception has it, and much that was trained there: mean and std alike.
HALF = (0.5, 0.5, 0.5)
# Of the CIFAR-10 training set, likewise.
CIFAR_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR_STD = (0.2470, 0.2435, 0.2616)

_POOLING = {"avg": layers.GlobalAveragePooling2D, "max": layers.GlobalMaxPooling2D}

_BUILDERS: dict[str, Builder] = {}


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


_REGULARIZATION = tuple(field.name for field in dataclasses.fields(Regularization))


class Net:
    """The parts of a graph whose form the caller chose: residual paths, dropout, classifier."""

    def __init__(self, regularization: Regularization, classes: int, activation: str | None):
        self.regularization = regularization
        self.classes, self.activation = classes, activation
        self.has_residual = False

    def add(
        self,
        x: KerasTensor,
        shortcut: KerasTensor,
        path: str,
        *,
        depth: float,
        drop_block: bool = False,
    ) -> KerasTensor:
        """The residual sum; `x` is dropped in training as stochastic depth and DropBlock say.

        `depth` is the share of the blocks that lie before this one, 0 to 1: the probability grows
        linearly with it, unless the caller wants it constant. So the first of n blocks is always
        kept, and the last dropped with (n - 1) / n of `drop_path_rate`, as EfficientNet's authors
        do; in Huang et al. 2016, section 3, it is 1 / n for the first and all of it for the last.
        `drop_block` is true in the last two stages, where DropBlock acts, on both summands (Ghiasi
        et al. 2018, section 4.1).
        """
        self.has_residual = True
        name, chosen = _layers.layer_name(path), self.regularization
        if drop_block and chosen.drop_block_rate > 0:
            sizes = (chosen.drop_block_rate, chosen.drop_block_size, chosen.drop_block_steps)
            x = _custom_layers.DropBlock2D(*sizes, name=f"{name}_drop_block")(x)
            shortcut = _custom_layers.DropBlock2D(*sizes, name=f"{name}_drop_block_shortcut")(
                shortcut
            )
        rate = chosen.drop_path_rate * (1 if chosen.drop_path_schedule == "constant" else depth)
        if rate > 0:
            layer = _custom_layers.StochasticDepth(
                rate, chosen.drop_path_mode, name=f"{name}_drop_path"
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


class Builder(Protocol):
    """A public model builder."""

    __name__: str
    input_shape: tuple[int, int, int]
    """The default one: (height, width, channels)."""

    def __call__(
        self,
        include_top: bool = True,
        weights: str | os.PathLike[str] | None = None,
        input_tensor: KerasTensor | None = None,
        input_shape: tuple[int | None, int | None, int] | None = None,
        pooling: str | None = None,
        classes: int = ...,
        classifier_activation: str | None = "softmax",
        name: str | None = None,
        *,
        include_preprocessing: bool = True,
        dropout_rate: float = ...,
        spatial_dropout: bool = False,
        drop_path_rate: float = 0.0,
        drop_path_schedule: Literal["linear", "constant"] = "linear",
        drop_path_mode: Literal["row", "batch"] = "row",
        drop_block_rate: float = 0.0,
        drop_block_size: int = 7,
        drop_block_steps: int = 0,
    ) -> keras.Model: ...


@functools.cache
def _shared_parameters() -> tuple[inspect.Parameter, ...]:
    """Of every builder, as `Builder` says; found once, for it takes longer than all the rest."""
    return tuple(inspect.signature(Builder.__call__, eval_str=True).parameters.values())[1:]


_SHARED_DOC = """

Takes images (batch, height, width, channels) in 0..255, of any dtype, and normalizes them itself.
Returns class probabilities (batch, classes).

Args:
    include_top: whether to build the classifier; without it the model returns the feature map.
    weights: None for random ones, "imagenet" for the default published ones, the tag of others
        (`kapps.list_weights` names them), or the path of a `.safetensors`, `.pth` or `.weights.h5`
        file.
    input_tensor: a Keras tensor to build upon, in place of a new input.
    input_shape: (height, width, channels); by default {default}, and any height and width without
        the classifier. At least {min_size} pixels a side.
    pooling: without the classifier: None for the feature map, "avg" or "max" for its global mean
        or maximum (batch, features).
    classes: number of classes, {classes} by default. Weights for another number are loaded but
        for the classifier, which is said in a warning; a `.weights.h5` file has to fit as it is.
    classifier_activation: "softmax", or None for logits.
    name: the model's name, by default that of the builder.
    include_preprocessing: whether the first layer normalizes. Without it the model takes images
        that are normalized already, (image / 255 - mean) / std.
    dropout_rate: share of the features dropped before the classifier in training, 0 to 1.
    spatial_dropout: whether dropout on a feature map drops whole channels.
    drop_path_rate: stochastic depth: the probability at which a residual block is dropped in
        training, 0 to below 1.
    drop_path_schedule: "linear": block i of n, counted from 0, is dropped with i / n of it;
        "constant": it is the same for all.
    drop_path_mode: "row" draws for each image; "batch" draws once for the whole batch, and what
        is dropped is not computed.
    drop_block_rate: DropBlock: the share of the feature maps that is dropped in training, in square
        regions, in the last two stages, 0 to below 1.
    drop_block_size: side of the regions, pixels of the feature map.
    drop_block_steps: the training steps over which the rate of DropBlock grows from 0.

Raises:
    InputError: an argument does not fit; the message says which, and the remedy.
"""


def model(
    *,
    size: int = 224,
    channels: int = 3,
    min_size: int = 32,
    classes: int = 1000,
    dropout_rate: float = 0.0,
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
) -> Callable[[Callable[..., Architecture]], Builder]:
    """Makes a function that returns an `Architecture` a public builder with the shared signature.

    The function's own parameters become keyword-only parameters of the builder, and its docstring
    the head of the builder's.

    Args:
        size: default height and width of the input, pixels.
        channels: default number of channels.
        min_size: the smallest height and width that the network can take, pixels.
        classes: default number of classes.
        dropout_rate: the reference implementation's own.
        mean: of the training images, RGB in 0..1, until weights bring their own.
        std: standard deviation (not variance), likewise.
    """

    def decorate(architecture: Callable[..., Architecture]) -> Builder:
        @functools.wraps(architecture)
        def build(*args: Any, **kwargs: Any) -> keras.Model:
            try:
                arguments = signature.bind(*args, **kwargs)
            except TypeError as error:
                raise TypeError(f"{architecture.__name__}() {error}") from None
            arguments.apply_defaults()
            values = arguments.arguments
            own = {parameter: values.pop(parameter) for parameter in own_parameters}
            dropped = {parameter: values.pop(parameter) for parameter in _REGULARIZATION}
            changed = {k: v for k, v in own.items() if v != own_parameters[k].default}
            return _build(architecture(**own), Regularization(**dropped), changed, **values)

        def _build(
            network: Architecture,
            regularization: Regularization,
            changed: dict[str, Any],
            include_top: bool,
            weights: str | os.PathLike[str] | None,
            input_tensor: KerasTensor | None,
            input_shape: tuple[int | None, int | None, int] | None,
            pooling: str | None,
            classes: int,
            classifier_activation: str | None,
            name: str | None,
            include_preprocessing: bool,
        ) -> keras.Model:
            builder = architecture.__name__
            side = network.size or size
            default = (side, side, channels) if include_top else (None, None, channels)
            _check(builder, pooling, classes, classifier_activation, name, regularization)
            image = _input(builder, input_tensor, input_shape, default, min_size)
            net = Net(regularization, classes, classifier_activation)
            x = image
            if include_preprocessing:
                x = _custom_layers.ImageNormalization(mean, std, name="normalization")(x)
            x = network.features(x, net)
            if include_top:
                x = network.head(x, net)
            elif pooling is not None:
                x = _POOLING[pooling](name=f"{pooling}_pool")(x)
            for rate_name in ("drop_path_rate", "drop_block_rate"):
                rate = getattr(regularization, rate_name)
                if rate and not net.has_residual:
                    raise InputError(
                        f"{builder}: {rate_name}={rate}, but the network has no residual "
                        "blocks to drop; leave it at 0"
                    )
            sources = [image] if input_tensor is None else keras.utils.get_source_inputs(image)
            inputs = sources[0] if len(sources) == 1 else sources
            before = [] if input_tensor is None else keras.Model(inputs, image).layers
            name = builder if name is None else name
            try:
                result = _connected(inputs, x, name, regularization)
            except ValueError as error:
                if not before:
                    raise
                raise InputError(
                    f"{builder}: {' '.join(str(error).split())} Give the layers that input_tensor "
                    "comes from other names"
                ) from error
            # What `kapps.weights` and `kapps.transform` ask of a model.
            result.kapps_builder = builder
            result.checkpoint_before = frozenset(layer.name for layer in before)
            result.checkpoint_headless = not include_top
            result.checkpoint_auxiliary = network.auxiliary
            if weights is not None:
                initialize(result, builder, weights, changed)
            return result

        own_parameters = (
            inspect.signature(architecture, eval_str=True).parameters
            if architecture.__code__.co_argcount
            else {}
        )
        defaults = {"classes": classes, "dropout_rate": dropout_rate}
        signature = inspect.Signature(
            [
                p.replace(default=defaults[p.name]) if p.name in defaults else p
                for p in _shared_parameters()
            ]
            + [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own_parameters.values()],
            return_annotation=keras.Model,
        )
        build.__signature__ = signature  # type: ignore[attr-defined]
        del build.__wrapped__  # or inspect and IDEs would show the architecture's signature
        build.__annotations__ = {
            p.name: p.annotation
            for p in signature.parameters.values()
            if p.annotation is not p.empty
        } | {"return": keras.Model}
        build.input_shape = (size, size, channels)  # type: ignore[attr-defined]
        build.__doc__ = inspect.cleandoc(architecture.__doc__ or "") + _SHARED_DOC.format(
            default=(size, size, channels), min_size=min_size, classes=classes
        )
        _BUILDERS[architecture.__name__] = cast(Builder, build)
        return _BUILDERS[architecture.__name__]

    return decorate


def _connected(inputs: Any, outputs: Any, name: str, regularization: Regularization) -> keras.Model:
    """The model between these tensors, of the class that it needs."""
    if regularization.drop_path_rate and regularization.drop_path_mode == "batch":
        return BlockSkippingModel(inputs, outputs, name=name)
    try:
        return keras.Model(inputs, outputs, name=name)
    except RecursionError:
        return DeepModel(inputs, outputs, name=name)


def list_models() -> list[str]:
    """The names of all public builders, sorted: `getattr(kapps, name)` is the builder."""
    _load_all()
    return sorted(_BUILDERS)


def get_builder(name: str) -> Builder:
    """The public builder of that name.

    Raises:
        InputError: there is none; the nearest names are proposed.
    """
    _load_all()
    if name not in _BUILDERS:
        raise unknown("model", name, _BUILDERS)
    return _BUILDERS[name]


def _load_all() -> None:
    """Imports every family: a builder registers itself when its module is loaded."""
    import kapps

    for name in kapps.__all__:
        getattr(kapps, name)


def preprocess_input(x: Any, data_format: str | None = None) -> Any:
    """Returns its input: kapps models take images in 0..255 and normalize them in the graph.

    It exists so that code written for a module of `keras.applications` keeps working.
    """
    return x


def _check(
    builder: str,
    pooling: str | None,
    classes: int,
    activation: Any,
    name: str | None,
    regularization: Regularization,
) -> None:
    if keras.config.image_data_format() != "channels_last":
        raise InputError(
            f"{builder}: Keras is set to channels_first; kapps builds channels_last models only: "
            "keras.config.set_image_data_format('channels_last')"
        )
    if pooling is not None and pooling not in _POOLING:
        raise unknown("pooling", pooling, _POOLING)
    check_whole(builder, "classes", classes)
    try:
        keras.activations.get(activation)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{builder}: unknown classifier_activation {activation!r}; it is 'softmax', None for "
            "logits, or another of keras.activations"
        ) from error
    if name is not None and (not isinstance(name, str) or not name or "/" in name):
        raise InputError(f"{builder}: name must be a text without slashes, not {name!r}")
    for rate in ("dropout_rate", "drop_path_rate", "drop_block_rate"):
        value = getattr(regularization, rate)
        if not is_number(value) or not 0 <= value < 1:
            raise InputError(f"{builder}: {rate} must be at least 0 and below 1, not {value!r}")
    for parameter, choices in (
        ("drop_path_schedule", ("linear", "constant")),
        ("drop_path_mode", ("row", "batch")),
    ):
        value = getattr(regularization, parameter)
        if value not in choices:
            raise InputError(
                f"{builder}: {parameter} must be {' or '.join(choices)}, not {value!r}"
            )
    for parameter, least in (("drop_block_size", 1), ("drop_block_steps", 0)):
        value = getattr(regularization, parameter)
        if not isinstance(value, int) or value < least:
            raise InputError(
                f"{builder}: {parameter} must be a whole number, {least} or more, not {value!r}"
            )


def _input(
    builder: str,
    input_tensor: KerasTensor | None,
    input_shape: tuple[int | None, int | None, int] | None,
    default: tuple[int | None, int | None, int],
    min_size: int,
) -> KerasTensor:
    """The image tensor to build upon, checked."""
    if input_shape is not None and not isinstance(input_shape, (tuple, list)):
        raise InputError(
            f"{builder}: input_shape must be (height, width, channels), such as (224, 224, 3), "
            f"not {input_shape!r}"
        )
    if input_tensor is not None:
        if not keras.utils.is_keras_tensor(input_tensor):
            raise InputError(
                f"{builder}: input_tensor must be a Keras tensor (keras.Input or a layer's "
                f"output), not {type(input_tensor).__name__}"
            )
        shape = tuple(input_tensor.shape[1:])
        if input_shape is not None and shape != tuple(input_shape):
            raise InputError(
                f"{builder}: input_shape {tuple(input_shape)} is not that of input_tensor, "
                f"{shape}; give one of the two"
            )
    else:
        shape = default if input_shape is None else tuple(input_shape)
    if (
        len(shape) != 3
        or not isinstance(shape[2], int)
        or any(not (side is None or isinstance(side, int)) for side in shape)
    ):
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
    return keras.Input(shape, name="image") if input_tensor is None else input_tensor

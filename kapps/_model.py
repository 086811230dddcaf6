"""What every model shares: signature, input, preprocessing, head, pooling, naming, weights.

A family's function says only what its architecture is:

    @model(size=224)
    def ResNet18() -> Architecture:
        '''11,689,512 parameters, 224 px.'''
        return resnet(blocks=(2, 2, 2, 2), ...)

and the decorator makes it the public builder with the signature that all models share.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol, cast

import keras
from keras import KerasTensor

from kapps import _arguments, custom_layers
from kapps._arguments import Arguments, ImageShape
from kapps._block_skipping import BlockSkippingModel, BuiltModel, DeepModel
from kapps._errors import InputError
from kapps._network import Architecture, Net, Regularization
from kapps._registry import register
from kapps.weights import initialize

# Of the ImageNet training set, RGB in 0..1: what torchvision and most of timm normalize with.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# To -1..1, as TensorFlow's Inception has it, and much that was trained there: mean and std alike.
HALF = (0.5, 0.5, 0.5)
# Of the CIFAR-10 training set, likewise.
CIFAR_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR_STD = (0.2470, 0.2435, 0.2616)

_REGULARIZATION = tuple(field.name for field in dataclasses.fields(Regularization))


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
        input_shape: Sequence[int | None] | None = None,
        pooling: str | None = None,
        classes: int = ...,
        classifier_activation: str | None = "softmax",
        name: str | None = None,
        *,
        include_preprocessing: bool = True,
        dropout_rate: float = ...,
        spatial_dropout: bool = False,
        drop_path_rate: float = 0.0,
        drop_path_schedule: Literal[
            "linear", "huang", "efficientnet", "linspace", "constant"
        ] = "linear",
        drop_path_mode: Literal["row", "batch"] = "row",
        drop_block_rate: float = 0.0,
        drop_block_size: int = 7,
        drop_block_steps: int = 0,
        drop_block_stages: int | None = 2,
        drop_block_schedule: Literal["constant", "linear"] = "constant",
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
    input_tensor: a Keras tensor to build upon, in place of a new input. Where its graph has another
        network of kapps already, the names of this one's layers begin with its `name` (with
        "ResNet50_", say), so that both fit into one model.
    input_shape: (height, width, channels), whole numbers in any sequence; by default {default}, and
        any height and width without the classifier. At least {min_size} pixels a side.
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
    drop_path_schedule: how the probability grows with depth. "huang": block l of L, counted from
        1, has l / L of it (Huang et al. 2016); "efficientnet": (l - 1) / L, as EfficientNet's
        authors have it; "linspace": (l - 1) / (L - 1), as timm's ResNets; "constant": all have
        the same. "linear" is the one of these that the network's reference implementation has:
        "efficientnet" for EfficientNets and MobileNets, "linspace" for ImageNet's ResNets,
        ResNeXts and SENets, "huang" for the others.
    drop_path_mode: "row" draws for each image; "batch" draws once for the whole batch, and what
        is dropped is not computed.
    drop_block_rate: DropBlock: the share of the feature maps that is dropped in training, in square
        regions, 0 to below 1.
    drop_block_size: side of the regions, pixels of the feature map.
    drop_block_steps: the training steps over which the rate of DropBlock grows from 0.
    drop_block_stages: DropBlock acts in so many of the last stages, 2 in the paper; None: in all.
    drop_block_schedule: "constant": its rate is the same in all blocks; "linear": block l of L,
        counted from 1, has l / L of it.

Raises:
    InputError: an argument does not fit; the message says which, and the remedy.
"""


@dataclasses.dataclass(frozen=True)
class _Defaults:
    """What the decorator is given for one builder; see `model`."""

    size: int
    channels: int
    min_size: int
    classes: int
    dropout_rate: float
    mean: tuple[float, ...]
    std: tuple[float, ...]


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
    defaults = _Defaults(size, channels, min_size, classes, dropout_rate, mean, std)
    return functools.partial(_builder, defaults)


def _builder(defaults: _Defaults, architecture: Callable[..., Architecture]) -> Builder:
    """The public builder of an architecture, registered."""
    name = architecture.__name__
    own = _own_parameters(architecture)
    signature = _signature(defaults, own)

    @functools.wraps(architecture)
    def build(*args: Any, **kwargs: Any) -> keras.Model:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{name}() {error}") from None
        bound.apply_defaults()
        values = bound.arguments
        chosen = {parameter: values.pop(parameter) for parameter in own}
        dropped = Regularization(**{field: values.pop(field) for field in _REGULARIZATION})
        network = architecture(**chosen)
        result = _build(name, defaults, network, Arguments(**values), dropped)
        weights = values["weights"]
        if weights is not None:
            changed = {k: v for k, v in chosen.items() if v != own[k].default}
            initialize(result, name, weights, changed)
        return result

    _describe(build, architecture, defaults, signature)
    return register(cast(Builder, build))


def _own_parameters(architecture: Callable[..., Architecture]) -> Mapping[str, inspect.Parameter]:
    # Most have none, and finding that out takes longer than all else here.
    if not architecture.__code__.co_argcount:
        return {}
    return inspect.signature(architecture, eval_str=True).parameters


def _signature(defaults: _Defaults, own: Mapping[str, inspect.Parameter]) -> inspect.Signature:
    """The shared parameters with this builder's defaults, and its own ones as keywords."""
    changed = {"classes": defaults.classes, "dropout_rate": defaults.dropout_rate}
    shared = [
        p.replace(default=changed[p.name]) if p.name in changed else p for p in _shared_parameters()
    ]
    keywords = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own.values()]
    return inspect.Signature([*shared, *keywords], return_annotation=keras.Model)


def _describe(
    build: Any,
    architecture: Callable[..., Architecture],
    defaults: _Defaults,
    signature: inspect.Signature,
) -> None:
    """Gives a builder what `help`, inspect and IDEs show of it."""
    parameters = signature.parameters.values()
    shape = (defaults.size, defaults.size, defaults.channels)
    del build.__wrapped__  # or they would show the architecture's signature
    build.__signature__ = signature
    build.__annotations__ = {
        p.name: p.annotation for p in parameters if p.annotation is not p.empty
    } | {"return": keras.Model}
    build.__doc__ = inspect.cleandoc(architecture.__doc__ or "") + _SHARED_DOC.format(
        default=shape, min_size=defaults.min_size, classes=defaults.classes
    )
    build.input_shape = shape


def _build(
    builder: str,
    defaults: _Defaults,
    network: Architecture,
    given: Arguments,
    dropped: Regularization,
) -> BuiltModel:
    """The model, of random weights."""
    given, dropped = _arguments.checked(builder, given, dropped)
    side = network.size or defaults.size if given.include_top else None
    default: ImageShape = (side, side, defaults.channels)
    image = _arguments.image(builder, given, default, defaults.min_size)
    activation = given.classifier_activation
    net = Net(dropped, given.classes, activation, network.drop_path_schedule)
    name = builder if given.name is None else given.name
    surroundings = _Surroundings(image, given.input_tensor is not None)
    with surroundings.names_for(name) as finish:
        x = image
        if given.include_preprocessing:
            layer = custom_layers.ImageNormalization(
                defaults.mean, defaults.std, name="normalization"
            )
            x = layer(x)
        features = x = network.features(x, net)
        if not net.has_residual:
            _arguments.check_residual(builder, dropped)
        if given.include_top:
            x = network.head(x, net)
        elif given.pooling is not None:
            x = _arguments.POOLING[given.pooling](name=f"{given.pooling}_pool")(x)
        finish(x)
    try:
        result = _connected(surroundings.inputs, x, name, dropped)
    except ValueError as error:
        if not surroundings.before:
            raise
        raise InputError(
            f"{builder}: {' '.join(str(error).split())} Give the layers that input_tensor comes "
            "from other names"
        ) from error
    result.kapps_builder = builder
    result.features_layer = features._keras_history.operation.name
    result.checkpoint_before = surroundings.before
    result.checkpoint_headless = not given.include_top
    result.checkpoint_auxiliary = network.auxiliary
    result.auxiliary_weights = (network.auxiliary_weight,) * (len(result.outputs) - 1)
    return result


def _connected(inputs: Any, outputs: Any, name: str, dropped: Regularization) -> BuiltModel:
    """The model between these tensors, of the class that it needs."""
    if dropped.drop_path_rate and dropped.drop_path_mode == "batch":
        return BlockSkippingModel(inputs, outputs, name=name)
    try:
        return BuiltModel(inputs, outputs, name=name)
    except RecursionError:
        return DeepModel(inputs, outputs, name=name)


class _Surroundings:
    """What is in the graph of an image tensor before a network is built upon it."""

    inputs: Any
    """The graph's input, or a list where it has several."""
    before: frozenset[str]
    """Names of the layers that the image comes from; none if it is the network's own input."""

    def __init__(self, image: KerasTensor, is_given: bool) -> None:
        self.image = image
        sources = keras.utils.get_source_inputs(image) if is_given else [image]
        self.inputs = sources[0] if len(sources) == 1 else sources
        self.before = frozenset()
        self._taken: set[str] = set()
        self._has_network = False
        if is_given:
            self.before = frozenset(layer.name for layer in keras.Model(self.inputs, image).layers)
            found = list(_reading(sources))
            self._taken = {operation.name for operation in found}
            self._has_network = any(hasattr(x, "checkpoint_path") for x in found)

    @contextlib.contextmanager
    def names_for(self, name: str) -> Iterator[Callable[[Any], None]]:
        """While it is open, a network is built; what it yields is then called with its outputs.

        Layer names are keys of checkpoints and the same in every model, so that two networks in one
        graph would not fit into one model: those of the second are put behind a prefix. Weights
        still find their layer, whose path in the checkpoint stays.
        """
        if not self._has_network:
            yield lambda outputs: None
            return
        prefixes = itertools.chain([f"{name}_"], (f"{name}_{i}_" for i in itertools.count(1)))
        prefix = next(p for p in prefixes if not any(x.startswith(p) for x in self._taken))

        def rename(outputs: Any) -> None:
            for operation in _operations_between(self.image, keras.tree.flatten(outputs)):
                operation.name = prefix + operation.name

        with keras.name_scope(prefix.rstrip("_")):  # for the paths of the variables
            yield rename


def _reading(tensors: Sequence[KerasTensor]) -> Iterator[Any]:
    """The layers that these tensors come from, and all that directly or indirectly read them."""
    pending = [tensor._keras_history.operation for tensor in tensors]
    seen: set[int] = set()
    while pending:
        operation = pending.pop()
        if id(operation) in seen:
            continue
        seen.add(id(operation))
        yield operation
        # Keras has no public view of a layer's readers.
        pending += [node.operation for node in operation._outbound_nodes]


def _operations_between(image: KerasTensor, outputs: Sequence[KerasTensor]) -> Iterator[Any]:
    """The layers behind the image that make the outputs."""
    pending, seen = list(outputs), set()
    while pending:
        tensor = pending.pop()
        operation, node, _ = tensor._keras_history
        if tensor is image or id(operation) in seen:
            continue
        seen.add(id(operation))
        yield operation
        pending += operation._inbound_nodes[node].input_tensors


def preprocess_input(x: Any, data_format: str | None = None) -> Any:
    """Returns its input: kapps models take images in 0..255 and normalize them in the graph.

    It exists so that code written for a module of `keras.applications` keeps working.
    """
    return x

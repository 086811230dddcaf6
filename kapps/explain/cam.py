"""Class activation maps: which places of a feature map speak for a class.

All of them weigh the channels of a map, add them up and, but for CAM, drop what speaks against the
class. They explain the logit, whatever the model ends in.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from kapps._errors import InputError, check_whole
from kapps.explain._classifier import Classifier
from kapps.explain._graph import Call, Tensor, does_nothing
from kapps.explain._passes import Passes, baseline_of, warn_of_zeros
from kapps.explain._resize import bilinear, of_maps


def cam(model: keras.Model, images: Any, classes: Any = None, resize: bool = False) -> np.ndarray:
    """Class activation mapping (Zhou et al. 2016, equation 2).

    The feature map's channels, weighted as the classifier weighs their means. It is signed: its
    mean and the classifier's bias make the logit. Where a convolution makes a map a class before
    the pooling, as in NiN and SqueezeNet, it is the class's.

    Args:
        model: a classifier that ends in global average pooling and at most one dense layer.
        images: (N, H, W, C), in the model's own range.
        classes: (N,), or one for all; None for the predicted ones.
        resize: whether the maps come at the images' size, bilinear.

    Returns:
        (N, h, w), float32, in the logit's unit.

    Raises:
        InputError: the model ends otherwise; or images or classes are none that it takes.
    """
    net = Classifier(model, "cam")
    at = _pooled_map(net)

    def weigh(maps: Any, gradients: Any) -> Any:
        # The head is linear: each place has the weight of its channel, divided by the places.
        return ops.sum(maps * gradients, axis=-1) * (maps.shape[1] * maps.shape[2])

    return _from_gradients(net, images, classes, at, resize, weigh)


def grad_cam(
    model: keras.Model,
    images: Any,
    classes: Any = None,
    layer: str | None = None,
    resize: bool = False,
) -> np.ndarray:
    """Grad-CAM (Selvaraju et al. 2017, equations 1 and 2).

    A channel's weight is the mean of the gradient over its places.

    Args:
        model: a functional or sequential classifier, flat or nested.
        images: (N, H, W, C), in the model's own range.
        classes: (N,), or one for all; None for the predicted ones.
        layer: whose map to explain, by name; None for the map that the head takes.
        resize: whether the maps come at the images' size, bilinear, or at the layer's.

    Returns:
        (N, h, w), float32, 0 where nothing speaks for the class; not scaled.

    Raises:
        InputError: there is no such layer, or it makes no map; the gradient is zero everywhere;
            images or classes are none that the model takes.
    """

    def weigh(maps: Any, gradients: Any) -> Any:
        weights = ops.mean(gradients, axis=(1, 2), keepdims=True)
        return ops.relu(ops.sum(weights * maps, axis=-1))

    net = Classifier(model, "grad_cam")
    return _from_gradients(net, images, classes, _map_at(net, layer), resize, weigh)


def grad_cam_plus_plus(
    model: keras.Model,
    images: Any,
    classes: Any = None,
    layer: str | None = None,
    resize: bool = False,
) -> np.ndarray:
    """Grad-CAM++ (Chattopadhyay et al. 2018, equations 5, 7 and 19), on the logit.

    A channel's weight is the sum of its positive gradients, each with a share of its own, so that
    several things of one class count as one does. Of the forms in use it is pytorch-grad-cam's:
    the closed form of equation 19, with the sum of a channel's activations.

    Positive gradients alone say less of the class: where layers are re-drawn the maps hardly
    change, see `randomization` and docs/explain_scores.md. Take `grad_cam` where that matters.

    Args, Returns, Raises: as `grad_cam`.
    """

    def weigh(maps: Any, gradients: Any) -> Any:
        activations = ops.sum(maps, axis=(1, 2), keepdims=True)
        square = gradients**2
        shares = square / (2 * square + activations * square * gradients + 1e-6)
        weights = ops.sum(ops.relu(gradients) * shares, axis=(1, 2), keepdims=True)
        return ops.relu(ops.sum(weights * maps, axis=-1))

    net = Classifier(model, "grad_cam_plus_plus")
    return _from_gradients(net, images, classes, _map_at(net, layer), resize, weigh)


def layer_cam(
    model: keras.Model,
    images: Any,
    classes: Any = None,
    layer: str | None = None,
    resize: bool = False,
) -> np.ndarray:
    """Layer-CAM (Jiang et al. 2021, equations 6 to 8).

    Each place of a channel has a weight of its own, its positive gradient: it serves early layers,
    whose maps are fine, as well as the last. Of `randomization` it is as `grad_cam_plus_plus`.

    Args, Returns, Raises: as `grad_cam`.
    """

    def weigh(maps: Any, gradients: Any) -> Any:
        return ops.relu(ops.sum(ops.relu(gradients) * maps, axis=-1))

    net = Classifier(model, "layer_cam")
    return _from_gradients(net, images, classes, _map_at(net, layer), resize, weigh)


def score_cam(
    model: keras.Model,
    images: Any,
    classes: Any = None,
    layer: str | None = None,
    resize: bool = False,
    baseline: Any = None,
    channels: int | None = None,
) -> np.ndarray:
    """Score-CAM (Wang et al. 2020, algorithm 1), without gradients.

    A channel's weight is the class's logit of the image seen through that channel, by softmax over
    the channels. The channel is scaled to 0..1 and resized, the corner pixels' centres in place, as
    in pytorch-grad-cam. It costs a forward pass a channel.

    Args:
        model, images, classes, layer, resize: as in `grad_cam`.
        baseline: what is seen where the channel is 0, in the images' range: a number, one a
            channel, an image, or one for each image; None for black.
        channels: look only through so many channels of each image, those of the largest variance;
            None for all.

    Returns, Raises: as `grad_cam`.
    """
    net = Classifier(model, "score_cam")
    images = net.images(images)
    chosen = net.classes_of(images, classes)
    empty = baseline_of(net, images, baseline)
    at = _map_at(net, layer)
    parts = [net.maps_of(batch, [at])[0] for (batch,) in net.batches(images)]
    maps = np.concatenate([ops.convert_to_numpy(part) for part in parts]).astype(images.dtype)
    maps = _most_varied(net, maps, channels)

    def score(masks: Any, image: Any, behind: Any, wanted: Any) -> Any:
        wide = bilinear(masks, image.shape[1:3], corners=True)
        least = ops.min(wide, axis=(1, 2), keepdims=True)
        most = ops.max(wide, axis=(1, 2), keepdims=True)
        seen = behind + (image - behind) * ((wide - least) / (most - least + 1e-8))
        (logits,) = net.maps_of(seen, [net.logits])
        return net.scores(logits, wanted)

    def arguments(i: np.ndarray, k: np.ndarray) -> tuple[np.ndarray, ...]:
        return maps[i, :, :, k, None], images[i], empty[i], chosen[i]

    scores = np.empty((len(images), maps.shape[-1]), "float32")
    for i, k, found in Passes(*scores.shape).results(net, score, arguments):
        scores[i, k] = found
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    found = np.maximum(np.einsum("nhwc,nc->nhw", maps, weights), 0)
    return _finished(net, found, chosen, at, images, resize)


def _from_gradients(
    net: Classifier,
    images: Any,
    classes: Any,
    at: Tensor,
    resize: bool,
    weigh: Callable[[Any, Any], Any],
) -> np.ndarray:
    """What `weigh` makes of maps and gradients, (N, h, w, C) each, in the images' dtype."""
    images = net.images(images)
    found: list[np.ndarray] = []
    explained: list[np.ndarray] = []
    for maps, gradients, own in net.checked_gradients(images, classes, at):
        weighed = weigh(*(ops.cast(part, images.dtype.name) for part in (maps, gradients)))
        found.append(ops.convert_to_numpy(weighed))
        explained.append(own)
    return _finished(net, np.concatenate(found), np.concatenate(explained), at, images, resize)


def _finished(
    net: Classifier,
    maps: np.ndarray,
    classes: np.ndarray,
    at: Tensor,
    images: np.ndarray,
    resize: bool,
) -> np.ndarray:
    why = (
        f"nothing in {net.name_of(at)} speaks for it; explain another class, or name another layer"
    )
    warn_of_zeros(net, maps, classes, why)
    if resize:
        maps = of_maps(maps, images.shape[1:3])
    return maps.astype("float32", copy=False)


def _map_at(net: Classifier, layer: str | None) -> Tensor:
    return net.features() if layer is None else net.map(layer)


def _most_varied(net: Classifier, maps: np.ndarray, channels: int | None) -> np.ndarray:
    """Each image's `channels` channels of the largest variance."""
    if channels is None:
        return maps
    check_whole(net.caller, "channels", channels)
    order = np.argsort(-maps.var(axis=(1, 2)), axis=-1, kind="stable")[:, :channels]
    return np.take_along_axis(maps, order[:, None, None, :], axis=-1)


def _pooled_map(net: Classifier) -> Tensor:
    """The map whose means are the logits, or what one dense layer makes the logits of."""
    tensor, is_weighed = net.logits, False
    while tensor is not net.image:
        call = net.maker(tensor)
        if _is_pooling(call):
            return call.input_tensors[0]
        if _is_dense(call, net) and not is_weighed:
            is_weighed = True
        elif not does_nothing(call.operation) and not _is_flattening(call):
            break
        tensor = call.input_tensors[0]
    raise InputError(
        f"cam: {net.model.name} does not end in global average pooling and one dense layer, which "
        "CAM needs; use grad_cam, which does not"
    )


def _is_pooling(call: Call) -> bool:
    layer = call.operation
    if isinstance(layer, layers.GlobalAveragePooling2D):
        return True
    if isinstance(layer, layers.AveragePooling2D):
        return tuple(layer.pool_size) == tuple(call.input_tensors[0].shape[1:3])
    axes = getattr(layer, "axis", None)
    return type(layer).__name__ == "Mean" and axes is not None and sorted(axes) == [1, 2]


def _is_dense(call: Call, net: Classifier) -> bool:
    """Linear, of a vector, or of a map of one place."""
    layer = call.operation
    if call.activation is not None and net.logits not in call.outputs:
        return False
    if isinstance(layer, layers.Conv2D):
        return tuple(call.input_tensors[0].shape[1:3]) == (1, 1) and layer.groups == 1
    return isinstance(layer, layers.Dense)


def _is_flattening(call: Call) -> bool:
    return isinstance(call.operation, (layers.Flatten, layers.Reshape)) or (
        type(call.operation).__name__ in ("Reshape", "Squeeze")
    )

"""The methods that explain a class, each with its name, label and source, and how each is run."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from kapps import explain
from kapps._errors import InputError, unknown


@dataclass(frozen=True)
class Method:
    """A way to a map of one class.

    Attributes:
        name: of its function in `kapps.explain`.
        label: what a reader calls it, with what he has to know.
        source: the paper.
        takes_layer: whether it looks at the map of a layer.
        takes_baseline: whether it starts from an image that shows nothing.
        is_signed: whether its maps tell also what speaks against the class.
        alpha: its share over the image; 1 for a map that is as fine as the image, by itself.
    """

    name: str
    label: str
    source: str
    takes_layer: bool = False
    takes_baseline: bool = False
    is_signed: bool = False
    alpha: float = 0.6

    @property
    def function(self) -> Callable[..., Any]:
        return getattr(explain, self.name)

    def __call__(
        self, model: keras.Model, images: np.ndarray, classes: np.ndarray, layer: str | None
    ) -> np.ndarray:
        """The maps, (N, h, w), of images in 0..255."""
        options: dict[str, Any] = {"baseline": 0} if self.takes_baseline else {}
        if self.takes_layer and layer is not None:
            options["layer"] = layer
        return self.function(model, images, classes, **options)


# name, label, source, whether it takes a layer, whether it takes a baseline
METHODS = {
    method.name: method
    for method in (
        Method("grad_cam", "Grad-CAM", "Selvaraju et al. 2017", True),
        Method("grad_cam_plus_plus", "Grad-CAM++", "Chattopadhyay et al. 2018", True),
        Method("layer_cam", "Layer-CAM", "Jiang et al. 2021", True),
        Method("score_cam", "Score-CAM", "Wang et al. 2020", True, True),
        Method("cam", "CAM", "Zhou et al. 2016", is_signed=True),
        Method("occlusion", "occlusion", "Zeiler and Fergus 2014", is_signed=True),
        Method("saliency", "gradient", "Simonyan et al. 2014", alpha=1),
        Method("smooth_grad", "SmoothGrad", "Smilkov et al. 2017", alpha=1),
        Method(
            "integrated_gradients",
            "integrated gradients",
            "Sundararajan et al. 2017",
            takes_baseline=True,
            is_signed=True,
            alpha=1,
        ),
        Method(
            "guided_backpropagation",
            "guided backpropagation (unfaithful)",
            "Springenberg et al. 2015",
            alpha=1,
        ),
    )
}
UNFAITHFUL = {
    "guided_backpropagation": "its maps hardly depend on class or weights: Adebayo et al. 2018"
}
"""What a reader has to know of a method, by its name."""

DEFAULT = ("grad_cam", "smooth_grad", "integrated_gradients")
"""Few passes each, and of two kinds: where, by a map, and which pixels."""


@dataclass(frozen=True)
class Maps:
    """What a method makes of the images.

    Attributes:
        method: which.
        maps: (h, w) of each image, or None.
        messages: why there is none; "" where there is one.
    """

    method: Method
    maps: tuple[np.ndarray | None, ...]
    messages: tuple[str, ...]

    @property
    def found(self) -> list[int]:
        """The numbers of the images that have a map."""
        return [i for i, each in enumerate(self.maps) if each is not None]


def chosen(names: Sequence[str]) -> list[Method]:
    """The methods of these names; "all" for all of them.

    Raises:
        InputError: there is no such method, or none is named.
    """
    if not names:
        raise InputError("--methods is empty; --help lists those there are")
    if list(names) == ["all"]:
        return list(METHODS.values())
    for name in names:
        if name not in METHODS:
            raise unknown("method", name, [*METHODS, "all"])
    return [METHODS[name] for name in dict.fromkeys(names)]


def maps_of(
    method: Method,
    model: keras.Model,
    images: np.ndarray,
    classes: np.ndarray,
    layer: str | None,
    *,
    required: bool,
) -> Maps:
    """The maps of all images; where one cannot be explained the others are still.

    Args:
        method: which.
        model: any that `kapps.explain` takes.
        images: (N, height, width, channels), 0..255.
        classes: (N,).
        layer: for methods that take one; None for the map that the head takes.
        required: whether the method was asked for by name.

    Raises:
        InputError: it was, and explains none of the images.
    """
    try:
        found = list(_quietly(method, model, images, classes, layer))
        messages = [""] * len(found)
    except InputError as error:
        if len(images) == 1:
            # It stands below its picture, and is no number 0 there.
            found, messages = [None], [str(error).replace(" for image 0", "")]
        else:
            alone = [
                maps_of(method, model, images[i : i + 1], classes[i : i + 1], layer, required=False)
                for i in range(len(images))
            ]
            found, messages = [m.maps[0] for m in alone], [m.messages[0] for m in alone]
        if required and not any(each is not None for each in found):
            raise
    for i, each in enumerate(found):
        if each is not None and not each.any():
            found[i] = None
            messages[i] = (
                f"{method.label} is zero everywhere: nothing that is seen there speaks for class "
                f"{classes[i]}; explain another class, or name another layer"
            )
    return Maps(method, tuple(found), tuple(messages))


def _quietly(method: Method, *arguments: Any) -> np.ndarray:
    """Without the warnings of maps that are zero, which are told in the maps' place."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* is zero everywhere", UserWarning)
        return method(*arguments)

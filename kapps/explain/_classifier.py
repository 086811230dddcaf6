"""A classifier: images and classes that come in, checked; logits and gradients that come out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from kapps._errors import InputError, is_number
from kapps.custom_layers import ImageNormalization
from kapps.explain._differentiation import compiled, value_and_gradients, without_gradients
from kapps.explain._graph import Graph, Tensor

BATCH = 32
"""Images that are computed at once."""


class Classifier(Graph):
    """A classifier with what is done to it time and again: logits, scores, their gradients."""

    def __init__(self, model: keras.Model, caller: str, *, headless: bool = False) -> None:
        super().__init__(model, caller, headless=headless)
        found = (getattr(call.operation, "variables", ()) for call in self.calls)
        self.variables = list({id(v): v for variables in found for v in variables}.values())

    # --- What comes in ---------------------------------------------------------------------------

    def images(self, images: Any) -> np.ndarray:
        """The images as an array of the model's own floating-point dtype.

        Raises:
            InputError: they are none that the model takes: in shape, or in the range of numbers.
        """
        array = as_array(images, f"{self.caller}: the images")
        wanted = self.image.shape[1:]
        if (
            array.ndim != 4
            or not array.size
            or any(w not in (None, a) for w, a in zip(wanted, array.shape[1:], strict=True))
        ):
            sides = "x".join("any" if side is None else str(side) for side in wanted)
            one = f"; one image is images[None], {(1, *array.shape)}" if array.ndim == 3 else ""
            raise InputError(
                f"{self.caller}: {self.model.name} takes images (N, {', '.join(sides.split('x'))}),"
                f" not {array.shape}{one}"
            )
        if not np.issubdtype(array.dtype, np.integer) and not np.issubdtype(
            array.dtype, np.floating
        ):
            raise InputError(f"{self.caller}: the images must be real numbers, not {array.dtype}")
        found = array.astype(self._dtype, copy=False)
        if not np.isfinite(found).all():
            raise InputError(f"{self.caller}: the images have numbers that are not finite")
        self._check_range(found, is_bytes=np.issubdtype(array.dtype, np.integer))
        return found

    @property
    def _dtype(self) -> str:
        dtype = keras.backend.standardize_dtype(self.image.dtype)
        return dtype if dtype in ("float32", "float64") else "float32"

    def _check_range(self, images: np.ndarray, is_bytes: bool) -> None:
        bounds = self.own_bounds
        if bounds is None:
            return
        low, high = bounds
        least, most = float(images.min()), float(images.max())
        slack = (high - low) / 2  # what noise and a step of an attack may add
        if (low, high) == (0, 255) and least >= 0 and most <= 1 and not is_bytes and most > 0:
            remedy = "they lie in 0..1: multiply them by 255"
        elif least < low - slack or most > high + slack:
            remedy = f"they lie in {least:g}..{most:g}: give the pixels as they are"
        elif (low, high) == (0, 255) and least < -1 / 255 and most < 64:
            remedy = (
                f"they lie in {least:g}..{most:g}, as if normalized already: give the pixels as "
                "they are"
            )
        else:
            return
        raise InputError(
            f"{self.caller}: {self.model.name} takes images in {low:g}..{high:g} and normalizes "
            f"them itself, and {remedy}"
        )

    @property
    def own_bounds(self) -> tuple[float, float] | None:
        """The range of the images where the model's first layers tell it; None where not."""
        for call in self.calls:
            layer = call.operation
            if isinstance(layer, ImageNormalization):
                return 0.0, 255.0
            if isinstance(layer, layers.Rescaling) and is_number(layer.scale):
                if layer.scale < 1 / 50:  # 1 / 255, or 1 / 127.5
                    return 0.0, 255.0
            elif getattr(layer, "weights", ()):
                break
        return None

    def bounds(self, given: tuple[float, float] | None) -> tuple[float, float]:
        """The lowest and highest number of an image: as given, or as the model tells.

        Raises:
            InputError: nobody tells them, or they are none.
        """
        if given is None:
            own = self.own_bounds
            if own is None:
                raise InputError(
                    f"{self.caller}: nothing in {self.model.name} tells the range of its images; "
                    "give it, as in bounds=(0, 1)"
                )
            return own
        if (
            not isinstance(given, (tuple, list))
            or len(given) != 2
            or not all(map(is_number, given))
            or not given[0] < given[1]
        ):
            raise InputError(
                f"{self.caller}: bounds must be the lowest and the highest number of an image, as "
                f"(0, 255), not {given!r}"
            )
        return float(given[0]), float(given[1])

    def labels(self, classes: Any, count: int, what: str = "classes") -> np.ndarray:
        """Class numbers, (count,), int64; one number stands for all images.

        Raises:
            InputError: they are not, or beyond the model's classes.
        """
        found = as_array(classes, f"{self.caller}: {what}")
        if found.ndim == 0:
            found = np.full(count, found)
        if found.shape != (count,) or not np.issubdtype(found.dtype, np.integer):
            raise InputError(
                f"{self.caller}: {what} must be whole numbers, one for each of the {count} images, "
                f"not {found.shape} of {found.dtype}"
            )
        if found.min() < 0 or found.max() >= self.classes:
            wrong = found[(found < 0) | (found >= self.classes)][0]
            raise InputError(
                f"{self.caller}: {what} has {wrong}, and {self.model.name} knows the classes 0 to "
                f"{self.classes - 1}"
            )
        return found.astype(np.int64)

    def classes_of(self, images: np.ndarray, classes: Any) -> np.ndarray:
        """The classes as given, or the predicted ones for None.

        Raises:
            InputError: they are no classes, or the model gives none; see `labels` and `predict`.
        """
        if classes is not None:
            found = self.labels(classes, len(images))
            self.predict(images[:1])
            return found
        return self.predict(images).argmax(-1)

    # --- What comes out --------------------------------------------------------------------------

    def both_sides(self, logits: Any) -> Any:
        """(batch, classes), also of a model that has one unit for two classes."""
        if logits.shape[-1] != 1:
            return logits
        return ops.concatenate([ops.zeros_like(logits), logits], axis=-1)

    def class_logits(self, images: Any) -> Any:
        """Of a batch, as a tensor: (batch, classes)."""
        (logits,) = self.run({self.image: images}, [self.logits])
        return self.both_sides(logits)

    def cross_entropy(self, logits: Any, labels: Any) -> Any:
        """Of each image of a batch, nats, (batch,)."""
        logits = self.both_sides(logits)
        return ops.sparse_categorical_crossentropy(labels, logits, from_logits=True)

    def predicted(self, logits: Any) -> Any:
        """The class of the largest logit, (batch,)."""
        return ops.argmax(self.both_sides(logits), axis=-1)

    def scores(self, logits: Any, classes: Any) -> Any:
        """The logit of each image's class, (batch,).

        Where one unit stands for two classes it is the unit's, or its negative for class 0.
        """
        if logits.shape[-1] == 1:
            sign = 2 * ops.cast(classes, logits.dtype) - 1
            return logits[:, 0] * sign
        chosen = ops.one_hot(classes, logits.shape[-1], dtype=logits.dtype)
        return ops.sum(logits * chosen, axis=-1)

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Logits (N, classes) as an array, two columns where one unit stands for two classes.

        Raises:
            InputError: they are probabilities, whose softmax the graph hides.
        """
        parts = [self.maps_of(batch, [self.logits])[0] for (batch,) in self.batches(images)]
        logits = np.concatenate([ops.convert_to_numpy(part) for part in parts])
        self.check_logits(logits)
        return ops.convert_to_numpy(self.both_sides(ops.convert_to_tensor(logits)))

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """The softmax of the logits, (N, classes), float64; see `predict`."""
        logits = self.predict(images).astype("float64")
        powers = np.exp(logits - logits.max(-1, keepdims=True))
        return powers / powers.sum(-1, keepdims=True)

    def check_logits(self, logits: np.ndarray) -> None:
        """Raises an `InputError` where they are not finite, or probabilities."""
        if not np.isfinite(logits).all():
            raise InputError(f"{self.caller}: {self.model.name} gives numbers that are not finite")
        if logits.shape[-1] > 1 and logits.min() >= 0 and np.abs(logits.sum(-1) - 1).max() < 1e-3:
            raise InputError(
                f"{self.caller}: {self.model.name} gives probabilities, and its softmax is hidden "
                "in a layer of its own; end the model in keras.layers.Softmax, or in logits"
            )

    def batches(self, images: np.ndarray, *others: np.ndarray | None) -> Iterator[tuple[Any, ...]]:
        """Parts of at most `BATCH` of each array, as tensors; None stays None."""
        for start in range(0, len(images), BATCH):
            stop = start + BATCH
            yield tuple(
                None if array is None else ops.convert_to_tensor(array[start:stop])
                for array in (images, *others)
            )

    def maps_of(self, images: Any, wanted: Sequence[Tensor], **options: Any) -> list[Any]:
        """What becomes of a batch at these tensors of the graph; without gradients."""
        return without_gradients(lambda: self.run({self.image: images}, wanted, **options))

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """See `kapps.explain._differentiation.compiled`."""
        return compiled(function, self.variables)

    def gradients(
        self, images: Any, classes: Any, at: Tensor, **options: Any
    ) -> tuple[Any, Any, Any]:
        """The map at a tensor of the graph, the gradient of the classes' logits by it, the logits.

        It costs one forward pass, and one backward as far as that tensor.

        Args:
            images: a batch, as a tensor.
            classes: (batch,), as a tensor; None for the predicted ones. The images do not see each
                other, so that the sum of their logits has each one's gradient.
            at: the image itself, or what a layer makes of it.
            options: of `Graph.run`.
        """
        beside = self.between(at, self.logits)
        start, *rest = self.maps_of(images, [at, *beside], **options)
        given = dict(zip(beside, rest, strict=True))

        def objective(inputs: list[Any]) -> tuple[Any, Any]:
            (logits,) = self.run({**given, at: inputs[0]}, [self.logits], **options)
            chosen = self.predicted(logits) if classes is None else classes
            return ops.sum(self.scores(logits, chosen)), logits

        _, logits, (gradient,) = value_and_gradients(objective, [start])
        return start, gradient, logits

    def checked_gradients(
        self, images: np.ndarray, classes: Any, at: Tensor, **options: Any
    ) -> Iterator[tuple[Any, Any, np.ndarray]]:
        """Of each batch the maps, their gradients, and the classes that these are of, (batch,).

        Args:
            images: of `images`.
            classes: as a user gives them; None for the predicted ones.
            at, options: of `gradients`.

        Raises:
            InputError: the classes are none, the model gives probabilities, or a gradient is zero.
        """
        chosen = None if classes is None else self.labels(classes, len(images))
        first = 0
        for batch, wanted in self.batches(images, chosen):
            maps, gradient, logits = self.gradients(batch, wanted, at, **options)
            self.check_logits(ops.convert_to_numpy(logits))
            own = ops.convert_to_numpy(self.predicted(logits) if wanted is None else wanted)
            self.check_gradient(ops.convert_to_numpy(gradient), own, first)
            first += len(own)
            yield maps, gradient, own

    def check_gradient(self, gradient: np.ndarray, classes: np.ndarray, first: int = 0) -> None:
        """Raises an `InputError` where an image has no gradient at all: the picture is black."""
        axes = tuple(range(1, gradient.ndim))
        dead = np.flatnonzero(~np.any(gradient, axis=axes))
        if dead.size:
            i = int(dead[0])
            raise InputError(
                f"{self.caller}: the gradient of class {classes[i]} is zero everywhere for image "
                f"{first + i}: no ReLU on the way is active, or the network does not depend on its "
                "input; explain another class, or use occlusion, which needs no gradient"
            )


def as_array(value: Any, what: str) -> np.ndarray:
    """Also of a tensor of the backend.

    Raises:
        InputError: its rows differ in length.
    """
    if ops.is_tensor(value):
        return ops.convert_to_numpy(value)
    try:
        return np.asarray(value)
    except ValueError as error:
        raise InputError(f"{what} are no array, for they differ in shape: {error}") from error

"""A map of a data set: pictures whose features are alike lie next to one another."""

from __future__ import annotations

import importlib
from typing import Any

import keras
import numpy as np
from keras import ops

from kapps._errors import InputError, check_whole, is_number
from kapps.explain._classifier import Classifier, as_array
from kapps.explain._resize import resized
from kapps.explain.units import maps_by_batch

_FEWEST = 4  # pictures: fewer have no neighbours to keep


def feature_map(
    model: keras.Model,
    images: Any,
    layer: str | None = None,
    *,
    method: str = "tsne",
    perplexity: float | None = None,
    seed: int = 0,
) -> np.ndarray:
    """Places pictures in the plane by their features, averaged over the positions of a map.

    Args:
        model: a network, with classes or without.
        images: (N, height, width, channels) in the model's own range, or an iterable of batches
            of them, alone or first in a tuple.
        layer: which makes a map; by default the one that the head takes.
        method: "tsne" (van der Maaten and Hinton 2008, of scikit-learn, from the principal
            components), or "umap" (McInnes et al. 2018, of umap-learn).
        perplexity: how many neighbours a picture has, about; by default 30, or a third of the
            pictures where they are fewer than 91.
        seed: of what is drawn.

    Returns:
        (N, 2), float32: x to the right and y downwards, in 0..1, in one scale for both. The longer
        of the two reaches from 0 to 1, and the other is centred.

    Raises:
        InputError: the images do not fit the model or are too few, there is no such map, or the
            library of the method is not installed.
    """
    if method not in ("tsne", "umap"):
        raise InputError(f'feature_map: method must be "tsne" or "umap", not {method!r}')
    check_whole("feature_map", "seed", seed, least=0)
    net = Classifier(model, "feature_map", headless=True)
    at = net.features() if layer is None else net.map(layer)
    features = np.concatenate(
        [
            ops.convert_to_numpy(ops.mean(maps, axis=(1, 2)))
            for _, maps in maps_by_batch(net, images, at)
        ]
    ).astype("float32")
    if len(features) < _FEWEST:
        raise InputError(f"feature_map: it takes {_FEWEST} images or more, not {len(features)}")
    neighbours = _neighbours(perplexity, len(features))
    place = _tsne if method == "tsne" else _umap
    return _within_one(place(features, neighbours, seed))


def _neighbours(perplexity: Any, count: int) -> float:
    if perplexity is None:
        return min(30.0, (count - 1) / 3)
    if not is_number(perplexity) or not 1 <= perplexity < count:
        raise InputError(
            f"feature_map: perplexity must be a number from 1 to below the number of images, "
            f"{count}, not {perplexity!r}"
        )
    return float(perplexity)


def _tsne(features: np.ndarray, neighbours: float, seed: int) -> np.ndarray:
    try:
        from sklearn.manifold import TSNE
    except ImportError as error:
        raise InputError("feature_map needs scikit-learn: pip install scikit-learn") from error
    # Principal components need two features, and pictures that are not all the same.
    varied = features.shape[1] > 1 and features.std(0).max() > 0
    start = "pca" if varied else "random"
    found: np.ndarray = TSNE(perplexity=neighbours, init=start, random_state=seed).fit_transform(
        features
    )
    return found


def _umap(features: np.ndarray, neighbours: float, seed: int) -> np.ndarray:
    try:
        umap = importlib.import_module("umap")  # no dependency, not even of the tests
    except ImportError as error:
        raise InputError('method="umap" needs umap-learn: pip install umap-learn') from error
    # Drawing by a seed takes one thread, of which umap warns unless it is told.
    method = umap.UMAP(n_neighbors=max(2, round(neighbours)), random_state=seed, n_jobs=1)
    found: np.ndarray = method.fit_transform(features)
    return found


def _within_one(places: np.ndarray) -> np.ndarray:
    low, high = places.min(0), places.max(0)
    span = float((high - low).max()) or 1.0
    return ((places - (low + high) / 2) / span + 0.5).clip(0, 1).astype("float32")


def scatter(
    images: Any, coordinates: Any, *, size: int = 1024, thumbnail: int = 48, value: float = 255
) -> np.ndarray:
    """One picture with a thumbnail of each image at its place; later ones cover earlier ones.

    Args:
        images: (N, height, width, 1 or 3), 0..255.
        coordinates: (N, 2) in 0..1, x to the right and y downwards, of `feature_map`.
        size: of the picture, pixels.
        thumbnail: the longer side of a thumbnail, pixels.
        value: of the background.

    Returns:
        (size, size, 3), float32.

    Raises:
        InputError: the images are none, or the coordinates are not in 0..1, one pair for each.
    """
    pictures = as_array(images, "scatter: images")
    if pictures.ndim != 4 or pictures.shape[-1] not in (1, 3) or not pictures.size:
        raise InputError(
            f"scatter: images must be (N, height, width, 1 or 3), not {pictures.shape}"
        )
    places = np.asarray(coordinates, "float64")
    if places.shape != (len(pictures), 2) or not (places.min() >= 0 and places.max() <= 1):
        raise InputError(
            f"scatter: coordinates must be ({len(pictures)}, 2) in 0..1, as of feature_map, not "
            f"{places.shape}"
        )
    check_whole("scatter", "thumbnail", thumbnail)
    if check_whole("scatter", "size", size) < thumbnail:
        raise InputError(f"scatter: size {size} is below that of a thumbnail, {thumbnail}")
    found = np.full((size, size, 3), value, "float32")
    longer = max(pictures.shape[1:3])
    height, width = (max(1, round(side * thumbnail / longer)) for side in pictures.shape[1:3])
    small = resized(pictures.astype("float32"), height, width)
    for picture, (x, y) in zip(small, places, strict=True):
        top, left = round(y * (size - height)), round(x * (size - width))
        found[top : top + height, left : left + width] = picture
    return found

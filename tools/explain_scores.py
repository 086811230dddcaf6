"""What kapps-explain finds out: a map of each method for each image and class, with its scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import keras
import numpy as np

from kapps import explain
from kapps._errors import InputError, unknown
from kapps.explain._classifier import Classifier
from kapps.explain.pictures import resized
from kapps.tools.explain_images import Pictures
from kapps.tools.explain_methods import Maps, Method, maps_of

REFERENCES = ("random map", "centred map")
"""Maps that know nothing of the network: what a method has to beat."""

_AT_ONCE = 256  # maps that are scored in one go: 150 MB of images of 224 pixels


@dataclass(frozen=True)
class Asked:
    """What is explained: a class of an image.

    Attributes:
        image: its number in the pictures.
        target: the class.
        probability: of it, 0..1.
        is_predicted: whether it is the most probable one.
    """

    image: int
    target: int
    probability: float
    is_predicted: bool


@dataclass(frozen=True)
class Score:
    """How well a map names what the class lives off; 0..1 each.

    Attributes:
        deletion: the area under the class's probability as the pixels are removed: small is good.
        insertion: as they appear: large is good.
        pointing: whether the map's largest value is on the object, the share where several are
            the largest; None without boxes.
    """

    deletion: float
    insertion: float
    pointing: float | None


@dataclass(frozen=True)
class Explained:
    """The maps of one method, and the score of each, None where there is no map."""

    maps: Maps
    scores: tuple[Score | None, ...]


@dataclass(frozen=True)
class Explanation:
    """All of it.

    Attributes:
        asked: the images and classes.
        methods: what each made of them.
        references: the scores of `REFERENCES`, for each image and class.
    """

    asked: tuple[Asked, ...]
    methods: tuple[Explained, ...]
    references: dict[str, tuple[Score, ...]]


def ask(
    model: keras.Model, pictures: Pictures, targets: Sequence[str], class_names: Sequence[str]
) -> list[Asked]:
    """The images with the classes that are named, or with the predicted one for none.

    Raises:
        InputError: there is no such class; the message proposes the nearest names.
    """
    net = Classifier(model, "kapps-explain")
    wanted = [target_of(target, class_names, net.classes) for target in targets]
    shares = net.probabilities(net.images(pictures.images))
    return [
        Asked(i, target, float(shares[i, target]), bool(target == shares[i].argmax()))
        for i in range(len(pictures))
        for target in wanted or [int(shares[i].argmax())]
    ]


def target_of(text: str, class_names: Sequence[str], classes: int) -> int:
    """The number of a class that is given by name or number; a name goes first."""
    if text in class_names:
        return list(class_names).index(text)
    if not text.strip().isdecimal():
        if class_names:
            raise unknown("class", text, class_names)
        raise InputError(
            f"unknown class {text!r}; the model's classes have no names: give a number, 0 to "
            f"{classes - 1}, or the names in a file, --labels"
        )
    if int(text) >= classes:
        raise InputError(f"--targets: {text} is beyond the model's classes, 0 to {classes - 1}")
    return int(text)


def explained(
    model: keras.Model,
    pictures: Pictures,
    asked: Sequence[Asked],
    methods: Sequence[Method],
    layer: str | None,
    *,
    required: bool,
    done: Callable[[], object] = lambda: None,
) -> Explanation:
    """Runs the methods, and scores what they find.

    Args:
        model: any that `kapps.explain` takes.
        pictures: the images.
        asked: of `ask`.
        methods: which.
        layer: for those that take one; None for the map that the head takes.
        required: whether each method was asked for by name: see `maps_of`.
        done: is called after each method, and once they are scored.

    Raises:
        InputError: the layer is none, or a method does not go with the model.
    """
    if layer is not None:
        Classifier(model, "kapps-explain").map(layer)
    which = np.array([each.image for each in asked])
    classes = np.array([each.target for each in asked])
    images = pictures.images[which]
    masks = None if pictures.masks is None else pictures.masks[which]
    found = []
    for method in methods:
        found.append(maps_of(method, model, images, classes, layer, required=required))
        done()
    known = _references(len(asked), images.shape[1:3])
    every = [*(each.maps for each in found), *known.values()]
    scored = _scores(model, images, classes, every, masks)
    done()
    ours, others = scored[: len(found)], scored[len(found) :]
    return Explanation(
        tuple(asked),
        tuple(Explained(maps, tuple(score)) for maps, score in zip(found, ours, strict=True)),
        {
            name: tuple(score for score in row if score is not None)
            for name, row in zip(known, others, strict=True)
        },
    )


def mean(scores: Sequence[Score | None]) -> Score | None:
    """Over the images that have one; None where none has."""
    known = [score for score in scores if score is not None]
    if not known:
        return None
    pointing = [score.pointing for score in known if score.pointing is not None]
    return Score(
        float(np.mean([score.deletion for score in known])),
        float(np.mean([score.insertion for score in known])),
        float(np.mean(pointing)) if pointing else None,
    )


def _references(count: int, size: tuple[int, int]) -> dict[str, list[np.ndarray]]:
    noise = np.random.default_rng(0).random((count, *size), np.float32)
    rows, columns = (np.abs(np.linspace(-1, 1, side)) for side in size)
    centred = (2 - np.hypot(rows[:, None], columns)).astype(np.float32)
    return dict(zip(REFERENCES, ([*noise], [centred] * count), strict=True))


def _scores(
    model: keras.Model,
    images: np.ndarray,
    classes: np.ndarray,
    every: Sequence[Sequence[np.ndarray | None]],
    masks: np.ndarray | None,
) -> list[list[Score | None]]:
    """Of each method's map of each image, many in one go: for each the model is compiled anew."""
    size = images.shape[1:3]
    places = [(m, i) for m, row in enumerate(every) for i in range(len(row)) if row[i] is not None]
    maps = np.stack([resized(_map(every, place), size) for place in places])
    of = np.array([i for _, i in places])
    parts = np.array_split(np.arange(len(of)), -(-len(of) // _AT_ONCE))
    areas = [
        np.concatenate([score(model, images[of[p]], maps[p], classes[of[p]]).area for p in parts])
        for score in (explain.deletion, explain.insertion)
    ]
    found: list[list[Score | None]] = [[None] * len(row) for row in every]
    for (m, i), heat, removed, inserted in zip(places, maps, *areas, strict=True):
        pointing = None
        if masks is not None and masks[i].any():
            pointing = explain.pointing_game(heat[None], masks[i : i + 1], tolerance=0)
        found[m][i] = Score(float(removed), float(inserted), pointing)
    return found


def _map(every: Sequence[Sequence[np.ndarray | None]], place: tuple[int, int]) -> np.ndarray:
    found = every[place[0]][place[1]]
    assert found is not None
    return found

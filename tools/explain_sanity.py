"""The sanity check of kapps-explain: whether a method's maps depend on the weights at all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import keras
import numpy as np

from kapps._errors import InputError
from kapps.explain import Randomization, randomization
from kapps.explain.sanity import THRESHOLD
from kapps.tools.explain_methods import Method
from kapps.tools.page import Section, Table


@dataclass(frozen=True)
class Check:
    """What became of one method.

    Attributes:
        method: which.
        found: of the cascading randomization; None where the method explains no image.
        message: why there is none.
    """

    method: Method
    found: Randomization | None
    message: str = ""

    @property
    def verdict(self) -> str:
        """In a line: it begins with passes, fails or undecided, or is the message."""
        return self.message if self.found is None else self.found.verdict

    @property
    def word(self) -> str:
        """The verdict in one word."""
        return "not explained" if self.found is None else self.verdict.partition(":")[0]


def check(
    model: keras.Model,
    images: np.ndarray,
    classes: np.ndarray,
    methods: Sequence[Method],
    layer: str | None,
    *,
    done: Callable[[], object] = lambda: None,
) -> list[Check]:
    """Randomizes the network for each method; its weights are as before afterwards.

    Args:
        model: any that `kapps.explain` takes.
        images: (N, height, width, channels), 0..255.
        classes: (N,).
        methods: which.
        layer: for those that take one; None for the map that the head takes.
        done: is called after each method.
    """
    found = []
    for method in methods:

        def maps(
            model: keras.Model, images: np.ndarray, classes: np.ndarray, method: Method = method
        ) -> np.ndarray:
            return method(model, images, classes, layer)

        try:
            found.append(Check(method, randomization(model, images, maps, classes)))
        except InputError as error:
            found.append(Check(method, None, str(error)))
        done()
    return found


def section(checks: Sequence[Check]) -> Section:
    """A row a step: how alike the maps still are, and the verdicts first."""
    known = [check for check in checks if check.found is not None]
    steps = known[0].found.layers if known and known[0].found else ()
    rows = [["verdict", *(check.word for check in checks)]]
    for step, name in enumerate(steps):
        row = [f"random from {name} up"]
        for each in checks:
            row.append("" if each.found is None else f"{each.found.correlations[step].mean():.2f}")
        rows.append(row)
    header = ["", *(check.method.label for check in checks)]
    caption = (
        "Cascading randomization (Adebayo et al. 2018): the rank correlation of the maps with "
        "those of the trained network, mean of the images. A map that stays the same when the "
        "network has forgotten everything shows the image, and not what the network has learned. "
        f"A method passes whose mean over all steps is below {THRESHOLD:g}."
    )
    return Section("Sanity check", Table(header, rows, text_columns=(0,), caption=caption))

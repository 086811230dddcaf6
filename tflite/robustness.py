"""How images are attacked, and what accuracy is left: what a figure of robustness has to state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import msgspec

from kapps._errors import InputError, is_number, is_whole, unknown
from kapps.tflite.results import Count, Line, Name, Number, Sha256, Share, checked

METHODS = {"pgd": "PGD", "square": "Square"}
"""The attacks, and what they are called."""
NORM = "linf"
"""The budget bounds the largest change of a number of the image."""
_ITERATIONS = {"pgd": 20, "square": 300}
_STARTS = {"random": "random start", "image": "start at the image", "stripes": "start of stripes"}
_MOST_EPS = 20

_Eps = Annotated[int, msgspec.Meta(ge=1, le=255)]
_Step = Annotated[float, msgspec.Meta(gt=0, le=255)]


@dataclass(frozen=True)
class Attack:
    """How images are attacked. All that is random is drawn from the seed.

    Attributes:
        eps: the budgets: the largest change of a number of the image, in gray levels. They are
            whole, 1..255, since the attacked images are bytes, as what a file takes.
        method: "pgd", projected gradient descent (Madry et al. 2018), whose gradients are those of
            a Keras model; or "square" (Andriushchenko et al. 2020), which asks the attacked model
            for its scores only.
        step: of an iteration of PGD, gray levels; None for 2.5 eps / iterations, with which any
            point of the budget is reached from any other (Madry et al. 2018). Square has none.
        iterations: steps of PGD, by default 20; squares that Square tries, one query each, by
            default 300, and two more for the image and the stripes that it starts with.
        random_start: whether PGD starts at a random point of the budget. Square always does.
        restarts: how often each image is attacked; it has to resist every time.
        seed: of all that is random.

    Raises:
        InputError: a number is none that an attack can have.
    """

    eps: tuple[int, ...]
    method: str = "pgd"
    step: float | None = None
    iterations: int | None = None
    random_start: bool = True
    restarts: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise unknown("attack", self.method, METHODS)
        if not self.eps or not all(is_whole(e) and 1 <= int(e) <= 255 for e in self.eps):
            raise InputError(
                "attack: eps must be whole gray levels, 1 to 255, because the attacked images are "
                f"bytes, not {', '.join(map(str, self.eps)) or 'nothing'}"
            )
        if len(self.eps) > _MOST_EPS:
            raise InputError(f"attack: {len(self.eps)} eps are more than {_MOST_EPS}")
        object.__setattr__(self, "eps", tuple(sorted({int(e) for e in self.eps})))
        if self.step is not None and not (is_number(self.step) and 0 < self.step <= 255):
            raise InputError(f"attack: step must be gray levels, 0 to 255, not {self.step!r}")
        if self.iterations is None:
            object.__setattr__(self, "iterations", _ITERATIONS[self.method])
        for name, least in (("iterations", 1), ("restarts", 1), ("seed", 0)):
            value = getattr(self, name)
            if not is_whole(value) or int(value) < least:
                raise InputError(
                    f"attack: {name} must be a whole number, {least} or more, not {value!r}"
                )
        if self.method == "square" and (self.step is not None or not self.random_start):
            raise InputError("attack: step and start belong to PGD; Square has its own")
        if self.restarts > 1 and not self.random_start:
            raise InputError("attack: restarts without a random start do the same again")

    def step_at(self, eps: int) -> float | None:
        """The step for a budget, in gray levels; None of Square."""
        if self.method == "square":
            return None
        assert self.iterations is not None
        return 2.5 * eps / self.iterations if self.step is None else float(self.step)

    @property
    def start(self) -> str:
        """Where it starts: "random" in the budget, "image", or Square's "stripes"."""
        if self.method == "square":
            return "stripes"
        return "random" if self.random_start else "image"


@dataclass(frozen=True)
class RobustLevel:
    """What is left at one budget.

    Attributes:
        eps: the budget, gray levels of 0..255.
        step: of an iteration, gray levels; None for an attack that has none.
        top1: share of the images that were right as they are and after every restart, 0 to 1.
    """

    eps: _Eps
    step: _Step | None
    top1: Share


@dataclass(frozen=True)
class Robustness:
    """How a classifier did on attacked images.

    Attributes:
        method: "pgd" or "square".
        norm: of the budget: "linf".
        iterations: of the attack; for Square the squares tried, one query each.
        start: see `Attack.start`.
        restarts: how often each image was attacked.
        seed: of all that was random.
        source: the network that the gradients are of; for Square, which has none, what was
            attacked itself.
        source_sha256: of its weights, or of the file.
        images: how many were attacked.
        clean: share of them that is right as they are, 0 to 1.
        levels: what is left at each budget.
    """

    method: Name
    norm: Name
    iterations: Count
    start: Name
    restarts: Count
    seed: Number
    source: Line
    source_sha256: Sha256
    images: Count
    clean: Share
    levels: tuple[RobustLevel, ...]

    @property
    def settings(self) -> tuple[Any, ...]:
        """All but the budgets: what two figures have to share to be compared."""
        own = (self.method, self.norm, self.iterations, self.start, self.restarts, self.seed)
        # A black-box attack is made anew for each file: its source says nothing of the attack.
        return (*own, self.images, "" if self.method == "square" else self.source_sha256)

    @property
    def attack(self) -> str:
        """The settings in words."""
        queries = " of one query" if self.method == "square" else ""
        tries = "restart" if self.restarts == 1 else "restarts"
        name = METHODS.get(self.method, self.method)
        of = (
            "scores alone"
            if self.method == "square"
            else f"gradients of {self.source} ({self.source_sha256[:8]})"
        )
        return (
            f"{name}, {self.norm.capitalize()}, {self.iterations:,} iterations{queries}, "
            f"{_STARTS.get(self.start, self.start)}, {self.restarts:,} {tries}, seed {self.seed}, "
            f"{of}, {self.images:,} images"
        )

    @property
    def line(self) -> str:
        """What a program says of it."""
        levels = "; ".join(f"{at(each)} {each.top1:.4f}" for each in self.levels)
        return f"{self.attack}: clean {self.clean:.4f}; {levels}"


def at(level: RobustLevel) -> str:
    """The budget and the step in words, such as "eps 4, step 0.5"."""
    return f"eps {level.eps}" + ("" if level.step is None else f", step {level.step:.3g}")


def parse(values: Any, where: str) -> Robustness | None:
    """From a JSON object, or None from None; `where` is the place in the file, for messages.

    Raises:
        InputError: it is none such; the message names the field.
    """
    if values is None:
        return None
    found = checked(values, Robustness, where)
    for number, each in enumerate(values["levels"]):
        checked(each, RobustLevel, f"{where}.levels.{number}")
    if not 0 < len({(each.eps, each.step) for each in found.levels}) == len(found.levels):
        raise InputError(f"{where}.levels: expected each eps and step once")
    return found

"""What weights bring with them of the evaluation that they were published with."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

from kapps._errors import InputError
from kapps._index import PublishedWeights

if TYPE_CHECKING:
    from kapps.transform import EvalTransform


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """How the images are prepared for the weights of a file; the fields are those of
    `PublishedWeights`.
    """

    size: int
    crop: float
    interpolation: str
    crop_mode: str
    test_size: int | None = None
    test_crop: float | None = None
    source: str = ""
    """Of the published weights that they come from."""

    @classmethod
    def of_transform(cls, transform: EvalTransform) -> Evaluation:
        """What a run says of its own images."""
        return cls(transform.size, transform.crop, transform.interpolation, transform.crop_mode)

    def text(self) -> str:
        """As one line of JSON, for a file's metadata."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def of_text(cls, text: str, where: str) -> Evaluation:
        """What `text` has given. `where` is named in errors.

        Raises:
            InputError: it is something else.
        """
        try:
            from kapps.transform import EvalTransform  # not at the top: it imports Keras

            made = cls(**json.loads(text))
            EvalTransform(made.size, made.crop, made.interpolation, made.crop_mode)
            EvalTransform(made.test_size or made.size, made.test_crop or made.crop)
        except (TypeError, ValueError) as error:  # an InputError is one, too
            raise InputError(
                f"{where}: the metadata's evaluation is not one that kapps writes ({error}); save "
                "the file again"
            ) from error
        return made


def evaluation_of(model: Any) -> Evaluation | None:
    """What the model's weights have brought with them; None if that is nothing."""
    published = getattr(model, "kapps_weights", None)
    if isinstance(published, PublishedWeights):
        names = (field.name for field in dataclasses.fields(Evaluation))
        return Evaluation(**{name: getattr(published, name) for name in names})
    brought = getattr(model, "kapps_evaluation", None)
    return brought if isinstance(brought, Evaluation) else None

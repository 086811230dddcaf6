"""What kapps-explain does: reads the images, explains them, and writes the page."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import kapps
from kapps._errors import InputError, printable
from kapps.explain._classifier import Classifier
from kapps.tflite.source import Model
from kapps.tools import (
    data,
    explain_images,
    explain_methods,
    explain_page,
    explain_sanity,
    explain_sections,
)
from kapps.tools.explain_images import Pictures
from kapps.tools.explain_scores import ask, explained
from kapps.tools.progress import progress_bar
from kapps.tools.runs import versions

_MANY = 300  # images of a data set, for what looks at many of them
_CHECKED = 8  # images and classes, for the sanity check


@dataclass(frozen=True)
class Request:
    """What is asked for, as the flags of kapps-explain say it.

    Attributes:
        files: of images, and folders of them; without any those of the data set are taken.
        dataset: its name; None for the run's.
        split: of the data set.
        data_dir: where the TensorFlow data sets lie; None for where the run had them.
        images: how many of the data set.
        methods: names; None for the default ones.
        layer: for the methods that take one; None for the map that the head takes.
        targets: the classes, names or numbers; empty for the predicted ones.
        boxes: the JSON file of where the objects are; None without.
        sections: names of `explain_sections`.
        sanity: whether the methods are checked by randomizing the network.
    """

    files: Sequence[str] = ()
    dataset: str | None = None
    split: str = "validation"
    data_dir: str | None = None
    images: int = 8
    methods: Sequence[str] | None = None
    layer: str | None = None
    targets: Sequence[str] = ()
    boxes: str | None = None
    sections: Sequence[str] = explain_sections.DEFAULT
    sanity: bool = False


def explain(
    source: Model, request: Request, output: str | os.PathLike[str]
) -> list[dict[str, Any]]:
    """Writes the page and the pictures, and returns the figures of each image and class.

    Raises:
        InputError: a file, class, layer, method or section is not there, the images do not go with
            the model, or the output cannot be written.
    """
    wanted = explain_methods.DEFAULT if request.methods is None else request.methods
    methods = explain_methods.chosen(wanted)
    sections = explain_sections.chosen(request.sections)
    _check_folder(Path(output))
    dataset = _dataset(source, request)
    names = _class_names(source, dataset)
    pictures = _pictures(source, dataset, request)
    asked = ask(source.model, pictures, request.targets, names)
    steps = len(methods) * (1 + request.sanity) + 1 + len(sections)
    with progress_bar(steps, "step", "explaining") as bar:
        explanation = explained(
            source.model,
            pictures,
            asked,
            methods,
            request.layer,
            required=request.methods is not None and list(request.methods) != ["all"],
            done=bar.update,
        )
        checks = []
        if request.sanity:
            few = asked[:_CHECKED]
            checks = explain_sanity.check(
                source.model,
                pictures.images[[each.image for each in few]],
                np.array([each.target for each in few]),
                methods,
                request.layer,
                done=bar.update,
            )
        given = explain_sections.Given(
            source.model,
            pictures,
            sorted({each.target for each in asked}),
            request.layer,
            names,
            None if dataset is None else lambda: _many(source, dataset, request),
        )
        shown = []
        for name in sections:
            required = list(request.sections) != ["all"]
            shown.append(explain_sections.show(name, given, required=required))
            bar.update()
    return explain_page.write(
        output,
        pictures,
        explanation,
        names,
        title=f"What {printable(source.model.name)} sees",
        facts=_facts(source, request),
        more=[*map(explain_sanity.section, [checks] * bool(checks)), *(s.section for s in shown)],
        files={name: content for each in shown for name, content in each.files.items()},
        verdicts={each.method.name: (each.word, each.verdict) for each in checks},
    )


def line(figures: Mapping[str, Any]) -> str:
    """What the program says of an image and class."""
    name = figures["class_name"] or f"class {figures['class']}"
    parts = []
    for method, score in figures["methods"].items():
        if "message" in score:
            parts.append(score["message"])
        else:
            areas = f"deletion {score['deletion']:.2f}, insertion {score['insertion']:.2f}"
            parts.append(f"{method}: {areas}")
    return f"{figures['image']}: {name} {figures['probability']:.3f}; {'; '.join(parts)}"


def _check_folder(output: Path) -> None:
    """Before any work: whether the folder can be one."""
    for path in (output, *output.parents):
        if path.exists():
            if not path.is_dir():
                raise InputError(f"cannot write into {output}: {path} is no folder; name another")
            return


def _transform(source: Model) -> kapps.EvalTransform:
    """That of the model, in as many channels as it takes."""
    channels = source.model.input_shape[-1]
    if channels not in (1, 3):
        raise InputError(f"{source.model.name} takes {channels} channels, and pictures have 3 or 1")
    if source.transform.channels == channels:
        return source.transform
    return replace(source.transform, channels=channels)


def _dataset(source: Model, request: Request) -> data.Dataset | None:
    """The one that is named; the run's where something needs one."""
    name = request.dataset or source.dataset
    needed = not request.files or set(request.sections) & {*explain_sections.OF_MANY, "all"}
    if name is None or (request.dataset is None and not needed):
        return None
    return data.load(name, request.data_dir or source.data_dir)


def _class_names(source: Model, dataset: data.Dataset | None) -> tuple[str, ...]:
    """The run's, those of a file, or the data set's if there are as many as classes."""
    classes = Classifier(source.model, "kapps-explain").classes
    names = source.labels
    if names is None and dataset is not None and len(dataset.class_names) == classes:
        names = dataset.class_names
    if names is None:
        return ()
    if len(names) != classes:
        raise InputError(f"there are {len(names)} names of classes, and the model has {classes}")
    return tuple(map(printable, names))


def _pictures(source: Model, dataset: data.Dataset | None, request: Request) -> Pictures:
    for name in request.sections:  # before any work
        if dataset is None and name in explain_sections.OF_MANY:
            raise explain_sections.no_data_set(name)
    if request.files:
        boxes = None if request.boxes is None else explain_images.read_boxes(request.boxes)
        return explain_images.read_files(request.files, _transform(source), boxes)
    if dataset is None:
        raise InputError("give images, or --dataset; --help lists the flags")
    return explain_images.read_split(dataset, request.split, request.images, _transform(source))


def _many(source: Model, dataset: data.Dataset, request: Request) -> Pictures:
    return explain_images.read_split(dataset, request.split, _MANY, _transform(source))


def _facts(source: Model, request: Request) -> dict[str, str]:
    net = Classifier(source.model, "kapps-explain")
    at = net.features() if request.layer is None else net.map(request.layer)
    sizes = "\N{MULTIPLICATION SIGN}".join(map(str, at.shape[1:]))
    weights = source.weights
    told = {
        "Model": source.model.name,
        "Weights": "not known" if weights is None else str(weights),
        "Layer": f"{net.name_of(at)}, {sizes}",
        "Versions": ", ".join(f"{name} {number}" for name, number in versions().items()),
    }
    return {name: printable(value) for name, value in told.items()}

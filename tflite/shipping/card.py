"""The model card of what is shipped: what it is, from what, how good, and for what it may be used.

Mitchell et al. 2019, "Model Cards for Model Reporting"; the head is that of the Hugging Face hub,
https://huggingface.co/docs/hub/model-cards.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import kapps
from kapps.tflite import source
from kapps.tflite.accuracy import Accuracy
from kapps.tflite.measurement.latency import Latency
from kapps.tflite.tables import markdown, markdown_text
from kapps.tools import data

_MOST_CLASSES = 100  # that are listed


@dataclass(frozen=True)
class Shipped:
    """What the card tells.

    Attributes:
        title: of the model.
        model: with its classes; settings are the config.json of the run that trained it.
        dataset: that it was trained on.
        data_licence: of these pictures; "" if nobody said it.
        start: the published weights that training began with; None if they were others.
        chosen: the file that goes into the app; files are all that were weighed, it among them.
        validation: by file name, the top-1 by which it was chosen.
        reason: why it was chosen.
        latencies: of the files, where they were measured.
    """

    title: str
    model: source.Model
    settings: Mapping[str, object]
    dataset: data.Dataset
    licence: str
    data_licence: str
    author: str
    start: kapps.PublishedWeights | None
    chosen: Accuracy
    files: Sequence[Accuracy]
    validation: Mapping[str, float]
    reason: str
    latencies: Sequence[Latency]


def card(shipped: Shipped) -> str:
    """The card, as Markdown."""
    text, chosen, transform = markdown_text, shipped.chosen, shipped.model.transform
    names = shipped.model.labels or ()
    start = shipped.start
    head = {
        "library_name": "litert",
        "pipeline_tag": "image-classification",
        "license": shipped.licence or "unknown",
        "tags": ["image-classification", "tflite", "android"],
        "base_model": start.source if start is not None else None,
    }
    lines = [
        "---",
        *(f"{key}: {json.dumps(value)}" for key, value in head.items() if value),
        "---",
        "",
        f"# {text(shipped.title)}",
        "",
        f"{text(chosen.model)}, which tells {len(names)} classes apart, for LiteRT on phones: "
        f"`{chosen.file}`, {chosen.size_bytes / 2**20:.2f} MiB, {chosen.variant}. {shipped.reason}",
        "",
        f"SHA-256 of the file: `{chosen.sha256}`",
        "",
        "## How good it is",
        "",
        f"Top-1 on {chosen.images} held-out images (split {chosen.split}); the file was chosen by "
        f"the {len(shipped.dataset.validation)} images of the split validation.",
        "",
        _figures(shipped),
        "",
    ]
    if shipped.latencies:
        devices = dict.fromkeys(text(latency.device) for latency in shipped.latencies)
        lines += [f"Latency of one image, on {'; '.join(devices)}.", ""]
    lines += [
        "Another camera, light or background than in these images is another matter: try it on "
        "pictures of the place where it will be used. It always names one of its classes, and has "
        "none for what it does not know.",
        "",
        "## In and out",
        "",
        f"In: the image's middle ({transform.crop:g} of the side, {transform.crop_mode}), "
        f"{transform.size} x {transform.size} pixels, RGB in 0..255, resized with "
        f"{transform.interpolation}; nothing else, normalization is in the file. Out: a "
        "probability for each class, in this order (the file's metadata has them too):",
        "",
        ", ".join(f"`{text(name)}`" for name in names[:_MOST_CLASSES])
        + (f" and {len(names) - _MOST_CLASSES} more" if len(names) > _MOST_CLASSES else ""),
        "",
        "## Where it comes from",
        "",
        *_bullets(_origin(shipped)),
        "",
    ]
    return "\n".join(lines)


def name_of(source: str) -> str:
    """Of a data set or weights, without the folders that they lie in: a card goes to others."""
    return Path(source.partition(":")[2] or source).name or source


def _figures(shipped: Shipped) -> str:
    latency = {each.sha256: each for each in shipped.latencies}
    rows = []
    for file in shipped.files:
        known = latency.get(file.sha256)
        rows.append(
            [
                f"{file.file}{' (this one)' if file == shipped.chosen else ''}",
                file.variant,
                f"{file.size_bytes / 2**20:.2f}",
                f"{file.top1:.4f}",
                f"{shipped.validation[file.file]:.4f}",
                "" if known is None or known.p50_ms is None else f"{known.p50_ms:.2f}",
            ]
        )
    header = ["file", "type", "MiB", f"top-1, {shipped.chosen.split}", "top-1, validation"]
    header.append("median, ms")
    columns = len(header) if shipped.latencies else len(header) - 1
    return markdown(header[:columns], [row[:columns] for row in rows], right=range(2, columns))


def _origin(shipped: Shipped) -> dict[str, str]:
    dataset, start, settings = shipped.dataset, shipped.start, shipped.settings
    network = shipped.model.model
    sizes = f"{len(dataset.train)} images to learn from, {len(dataset.validation)} for validation"
    versions = settings.get("versions")
    return {
        "Network": f"{network.name}, {network.count_params():,} parameters",
        "Data": f"{name_of(dataset.name)}: {sizes}, {len(dataset.test)} held out",
        "Licence of the data": shipped.data_licence or "not stated",
        "Started from": name_of(str(settings.get("weights")))
        if start is None
        else f"{start.source} ({start.license}), published with kapps' tag {start.tag}",
        "Licence": shipped.licence or "not stated",
        "Author": shipped.author or "not stated",
        "Recipe": f"{settings.get('phases')}; {settings.get('epochs')} epochs at most, seed "
        f"{settings.get('seed')}",
        "Made with": ", ".join(f"{k} {v}" for k, v in versions.items())
        if isinstance(versions, dict)
        else f"kapps {kapps.__version__}",
    }


def _bullets(facts: Mapping[str, str]) -> list[str]:
    return [f"- {name}: {markdown_text(value)}" for name, value in facts.items()]

"""One page for a set of models and devices: accuracy, size and latency, float beside int8.

And, of files that were attacked, a table an attack: what is left of their accuracy by budget.

The form is that of the EfficientNet-Lite table: a row a model, a column a device.
https://github.com/tensorflow/tpu/blob/master/models/official/efficientnet/lite/README.md
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from kapps._errors import InputError
from kapps.tflite import accuracy
from kapps.tflite.measurement.benchmark import FORMAT as BENCHMARK_FORMAT
from kapps.tflite.measurement.benchmark import MAX_BYTES, parse_results
from kapps.tflite.measurement.placement import Placement
from kapps.tflite.measurement.profile import Profiled
from kapps.tflite.quantizations import VARIANTS
from kapps.tflite.report.page import Section, write_pages
from kapps.tflite.report.picture import Point, picture
from kapps.tflite.report.robustness_rows import attacks_of, joined, robustness_sections
from kapps.tflite.results import read_json
from kapps.tflite.robustness import Robustness
from kapps.tools.page import Table

_MISSING = "\N{EN DASH}"
_FLOAT, _PTQ, _QAT = "float32", "int8", "int8-qat"


@dataclass(frozen=True)
class Timing:
    """How long one image took on a device, in milliseconds; None is what its tool does not tell.

    Attributes:
        p50_ms: the median; p90_ms and p99_ms likewise.
        runs: how many runs were measured.
        delegate_pieces: into how many pieces the delegate took the graph.
        placement: which operations it took.
        profile: the time of each operation, worst first.
    """

    p50_ms: float | None
    p90_ms: float | None
    p99_ms: float | None
    runs: int
    delegate_pieces: int | None
    placement: Placement | None = None
    profile: tuple[Profiled, ...] = ()


@dataclass(frozen=True)
class Entry:
    """What is known of one .tflite file.

    Attributes:
        model: the network: a row of the table.
        variant: the quantization; "" if nothing says it.
        file: the file's name.
        sha256: of its content.
        size_bytes: of the file.
        top1: accuracy, 0 to 1; None if it was not evaluated.
        timings: by device, with the accelerator and the number of threads.
        robustness: on attacked images, one for each attack of other settings.
    """

    model: str
    variant: str
    file: str
    sha256: str
    size_bytes: int
    top1: float | None
    timings: Mapping[str, Timing]
    robustness: tuple[Robustness, ...] = ()


@dataclass(frozen=True)
class Overview:
    """The files of a report, and on what their accuracy was measured ("" if it was not)."""

    entries: tuple[Entry, ...]
    data: str

    @property
    def devices(self) -> list[str]:
        """All devices, in the order in which they came."""
        return list(dict.fromkeys(name for entry in self.entries for name in entry.timings))


def read_overview(paths: Sequence[str | os.PathLike[str]]) -> Overview:
    """Joins what `kapps-evaluate --tflite` and `kapps-benchmark` wrote, by the files' SHA-256.

    Raises:
        InputError: no files, one that is neither, or two that contradict each other; the message
            names both.
    """
    found: dict[str, Entry] = {}
    source: dict[Any, tuple[Path, Any]] = {}  # of each figure: the file of results, and the figure
    came: dict[str, Path] = {}  # where each .tflite file was first spoken of

    def once(key: Any, value: Any, path: Path, what: str) -> None:
        """Remembers where `value` came from, and refuses another one from elsewhere."""
        other, before = source.setdefault(key, (path, value))
        if before != value:
            raise InputError(f"{other} and {path} contradict each other: {what}; leave one out")

    if not paths:
        raise InputError("nothing to report: give results of kapps-evaluate and kapps-benchmark")
    for path in map(Path, paths):
        content = _content(path)
        if accuracy.FORMAT in content:
            a = accuracy.parse_accuracy(content, path)
            data = f"{a.dataset}, {a.split} split, {a.images:,} images"
            once("data", data, path, "accuracies on different images do not belong in one table")
            once((a.sha256, "size"), a.size_bytes, path, f"{a.file} has one SHA-256 and two sizes")
            once((a.sha256, "name"), (a.model, a.variant), path, f"what {a.file} is a file of")
            once((a.sha256, "top1"), a.top1, path, f"top-1 of {a.file}")
            came.setdefault(a.sha256, path)
            entry = found.get(a.sha256)
            found[a.sha256] = Entry(
                a.model,
                a.variant,
                a.file,
                a.sha256,
                a.size_bytes,
                a.top1,
                entry.timings if entry else {},
                entry.robustness if entry else (),
            )
            if (r := a.robustness) is not None:
                where = f"{a.file} under {r.attack}"
                key = (a.sha256, r.settings)
                once((*key, "clean"), r.clean, path, f"clean top-1 of {where}")
                for level in r.levels:
                    step = (*key, level.eps, level.step)
                    once(step, level.top1, path, f"top-1 at eps {level.eps} of {where}")
                both = joined(found[a.sha256].robustness, r)
                found[a.sha256] = replace(found[a.sha256], robustness=both)
            continue
        for result in parse_results(content, path):
            file, sha256 = Path(result.file).name, result.sha256
            column = _column(result)
            timing = Timing(
                result.p50_ms,
                result.p90_ms,
                result.p99_ms,
                result.runs,
                result.delegate_pieces,
                result.placement,
                result.profile,
            )
            once((sha256, "size"), result.size_bytes, path, f"{file} has one SHA-256 and two sizes")
            once((sha256, column), timing, path, f"two measurements of {file} on {column}")
            came.setdefault(sha256, path)
            if sha256 not in found:
                model, variant = accuracy.model_and_variant(file)
                found[sha256] = Entry(model, variant, file, sha256, result.size_bytes, None, {})
            entry = found[sha256]
            found[sha256] = replace(entry, timings={**entry.timings, column: timing})
    first: dict[tuple[str, str], Entry] = {}
    for entry in found.values():
        other = first.setdefault((entry.model, entry.variant or entry.file), entry)
        if other is not entry:
            raise InputError(
                f"{came[other.sha256]} and {came[entry.sha256]} contradict each other: "
                f"{other.file} and {entry.file} differ, and both are {entry.model} "
                f"{entry.variant or 'of no known variant'}; tell them apart by "
                "kapps-evaluate --model and --variant, or leave one out"
            )
    data = source["data"][1] if "data" in source else ""
    models = list(dict.fromkeys(entry.model for entry in found.values()))
    order = sorted(found.values(), key=lambda e: (models.index(e.model), _rank(e.variant)))
    return Overview(tuple(order), data)


def write_overview(overview: Overview, folder: str | os.PathLike[str], *, title: str) -> list[Path]:
    """Writes report.json, report.md and report.html, and returns their paths.

    Raises:
        InputError: the folder cannot be written.
    """
    sections = []
    if models := _model_rows(overview):
        header = ["model", "top-1 float32, %", "top-1 PTQ, %", "top-1 QAT, %", "size, KiB"]
        header += [f"p50 on {letter}, ms" for letter in _letters(overview).values()]
        sections.append(Section("Models", Table(header, models, text_columns=(0,))))
    if points := _points(overview):
        files, devices = {e.sha256 for e, _ in points}, {point.device for _, point in points}
        label = (
            f"Top-1 accuracy over median latency of {len(files)} files on {len(devices)} devices"
        )
        shown = picture([point for _, point in points], label=label)
        sections.append(Section("Accuracy and latency", picture=shown))
    attacked = [
        (entry.file, entry.model, entry.variant or _MISSING, entry.robustness)
        for entry in overview.entries
    ]
    sections += robustness_sections(attacked)
    table = Table(_FILE_HEADER, _file_rows(overview), text_columns=(0, 1, 2, 5))
    sections.append(Section("Files", table))
    if outside := _outside_rows(overview):
        table = Table(_OUTSIDE_HEADER, outside, text_columns=(0, 1, 2, 4, 5))
        sections.append(Section("Outside the accelerator", table))
    if profiled := _profile_rows(overview):
        table = Table(_PROFILE_HEADER, profiled, text_columns=(0, 1, 2, 3))
        sections.append(Section("Slowest operations", table))
    values = {
        "kapps_report": 1,
        "title": title,
        "data": overview.data,
        "devices": overview.devices,
        "files": [asdict(entry) for entry in overview.entries],
    }
    return write_pages(
        folder, title=title, facts=_facts(overview), sections=sections, values=values
    )


def _content(path: Path) -> dict[str, Any]:
    """What a file of kapps-evaluate or of kapps-benchmark holds, not checked yet."""
    values = read_json(path, most_bytes=MAX_BYTES, kind="JSON")
    if not isinstance(values, dict) or not {accuracy.FORMAT, BENCHMARK_FORMAT} & set(values):
        raise InputError(
            f"{path} is neither a result of kapps-evaluate --tflite=FILE --json=RESULT nor one of "
            "kapps-benchmark --output=RESULT"
        )
    return values


def _column(result: Any) -> str:
    plural = "" if result.threads == 1 else "s"
    return f"{result.device}, {result.accelerator}, {result.threads} thread{plural}"


def _rank(variant: str) -> int:
    return VARIANTS.index(variant) if variant in VARIANTS else len(VARIANTS)


# The tables.


def _models(overview: Overview) -> dict[str, dict[str, Entry]]:
    models: dict[str, dict[str, Entry]] = {}
    for entry in overview.entries:
        models.setdefault(entry.model, {})[entry.variant] = entry
    return models


def _pair(first: str, second: str) -> str:
    """The older value, an arrow and the newer one, as readers of the table know it."""
    return _MISSING if first == second == _MISSING else f"{first} → {second}"


def _percent(entry: Entry | None) -> str:
    return _MISSING if entry is None or entry.top1 is None else f"{100 * entry.top1:.2f}"


def _kib(entry: Entry | None) -> str:
    return _MISSING if entry is None else f"{entry.size_bytes / 1024:,.0f}"


def _ms(value: float | None) -> str:
    return _MISSING if value is None else f"{value:#.3g}" if value < 99.95 else f"{value:,.0f}"


def _p50(entry: Entry | None, device: str) -> str:
    timing = None if entry is None else entry.timings.get(device)
    return _ms(None if timing is None else timing.p50_ms)


def _model_rows(overview: Overview) -> list[list[str]]:
    rows = []
    for model, variants in _models(overview).items():
        exact, ptq, qat = (variants.get(name) for name in (_FLOAT, _PTQ, _QAT))
        if exact is ptq is qat is None:
            continue  # of other variants only: in the table of files
        small = qat if ptq is None else ptq
        rows.append(
            [
                model,
                *map(_percent, (exact, ptq, qat)),
                _pair(_kib(exact), _kib(small)),
                *(_pair(_p50(exact, name), _p50(small, name)) for name in overview.devices),
            ]
        )
    return rows


_FILE_HEADER = (
    *("file", "model", "variant", "top-1, %", "size, KiB", "device"),
    *("p50, ms", "p90, ms", "p99, ms", "runs", "placed", "delegate pieces"),
)
_PROFILE_HEADER = ("file", "device", "operation", "which", "ms", "share, %")
_MOST_PROFILED = 10  # rows of a file on a device; report.json has all
_OUTSIDE_HEADER = ("file", "device", "operation", "count", "ran on", "why")


def _file_rows(overview: Overview) -> list[list[str]]:
    letters = _letters(overview)
    rows = []
    for entry in overview.entries:
        known = [entry.file, entry.model, entry.variant or _MISSING, _percent(entry), _kib(entry)]
        for device, timing in entry.timings.items():
            figures = (timing.p50_ms, timing.p90_ms, timing.p99_ms)
            pieces = timing.delegate_pieces
            rows.append(
                [
                    *known,
                    letters[device],
                    *map(_ms, figures),
                    f"{timing.runs:,}",
                    (timing.placement.share if timing.placement else "") or _MISSING,
                    _MISSING if pieces is None else str(pieces),
                ]
            )
        if not entry.timings:
            rows.append([*known, *[_MISSING] * 7])
    return rows


def _outside_rows(overview: Overview) -> list[list[str]]:
    """The operations that fell off the accelerator, of each file on each device."""
    letters = _letters(overview)
    return [
        [
            entry.file,
            letters[device],
            each.operation,
            _MISSING if each.count is None else f"{each.count:,}",
            each.ran_on or _MISSING,
            each.reason or _MISSING,
        ]
        for entry in overview.entries
        for device, timing in entry.timings.items()
        for each in (timing.placement.outside if timing.placement else ())
    ]


def _profile_rows(overview: Overview) -> list[list[str]]:
    """The slowest operations of each file on each device."""
    letters = _letters(overview)
    return [
        [
            entry.file,
            letters[device],
            each.operation,
            each.name,
            f"{each.mean_ms:.3f}",
            f"{100 * each.share:.1f}",
        ]
        for entry in overview.entries
        for device, timing in entry.timings.items()
        for each in timing.profile[:_MOST_PROFILED]
    ]


def _letters(overview: Overview) -> dict[str, str]:
    """A short name for each device, whose own is too long for a column."""
    devices = overview.devices
    return {name: chr(65 + i) if i < 26 else f"D{i}" for i, name in enumerate(devices)}


def _facts(overview: Overview) -> dict[str, str]:
    facts = {"Top-1, %": f"of the files, on {overview.data}"} if overview.data else {}
    facts |= {f"Device {letter}": name for name, letter in _letters(overview).items()}
    facts["Arrows"] = (
        "float32 → int8: the post-training quantized (PTQ) file, or where there is none that of "
        "quantization-aware training (QAT)"
    )
    if len(attacks_of(entry.robustness for entry in overview.entries)) > 1:
        facts["Attacks"] = (
            "they differ in settings, so that each has a table of its own: compare within one only"
        )
    facts["Placed"] = "how many of the file's operations ran on what was asked for"
    facts[_MISSING] = "not measured, not told by the device's tool, or emulated time"
    return facts


def _points(overview: Overview) -> list[tuple[Entry, Point]]:
    """Each file on each device, as far as both its accuracy and its median are known."""
    letters = _letters(overview)
    found = []
    for device in overview.devices:
        for entry in overview.entries:
            timing = entry.timings.get(device)
            if entry.top1 is None or timing is None or timing.p50_ms is None:
                continue
            point = Point(
                timing.p50_ms,
                entry.top1,
                color=f"device {letters[device]}",
                marker=entry.variant or "unknown variant",
                device=device,
                name=entry.model,
            )
            found.append((entry, point))
    return found

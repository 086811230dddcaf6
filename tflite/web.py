"""A page that classifies pictures in the browser: one HTML file, which needs nothing from outside.

The file runs on LiteRT.js (https://ai.google.dev/edge/litert/web), the runtime of the phones
compiled to WebAssembly. It is the npm package @litertjs/core, which kapps does not bring along; the
page holds what it needs of it, its licence named. It opens from a disk (file://) as from a server,
in browsers from 2023 on (WebAssembly's SIMD, import maps, DecompressionStream).
"""

from __future__ import annotations

import base64
import gzip
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from kapps._errors import InputError, one_line
from kapps._files import sha256, write_text
from kapps.tflite.inspection import Inspection, Tensor, inspect

_PACKAGES = ("@litertjs/core", "@litertjs/wasm-utils")
# Of its builds the one for every processor: "relaxed" SIMD rounds as the processor likes.
_RUNTIME = "wasm/litert_wasm_compat_internal"
_TYPES = {"FLOAT32": "float32", "UINT8": "uint8"}  # that LiteRT.js fills and reads, of images
_TEMPLATE = Path(__file__).with_name("web_page.html.j2")


@dataclass(frozen=True)
class _LiteRtJs:
    version: str
    modules: dict[str, bytes]  # by name, as `import` has it
    loader: bytes
    wasm: bytes


def web_page(
    tflite_file: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    litertjs: str | os.PathLike[str] = "node_modules",
) -> Path:
    """Writes a page that classifies the pictures that are dropped on it, or chosen.

    It takes the central part of a picture that has the input's aspect, resizes it as Pillow does
    (bilinear, antialiased), and does with the pixels what the file's metadata says. Pictures do
    not leave the browser: the page's own policy forbids it any connection.

    Args:
        tflite_file: an image classifier; its metadata gives the labels and the normalization.
        output: the page, an HTML file: some 4 MB, and the .tflite file's size.
        litertjs: the folder `node_modules` in which npm has put @litertjs/core, or the one above.

    Returns:
        `output`.

    Raises:
        InputError: the package is not there; the file does not run, is no classifier of images,
            or takes a type that LiteRT.js does not; or the page cannot be written.
    """
    runtime = _find_litertjs(Path(litertjs))
    inspection = inspect(tflite_file)
    facts = _facts(inspection)
    try:
        content = Path(tflite_file).read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {tflite_file}: {error.strerror}") from error
    metadata = inspection.metadata or {}
    template = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).from_string(_TEMPLATE.read_text(encoding="utf-8"))
    page = template.render(
        title=one_line(metadata.get("name") or Path(tflite_file).stem),
        description=one_line(metadata.get("description") or ""),
        file=one_line(Path(tflite_file).name),
        size=f"{len(content) / 1024:,.0f} KiB",
        sha256=sha256(Path(tflite_file)),
        litertjs=one_line(runtime.version),
        facts=facts,
        imports={name: _module(code) for name, code in runtime.modules.items()},
        loader=_module(runtime.loader) + "#.js",  # LiteRT.js looks at the address's end
        wasm=_packed(runtime.wasm),
        model=_packed(content),
    )
    write_text(output, page + "\n")
    return Path(output)


def _facts(inspection: Inspection) -> dict[str, Any]:
    """What the page's program has to know of the file."""
    path = inspection.path
    if inspection.failure:
        raise InputError(f"{path}: {inspection.failure}")
    if inspection.metadata_error:
        raise InputError(f"{path}: {inspection.metadata_error}")
    if len(inspection.inputs) != 1 or len(inspection.outputs) != 1:
        raise InputError(f"{path} is no image classifier: expected one image in, one out")
    image, scores = inspection.inputs[0], inspection.outputs[0]
    if len(image.shape) != 4 or image.shape[0] != 1 or image.shape[3] not in (1, 3):
        raise InputError(f"{path} takes {image}, which is no image of 1 or 3 channels")
    if len(scores.shape) != 2 or scores.shape[0] != 1:
        raise InputError(f"{path} gives {scores}, which are no scores of classes")
    for tensor in (image, scores):
        if tensor.dtype not in _TYPES:
            raise InputError(
                f"{path} has an input or output of {tensor.dtype.lower()}, which LiteRT.js does "
                "not take: convert it with --io=uint8 or --io=float32"
            )
    _, height, width, channels = image.shape
    metadata = inspection.metadata or {}
    classes = scores.shape[1]
    labels = [one_line(label) for label in metadata.get("labels") or ()]
    if labels and len(labels) != classes:
        raise InputError(f"{path} has {len(labels)} labels and {classes} outputs")
    mean, std = (
        _per_channel(metadata.get(name), default, channels, path)
        for name, default in (("mean", 0.0), ("std", 1.0))
    )
    if not all(std):
        raise InputError(f"{path}: its metadata states a std of 0")
    return {
        "height": height,
        "width": width,
        "channels": channels,
        "type": _TYPES[image.dtype],
        "mean": mean,
        "std": std,
        "labels": labels or [f"class {number}" for number in range(classes)],
        "output": _scale(scores),
    }


def _per_channel(values: Any, default: float, channels: int, path: str) -> list[float]:
    known = [float(value) for value in values or (default,)]
    if len(known) not in (1, channels):
        raise InputError(
            f"{path}: its metadata states {len(known)} numbers for {channels} channels: expected "
            "one, or one a channel"
        )
    return known * channels if len(known) == 1 else known


def _scale(tensor: Tensor) -> dict[str, float]:
    """What the integers of a tensor stand for: scale * (integer - zero)."""
    if tensor.quantization is None:
        return {"scale": 1.0, "zero": 0.0}
    return {"scale": tensor.quantization.scale[0], "zero": tensor.quantization.zero_point[0]}


# LiteRT.js.


def check_litertjs(folder: str | os.PathLike[str]) -> None:
    """Refuses, before anything is converted, a folder without LiteRT.js; see `web_page`.

    Raises:
        InputError: it is not there, or not as it should be.
    """
    _find_litertjs(Path(folder))


def _find_litertjs(folder: Path) -> _LiteRtJs:
    """The package in `folder`/node_modules, or in `folder`.

    Raises:
        InputError: it is in neither, or is not as it should be.
    """
    inside = folder / "node_modules"
    if (inside / _PACKAGES[0]).is_dir():
        folder = inside
    core, modules = folder / _PACKAGES[0], {}
    try:
        for name in _PACKAGES:
            about = json.loads((folder / name / "package.json").read_text(encoding="utf-8"))
            modules[name] = (folder / name / about["main"]).read_bytes()
        return _LiteRtJs(
            version=json.loads((core / "package.json").read_text(encoding="utf-8"))["version"],
            modules=modules,
            loader=(core / f"{_RUNTIME}.js").read_bytes(),
            wasm=(core / f"{_RUNTIME}.wasm").read_bytes(),
        )
    except FileNotFoundError as error:
        raise InputError(
            f"no LiteRT.js in {folder} ({error.filename} is not there): npm install "
            "@litertjs/core, and name its node_modules by --litertjs"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"LiteRT.js in {folder} cannot be read: {one_line(error)}; install it anew: npm "
            "install @litertjs/core"
        ) from error


def _module(code: bytes) -> str:
    return f"data:text/javascript;base64,{base64.b64encode(code).decode()}"


def _packed(content: bytes) -> str:
    """Compressed, as text; the same for the same content."""
    return base64.b64encode(gzip.compress(content, mtime=0)).decode()

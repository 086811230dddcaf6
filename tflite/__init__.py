"""The road to the phone: convert, verify and measure TFLite models.

Public names load on first use: converting needs tensorflow, running and measuring do not.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kapps.tflite.conversion import QUANTIZATIONS, Conversion, convert
    from kapps.tflite.interpreter import Runner
    from kapps.tflite.latency import Latency, measure
    from kapps.tflite.metadata import Metadata, read_metadata
    from kapps.tflite.passes import PASSES, rgb_input, run_passes
    from kapps.tflite.report import Confusion, Row, write_report
    from kapps.tflite.verification import ConversionError, Verification, verify

_MODULES = {
    "conversion": ("QUANTIZATIONS", "Conversion", "convert"),
    "interpreter": ("Runner",),
    "latency": ("Latency", "measure"),
    "metadata": ("Metadata", "read_metadata"),
    "passes": ("PASSES", "rgb_input", "run_passes"),
    "report": ("Confusion", "Row", "write_report"),
    "verification": ("ConversionError", "Verification", "verify"),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "PASSES",
    "QUANTIZATIONS",
    "Confusion",
    "Conversion",
    "ConversionError",
    "Latency",
    "Metadata",
    "Row",
    "Runner",
    "Verification",
    "convert",
    "measure",
    "read_metadata",
    "rgb_input",
    "run_passes",
    "verify",
    "write_report",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

"""The road to the phone: convert, verify and measure TFLite models.

Public names load on first use: converting needs tensorflow, running and measuring do not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kapps._lazy import lazy_names

if TYPE_CHECKING:
    from kapps.tflite.conversion import QUANTIZATIONS, Conversion, convert
    from kapps.tflite.interpreter import Runner
    from kapps.tflite.latency import Latency, measure
    from kapps.tflite.metadata import Metadata, read_metadata
    from kapps.tflite.passes import PASSES, rgb_input, run_passes
    from kapps.tflite.report import Confusion, Row, write_report
    from kapps.tflite.verification import ConversionError, Verification, verify

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

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "conversion": ("QUANTIZATIONS", "Conversion", "convert"),
        "interpreter": ("Runner",),
        "latency": ("Latency", "measure"),
        "metadata": ("Metadata", "read_metadata"),
        "passes": ("PASSES", "rgb_input", "run_passes"),
        "report": ("Confusion", "Row", "write_report"),
        "verification": ("ConversionError", "Verification", "verify"),
    },
)

"""The road to the phone: convert, verify, tune, inspect and measure TFLite models.

Public names load on first use: converting needs tensorflow, running and measuring do not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kapps._lazy import lazy_names

if TYPE_CHECKING:
    from kapps.tflite.accuracy import Accuracy, evaluate_file, read_accuracy, write_accuracy
    from kapps.tflite.comparison import Comparison, LayerError, compare_layers
    from kapps.tflite.conversion import QUANTIZATIONS, Conversion, convert
    from kapps.tflite.file_comparison import FileComparison, TensorError, compare_files
    from kapps.tflite.inspection import Inspection, float_operations, inspect, inspect_each
    from kapps.tflite.interpreter import Runner
    from kapps.tflite.measurement.benchmark import benchmark, read_results, write_results
    from kapps.tflite.measurement.latency import STOP_RULES, Latency, StopRule, measure
    from kapps.tflite.metadata import Metadata, read_metadata, weights_sha256
    from kapps.tflite.passes import PASSES, Pass, rgb_input, run_passes
    from kapps.tflite.report import (
        Confusion,
        Overview,
        Row,
        read_overview,
        write_overview,
        write_report,
    )
    from kapps.tflite.tuning import cluster, logits, prune, quantize_aware, restore, sparsity, strip
    from kapps.tflite.tuning_run import TuneConfig, TuneResult, tune
    from kapps.tflite.verification import ConversionError, Verification, verify

__all__ = [
    "PASSES",
    "QUANTIZATIONS",
    "STOP_RULES",
    "Accuracy",
    "Comparison",
    "Confusion",
    "Conversion",
    "ConversionError",
    "FileComparison",
    "Inspection",
    "Latency",
    "LayerError",
    "Metadata",
    "Overview",
    "Pass",
    "Row",
    "Runner",
    "StopRule",
    "TensorError",
    "TuneConfig",
    "TuneResult",
    "Verification",
    "benchmark",
    "cluster",
    "compare_files",
    "compare_layers",
    "convert",
    "evaluate_file",
    "float_operations",
    "inspect",
    "inspect_each",
    "logits",
    "measure",
    "prune",
    "quantize_aware",
    "read_accuracy",
    "read_metadata",
    "read_overview",
    "read_results",
    "restore",
    "rgb_input",
    "run_passes",
    "sparsity",
    "strip",
    "tune",
    "verify",
    "weights_sha256",
    "write_accuracy",
    "write_overview",
    "write_report",
    "write_results",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "accuracy": ("Accuracy", "evaluate_file", "read_accuracy", "write_accuracy"),
        "measurement.benchmark": ("benchmark", "read_results", "write_results"),
        "comparison": ("Comparison", "LayerError", "compare_layers"),
        "conversion": ("QUANTIZATIONS", "Conversion", "convert"),
        "file_comparison": ("FileComparison", "TensorError", "compare_files"),
        "inspection": ("Inspection", "float_operations", "inspect", "inspect_each"),
        "interpreter": ("Runner",),
        "measurement.latency": ("STOP_RULES", "Latency", "StopRule", "measure"),
        "metadata": ("Metadata", "read_metadata", "weights_sha256"),
        "passes": ("PASSES", "Pass", "rgb_input", "run_passes"),
        "report": (
            "Confusion",
            "Overview",
            "Row",
            "read_overview",
            "write_overview",
            "write_report",
        ),
        "tuning": ("cluster", "logits", "prune", "quantize_aware", "restore", "sparsity", "strip"),
        "tuning_run": ("TuneConfig", "TuneResult", "tune"),
        "verification": ("ConversionError", "Verification", "verify"),
    },
)

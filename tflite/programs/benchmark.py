"""Measures how long .tflite files take for one image: on this machine, a phone or a board.

All files are measured in one go and in turns, so that they share the device's drift: compare what
was measured together. A phone is measured by TFLite's own benchmark_model, on its big cores and in
its fixed-performance mode where it has one; a Linux board by the same tool or by ai-edge-litert,
whichever it has. Each figure says how many of the file's operations ran on what was asked for, and
which did not: a part that falls off the GPU runs on the CPU, without an error.

Examples:

  kapps-benchmark float32.tflite int8.tflite
  kapps-benchmark --stop_rule=mlperf --output=host.json *.tflite
  kapps-benchmark --device=adb --benchmark_binary=android_aarch64_benchmark_model model.tflite
  kapps-benchmark --profile int8.tflite
  kapps-benchmark --device=ssh:pi@raspberrypi --threads=4 model.tflite
"""

from __future__ import annotations

import contextlib
import sys

from absl import flags

from kapps.tflite.child import MOST_SECONDS
from kapps.tflite.programs import shape_flag
from kapps.tools import cli

_DEVICE = flags.DEFINE_string(
    "device", "host", "host; adb, adb:SERIAL; ssh:HOST, ssh:USER@HOST:PORT"
)
_THREADS = flags.DEFINE_integer("threads", 1, "of the interpreter", lower_bound=1)
_ACCELERATOR = flags.DEFINE_enum(
    "accelerator", "cpu", ["cpu", "gpu", "nnapi"], "gpu and nnapi: by benchmark_model only"
)
_STOP_RULE = flags.DEFINE_enum(
    "stop_rule",
    "quick",
    ["quick", "mlperf"],
    "quick: 64 runs and 6 s of each file; mlperf: 1,024 runs and 60 s",
)
_LAUNCHES = flags.DEFINE_integer(
    "launches", 5, "of benchmark_model for each file: what lies between them is the spread", 1
)
_BENCHMARK_BINARY = flags.DEFINE_string(
    "benchmark_binary",
    None,
    "benchmark_model for the phone or board; without it the error says which one to fetch",
)
_BENCHMARK_APK = flags.DEFINE_string(
    "benchmark_apk", None, "the same tool as an app for the phone, in place of --benchmark_binary"
)
_TIME_LIMIT = flags.DEFINE_float(
    "time_limit",
    3600.0,
    "seconds that the measurement may take",
    lower_bound=1,
    upper_bound=MOST_SECONDS,
)
_INPUT_SHAPE = shape_flag.define()
_PROFILE = flags.DEFINE_bool(
    "profile", False, "tell the time of each operation as well, from runs of their own"
)
_REQUIRE_FULL = flags.DEFINE_bool(
    "require_full",
    False,
    "exit with status 3 unless all operations of all files ran on the accelerator",
)
_OUTPUT = flags.DEFINE_string("output", None, "JSON file of the results, samples included")


def main(argv: list[str]) -> int:
    """Prints a table, and writes what --output asks for; 3 if --require_full is not met."""
    cli.check_output(_OUTPUT)
    from kapps._files import atomic_write
    from kapps.tflite.measurement import benchmark as benchmarking
    from kapps.tools.progress import progress_bar

    with contextlib.ExitStack() as stack:
        # Opened first: whether it can be written should not show after an hour.
        output = stack.enter_context(atomic_write(_OUTPUT.value)) if _OUTPUT.value else None
        with progress_bar(100, "%", f"measuring on {_DEVICE.value}") as bar:
            results = benchmarking.benchmark(
                argv[1:],
                device=_DEVICE.value,
                threads=_THREADS.value,
                accelerator=_ACCELERATOR.value,
                stop_rule=_STOP_RULE.value,
                launches=_LAUNCHES.value,
                binary=_BENCHMARK_BINARY.value,
                app=_BENCHMARK_APK.value,
                input_shape=_INPUT_SHAPE.value,
                profile=_PROFILE.value,
                time_limit=_TIME_LIMIT.value,
                progress=lambda share: bar.update(round(100 * share) - bar.n),
            )
        print(benchmarking.table(results), flush=True)  # first: a full disk is not to lose it
        if output:
            output.write_text(benchmarking.to_json(results), encoding="utf-8")
    fallen = [result for result in results if not (result.placement and result.placement.complete)]
    if not _REQUIRE_FULL.value or not fallen:
        return 0
    for result in fallen:
        where = benchmarking.placement_line(result)
        print(f"kapps-benchmark: not all of it is known to be placed: {where}", file=sys.stderr)
    return 3


def run() -> None:
    cli.run(main, files="FILE...")


if __name__ == "__main__":
    run()

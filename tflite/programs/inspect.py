"""Tells what is in .tflite files: operations, quantization, delegate, oldest runtime, metadata.

Of --target=gpu it tells which operations the GPU delegate would leave to the CPU, and why, before a
phone is plugged in: by the delegate's own rules, since there is none to try it on.

The files may come from elsewhere: each is opened in a process of its own.

Examples:

  kapps-inspect model.tflite
  kapps-inspect --json=model.json model.tflite
  kapps-inspect --target=gpu --require_full model.tflite
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from absl import flags

from kapps.tflite.child import MOST_SECONDS
from kapps.tflite.programs import shape_flag
from kapps.tools import cli

if TYPE_CHECKING:
    from kapps.tflite.inspection import Inspection

_JSON = cli.define_json()
_TIME_LIMIT = flags.DEFINE_float(
    "time_limit", 60.0, "seconds for one file", lower_bound=0.1, upper_bound=MOST_SECONDS
)
_TARGET = flags.DEFINE_enum(
    "target", "cpu", ["cpu", "gpu"], "of which delegate it is told what falls off"
)
_REQUIRE_FULL = flags.DEFINE_bool(
    "require_full", False, "exit with status 3 if an operation of a file falls off"
)
_INPUT_SHAPE = shape_flag.define()


def main(argv: list[str]) -> int:
    """Prints an inspection for each file; one line on stderr, and exit code 2, for a bad one.

    3 if --require_full is not met.
    """
    cli.check_output(_JSON)
    from kapps._errors import InputError
    from kapps.tflite.inspection import inspect_each

    inspected = inspect_each(argv[1:], input_shape=_INPUT_SHAPE.value, time_limit=_TIME_LIMIT.value)
    found = dict(zip(argv[1:], inspected, strict=True))
    good = [i for i in found.values() if not isinstance(i, InputError)]
    bad = [error for error in found.values() if isinstance(error, InputError)]
    if good and _JSON.value != "-":
        print("\n\n\n".join(i.text(_TARGET.value) for i in good), flush=True)
    if _JSON.value is not None:
        report = {
            name: {"error": str(i)} if isinstance(i, InputError) else i.to_json()
            for name, i in found.items()
        }
        cli.write_figures(report, _JSON)
    for error in bad:
        print(f"kapps-inspect: error: {error}", file=sys.stderr)
    if bad:
        return 2
    return 3 if _REQUIRE_FULL.value and not all(map(_takes_all, good)) else 0


def _takes_all(inspection: Inspection) -> bool:
    """Whether the target is known to take every operation of a file."""
    tried = _TARGET.value == "gpu" or not inspection.failure
    return tried and not inspection.refused(_TARGET.value)


def run() -> None:
    cli.run(main, files="FILE...")


if __name__ == "__main__":
    run()

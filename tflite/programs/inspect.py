"""Tells what is in .tflite files: operations, quantization, delegate, oldest runtime, metadata.

The files may come from elsewhere: each is opened in a process of its own.

Examples:

  kapps-inspect model.tflite
  kapps-inspect --json=model.json model.tflite
"""

from __future__ import annotations

import sys

from absl import flags

from kapps.tflite.child import MOST_SECONDS
from kapps.tflite.programs import shape_flag
from kapps.tools import cli

_JSON = cli.define_json()
_TIME_LIMIT = flags.DEFINE_float(
    "time_limit", 60.0, "seconds for one file", lower_bound=0.1, upper_bound=MOST_SECONDS
)
_INPUT_SHAPE = shape_flag.define()


def main(argv: list[str]) -> int:
    """Prints an inspection for each file; one line on stderr, and exit code 2, for a bad one."""
    cli.check_output(_JSON)
    from kapps._errors import InputError
    from kapps.tflite.inspection import inspect_each

    inspected = inspect_each(argv[1:], input_shape=_INPUT_SHAPE.value, time_limit=_TIME_LIMIT.value)
    found = dict(zip(argv[1:], inspected, strict=True))
    good = [i for i in found.values() if not isinstance(i, InputError)]
    bad = [error for error in found.values() if isinstance(error, InputError)]
    if good and _JSON.value != "-":
        print("\n\n\n".join(map(str, good)), flush=True)
    if _JSON.value is not None:
        report = {
            name: {"error": str(i)} if isinstance(i, InputError) else i.to_json()
            for name, i in found.items()
        }
        cli.write_figures(report, _JSON)
    for error in bad:
        print(f"kapps-inspect: error: {error}", file=sys.stderr)
    return 2 if bad else 0


def run() -> None:
    cli.run(main, files="FILE...")


if __name__ == "__main__":
    run()

"""From real images to phone-ready models: trains, converts, verifies, measures and reports.

Four networks are trained from scratch on scikit-learn's handwritten digits. Each becomes four
.tflite files, which are compared with the network that they came from, scored on 360 held-out
images, and timed on this machine. Running it again continues an interrupted run.

  kapps-demo --output=build/demo
"""

from __future__ import annotations

import sys
from pathlib import Path

from absl import flags

from kapps.tools import cli
from kapps.tools.streams import start_keras

_OUTPUT = flags.DEFINE_string("output", "build/demo", "folder of the report and the .tflite files")
_SEED = flags.DEFINE_integer("seed", 0, "of weights and order", lower_bound=0)


def main(argv: list[str]) -> int:
    """Runs all of it; returns 1 if an accuracy falls short of what has to be reached."""
    start_keras()
    from kapps.tflite import demonstration

    output = Path(_OUTPUT.value)
    files = demonstration.demonstrate(output, _SEED.value, _say)
    print((output / "report.md").read_text())
    print(f"The same with pictures: {output / 'report.html'}; the .tflite files lie beside it.")
    short = demonstration.shortfalls(files)
    for line in short:
        _say(f"not reached: {line}")
    return 1 if short else 0


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def run() -> None:
    cli.run(main)


if __name__ == "__main__":
    run()

"""One page for a set of models and devices: accuracy, size and latency, float beside int8.

Give the results of kapps-evaluate --tflite and of kapps-benchmark, in any order; they are joined by
the files' SHA-256. Writes report.html, report.md and report.json.

Example:

  kapps-evaluate --tflite=net_int8.tflite --dataset=digits --split=test --json=net_int8.json
  kapps-benchmark net_float32.tflite net_int8.tflite --output=host.json
  kapps-report host.json net_*.json --output=build/report
"""

from __future__ import annotations

from absl import flags

from kapps._errors import printable
from kapps.tools import cli

_OUTPUT = flags.DEFINE_string("output", "build/report", "folder of the report")
_TITLE = flags.DEFINE_string("title", "Accuracy, size and latency", "of the report")


def main(argv: list[str]) -> None:
    """Writes the report and says where it is."""
    from kapps.tflite.report import read_overview, write_overview

    for path in write_overview(read_overview(argv[1:]), _OUTPUT.value, title=_TITLE.value):
        print(printable(path))


def run() -> None:
    cli.run(main, files="RESULT...")


if __name__ == "__main__":
    run()

"""Draws the curves of training runs, and compares the runs in one page.

Give the folders of one or more runs, which may still be training. Writes index.html, which needs
nothing beside it, and the curves as PNG files. Example:

  kapps-plot runs/lenet runs/mobilenet --output=build/plots
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from absl import flags

from kapps._errors import printable
from kapps.tools import cli

_OUTPUT = flags.DEFINE_string("output", "build/plots", "folder of the page and the pictures")
_JSON = cli.define_json()


def main(argv: list[str]) -> None:
    """Draws, and prints a line a run and where the page is."""
    from kapps.tools.runs_page import write_runs

    runs = write_runs(argv[1:], _OUTPUT.value)
    lines = [*map(str, runs), printable(Path(_OUTPUT.value) / "index.html")]
    cli.put_out("\n".join(lines), [dataclasses.asdict(run) for run in runs], _JSON)


def run() -> None:
    cli.run(main, files="RUN...")


if __name__ == "__main__":
    run()

"""Writes the README's table of the demonstration, from what a run of it has measured.

    make demo && .venv/bin/python benchmarks/readme_figures.py build/demo/report.json
    .venv/bin/python benchmarks/readme_figures.py    # once more from docs/demo.json

The first form keeps the figures in docs/demo.json. tests/test_readme.py holds the table against
that file, and tests/test_demo.py the file against the demonstration of the day.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from kapps.tflite.demonstration import NETWORKS

ROOT = Path(__file__).parent.parent
FIGURES = ROOT / "docs" / "demo.json"
README = ROOT / "README.md"
START = "<!-- benchmarks/readme_figures.py writes what follows -->"
END = "<!-- up to here -->"

_HEADER = (
    "Network, trained from scratch",
    "Input",
    "Top-1 float32",
    "Top-1 int8",
    "Size float32",
    "Size int8",
    "p50 float32",
    "p50 int8",
    "Delegate pieces int8",
)


def table(rows: list[dict[str, Any]]) -> str:
    """The figures of the float32 and the int8 files, as Markdown."""
    by_file = {(row["model"], row["variant"]): row for row in rows}
    (device,) = {row["device"] for row in rows}
    (threads,) = {row["threads"] for row in rows}
    lines = [
        f"| {' | '.join(_HEADER)} |",
        f"|---|---|{'---:|' * (len(_HEADER) - 2)}",
    ]
    for model in dict.fromkeys(row["model"] for row in rows):
        size, _ = NETWORKS[model]
        both = [by_file[model, variant] for variant in ("float32", "int8")]
        cells = [
            f"`{model}`",
            f"{size}x{size}",
            *(f"{row['top1']:.3f}" for row in both),
            *(f"{row['size_bytes'] / 1024:,.0f} KiB" for row in both),
            *(f"{row['latency_ms']['p50']:.3f} ms" for row in both),
            str(both[1]["delegate_pieces"]),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", f"Latency of one image on {device}, threads: {threads}; no phone."]
    return "\n".join(lines)


def with_table(readme: str, rows: list[dict[str, Any]]) -> str:
    """The README with the table of these figures between its two marks."""
    before, rest = readme.split(START)
    _, after = rest.split(END)
    return f"{before}{START}\n\n{table(rows)}\n\n{END}{after}"


def main() -> None:
    if len(sys.argv) > 1:
        rows = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
        FIGURES.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    rows = json.loads(FIGURES.read_text(encoding="utf-8"))
    README.write_text(with_table(README.read_text(encoding="utf-8"), rows), encoding="utf-8")


if __name__ == "__main__":
    main()

"""Makes docs/models.md: every public model with its cost and its published weights.

python tests/make_models_doc.py
"""

from __future__ import annotations

from pathlib import Path

from model_table import TABLE

import kapps

DOC = Path(__file__).parents[1] / "docs" / "models.md"
HEAD = """\
# Models

Parameters are the trainable ones, and MACs the multiply-accumulates of one image, at the input \
given and with the default number of classes. Top-1 is what the publisher of the default weights \
(`weights="imagenet"`) states, in per cent, at the size that follows; \
`kapps.list_weights(name)` has the other tags. Made by `tests/make_models_doc.py`.

| Model | Input | Parameters | MACs (millions) | Equal to | Default weights | Top-1 | Tags |
|---|---|---:|---:|---|---|---:|---:|
"""


def text() -> str:
    lines = []
    for row in sorted(TABLE, key=lambda row: row.name):
        if row.arguments:
            continue
        macs = kapps.profile(getattr(kapps, row.name)()).macs / 1e6
        library, _, name = row.peer.partition(":")
        tags = kapps.list_weights(row.name)
        default = next((weights for weights in tags if weights.default), None)
        cells = [
            f"`{row.name}`",
            "x".join(map(str, row.input_shape)),
            f"{row.parameters:,}",
            f"{macs:,.1f}",
            f"{library} `{name}`" if name else "",
            f"`{default.tag}`, {default.license}" if default else "",
            f"{default.top1:.2f} ({default.size} px)" if default and default.top1 else "",
            str(len(tags) or ""),
        ]
        lines.append(f"| {' | '.join(cells)} |\n")
    return HEAD + "".join(lines)


if __name__ == "__main__":
    DOC.parent.mkdir(exist_ok=True)
    DOC.write_text(text())

"""How far kapps.explain is from captum and pytorch-grad-cam: the table of docs/explain.md.

    KERAS_BACKEND=tensorflow python benchmarks/explain_peers.py

The peers' maps are those of tests/goldens, which tests/make_explain_goldens.py made.
"""

from __future__ import annotations

import sys
from pathlib import Path

import keras
from machine import measured_on

sys.path.append(str(Path(__file__).parents[1] / "tests"))
import explain_goldens as goldens
import real_data

PEERS = "captum 0.9.0, pytorch-grad-cam 1.5.7"


def main() -> None:
    lite0 = real_data.lite0(real_data.installed(*real_data.WEIGHTS))
    photographs, _ = real_data.photographs(real_data.installed(*real_data.PICTURES))
    found: dict[str, list[float]] = {case.key: [] for case in goldens.CASES}
    for precision in ("float32", "float64"):
        keras.config.set_floatx(precision)
        keras.config.set_dtype_policy(precision)
        nets: dict[tuple[str, bool], keras.Model] = {}
        for case in goldens.CASES:
            key = case.net, case.whole
            if key not in nets:
                nets[key] = goldens.net(case, lite0)
            maps = goldens.maps(case, nets[key], photographs)
            found[case.key].append(goldens.apart(case, maps))
    backend = keras.backend.backend()
    print(
        f"`benchmarks/explain_peers.py`, {measured_on('keras', backend)}, on {backend}; peers "
        f"({PEERS}) in float64, kept in float32.\n"
    )
    print("| Net | Method | Map | Pixels | float64 | float32 |")
    print("|---|---|---|---:|---:|---:|")
    for case in goldens.CASES:
        single, double = found[case.key]
        place = {None: "image", "": "last"}.get(case.layer, case.layer)
        side = 224 if case.whole else 56
        name = {"lite0": "EfficientNet-Lite0", "resnet18": "ResNet-18"}[case.net]
        print(
            f"| {name} | `{case.method}` | {place} | {side} | {_share(double)} | {_share(single)} |"
        )


def _share(value: float) -> str:
    return f"{value:.0e}" if value else "0"


if __name__ == "__main__":
    main()

#!/usr/bin/python3
"""Stands in for benchmark_model on the emulated phone, for which there is no build to be had.

It runs the file, as often as it is told, and says so in the tool's form.
"""

import sys
import time

import numpy as np
from ai_edge_litert.interpreter import Interpreter


def main() -> None:
    given = dict(argument[2:].partition("=")[::2] for argument in sys.argv[1:])
    interpreter = Interpreter(given["graph"], num_threads=int(given["num_threads"]))
    interpreter.allocate_tensors()
    for runs in (1, int(given["num_runs"])):
        times = []
        for _ in range(runs):
            began = time.perf_counter()
            interpreter.invoke()
            times.append(1e6 * (time.perf_counter() - began))
        print(
            f"count={runs} first={times[0]:g} curr={times[-1]:g} min={min(times):g} "
            f"max={max(times):g} avg={np.mean(times):g} std={np.std(times):g}"
        )


if __name__ == "__main__":
    main()

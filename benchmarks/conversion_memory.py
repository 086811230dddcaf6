"""How much memory `kapps.tflite.convert` takes beyond the model, check of the file included.

    python benchmarks/conversion_memory.py [--images=16] > docs/conversion_memory.md

Each file is made in a process of its own, of a network of 1,000 classes at its own size. What
counts is the highest resident memory of that process during `convert`, less what it held before:
the network, TensorFlow, and the images. Linux only.
"""

from __future__ import annotations

import argparse
import ctypes
import datetime
import gc
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

NETWORKS = ("MobileNetV2", "ResNet50", "EfficientNetB4", "VGG11_BN", "EfficientNetB7")
QUANTIZATIONS = ("float32", "int8")
MIB = 1 << 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--one", nargs=2, help="network and quantization, in this process")
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(*arguments.one, arguments.images)))
        return
    from importlib.metadata import version

    print("# Memory of a conversion\n")
    print(
        f"`benchmarks/conversion_memory.py`, {datetime.date.today()}, on {platform.machine()} with "
        f"{os.cpu_count()} cores, Python {platform.python_version()}, tensorflow "
        f"{version('tensorflow')}, keras {version('keras')}; {arguments.images} images for "
        "calibration and check.\n"
    )
    print("| Network | Input | Weights, MiB | File | Highest beyond the model, MiB | Seconds |")
    print("|---|---:|---:|---|---:|---:|", flush=True)
    for network in arguments.networks.split(","):
        for quantization in QUANTIZATIONS:
            command = [sys.executable, __file__, f"--images={arguments.images}"]
            child = subprocess.run(
                [*command, "--one", network, quantization], capture_output=True, text=True
            )
            if child.returncode:
                sys.exit(f"{network} {quantization}: {child.stderr}")
            found = json.loads(child.stdout.splitlines()[-1])
            print(
                f"| `{network}` | {found['size']} px | {found['weights']:.0f} | {quantization} "
                f"| {found['peak']:.0f} | {found['seconds']:.0f} |",
                flush=True,
            )


def measure(network: str, quantization: str, count: int) -> dict[str, float]:
    """Sizes in MiB, and seconds."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    import numpy as np

    import kapps
    from kapps import tflite

    model = getattr(kapps, network)()
    size = model.input_shape[1]
    random = np.random.default_rng(0)
    # Smooth colors: noise would be warned of.
    coarse = random.uniform(0, 255, (count, 4, 4, 3))
    images = np.stack([np.kron(image, np.ones((size // 4 + 1,) * 2 + (1,))) for image in coarse])
    images = images[:, :size, :size].astype("uint8")
    model(images[:1].astype("float32"), training=False)
    with tempfile.TemporaryDirectory() as folder:
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # what building the network has left
        Path("/proc/self/clear_refs").write_text("5")  # the highest is what it is now
        before, start = _status("VmRSS"), time.perf_counter()
        tflite.convert(
            model, Path(folder, "net.tflite"), quantization=quantization, calibration=images
        )
        seconds = time.perf_counter() - start
        peak = _status("VmHWM")
    weights = sum(value.nbytes for value in model.get_weights())
    return {
        "size": size,
        "weights": weights / MIB,
        "peak": peak - before,
        "seconds": seconds,
    }


def _status(name: str) -> float:
    """MiB, of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) / 1024
    raise KeyError(name)


if __name__ == "__main__":
    main()

"""How fast kapps augments images beside torchvision, on one core.

    python benchmarks/augment.py --torch_python=PATH [--rounds=20]

PATH is the Python of an environment with torch and torchvision (see tflite_peers.py). The images
are squares of scikit-learn's two photographs at 224 pixels. The policies run in turns, and so do
the two libraries, each in a process that stays: they share the machine's drift. What counts is
processor time, which leaves out that in which others had the core; a policy's figure is the median
of the rounds, and the ratio the median of the rounds' ratios.

Prints Markdown, a row for each policy. The exit code is 1 if kapps is the slower in one of them.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import importlib.util
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL
from PIL import Image

SIZE = 224  # pixels
IMAGES = 100  # a round
POLICIES = ("rand_augment", "trivial_augment_wide", "auto_augment", "color_jitter")

Augment = Callable[[Image.Image, list[int]], Image.Image]  # with a seed, which torchvision ignores


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--torch_python", default="")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--serve", help="the photographs; only for the process of torchvision")
    options = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # the child's as well
    if options.serve:
        serve(Path(options.serve))
        return 0
    sklearn = importlib.util.find_spec("sklearn")
    if not options.torch_python or sklearn is None or not sklearn.origin:
        parser.error("it takes --torch_python=PATH, and scikit-learn for its photographs")
    folder = Path(sklearn.origin).parent / "datasets" / "images"
    ours, images = kapps_policies(), photographs(folder)
    command = [options.torch_python, __file__, f"--serve={folder}"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as peer:
        assert peer.stdin and peer.stdout
        versions = peer.stdout.readline().strip()
        seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in POLICIES}
        for round_ in range(options.rounds + 1):
            for name in POLICIES:
                own = measure(ours[name], images, round_)
                print(name, round_, file=peer.stdin, flush=True)
                seconds[name].append((own, float(peer.stdout.readline())))
        peer.stdin.close()
    print("# Augmentation\n")
    print(f"`benchmarks/augment.py`, {datetime.date.today()}, on {platform.machine()}, one core; ")
    print(
        f"Python {platform.python_version()}, Pillow {PIL.__version__} beside {versions}; ", end=""
    )
    print(f"medians of {options.rounds} interleaved rounds of {IMAGES} images.\n")
    print(f"| Policy, {SIZE} px | kapps, images/s | torchvision, images/s | Ratio |")
    print("|---|---:|---:|---:|")
    ratios = []
    for name in POLICIES:
        own, theirs = zip(*seconds[name][1:], strict=True)  # the first round is not counted
        ratios.append(statistics.median(b / a for a, b in zip(own, theirs, strict=True)))
        speeds = [IMAGES / statistics.median(each) for each in (own, theirs)]
        print(f"| `{name}` | {speeds[0]:,.0f} | {speeds[1]:,.0f} | {ratios[-1]:.2f} |")
    return int(min(ratios) < 1)


def kapps_policies() -> dict[str, Augment]:
    from kapps.tools import augment

    policies = {
        "rand_augment": augment.rand_augment,
        "trivial_augment_wide": augment.trivial_augment_wide,
        "auto_augment": functools.partial(augment.auto_augment, policy="imagenet"),
        "color_jitter": functools.partial(
            augment.color_jitter, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1
        ),
    }

    def seeded(change: Callable[..., Image.Image]) -> Augment:
        # Each image has a generator of its own, as in training.
        return lambda image, seed: change(image, np.random.default_rng(seed))

    return {name: seeded(change) for name, change in policies.items()}


def serve(folder: Path) -> None:
    """Reads names of policies and numbers of rounds, and answers with seconds."""
    import tflite_files
    import torch

    tflite_files._import_torchvision()
    import torchvision
    from torchvision import transforms

    print(f"torchvision {torchvision.__version__}, Pillow {PIL.__version__}", flush=True)
    torch.set_num_threads(1)
    peers = {
        "rand_augment": transforms.RandAugment(),
        "trivial_augment_wide": transforms.TrivialAugmentWide(),
        "auto_augment": transforms.AutoAugment(),
        "color_jitter": transforms.ColorJitter(0.4, 0.4, 0.4, 0.1),
    }
    images = photographs(folder)
    for line in sys.stdin:
        name, round_ = line.split()
        torch.manual_seed(int(round_))
        change = peers[name]
        print(measure(lambda image, _, change=change: change(image), images, 0), flush=True)


def photographs(folder: Path) -> list[Image.Image]:
    """Squares from all over the photographs."""
    images = []
    for path in sorted(folder.glob("*.jpg")):
        photo = Image.open(path).convert("RGB")
        for i in range(IMAGES // 2):
            left, top = i * 8 % (photo.width - SIZE), i * 4 % (photo.height - SIZE)
            images.append(photo.crop((left, top, left + SIZE, top + SIZE)))
    return images


def measure(change: Augment, images: list[Image.Image], round_: int) -> float:
    """Processor seconds of this process."""
    start = time.process_time()
    for index, image in enumerate(images):
        change(image, [round_, index])
    return time.process_time() - start


if __name__ == "__main__":
    sys.exit(main())

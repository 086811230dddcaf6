"""How fast kapps decodes, crops and flips JPEG photographs beside torchvision, on one core.

    python benchmarks/decode.py --torch_python=PATH [--rounds=15]

PATH is the Python of an environment with torch and torchvision (see tflite_peers.py). Both take the
content of a file to a random part of it (an area of 8 % to all) at 224 pixels, antialiased, and
mirror half of them. The files are made of scikit-learn's two photographs: reduced to 500 x 375
pixels, and for larger ones repeated with mirrored copies, as sharp as they are. The libraries run
in turns, each in a process that stays: they share the machine's drift. What counts is processor
time, which leaves out that in which others had the core; a figure is the median of the rounds, and
the ratio the median of the rounds' ratios.

Differences are in gray levels of 255, from Pillow's own decoding and resizing of the same part:
with what surrounds it (`resize(box=...)`), as kapps means it, and without (`crop().resize()`), as
torchvision does, where the pixels at the edge differ.

Prints Markdown, a row for each size.
"""

from __future__ import annotations

import argparse
import datetime
import io
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL
from photographs import write_photographs
from PIL import Image

SIZE = 224  # pixels
SIZES = ((500, 375), (640, 480), (1000, 750), (2000, 1500), (4000, 3000))

Read = Callable[[bytes], object]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--torch_python", required=True)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--serve", help="folder of files; only for the process of torchvision")
    options = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # the child's as well
    if options.serve:
        serve(Path(options.serve), torchvision_read())
        return
    with tempfile.TemporaryDirectory() as folder:
        write_photographs(Path(folder), SIZES)
        command = [options.torch_python, __file__, "--torch_python=", f"--serve={folder}"]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as peer:
            assert peer.stdin and peer.stdout
            version = peer.stdout.readline().strip()
            print(head(version, options.rounds))
            for size in SIZES:
                print(row(Path(folder), size, peer, options.rounds), flush=True)
            peer.stdin.close()


def torchvision_read() -> Read:
    import torch

    torch.set_num_threads(1)
    library = torch.library.Library("torchvision", "DEF")  # its build for a CPU lacks these
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision
    from torchvision import transforms

    transform = transforms.Compose(
        [transforms.RandomResizedCrop(SIZE), transforms.RandomHorizontalFlip()]
    )
    print(f"torchvision {torchvision.__version__} on Pillow {PIL.__version__}", flush=True)
    return lambda content: transform(Image.open(io.BytesIO(content)).convert("RGB"))


def kapps_read() -> Read:
    from kapps.tools import augment
    from kapps.tools.data import images

    random = np.random.default_rng(0)

    def read(content: bytes) -> object:
        picture = images.ImageBytes(content, "photograph")
        part = images.read_part(
            picture, lambda width, height: augment.crop_box(random, width, height), (SIZE, SIZE)
        )
        return augment.flip(part, random, 0.5)

    return read


def serve(folder: Path, read: Read) -> None:
    """Answers each width with the seconds that a picture takes."""
    for line in sys.stdin:
        print(seconds(read, folder, int(line)), flush=True)


def seconds(read: Read, folder: Path, width: int) -> float:
    """Processor time for a picture of that width, over the files of both photographs."""
    contents = [path.read_bytes() for path in sorted(folder.glob(f"{width}-*.jpg"))]
    times = max(2, 20_000 // width)
    start = time.process_time()
    for _ in range(times):
        for content in contents:
            read(content)
    return (time.process_time() - start) / times / len(contents)


def row(folder: Path, size: tuple[int, int], peer: subprocess.Popen[str], rounds: int) -> str:
    assert peer.stdin and peer.stdout
    width, height = size
    read = kapps_read()
    ours, theirs = [], []
    for turn in range(rounds + 1):
        own = seconds(read, folder, width)
        print(width, file=peer.stdin, flush=True)
        other = float(peer.stdout.readline())
        if turn:  # the first is for warming up
            ours.append(own)
            theirs.append(other)
    ratio = statistics.median(b / a for a, b in zip(ours, theirs, strict=True))
    (mean, most), (crop_mean, crop_most) = differences(folder, width)
    return (
        f"| {width} x {height} | {1 / statistics.median(theirs):.0f} "
        f"| {1 / statistics.median(ours):.0f} | {ratio:.2f} "
        f"| {mean:.3f} / {most} | {crop_mean:.3f} / {crop_most} |"
    )


def differences(folder: Path, width: int) -> list[tuple[float, int]]:
    """Mean and largest one, from Pillow with and without what surrounds the part."""
    from kapps.tools import augment
    from kapps.tools.data import images

    random = np.random.default_rng(1)
    bilinear = Image.Resampling.BILINEAR
    found: list[list[np.ndarray]] = [[], []]
    for path in sorted(folder.glob(f"{width}-*.jpg")):
        whole = Image.open(path).convert("RGB")
        for _ in range(10):
            x, y, w, h = augment.crop_box(random, *whole.size)
            box = (x, y, x + w, y + h)
            part = images.read_part(
                images.ImageFile(str(path)), lambda *_, b=(x, y, w, h): b, (SIZE, SIZE)
            )
            inner = whole.crop(tuple(map(round, box))).resize((SIZE, SIZE), bilinear)
            for kept, other in zip(
                found, (whole.resize((SIZE, SIZE), bilinear, box), inner), strict=True
            ):
                kept.append(np.abs(np.asarray(part, np.int16) - np.asarray(other, np.int16)))
    return [(float(np.mean(kept)), int(np.max(kept))) for kept in found]


def head(version: str, rounds: int) -> str:
    return (
        "# Reading photographs\n\n"
        f"`benchmarks/decode.py`, {datetime.date.today()}, on one core of {platform.machine()}, "
        f"Python {platform.python_version()}, {version} in both; medians of {rounds} rounds.\n\n"
        "| Size, pixels | torchvision, images/s | kapps, images/s | Ratio "
        "| Difference: mean / largest | Without what surrounds the part |\n"
        "|---|---:|---:|---:|---:|---:|"
    )


if __name__ == "__main__":
    main()

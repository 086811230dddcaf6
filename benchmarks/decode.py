"""How fast kapps decodes, crops and flips JPEG photographs beside torchvision, on one core.

    python benchmarks/decode.py --torch_python=PATH [--rounds=15] \
        [--output=docs/decode.md]

PATH is the Python of an environment with torch and torchvision (see tflite_peers.py). Both take the
content of a file to a random part of it (an area of 8 % to all) at 224 pixels, antialiased, and
mirror half of them. The files are made of scikit-learn's two photographs: reduced to 500 x 375
pixels, and for larger ones repeated with mirrored copies, as sharp as they are. The libraries run
in turns, each in a process that stays: they share the machine's drift. What counts is processor
time, which leaves out that in which others had the core; a figure is the median of the rounds, and
the ratio the median of the rounds' ratios.

Differences are in gray levels of 255, from Pillow's `crop().resize()` of the same part, which is
what torchvision does: their mean over all parts, that of the part where it is largest, and the
largest of a pixel.

Prints Markdown, a row for each size. The exit code is 1 where a ratio is below 1.5.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL
from machine import measured_on
from photographs import write_photographs
from PIL import Image

SIZE = 224  # pixels
LEAST = 1.5  # of the ratio
SIZES = ((500, 375), (640, 480), (1000, 750), (2000, 1500), (4000, 3000))

Read = Callable[[bytes], object]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--torch_python", required=True)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--output", help="Markdown; by default it is printed")
    parser.add_argument("--serve", help="folder of files; only for the process of torchvision")
    options = parser.parse_args()
    if options.serve:
        serve(Path(options.serve), torchvision_read())
        return 0
    machine = measured_on("opencv-python-headless", "simplejpeg")
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # the child's as well
    with tempfile.TemporaryDirectory() as folder:
        write_photographs(Path(folder), SIZES)
        command = [options.torch_python, __file__, "--torch_python=", f"--serve={folder}"]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as peer:
            assert peer.stdin and peer.stdout
            version = peer.stdout.readline().strip()
            lines, low = [head(machine, version, options.rounds)], False
            for size in SIZES:
                ratio, line = row(Path(folder), size, peer, options.rounds)
                print(line, file=sys.stderr, flush=True)
                lines.append(line)
                low = low or ratio < LEAST
            peer.stdin.close()
    text = "\n".join(lines) + "\n"
    if options.output:
        Path(options.output).write_text(text, encoding="utf-8")
    else:
        print(text)
    return int(low)


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


def row(
    folder: Path, size: tuple[int, int], peer: subprocess.Popen[str], rounds: int
) -> tuple[float, str]:
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
    mean, worst, most = differences(folder, width)
    return ratio, (
        f"| {width} x {height} | {1 / statistics.median(theirs):.0f} "
        f"| {1 / statistics.median(ours):.0f} | {ratio:.2f} | {mean:.2f} | {worst:.2f} | {most} |"
    )


def differences(folder: Path, width: int) -> tuple[float, float, int]:
    """The mean one, that of the worst part, and the largest."""
    from kapps.tools import augment
    from kapps.tools.data import images

    random = np.random.default_rng(1)
    found = []
    for path in sorted(folder.glob(f"{width}-*.jpg")):
        whole = Image.open(path).convert("RGB")
        for _ in range(10):
            x, y, w, h = map(int, augment.crop_box(random, *whole.size))
            part = images.read_part(
                images.ImageFile(str(path)), lambda *_, b=(x, y, w, h): b, (SIZE, SIZE)
            )
            other = whole.crop((x, y, x + w, y + h)).resize(part.size, Image.Resampling.BILINEAR)
            found.append(np.abs(np.asarray(part, np.int16) - np.asarray(other, np.int16)))
    return float(np.mean(found)), max(float(each.mean()) for each in found), int(np.max(found))


def head(machine: str, version: str, rounds: int) -> str:
    return (
        "# Reading photographs\n\n"
        f"`benchmarks/decode.py`, {machine}, {version} in both. On one core, medians of {rounds} "
        "rounds; differences in gray levels of 255.\n\n"
        "| Size, pixels | torchvision, images/s | kapps, images/s | Ratio "
        "| Difference, mean | of the worst part | of a pixel |\n"
        "|---|---:|---:|---:|---:|---:|---:|"
    )


if __name__ == "__main__":
    sys.exit(main())

"""Makes kapps/weights_index.csv, the list of published weights, from what their publishers say.

    python tests/make_weights_index.py TIMM.csv TORCHVISION.csv

TIMM.csv has the pretrained configurations of timm and its published results, one row for each
file on the Hugging Face hub; TORCHVISION.csv has torchvision's weight enums. Which builder equals
which of their networks is in model_table.py.
"""

from __future__ import annotations

import csv
import math
import sys
from collections.abc import Iterable
from pathlib import Path

INDEX = Path(__file__).parents[1] / "kapps" / "weights_index.csv"

# torchvision's own networks and those of timm whose files have the same names. Not DenseNet, whose
# files torchvision renames when it loads them, nor VGG and MobileNetV2, whose modules differ.
SAME_NAMES = ("resnet", "resnext", "wide_resnet", "inception_v3")

IMAGENET = ("0.485 0.456 0.406", "0.229 0.224 0.225")
# torchvision feeds these two with `transform_input`: normalized once more, to (x - 0.5) / 0.5.
HALF = ("0.5 0.5 0.5", "0.5 0.5 0.5")
TRANSFORMED = ("googlenet", "inception_v3")

TORCHVISION_LICENSE = "bsd-3-clause"  # of its repository; the hub gives it to the same weights


def from_timm(builder: str, peer: str, rows: Iterable[dict[str, str]]) -> list[dict[str, str]]:
    """The tags of timm's network `peer`: those that are classifiers and have a licence."""
    found = []
    for row in rows:
        network, _, tag = row["model_tag"].partition(".")
        if network != peer or row["num_classes"] == "0" or not row["license"]:
            continue
        if row["label_offset"]:  # the file has a class more, which timm drops when it loads it
            continue
        top1 = {}
        for result in row["timm_top1"].split():  # such as 224px@0.950:80.382
            size, _, accuracy = result.partition(":")
            top1[size.partition("px@")[0]] = accuracy
        found.append(
            {
                "builder": builder,
                "tag": tag,
                "source": row["hf_hub_id"],
                "license": row["license"],
                "classes": row["num_classes"],
                "size": row["input_h"],
                "crop": row["crop_pct"],
                "top1": top1.get(row["input_h"], ""),
                "test_size": row["test_input_h"],
                "test_crop": row["test_crop_pct"],
                "test_top1": top1.get(row["test_input_h"], ""),
                "crop_mode": row["crop_mode"],
                "interpolation": row["interpolation"],
                "mean": row["mean"],
                "std": row["std"],
            }
        )
    return found


def from_torchvision(
    builder: str, peer: str, rows: Iterable[dict[str, str]]
) -> list[dict[str, str]]:
    """The tags of torchvision's network `peer`."""
    found = []
    for row in rows:
        if row["model"] != peer or row["acc1"] == "nan":  # without a classifier
            continue
        size, resize = int(row["crop"]), int(row["resize"])
        crop = math.floor(1e4 * size / resize) / 1e4
        assert math.floor(size / crop) == resize  # what the evaluation makes of it
        mean, std = HALF if peer in TRANSFORMED else IMAGENET
        found.append(
            {
                "builder": builder,
                "tag": row["weights"],
                "source": row["url"].rpartition("/")[2],
                "license": TORCHVISION_LICENSE,
                "classes": "1000",
                "size": str(size),
                "crop": str(crop),
                "top1": row["acc1"],
                "test_size": "",
                "test_crop": "",
                "test_top1": "",
                "crop_mode": "center",
                "interpolation": row["interp"].rpartition(".")[2].lower(),
                "mean": mean,
                "std": std,
            }
        )
    return found


def default(rows: list[dict[str, str]], size: int) -> dict[str, str] | None:
    """The row that weights="imagenet" means, for a builder whose input is `size` pixels.

    Of 1000 classes and free for commercial use. The hub's come first, because it gives the whole
    SHA-256 of a file, and torchvision eight digits of it. Of these the best published top-1 at
    the builder's own input size, or, where nobody published one, at the weights' own.
    """
    fit = [row for row in rows if row["classes"] == "1000" and "-nc" not in row["license"]]
    fit = [row for row in fit if "/" in row["source"]] or fit

    def at(row: dict[str, str], wanted: str) -> float:
        results = {row["test_size"]: row["test_top1"], row["size"]: row["top1"]}
        return float(results.get(wanted) or "nan")

    measured = [row for row in fit if not math.isnan(at(row, str(size)))]
    if measured:
        return max(measured, key=lambda row: at(row, str(size)))
    return max(fit, key=lambda row: at(row, row["size"]), default=None)


def index_rows(
    builders: Iterable[tuple[str, int, str, str]],
    timm: list[dict[str, str]],
    torchvision: list[dict[str, str]],
) -> list[dict[str, str]]:
    """All rows of the index; a builder is its name, input size (pixels), and peer: library, name.

    The default row of each builder comes first.
    """
    index = []
    for builder, size, library, peer in builders:
        rows = []
        if library == "timm":
            rows += from_timm(builder, peer, timm)
        if library == "torchvision" or peer.startswith(SAME_NAMES):
            rows += from_torchvision(builder, peer, torchvision)
        chosen = default(rows, size)
        for row in rows:
            row["default"] = "yes" if row is chosen else ""
        index += sorted(rows, key=lambda row: (not row["default"], "/" not in row["source"]))
    return index


COLUMNS = [
    *("builder", "tag", "default", "source", "license", "classes"),
    *("size", "crop", "top1", "test_size", "test_crop", "test_top1"),
    *("crop_mode", "interpolation", "mean", "std"),
]


def write(rows: list[dict[str, str]], path: Path) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def main(argv: list[str]) -> int:
    if len(argv) != 3:
        print(__doc__, file=sys.stderr)
        return 2
    from model_table import TABLE

    tables = []
    for path in argv[1:]:
        with open(path, newline="", encoding="utf-8") as file:
            tables.append(list(csv.DictReader(file)))
    builders = [
        (row.name, row.input_shape[0], *row.peer.split(":"))
        for row in TABLE
        if row.peer and not row.arguments
    ]
    write(index_rows(builders, *tables), INDEX)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))

"""Two .tflite files held against each other."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from programs import run_here
from tflite_crafted import crafted_file, crafted_sine

from kapps import InputError
from kapps.tflite import Metadata, compare_files
from kapps.tflite.file_comparison import FileComparison, TensorError, _Sum, share
from kapps.tflite.metadata import with_metadata

IMAGES = np.random.default_rng(0).integers(0, 8, (3, 4, 4, 3), "uint8")


@pytest.fixture
def write(tmp_path):
    def write(name, content):
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    return write


def test_the_same_file_twice(write):
    path = write("a.tflite", crafted_sine(scale=1 / 64))
    comparison = compare_files(path, path, IMAGES)
    assert comparison.quantizations == ("int8", "int8")
    assert (comparison.images, comparison.same_class, comparison.limit) == (3, 1.0, 0.2)
    assert comparison.unmatched == (0, 0)
    names = ["convolved", "real", "sine", "quantized", "scores"]
    assert [error.tensor for error in comparison.tensors] == names
    assert all(error.error == error.largest == 0 for error in comparison.tensors)
    assert comparison.agrees and comparison.parts_at is None
    assert comparison.verdict().startswith("The same class for 100.0% of 3 images")
    lines = comparison.table().splitlines()
    assert lines[0].split() == ["tensor", "operation", "shape", "error", "largest"]
    assert lines[3].split() == ["sine", "SIN", "1x4x4x1", "0", "0"]


@pytest.mark.parametrize(
    ("change", "place"), [({"kernel": 9}, "convolved"), ({"scale": 1.0}, "quantized")]
)
def test_where_they_part(change, place, write):
    a = write("a.tflite", crafted_sine(scale=1 / 64))
    b = write("b.tflite", crafted_sine(**{"scale": 1 / 64} | change))
    comparison = compare_files(a, b, IMAGES)
    assert comparison.parts_at.tensor == place
    assert f"They part at {place!r}" in comparison.verdict()
    before = comparison.tensors[: comparison.tensors.index(comparison.parts_at)]
    assert all(error.error == 0 for error in before)
    assert not comparison.agrees
    figures = json.loads(json.dumps(comparison.figures(), allow_nan=False))
    assert (figures["parts_at"], figures["agrees"]) == (place, False)


def test_each_file_gets_the_pixels_that_its_metadata_asks_for(write):
    plain = crafted_file([1, 12])
    a = write("a.tflite", plain)
    same = with_metadata(plain, Metadata("net", ("a",) * 12, mean=(0.0,), std=(1.0,)))
    assert compare_files(a, write("b.tflite", same), IMAGES).output.error == 0
    half = with_metadata(plain, Metadata("net", ("a",) * 12, mean=(0.0,), std=(2.0,)))
    assert compare_files(a, write("c.tflite", half), IMAGES).output.error == pytest.approx(0.5)


def test_tensors_of_other_names(write):
    """Then the outputs alone are held against each other."""
    a = write("a.tflite", crafted_sine())
    content = crafted_sine().replace(b"convolved", b"something").replace(b"scores", b"logits")
    for name, other in ((b"real", b"rial"), (b"sine", b"sign"), (b"quantized", b"quontized")):
        content = content.replace(name, other)
    comparison = compare_files(a, write("b.tflite", content), IMAGES)
    assert [error.tensor for error in comparison.tensors] == ["scores"]
    assert comparison.unmatched == (4, 4)
    assert comparison.agrees


def test_not_a_number_parts():
    error = TensorError("x", ("CONV_2D", "CONV_2D"), (1, 2), float("nan"), float("nan"))
    comparison = FileComparison(("float32",) * 2, 1, 0.0, (error,), (0, 0), 0.001)
    assert comparison.parts_at is error
    assert not comparison.agrees
    assert "They part at the output" in comparison.verdict()
    assert comparison.figures()["tensors"][0]["error"] is None


def test_infinity_in_both_files_is_not_the_same():
    """And no warning, which would be an error here."""
    total = _Sum()
    total.add(np.full(3, np.inf, "float32"), np.full(3, np.inf, "float32"), "x")
    assert np.isnan(share(total.error, total.expected))


def test_what_cannot_be_compared(write, tmp_path):
    a = write("a.tflite", crafted_file([1, 12]))
    with pytest.raises(InputError, match=r"gives \[1, 12\] and .*b\.tflite \[1, 16\]: "):
        compare_files(a, write("b.tflite", crafted_sine()), IMAGES)
    with pytest.raises(InputError, match=r"takes images of shape \[1, 4, 4, 3\], not \[1, 5"):
        compare_files(a, a, np.zeros((1, 5, 5, 3), "uint8"))
    with pytest.raises(InputError, match="no images"):
        compare_files(a, a, IMAGES[:0])
    with pytest.raises(InputError, match=r"no such file: .*none\.tflite"):
        compare_files(a, tmp_path / "none.tflite", IMAGES)


def test_the_program(write, tmp_path, capsys):
    a, b = write("a.tflite", crafted_sine(scale=1 / 64)), write("b.tflite", crafted_sine(kernel=9))
    folder = tmp_path / "images"
    folder.mkdir()
    for number, image in enumerate(IMAGES):
        Image.fromarray(image).save(folder / f"{number}.png")
    command = f"{a} {b} --dataset=folder:{folder} --json=-"
    answer = run_here("tflite.programs.compare", command, capsys)
    assert answer.code == 1, answer.stderr
    figures = json.loads(answer.stdout)
    assert figures["files"] == [str(a), str(b)]
    assert (figures["images"], figures["parts_at"]) == (3, "convolved")


def test_the_program_wants_two_files_or_a_network(write, capsys):
    a = write("a.tflite", crafted_sine())
    answer = run_here("tflite.programs.compare", str(a), capsys)
    assert answer.code == 2
    assert "give two files to hold against each other, not 1, or the network" in answer.stderr
    answer = run_here("tflite.programs.compare", f"{a} {a}", capsys)
    assert answer.code == 2
    assert "give real images to compare on" in answer.stderr

"""Importing kapps.tflite costs nothing; its names load on first use."""

from __future__ import annotations

import subprocess
import sys

import pytest

from kapps import tflite


def test_every_public_name_loads():
    for name in tflite.__all__:
        assert getattr(tflite, name) is not None
    assert set(tflite.__all__) <= set(dir(tflite))
    assert set(tflite.__all__) == set(tflite._HOME)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'kapps.tflite' has no attribute 'conver'"):
        _ = tflite.conver


def test_the_import_loads_neither_interpreter_nor_converter():
    code = """
import keras, sys
before = set(sys.modules)
import kapps.tflite
new = {name for name in set(sys.modules) - before if not name.startswith("kapps")}
assert not {name.partition(".")[0] for name in new} & {
    "ai_edge_litert", "flatbuffers", "matplotlib", "tensorflow"}, new
assert "kapps.tflite.conversion" not in sys.modules
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr

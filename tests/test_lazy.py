"""Importing kapps and kapps.tflite costs nothing; their names load on first use."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import kapps
from kapps import tflite

PACKAGES = pytest.mark.parametrize("package", [kapps, tflite], ids=lambda p: p.__name__)


def runs_alone(code, folder):
    """In a new process, outside the checkout."""
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr


@PACKAGES
def test_every_public_name_loads(package):
    for name in package.__all__:
        assert getattr(package, name) is not None
    assert set(package.__all__) <= set(dir(package))


@PACKAGES
def test_type_checkers_and_readers_see_the_same_names(package):
    """What is imported for them alone is what loads on first use."""
    tree = ast.parse(Path(package.__file__).read_text())
    imported = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.If)
        for statement in node.body
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    }
    assert imported == set(package.__all__) - {"InputError"}  # which costs nothing to import


@PACKAGES
def test_an_unknown_name_is_an_attribute_error(package):
    with pytest.raises(AttributeError, match=f"'{package.__name__}' has no attribute 'conver'"):
        _ = package.conver


@PACKAGES
def test_the_import_loads_nothing_heavy(package, tmp_path):
    code = f"""
import sys
import {package.__name__}
heavy = {{"ai_edge_litert", "flatbuffers", "keras", "matplotlib", "numpy", "tensorflow"}}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""
    runs_alone(code, tmp_path)


def test_measuring_loads_no_framework(tmp_path):
    """The process that measures would share its cores with TensorFlow's threads."""
    code = """
import sys
import kapps.tflite.interpreter
assert not {"keras", "tensorflow"} & set(sys.modules)
"""
    runs_alone(code, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "imports",
    [
        "import kapps, keras",
        "import keras, kapps",
        "import kapps",
        "import kapps, importlib.util as u; u.find_spec('keras')",  # asked for, not imported
    ],
)
def test_saved_models_are_loaded_in_a_new_process(imports, tmp_path):
    """With nothing of kapps named but kapps: its layers and models register themselves."""
    kapps.LeNet5Original().save(tmp_path / "0.keras")
    kapps.CifarResNet(drop_path_rate=0.1, drop_path_mode="batch").save(tmp_path / "1.keras")
    kapps.PyramidNet(depth=20, drop_block_rate=0.1, drop_block_steps=9).save(tmp_path / "2.keras")
    code = f"""
{imports}
from keras.saving import load_model
print([type(load_model(f"{{i}}.keras")).__name__ for i in range(3)])
"""
    runs_alone(code, tmp_path)

"""Importing kapps and its packages costs nothing; their names load on first use."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
from nights import at_night

import kapps
from kapps import explain, tflite, tools

PACKAGES = pytest.mark.parametrize("package", [kapps, explain, tflite], ids=lambda p: p.__name__)


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
def test_every_public_name_is_written_once(package):
    """In the stub, with the redundant alias that exports it to type checkers."""
    assert len(package.__all__) == len(set(package.__all__))
    stub = ast.parse(Path(package.__file__).with_suffix(".pyi").read_text())
    imports = [node for node in ast.walk(stub) if isinstance(node, ast.ImportFrom)]
    aliases = [alias for node in imports for alias in node.names]
    assert sorted(alias.name for alias in aliases) == sorted(package.__all__)
    assert all(alias.asname == alias.name for alias in aliases)


def public_modules():
    """All modules of kapps without a leading underscore, by their name."""
    for package, folder in ((kapps, "kapps"), (tools, "kapps.tools"), (tflite, "kapps.tflite")):
        root = Path(package.__file__).parent
        for path in root.rglob("*.py"):
            parts = path.relative_to(root).with_suffix("").parts
            name = ".".join([folder, *parts]).removesuffix(".__init__")
            if not any(part.startswith("_") for part in name.split(".")):
                yield name


@pytest.mark.slow
def test_each_name_and_module_may_come_first(tmp_path):
    """Each in a process that has imported neither kapps nor Keras before."""
    statements = [f"import {name}" for name in public_modules()]
    for package in (kapps, tflite):
        statements += [f"import {package.__name__} as p; p.{name}" for name in package.__all__]
    statements += ["import kapps; assert kapps.list_models()"]
    assert {"import kapps.resnet", "import kapps.weights"} < set(statements)
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("first_imports.py"))],
        input=json.dumps(statements),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {}


@pytest.mark.slow
@pytest.mark.parametrize(
    "statement",
    ["import kapps; kapps.list_models()", "from kapps.weights import load_weights"],
)
def test_in_a_new_process_of_python(statement, tmp_path):
    """The same without any of Keras's parts loaded before."""
    runs_alone(statement, tmp_path)


@PACKAGES
def test_an_unknown_name_is_an_attribute_error(package):
    with pytest.raises(AttributeError, match=f"{package.__name__}.* attribute .?conver"):
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
        *at_night(
            "import kapps",
            "import kapps, importlib.util as u; u.find_spec('keras')",  # asked for, not imported
        ),
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


@pytest.mark.slow
def test_a_program_starts_without_what_keras_wants_for_itself(tmp_path):
    """And finds it once it has started."""
    code = """
import sys
from kapps.tools.streams import start_keras
start_keras()
wanted = ("matplotlib", "matplotlib.pyplot", "sklearn")
assert not set(wanted) & set(sys.modules)
import matplotlib.pyplot, sklearn
assert all(sys.modules[name] for name in wanted)
"""
    runs_alone(code, tmp_path)

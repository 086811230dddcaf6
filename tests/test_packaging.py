"""What is installed: the contents of wheel and sdist, the commands, and the cost of the import."""

from __future__ import annotations

import configparser
import email
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from programs import TOOLS

import kapps

ROOT = Path(__file__).parent.parent
# The interpreter whose programs are run: .ci/run names one that has the wheel.
INSTALLED = os.environ.get("KAPPS_WHEEL_PYTHON", sys.executable)
# package -> its folder in the repository
PACKAGES = {  # as setup.py has to name them: the package and its folder
    f"kapps/{folder}" if folder.parts[0] != "kapps" else f"{folder}": folder
    for top in ("kapps", "tools", "tflite")
    for folder in sorted({path.parent.relative_to(ROOT) for path in (ROOT / top).rglob("*.py")})
}
NOT_PACKAGED = shutil.ignore_patterns(
    ".*", "__pycache__", "bazel*", "build", "dist", "tests", "*.egg-info"
)


def python(*arguments: str, cwd: Path | None = None, **environment: str) -> str:
    """Runs this Python and returns what it printed; its failure is the test's."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def build(source: Path, what: str, folder: Path) -> Path:
    """The wheel or sdist of the sources, built by the backend itself: no network."""
    code = f"import setuptools.build_meta as b; b.build_{what}({os.fspath(folder)!r})"
    folder.mkdir()
    python("-c", code, cwd=source)
    (built,) = folder.iterdir()
    return built


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT, folder / "source", ignore=NOT_PACKAGED)
    return build(folder / "source", "wheel", folder / "out")


def dist_info(wheel: Path, name: str) -> str:
    with zipfile.ZipFile(wheel) as archive:
        (path,) = [n for n in archive.namelist() if n.endswith(f".dist-info/{name}")]
        return archive.read(path).decode()


def modules(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {n for n in archive.namelist() if ".dist-info/" not in n}


def test_wheel_holds_the_packages_and_nothing_else(wheel):
    expected = {
        f"{package}/{path.name}"
        for package, folder in PACKAGES.items()
        for path in (ROOT / folder).glob("*.py")
    }
    assert {"kapps/__init__.py", "kapps/tools/__init__.py", "kapps/tflite/__init__.py"} <= expected
    templates = ROOT / "tflite/shipping/android-project"
    data = {"kapps/py.typed", "kapps/weights_index.csv", "kapps/tflite/web_page.html.j2"} | {
        f"kapps/{path.relative_to(ROOT).as_posix()}"
        for path in templates.rglob("*")
        if path.is_file()
    }
    stubs = {f"{package}/__init__.pyi" for package in ("kapps", "kapps/explain", "kapps/tflite")}
    assert modules(wheel) == expected | data | stubs
    assert "Apache License" in dist_info(wheel, "licenses/LICENSE")


def test_sdist_builds_the_same_wheel(wheel, tmp_path):
    shutil.copytree(ROOT, tmp_path / "source", ignore=NOT_PACKAGED)
    sdist = build(tmp_path / "source", "sdist", tmp_path / "sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    (source,) = (tmp_path / "unpacked").iterdir()
    assert modules(build(source, "wheel", tmp_path / "again")) == modules(wheel)


def test_metadata(wheel):
    metadata = email.message_from_string(dist_info(wheel, "METADATA"))
    assert metadata["Version"] == kapps.__version__
    assert metadata["Requires-Python"] == ">=3.10"
    required = metadata.get_all("Requires-Dist")
    bare = {re.split(r"[<>=!~ ]", r)[0] for r in required if "extra ==" not in r}
    assert bare == {"keras", "lazy_loader", "numpy"}
    extras = {
        "weights",
        "train",
        "tflite",
        "attack",
        "onnx",
        "quantizer",
        "all",
        "mediapipe",
        "dev",
    }
    assert set(metadata.get_all("Provides-Extra")) == extras


PROGRAMS = {
    **{program: f"kapps.tools.{program}" for program in TOOLS},
    **{
        program: f"kapps.tflite.programs.{program}"
        for program in (
            "benchmark",
            "compare",
            "convert",
            "demo",
            "evaluate",
            "explain",
            "inspect",
            "report",
            "ship",
            "tune",
        )
    },
}


def test_commands(wheel):
    parsed = configparser.ConfigParser()
    parsed.read_string(dist_info(wheel, "entry_points.txt"))
    assert dict(parsed["console_scripts"]) == {
        f"kapps-{program.replace('_', '-')}": f"{module}:run"
        for program, module in PROGRAMS.items()
    }


@pytest.mark.parametrize("program", PROGRAMS)
def test_program_tells_its_flags(program, tmp_path):
    name = f"kapps-{program.replace('_', '-')}"
    installed = Path(INSTALLED).parent / name
    shown = subprocess.run(
        [installed, "--help"], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert shown.returncode == 0, shown.stderr
    assert f"usage: {name}" in shown.stdout


@pytest.mark.slow
def test_import_under_jax_loads_no_tensorflow(tmp_path):
    pytest.importorskip("jax")
    code = """
import sys, kapps
print(kapps.LeNet5().name, *[m for m in sys.modules if "tensorflow" in m.split(".")[0]])
"""
    assert python("-c", code, cwd=tmp_path, KERAS_BACKEND="jax").split() == ["LeNet5"]


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.parametrize(("backend", "share"), [("tensorflow", 1 / 75), ("jax", 1 / 40)])
def test_import_adds_little_to_that_of_keras(backend, share, tmp_path):
    """80 ms where Keras takes 6 s with the one and 3.2 s with the other, on a slow machine."""
    pytest.importorskip(backend)
    code = """
import time
start = time.process_time()  # others may have the processor
import keras
middle = time.process_time()
import kapps
for name in kapps.__all__:
    getattr(kapps, name)
print((time.process_time() - middle) / (middle - start))
"""
    # As pip leaves installed packages: else Python compiles Keras anew, beside which all is little.
    python("-m", "compileall", "-q", os.fspath(Path(kapps.__file__).parent))
    environment = {"KERAS_BACKEND": backend, "PYTHONDONTWRITEBYTECODE": ""}
    python("-c", "import keras", cwd=tmp_path, **environment)
    best = 1.0
    for _ in range(5):
        best = min(best, float(python("-c", code, cwd=tmp_path, **environment)))
        if best < share:
            return
    pytest.fail(f"import kapps took {best:.1%} of import keras")

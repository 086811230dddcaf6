"""Every command and every piece of Python in the README runs, in the order it stands there."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from model_table import TABLE

from kapps.tools.explain_methods import METHODS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(sh|python)\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
# They set up environments: .ci/run does that.
SETUP = ("make ", "pip ", "bazel ")


def test_readme_has_the_two_commands():
    assert any(text.startswith("make demo") and "make test" in text for _, text in BLOCKS)


def test_the_figures_of_the_demonstration_are_those_that_were_measured():
    """benchmarks/readme_figures.py wrote the table, from figures that lie beside it."""
    path = ROOT / "benchmarks" / "readme_figures.py"
    script = runpy.run_path(str(path), run_name="readme_figures")
    rows = json.loads((ROOT / "docs" / "demo.json").read_text())
    assert script["with_table"](README, rows) == README
    assert len(script["table"](rows).splitlines()) == 2 + 4 + 2
    rows[0]["top1"] = 0.123
    assert script["with_table"](README, rows) != README


def test_the_list_of_models_is_complete():
    """As tests/make_models_doc.py writes it, from the same table."""
    lines = (ROOT / "docs" / "models.md").read_text().splitlines()
    for row in TABLE:
        if not row.arguments:
            (line,) = [line for line in lines if line.startswith(f"| `{row.name}` |")]
            assert f" {row.parameters:,} " in line


def test_the_gallery_shows_each_method():
    """As benchmarks/gallery.py draws it, in small files, with the photographers' names."""
    text = (ROOT / "docs" / "gallery.md").read_text()
    files = [ROOT / "docs" / name for name in re.findall(r"!\[.*?\]\((.+?)\)", text)]
    sizes = [file.stat().st_size for file in files]
    assert max(sizes) < 100_000
    assert sum(sizes) < 2_500_000
    assert {file.name for file in files} == {
        file.name for file in (ROOT / "docs" / "gallery").iterdir() if file.suffix != ".json"
    }
    others = "class_visualization deep_dream reconstructions fgsm pgd universal patch lesions"
    for name in [*METHODS, *others.split()]:
        assert f"`{name}`" in text
    for name in ("CC BY 2.0", "danielbuechele", "vultilion"):
        assert name in text


@pytest.mark.slow
def test_readme_runs(tmp_path):
    skipped = SETUP if shutil.which("npm") or "CI" in os.environ else (*SETUP, "npm ")
    blocks = [(kind, text) for kind, text in BLOCKS if not text.startswith(skipped)]
    assert len(blocks) >= 4
    # Pieces of Python that follow one another are pasted into one session.
    groups = itertools.groupby(blocks, key=lambda block: block[0])
    blocks = [(kind, "".join(text for _, text in group)) for kind, group in groups]
    # .ci/run names an interpreter that has the wheel.
    python = os.environ.get("KAPPS_WHEEL_PYTHON", sys.executable)
    path = f"{Path(python).parent}{os.pathsep}{os.environ['PATH']}"
    for kind, text in blocks:
        run = ["bash", "-euo", "pipefail", "-c"] if kind == "sh" else [python, "-c"]
        process = subprocess.Popen(
            [*run, text],
            cwd=tmp_path,
            env={**os.environ, "PATH": path},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # what it starts in the background ends with it
        )
        try:
            _, errors = process.communicate(timeout=600)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        assert process.returncode == 0, f"{text}\n{errors}"

"""The programs of kapps, run in this process."""

from __future__ import annotations

import runpy
import shlex
import sys
from typing import NamedTuple

import pytest
from absl import flags

# Programs in kapps.tools; the others are in kapps.tflite.programs.
TOOLS = ("data_worker", "finetune", "plot", "summary", "train")


class Answer(NamedTuple):
    code: int | str | None
    stdout: str
    stderr: str


def module_of(program: str) -> str:
    """Where the program `kapps-<program>` lies, below kapps."""
    package = "tools" if program in TOOLS else "tflite.programs"
    return f"{package}.{program}"


def run_here(module: str, arguments: str, capsys: pytest.CaptureFixture[str]) -> Answer:
    """As `python -m kapps.<module>`; the flags that it defined are undefined again."""
    before = set(flags.FLAGS)
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as caught:
        patch.setattr(sys, "argv", [module.rpartition(".")[2], *shlex.split(arguments)])
        try:
            runpy.run_module(f"kapps.{module}", run_name="__main__", alter_sys=True)
        finally:
            for name in set(flags.FLAGS) - before:
                delattr(flags.FLAGS, name)
            flags.FLAGS.unparse_flags()
    return Answer(caught.value.code, *capsys.readouterr())

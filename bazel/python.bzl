"""The Python that runs the targets, with the packages that are installed in it."""

_BUILD = """
load("@bazel_tools//tools/python:toolchain.bzl", "py_runtime_pair")

py_runtime(
    name = "runtime",
    interpreter_path = "{python}",
    python_version = "PY3",
)

py_runtime_pair(
    name = "runtimes",
    py3_runtime = ":runtime",
)

toolchain(
    name = "toolchain",
    toolchain = ":runtimes",
    toolchain_type = "@bazel_tools//tools/python:toolchain_type",
)
"""

def _local_python(ctx):
    venv = ctx.path(Label("//:WORKSPACE")).dirname.get_child(".venv").get_child("bin").get_child("python3")
    python = ctx.os.environ.get("KAPPS_PYTHON")
    if not python:
        python = venv if venv.exists else ctx.which("python3")
    if not python:
        fail("no Python: run `make test` once, or set KAPPS_PYTHON to an interpreter's path")
    ctx.file("BUILD", _BUILD.format(python = python))

# KAPPS_PYTHON, else .venv/bin/python3 (which the Makefile makes), else python3 of the PATH.
local_python = repository_rule(
    implementation = _local_python,
    environ = ["KAPPS_PYTHON", "PATH"],
    local = True,
)

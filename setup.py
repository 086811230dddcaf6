"""The packages and where they lie; all other metadata is in pyproject.toml."""

from setuptools import setup

# `tools/` and `tflite/` install as `kapps.tools` and `kapps.tflite`: nothing of those bare names
# reaches site-packages (PyPI has a `tflite` of its own).
setup(
    packages=[
        "kapps",
        "kapps.explain",
        "kapps.tools",
        "kapps.tools.data",
        "kapps.tflite",
        "kapps.tflite.inspection",
        "kapps.tflite.large",
        "kapps.tflite.measurement",
        "kapps.tflite.passes",
        "kapps.tflite.programs",
        "kapps.tflite.refinement",
        "kapps.tflite.report",
        "kapps.tflite.shipping",
        "kapps.tflite.tuning",
    ],
    package_dir={"kapps": "kapps", "kapps.tools": "tools", "kapps.tflite": "tflite"},
    package_data={
        "kapps": ["__init__.pyi", "py.typed", "weights_index.csv"],
        "kapps.explain": ["__init__.pyi"],
        "kapps.tflite": ["__init__.pyi", "web_page.html.j2"],
        "kapps.tflite.shipping": ["android-project/**/*"],
    },
)

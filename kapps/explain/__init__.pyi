"""The public names, each once: `__init__.py` reads them, type checkers as well."""

from .cam import grad_cam as grad_cam

__all__: list[str]

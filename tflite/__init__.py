"""The road to the phone: convert, verify, tune, inspect and measure TFLite models.

The public names are those of `__init__.pyi`, and load on first use: converting needs tensorflow,
running and measuring do not.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

"""CNN models for Keras 3, with a trainer that scales out and a road to the phone.

Every builder has the signature of `keras.applications`, takes images in 0..255, and is numerically
equal to its reference implementation. `kapps.list_models()` names them.

The public names are those of `__init__.pyi`, and load on first use: the import costs nothing, and a
program can set up its process before Keras and its backend are loaded (TensorFlow reads its log
level once, when it is imported).
"""

import lazy_loader

from kapps._lazy import load_with

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

# Keras finds the layers of a saved model only where the modules that register them are loaded, and
# nobody who calls `keras.saving.load_model` after `import kapps` expects to name one of them first.
load_with("keras", ("kapps.custom_layers", "kapps._block_skipping"))

"""Seeing what a network has learned, attacking it, and knowing how far to trust the picture.

Everything here takes a functional or sequential Keras model, of kapps or not, nested or flat, on
TensorFlow, JAX or PyTorch, and looks at its logits, whatever it ends in. Images are (N, height,
width, channels) in the model's own range, which for kapps is 0..255.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

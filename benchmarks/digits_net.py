"""Small networks that learn digits here."""

from __future__ import annotations

import keras
import numpy as np

HELD_OUT = 360


def digits(side: int) -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's, (N, side, side, 1) in 0..255, and their classes; the last are held out."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    enlarged = np.kron(images.reshape(-1, 8, 8, 1), np.ones((1, side // 8, side // 8, 1)))
    return (enlarged * (255 / 16)).astype("float32"), labels


def train(
    model: keras.Model, images: np.ndarray, labels: np.ndarray, loss: keras.losses.Loss, epochs: int
) -> float:
    """Top-1 on those that are held out."""
    model.compile(keras.optimizers.Adam(2e-3), loss, metrics=["accuracy"])
    seen, others = slice(None, -HELD_OUT), slice(-HELD_OUT, None)
    model.fit(images[seen], labels[seen], batch_size=64, epochs=epochs, verbose=0)
    return float(model.evaluate(images[others], labels[others], verbose=0)[1])

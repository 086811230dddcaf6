"""What keeps kernels pruned and clustered while they are trained on, in numbers."""

from __future__ import annotations

import keras
import numpy as np
from keras import layers

from kapps.tflite.tuning import sparsity
from kapps.tflite.tuning.quantized_graph import Projection


def test_pruned_weights_stay_zero_and_the_others_move():
    weights = np.array([[0, 1.5], [2.5, 0], [0, 3.5]], "float32")
    moved = weights + np.array([[9, 1], [1, 9], [9, 1]], "float32")
    assert np.array(Projection.of(weights)(moved)).tolist() == [[0, 2.5], [3.5, 0], [0, 4.5]]
    dense = np.array([[1, 2], [3, 4]], "float32")
    assert np.array(Projection.of(dense)(dense + 1)).tolist() == (dense + 1).tolist()


def test_clustered_weights_move_by_their_mean():
    weights = np.array([1, 1, 1, 1, 3, 3, 3, 3], "float32").reshape(2, 4)
    moved = weights + np.array([0, 1, 2, 1, 0, 0, 0, 4], "float32").reshape(2, 4)
    assert np.array(Projection.of(weights)(moved)).tolist() == [[2] * 4, [4] * 4]


def test_sparsity_is_the_share_of_zeros_in_what_is_pruned():
    """Not in the first layer, nor in depthwise ones, nor in biases."""
    image = keras.Input((4, 4, 2))
    x = layers.Conv2D(2, 1, name="first", kernel_initializer="zeros")(image)
    x = layers.DepthwiseConv2D(1, name="depthwise", depthwise_initializer="zeros")(x)
    x = layers.Conv2D(4, 1, name="conv", use_bias=False)(x)
    model = keras.Model(image, layers.Dense(3, name="dense")(layers.Flatten()(x)))
    kernel = np.ones((1, 1, 2, 4), "float32")
    kernel[..., 0] = 0
    model.get_layer("conv").set_weights([kernel])
    model.get_layer("dense").set_weights([np.ones((64, 3), "float32"), np.zeros(3, "float32")])
    assert sparsity(model) == 2 / (8 + 192)

"""Images into a quantized file, and numbers out of it."""

from __future__ import annotations

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from tflite_crafted import crafted_file, packed

from kapps.tflite import Runner


def test_zero_points_are_of_input_and_output(tmp_path):
    """A file that pools 2x2 pixels, in integers q, -128 to 127, that stand for q + 120."""
    model = schema.ModelT.InitFromPackedBuf(crafted_file([1, 12], "INT8"), 0)
    for tensor in model.subgraphs[0].tensors[:3]:
        tensor.quantization.scale, tensor.quantization.zeroPoint = [1.0], [-120]
    (tmp_path / "net.tflite").write_bytes(packed(model))
    runner = Runner(tmp_path / "net.tflite")
    assert runner.input_quantization == runner.output_quantization == (1.0, -120)

    images = np.random.default_rng(0).integers(0, 248, (3, 2, 1, 2, 1, 3))
    pixels = images.repeat(2, 2).repeat(2, 4).reshape(3, 4, 4, 3)
    expected = images.reshape(3, 12)
    np.testing.assert_array_equal(runner.predict(pixels), expected)
    # What is beyond the integers is the nearest that there is: 127 + 120.
    np.testing.assert_array_equal(runner.predict(np.full((1, 4, 4, 3), 250.0)), [[247.0] * 12])

"""What others read in our metadata: every field is where the published schema has it.

https://github.com/google-ai-edge/mediapipe/blob/master/mediapipe/tasks/metadata/metadata_schema.fbs
"""

from __future__ import annotations

import hashlib
import struct

import flatbuffers
import keras
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from tflite_crafted import packed

from kapps.tflite import Metadata
from kapps.tflite.metadata import BUFFER_NAME, weights_sha256, with_metadata

RGB, GRAYSCALE = 1, 2  # enum ColorSpaceType


def _model(shape: tuple[int, int, int, int]) -> bytes:
    """A .tflite file without operations, from an image of this shape to three numbers."""
    model = schema.ModelT()
    model.version, model.buffers, model.operatorCodes = 3, [schema.BufferT()], []
    graph = schema.SubGraphT()
    graph.tensors, graph.operators = [schema.TensorT(), schema.TensorT()], []
    for tensor, sizes in zip(graph.tensors, (shape, (1, 3)), strict=True):
        tensor.shape, tensor.buffer, tensor.name = list(sizes), 0, "x"
    graph.inputs, graph.outputs, model.subgraphs = [0], [1], [graph]
    return packed(model)


class _Table(flatbuffers.Table):
    """Fields by their slots, read with nothing of kapps."""

    def at(self, slot: int) -> int:
        offset = self.Offset(4 + 2 * slot)
        assert offset, f"no field {slot}"
        return self.Pos + offset

    def table(self, slot: int) -> _Table:
        return _Table(self.Bytes, self.Indirect(self.at(slot)))

    def first(self, slot: int) -> _Table:
        assert self.VectorLen(self.at(slot) - self.Pos) == 1
        return _Table(self.Bytes, self.Indirect(self.Vector(self.at(slot) - self.Pos)))

    def number(self, slot: int, kind: str) -> float:
        return struct.unpack_from(f"<{kind}", self.Bytes, self.at(slot))[0]

    def float_of_vector(self, slot: int) -> float:
        return struct.unpack_from("<f", self.Bytes, self.Vector(self.at(slot) - self.Pos))[0]


@pytest.mark.parametrize(("channels", "color"), [(3, RGB), (1, GRAYSCALE)])
def test_the_image_and_the_scores_are_described(channels, color):
    metadata = Metadata("net", ("a", "b", "c"), mean=(127.5,), std=(64.0,))
    root = schema.Model.GetRootAs(with_metadata(_model((1, 4, 6, channels)), metadata), 0)
    (entry,) = (root.Metadata(i) for i in range(root.MetadataLength()))
    assert entry.Name() == BUFFER_NAME.encode()
    content = np.asarray(root.Buffers(entry.Buffer()).DataAsNumpy()).tobytes()
    graph = _Table(content, struct.unpack_from("<I", content)[0]).first(3)
    image, scores = graph.first(2), graph.first(3)

    properties = image.table(3)  # Content
    assert properties.number(0, "B") == 2  # union ContentProperties: ImageProperties
    assert properties.table(1).number(0, "b") == color
    size = properties.table(1).table(1)
    assert (size.number(0, "I"), size.number(1, "I")) == (6, 4)  # width, height
    unit = image.first(4)
    assert unit.number(0, "B") == 1  # union ProcessUnitOptions: NormalizationOptions
    assert [unit.table(1).float_of_vector(slot) for slot in (0, 1)] == [127.5, 64.0]
    for tensor, largest in ((image, 255.0), (scores, 1.0)):
        assert [tensor.table(5).float_of_vector(slot) for slot in (0, 1)] == [largest, 0.0]
    labels = scores.first(6)
    assert labels.number(2, "b") == 2  # enum AssociatedFileType: TENSOR_AXIS_LABELS


def test_anyone_can_compute_the_sum_of_weights_in_memory():
    """Dimensions and values, little-endian, as the docstring has it: here byte by byte."""
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.set_weights([np.array([[1.0], [-2.0]], "float32"), np.array([0.5], "float32")])
    kernel = "0200000000000000 0200000000000000 0100000000000000 0000803f 000000c0"
    bias = "0100000000000000 0100000000000000 0000003f"
    expected = hashlib.sha256(bytes.fromhex(kernel + bias)).hexdigest()
    assert weights_sha256(model) == (expected, "")

"""Conversion of networks whose weights TensorFlow's converter should not hold.

The converter has three copies of the weights in memory at a time, and eleven where it quantizes:
5.4 GB for the 0.5 GB of VGG11. Here it sees a network of the same layers with small kernels: a
convolution in groups has the same inputs and outputs, and as many times fewer weights. `stand_ins`
makes that network, `filling` puts the weights into the file that comes out of it, which goes to
disk piece by piece, and `ranges` finds what a quantizer has to know of the real network, a small
one too.
"""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Iterable, Sequence

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from kapps._files import temporary_folder
from kapps.tflite.large import filling, ranges
from kapps.tflite.large.filling import NotFound as NotFound
from kapps.tflite.large.stand_ins import StandIn as StandIn
from kapps.tflite.large.stand_ins import is_large as is_large
from kapps.tflite.large.stand_ins import with_stand_ins as with_stand_ins


def filled(content: bytes, stand_ins: Sequence[StandIn]) -> mmap.mmap:
    """The file with the kernels in the place of what stands for them; it lies on the disk.

    Raises:
        NotFound: a stand-in is not in the file as it was given.
    """
    model, weights = filling.read(content, stand_ins)
    with tempfile.TemporaryFile(prefix="kapps-") as file:
        filling.write(file, model, weights)
        file.flush()
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def with_ranges(
    content: bytes, stand_ins: Sequence[StandIn], images: Iterable[np.ndarray]
) -> bytes:
    """A file of floats, with the range of each tensor of the real network over `images`.

    Raises:
        NotFound: a stand-in is not in the file as it was given.
    """
    real, weights = filling.read(content, stand_ins)
    with temporary_folder() as folder:
        found = ranges.find_ranges(real, weights, images, folder)
    ranges.made_computable(real, weights, found)
    model = schema.ModelT.InitFromPackedBuf(content, 0)
    ranges.set_ranges(model, found)
    return bytes(filling.packed(model))

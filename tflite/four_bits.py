"""Files with weights of 4 bits, by ai-edge-quantizer.

    quantized(content, "int4", calibration)

Activations stay in floats, which the kernels quantize as they come. The steps of 4 bits are coarse:
their ends are those of the smallest error (OCTAV: Sakr et al. 2022, "Optimal Clipping and
Magnitude-aware Differentiation for Improved Quantization-aware Training", arXiv:2206.06501), and
what the rounding adds to a layer on average over the calibration images is taken off its bias.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from kapps._errors import InputError
from kapps.tflite.inspection.versions import oldest_runtime
from kapps.tflite.large.filling import note_runtime, packed, unpacked
from kapps.tflite.quantizations import FOUR_BITS
from kapps.tflite.refinement import JUDGED, STEPS, Judge, some
from kapps.tflite.refinement.bias import correct_biases
from kapps.tflite.refinement.constants import set_constant, weighted
from kapps.tflite.refinement.statistics import find_channels

_NONE = "files of 4 bits are made by ai-edge-quantizer: pip install 'kapps[quantizer]'"


_OLDEST = {
    "int4": oldest_runtime("CONV_2D", 1, four_bits=True) or "",
    "int4_blockwise": oldest_runtime("FULLY_CONNECTED", 1, four_bits=True, blocks=True) or "",
}


def check_installed(quantization: str) -> None:
    """Raises InputError if files of that quantization cannot be made here."""
    if quantization in FOUR_BITS:
        _quantizer()


def quantized(
    content: bytes, quantization: str, images: np.ndarray | None
) -> tuple[bytes, tuple[str, ...]]:
    """The file of 4 bits, and the steps of `kapps.tflite.refinement` that it has.

    Args:
        content: of a file of floats.
        quantization: "int4" or "int4_blockwise".
        images: for the correction of the biases, (n, height, width, channels) in 0..255, which is
            kept if it lessens the drift on them; without images there is none.

    Raises:
        InputError: ai-edge-quantizer is not installed.
    """
    quantizer = _quantizer().Quantizer(bytearray(content))
    quantizer.load_quantization_recipe(_recipe(quantization))
    from kapps.tflite.converter import quiet

    with quiet():
        made = quantizer.quantize(enable_progress_bar=False, enable_progress_report=False)
    model = unpacked(bytes(made.quantized_model))
    note_runtime(model, _OLDEST[quantization])
    plain = bytes(packed(model))
    if images is None:
        return plain, ()
    _correct(model, content, images)
    corrected, judge = bytes(packed(model)), Judge(content, some(images, JUDGED))
    if judge(corrected).drift < judge(plain).drift:
        return corrected, STEPS[:1]
    return plain, ()


def _quantizer() -> Any:
    try:
        from ai_edge_quantizer import quantizer
    except ImportError as error:
        raise InputError(_NONE) from error
    return quantizer


def _recipe(quantization: str) -> list[dict[str, Any]]:
    """What the quantizer is to do; what it has no form for stays in floats.

    int4: a scale for each output channel. int4_blockwise: one for 32 weights of a dense layer, and
    8 bits in convolutions, whose kernels no runtime takes in blocks.
    """
    from ai_edge_quantizer import qtyping, recipe_manager
    from ai_edge_quantizer.algorithm_manager import AlgorithmName

    operations = qtyping.TFLOperationName
    recipe = recipe_manager.RecipeManager()
    if quantization == "int4":
        for operation in (operations.CONV_2D, operations.FULLY_CONNECTED):
            recipe.add_dynamic_config(
                ".*", operation, num_bits=4, algorithm_key=AlgorithmName.OCTAV
            )
    else:
        recipe.add_dynamic_config(".*", operations.ALL_SUPPORTED, num_bits=8)
        recipe.add_dynamic_config(
            ".*",
            operations.FULLY_CONNECTED,
            num_bits=4,
            granularity=qtyping.QuantGranularity.BLOCKWISE_32,
        )
    return list(recipe.get_quantization_recipe())


def _correct(model: Any, content: bytes, images: np.ndarray) -> None:
    """Gives the file of 4 bits the biases that make up for the rounding in it."""
    floats = schema.ModelT.InitFromPackedBuf(content, 0)
    graph = model.subgraphs[0]
    made = {graph.tensors[op.outputs[0]].name.decode(): op for op in graph.operators}
    kernels = {
        layer.output: kernel
        for layer in weighted(floats)
        if layer.output in made and (kernel := _kernel(model, made[layer.output])) is not None
    }
    channels = find_channels(floats, images)
    correct_biases(floats, channels, lambda layer: kernels.get(layer.output))
    for layer in weighted(floats):
        if layer.output in kernels and layer.bias is not None:
            set_constant(model, made[layer.output], 2, layer.bias)


def _kernel(model: Any, op: Any) -> np.ndarray | None:
    """What a kernel of integers stands for; None of one of floats."""
    tensors = model.subgraphs[0].tensors
    tensor = tensors[op.inputs[1]]
    data = _bytes(model, tensor)
    if tensor.type == schema.TensorType.INT4:  # two in a byte, the lower half first
        values = np.stack([data & 15, data >> 4], axis=-1).reshape(-1).astype("int8")
        values[values > 7] -= 16
    elif tensor.type == schema.TensorType.INT8:
        values = data.view("int8")
    else:
        return None
    values = values[: int(np.prod(tensor.shape))].reshape(tensor.shape).astype("float64")
    found = tensor.quantization
    if found.detailsType == schema.QuantizationDetails.BlockwiseQuantization:
        scales = _bytes(model, tensors[found.details.scales]).view("float16").astype("float64")
        rows = values.reshape(len(values), -1, found.details.blockSize)
        return (rows * scales.reshape(len(values), -1, 1)).reshape(values.shape)
    shape = np.ones(values.ndim, int)
    shape[found.quantizedDimension] = len(found.scale)
    return values * np.asarray(found.scale, "float64").reshape(shape)


def _bytes(model: Any, tensor: Any) -> np.ndarray:
    return np.asarray(model.buffers[tensor.buffer].data, "uint8")

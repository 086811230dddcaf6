"""The options of an operation that decide whether a delegate takes it."""

from __future__ import annotations

from typing import Any

from ai_edge_litert import schema_py_generated as schema

# Of each operation its table of the schema, and what of it counts.
_TABLES = {
    "AVERAGE_POOL_2D": ("Pool2DOptions", ("FusedActivationFunction",)),
    "CONV_2D": ("Conv2DOptions", ("FusedActivationFunction",)),
    "DEPTHWISE_CONV_2D": ("DepthwiseConv2DOptions", ("DepthMultiplier", "FusedActivationFunction")),
    "DEPTH_TO_SPACE": ("DepthToSpaceOptions", ("BlockSize",)),
    "FULLY_CONNECTED": ("FullyConnectedOptions", ("WeightsFormat", "KeepNumDims")),
    "MAX_POOL_2D": ("Pool2DOptions", ("FusedActivationFunction",)),
    "MIRROR_PAD": ("MirrorPadOptions", ("Mode",)),
    "MUL": ("MulOptions", ("FusedActivationFunction",)),
    "RESIZE_BILINEAR": ("ResizeBilinearOptions", ("AlignCorners", "HalfPixelCenters")),
    "SOFTMAX": ("SoftmaxOptions", ("Beta",)),
    "SPACE_TO_DEPTH": ("SpaceToDepthOptions", ("BlockSize",)),
    "STRIDED_SLICE": ("StridedSliceOptions", ("EllipsisMask", "NewAxisMask", "ShrinkAxisMask")),
}


def options_of(operator: Any, name: str) -> dict[str, float]:
    """{name as in the schema: value} of an `Operator` of the schema; of others than these {}."""
    table, wanted = _TABLES.get(name, ("", ()))
    if not table or operator.BuiltinOptionsType() != getattr(schema.BuiltinOptions, table):
        return {}
    stored = operator.BuiltinOptions()
    if stored is None:
        return {}
    options = getattr(schema, table)()
    options.Init(stored.Bytes, stored.Pos)
    return {each: getattr(options, each)() for each in wanted}

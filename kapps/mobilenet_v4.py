"""MobileNetV4: Qin et al. 2024, "MobileNetV4: Universal Models for the Mobile Ecosystem".

Layer names are those of timm's `mobilenetv4_*`, to whose logits the networks are equal.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence

from keras import KerasTensor, layers

from kapps import _layers
from kapps._layers import act, bn, conv, depthwise, layer_scale, make_divisible
from kapps._mbconv import fused_mbconv
from kapps._model import HALF, model
from kapps._network import Architecture, Net
from kapps.custom_layers import MultiQueryAttention

_Rows = Sequence[tuple[int, int, int, int]]
_Heads = tuple[int, int, int]
_Block = Callable[[KerasTensor, Net, str], KerasTensor]

# Of the paper's tables, from 11 on, the universal inverted bottlenecks of a stage, whose first one
# has stride 2: repeats, kernel before the expansion and behind it (0: none), expansion
_SMALL_16: _Rows = ((1, 5, 5, 3), (4, 0, 3, 2), (1, 3, 0, 4))
_SMALL_32: _Rows = ((1, 3, 3, 6), (1, 5, 5, 4), (1, 0, 5, 4), (1, 0, 5, 3), (2, 0, 3, 4))
_MEDIUM_8: _Rows = ((1, 3, 5, 4), (1, 3, 3, 2))
_MEDIUM_16: _Rows = (
    (1, 3, 5, 6),
    (2, 3, 3, 4),
    (1, 3, 5, 4),
    (1, 3, 3, 4),
    (1, 3, 0, 4),
    (1, 0, 0, 2),
    (1, 3, 0, 4),
)
_MEDIUM_32: _Rows = (
    (1, 5, 5, 6),
    (1, 5, 5, 4),
    (2, 3, 5, 4),
    (1, 0, 0, 4),
    (1, 3, 0, 4),
    (1, 3, 5, 2),
    (1, 5, 5, 4),
    (2, 0, 0, 4),
    (1, 5, 0, 2),
)
_HYBRID_16: _Rows = (
    (1, 3, 5, 6),
    (1, 0, 0, 2),
    (1, 3, 3, 4),
    (1, 3, 5, 4),
    (1, 3, 3, 4),
    (1, 3, 0, 4),
    (1, 3, 3, 4),
    (1, 3, 0, 4),
)
_HYBRID_32: _Rows = (
    (1, 5, 5, 6),
    (1, 5, 5, 4),
    (2, 3, 5, 4),
    (1, 0, 0, 2),
    (1, 3, 5, 2),
    (1, 0, 0, 2),
    (1, 0, 0, 4),
    (1, 3, 0, 4),
    (1, 5, 5, 4),
    (2, 5, 0, 4),
)
_LARGE_8: _Rows = ((1, 3, 5, 4), (1, 3, 3, 4))
_LARGE_16: _Rows = ((1, 3, 5, 4), (3, 3, 3, 4), (1, 3, 5, 4), (5, 5, 3, 4), (1, 3, 0, 4))
_LARGE_32: _Rows = (
    (4, 5, 5, 4),
    (1, 5, 0, 4),
    (1, 5, 3, 4),
    (2, 5, 0, 4),
    (1, 5, 3, 4),
    (1, 5, 5, 4),
    (3, 5, 0, 4),
)


def _conv_bn(
    x: KerasTensor, net: Net, path: str, *, filters: int, kernel: int, stride: int, activation: str
) -> KerasTensor:
    """conv, BN, act."""
    x = bn(conv(x, filters, kernel, f"{path}.conv", stride=stride), f"{path}.bn1")
    return act(x, activation, f"{path}.act")


def _bottleneck(
    x: KerasTensor,
    net: Net,
    path: str,
    *,
    row: Sequence[int],
    stride: int,
    filters: int,
    activation: str,
    scaled: bool,
) -> KerasTensor:
    """[depthwise, BN,] 1x1, BN, act, [depthwise, BN, act,] 1x1, BN [, scale] [, + input].

    The universal inverted bottleneck, figure 4 of the paper; a `row` is one of the tables above,
    without repeats.
    """
    shortcut = x
    first, second, expansion = row
    if first:
        x = bn(depthwise(x, first, f"{path}.dw_start.conv"), f"{path}.dw_start.bn")
    expanded = make_divisible(shortcut.shape[-1] * expansion)
    x = bn(conv(x, expanded, 1, f"{path}.pw_exp.conv"), f"{path}.pw_exp.bn")
    x = act(x, activation, f"{path}.pw_exp.act")
    if second:
        x = depthwise(x, second, f"{path}.dw_mid.conv", stride=stride)
        x = act(bn(x, f"{path}.dw_mid.bn"), activation, f"{path}.dw_mid.act")
    x = bn(conv(x, filters, 1, f"{path}.pw_proj.conv"), f"{path}.pw_proj.bn")
    if scaled:
        x = layer_scale(x, f"{path}.layer_scale")
    if stride == 1 and filters == shortcut.shape[-1]:
        x = net.add(x, shortcut, path)
    return x


def _attention(x: KerasTensor, net: Net, path: str, *, heads: _Heads) -> KerasTensor:
    """BN; 1x1 for queries, [depthwise, BN,] 1x1 for keys and for values; 1x1, scale, + input.

    Mobile multi-query attention, section 3.2 of the paper: all heads share keys and values, which
    are of a smaller map where their stride is 2. `heads` are their number, the channels of each,
    and that stride.
    """
    shortcut = x
    count, channels, stride = heads
    x = bn(x, f"{path}.norm")
    maps = [conv(x, count * channels, 1, f"{path}.attn.query.proj")]
    for name in ("key", "value"):
        y, own = x, f"{path}.attn.{name}"
        if stride > 1:
            y = bn(depthwise(y, 3, f"{own}.down_conv", stride=stride), f"{own}.norm")
        maps.append(conv(y, channels, 1, f"{own}.proj"))
    x = MultiQueryAttention(count, name=_layers.layer_name(f"{path}.attn"))(maps)
    x = conv(x, shortcut.shape[-1], 1, f"{path}.attn.output.proj")
    return net.add(layer_scale(x, f"{path}.layer_scale"), shortcut, path)


def mobilenet_v4(
    stages: Sequence[tuple[int, _Rows, _Heads | None]],
    *,
    shallow: Sequence[tuple[int, int]] = (),
    stem: int = 32,
    alpha: float = 1.0,
    activation: str = "relu",
) -> Architecture:
    """A MobileNetV4.

    Args:
        stages: filters, bottlenecks, and the heads of the attention before each of the last four of
            these; with any, the branches of all bottlenecks are scaled.
        shallow: filters of the 3x3 and the 1x1 convolution that are a stage before these; without
            any, that stage is one fused inverted bottleneck.
        stem: filters of the first convolution.
        alpha: what the filters of the stages are multiplied by.
        activation: by its Keras name.
    """
    scaled = any(heads is not None for _, _, heads in stages)

    def one(filters: int, kernel: int, stride: int = 1) -> _Block:
        filters = make_divisible(alpha * filters)
        return functools.partial(
            _conv_bn, filters=filters, kernel=kernel, stride=stride, activation=activation
        )

    def stage(filters: int, rows: _Rows, heads: _Heads | None) -> Iterator[_Block]:
        flat = [row for repeats, *row in rows for _ in range(repeats)]
        for i, row in enumerate(flat):
            if heads is not None and i >= len(flat) - 4:
                yield functools.partial(_attention, heads=heads)
            yield functools.partial(
                _bottleneck,
                row=row,
                stride=2 if i == 0 else 1,
                filters=make_divisible(alpha * filters),
                activation=activation,
                scaled=scaled,
            )

    def features(x: KerasTensor, net: Net) -> KerasTensor:
        # timm keeps the stem of narrow ones: https://github.com/huggingface/pytorch-image-models/
        # blob/main/timm/models/mobilenetv3.py, `fix_stem`
        x = act(bn(conv(x, stem, 3, "conv_stem", stride=2), "bn1"), activation, "act1")
        fused = functools.partial(
            fused_mbconv, stride=2, expanded=4 * stem, filters=48, activation=activation
        )
        blocks = [[one(wide, 3, 2), one(narrow, 1)] for wide, narrow in shallow] or [[fused]]
        blocks += [list(stage(*row)) for row in stages]
        blocks.append([one(960, 1)])
        for i, j in net.blocks(map(len, blocks)):
            x = blocks[i][j](x, net, f"blocks.{i}.{j}")
        return x

    def head(x: KerasTensor, net: Net) -> KerasTensor:
        x = _layers.global_pool(x, "global_pool", keepdims=True)
        x = act(bn(conv(x, 1280, 1, "conv_head"), "norm_head"), activation, "act2")
        x = layers.Flatten(name="flatten")(x)
        return net.classifier(net.dropout(x), "classifier")

    return Architecture(features, head, drop_path_schedule="efficientnet")


def _small(alpha: float) -> Architecture:
    stages = ((96, _SMALL_16, None), (128, _SMALL_32, None))
    return mobilenet_v4(stages, shallow=((32, 32), (96, 64)), alpha=alpha)


# Dropout, as the size of the input, is that of the authors' recipes: https://github.com/tensorflow/
# models, official/vision/configs/experiments/image_classification/imagenet_mobilenetv4_*.yaml.
# Stochastic depth is in these 0.075 for the medium networks, 0.2 for ConvLarge and 0.35 for
# HybridLarge: `drop_path_rate`, which is off until asked for, as everywhere.
@model(dropout_rate=0.3)
def MobileNetV4ConvSmall() -> Architecture:
    """MobileNetV4-Conv-S: 3,774,024 parameters, 186.0 million MACs at 224 px."""
    return _small(1.0)


@model(dropout_rate=0.3, mean=HALF, std=HALF)
def MobileNetV4ConvSmall_050() -> Architecture:
    """MobileNetV4-Conv-S of half the channels, timm's: 2,238,952 parameters, 224 px."""
    return _small(0.5)


@model(size=256, dropout_rate=0.2)
def MobileNetV4ConvMedium() -> Architecture:
    """MobileNetV4-Conv-M: 9,715,512 parameters, 1.08 billion MACs at 256 px."""
    return mobilenet_v4(((80, _MEDIUM_8, None), (160, _MEDIUM_16, None), (256, _MEDIUM_32, None)))


@model(size=384, dropout_rate=0.2)
def MobileNetV4ConvLarge() -> Architecture:
    """MobileNetV4-Conv-L: 32,590,864 parameters, 6.38 billion MACs at 384 px."""
    stages = ((96, _LARGE_8, None), (192, _LARGE_16, None), (512, _LARGE_32, None))
    return mobilenet_v4(stages, stem=24)


@model(size=256, dropout_rate=0.2)
def MobileNetV4HybridMedium() -> Architecture:
    """MobileNetV4-Hybrid-M, with attention: 11,074,648 parameters, 256 px."""
    stages = ((80, _MEDIUM_8, None), (160, _HYBRID_16, (4, 64, 2)), (256, _HYBRID_32, (4, 64, 1)))
    return mobilenet_v4(stages)


@model(size=384, dropout_rate=0.2)
def MobileNetV4HybridLarge() -> Architecture:
    """MobileNetV4-Hybrid-L, with attention: 37,764,624 parameters, 384 px.

    Its activation is GELU.
    """
    last = (*_LARGE_32, (1, 5, 0, 4))
    stages = ((96, _LARGE_8, None), (192, _LARGE_16, (8, 48, 2)), (512, last, (8, 64, 1)))
    return mobilenet_v4(stages, stem=24, activation="gelu")

"""ResNet: He et al. 2015, "Deep Residual Learning for Image Recognition".

With the networks that are other numbers in the same code: ResNeXt (Xie et al. 2017), the wide
ones for ImageNet (Zagoruyko and Komodakis 2016), and the plain ones that the paper compares with.
Layer names are those of timm's `resnet*` and `resnext*`, to whose logits the networks are equal.
As there, a bottleneck's stride is on its 3x3 convolution, where the paper has it on the first 1x1.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

from keras import KerasTensor

from kapps import _layers
from kapps._errors import InputError, check_whole
from kapps._layers import act, bn, conv
from kapps._model import model
from kapps._network import Architecture, Net, pooled_head


def check_blocks(builder: str, blocks: Sequence[int]) -> tuple[int, ...]:
    """The numbers of blocks of four stages; an `InputError` if these are none."""
    if not isinstance(blocks, Sequence) or isinstance(blocks, str) or len(blocks) != 4:
        raise InputError(
            f"{builder}: blocks must be four whole numbers, one for each stage, such as "
            f"(3, 4, 6, 3), not {blocks!r}"
        )
    return tuple(check_whole(builder, f"blocks[{i}]", n) for i, n in enumerate(blocks))


@dataclasses.dataclass(frozen=True)
class Block:
    """How a network builds its residual blocks.

    Without bottleneck: 3x3, BN, act, 3x3, BN [, SE], + shortcut, act.
    With it: 1x1, BN, act, 3x3 in groups, BN, act, 1x1, BN [, SE], + shortcut, act.
    The shortcut is the input, and where the shape changes a convolution of it, BN.
    """

    bottleneck: bool = True
    cardinality: int = 1
    """Groups of the 3x3 convolution of a bottleneck (Xie et al. 2017, figure 3c)."""
    width: int = 64
    """Channels of each group in a stage of 64 filters; in proportion in the others."""
    se: bool = False
    residual: bool = True
    shortcut_kernel: int = 1
    """Of the convolution in the shortcut, where the stride is 2."""
    halved: bool = False
    """Whether the first 1x1 has half the channels."""

    def __call__(
        self,
        x: KerasTensor,
        net: Net,
        path: str,
        *,
        filters: int,
        stride: int,
    ) -> KerasTensor:
        shortcut = x
        convs: tuple[tuple[int, int, int, int], ...]  # filters, kernel, stride, groups
        if self.bottleneck:
            inner = filters * self.width // 64 * self.cardinality
            first = inner // 2 if self.halved else inner
            convs = (
                (first, 1, 1, 1),
                (inner, 3, stride, self.cardinality),
                (4 * filters, 1, 1, 1),
            )
        else:
            convs = ((filters, 3, stride, 1), (filters, 3, 1, 1))
        for i, (channels, kernel, step, groups) in enumerate(convs, start=1):
            if i > 1:
                x = act(x, "relu", f"{path}.act{i - 1}")
            x = conv(x, channels, kernel, f"{path}.conv{i}", stride=step, groups=groups)
            x = bn(x, f"{path}.bn{i}")
        channels = x.shape[-1]
        if self.se:
            reduced = _layers.make_divisible(channels / 16)
            x = _layers.se(x, reduced, f"{path}.se", names=("fc1", "fc2"))
        if self.residual:
            if stride > 1 or shortcut.shape[-1] != channels:
                kernel = self.shortcut_kernel if stride > 1 else 1
                shortcut = conv(shortcut, channels, kernel, f"{path}.downsample.0", stride=stride)
                shortcut = bn(shortcut, f"{path}.downsample.1")
            x = net.add(x, shortcut, path)
        return act(x, "relu", f"{path}.act{len(convs)}")


def stages(x: KerasTensor, net: Net, blocks: Sequence[int], block: Block) -> KerasTensor:
    """So many blocks in each stage: 64 filters in the first, and twice as many in each next."""
    for i, j in net.blocks(blocks):
        stride = 2 if i > 0 and j == 0 else 1
        x = block(x, net, f"layer{i + 1}.{j}", filters=64 * 2**i, stride=stride)
    return x


def resnet(blocks: Sequence[int], block: Block, *, deep_stem: bool = False) -> Architecture:
    """A network of these blocks; a deep stem has three 3x3 convolutions for the 7x7."""

    def features(x: KerasTensor, net: Net) -> KerasTensor:
        if deep_stem:
            x = conv(x, 64, 3, "conv1.0", stride=2)
            x = act(bn(x, "conv1.1"), "relu", "conv1.2")
            x = act(bn(conv(x, 64, 3, "conv1.3"), "conv1.4"), "relu", "conv1.5")
            x = conv(x, 128, 3, "conv1.6")
        else:
            x = conv(x, 64, 7, "conv1", stride=2)
        x = act(bn(x, "bn1"), "relu", "act1")
        x = _layers.max_pool(x, 3, 2, "maxpool", padding="symmetric")
        return stages(x, net, blocks, block)

    head = functools.partial(pooled_head, classifier="fc")
    return Architecture(features, head, drop_path_schedule="linspace")


@model()
def ResNet(
    blocks: Sequence[int] = (3, 4, 6, 3),
    bottleneck: bool = True,
    cardinality: int = 1,
    width: int = 64,
    se: bool = False,
    residual: bool = True,
) -> Architecture:
    """The family; at its defaults ResNet-50: 25,557,032 parameters, 4,089.2 million MACs at 224 px.

    `blocks` has the number of residual blocks of each of the four stages. A block has two 3x3
    convolutions, or with `bottleneck` 1x1, 3x3, 1x1 with four times the filters at the end. The
    3x3 of a bottleneck has `cardinality` groups of `width` channels in the first stage, and of
    twice as many in each next one: 32 and 4 make ResNeXt-50 (32x4d), 1 and 128 WideResNet-50-2.
    `se` adds squeeze-and-excitation to each block, and without `residual` there are no shortcuts.
    An `InputError` says which of them is not as described, or that `cardinality` or `width` was
    given without bottleneck.
    """
    blocks = check_blocks("ResNet", blocks)
    cardinality = check_whole("ResNet", "cardinality", cardinality)
    width = check_whole("ResNet", "width", width)
    if not bottleneck and (cardinality, width) != (1, 64):
        raise InputError(
            f"ResNet: cardinality={cardinality} and width={width} shape the bottleneck block; "
            "leave them at 1 and 64 with bottleneck=False"
        )
    return resnet(blocks, Block(bottleneck, cardinality, width, se, residual))


# Blocks: table 1 of the paper.


@model()
def ResNet18() -> Architecture:
    """ResNet-18: 11,689,512 parameters, 1,814.1 million MACs at 224 px."""
    return resnet((2, 2, 2, 2), Block(bottleneck=False))


@model()
def ResNet34() -> Architecture:
    """ResNet-34: 21,797,672 parameters, 3,663.8 million MACs at 224 px."""
    return resnet((3, 4, 6, 3), Block(bottleneck=False))


@model()
def ResNet50() -> Architecture:
    """ResNet-50: 25,557,032 parameters, 4,089.2 million MACs at 224 px."""
    return resnet((3, 4, 6, 3), Block())


@model()
def ResNet101() -> Architecture:
    """ResNet-101: 44,549,160 parameters, 7,801.4 million MACs at 224 px."""
    return resnet((3, 4, 23, 3), Block())


@model()
def ResNet152() -> Architecture:
    """ResNet-152: 60,192,808 parameters, 11,513.6 million MACs at 224 px."""
    return resnet((3, 8, 36, 3), Block())


@model()
def PlainNet18() -> Architecture:
    """The plain network of 18 layers: 11,515,688 parameters, 1,794.8 million MACs at 224 px."""
    return resnet((2, 2, 2, 2), Block(bottleneck=False, residual=False))


@model()
def PlainNet34() -> Architecture:
    """The plain network of 34 layers: 21,623,848 parameters, 3,644.5 million MACs at 224 px."""
    return resnet((3, 4, 6, 3), Block(bottleneck=False, residual=False))


# Xie et al. 2017, section 5.1; 32x8d is that of the published weights.


@model()
def ResNeXt50() -> Architecture:
    """ResNeXt-50 (32x4d): 25,028,904 parameters, 4,230.5 million MACs at 224 px."""
    return resnet((3, 4, 6, 3), Block(cardinality=32, width=4))


@model()
def ResNeXt101() -> Architecture:
    """ResNeXt-101 (32x8d): 88,791,336 parameters, 16,414.0 million MACs at 224 px."""
    return resnet((3, 4, 23, 3), Block(cardinality=32, width=8))


@model()
def ResNeXt101_32x4d() -> Architecture:
    """ResNeXt-101 (32x4d): 44,177,704 parameters, 7,970.0 million MACs at 224 px."""
    return resnet((3, 4, 23, 3), Block(cardinality=32, width=4))


@model()
def ResNeXt101_64x4d() -> Architecture:
    """ResNeXt-101 (64x4d): 83,455,272 parameters, 15,460.3 million MACs at 224 px."""
    return resnet((3, 4, 23, 3), Block(cardinality=64, width=4))


# Zagoruyko and Komodakis 2016, the experiments on ImageNet.


@model()
def WideResNet50_2() -> Architecture:
    """WideResNet-50-2: 68,883,240 parameters, 11,398.0 million MACs at 224 px."""
    return resnet((3, 4, 6, 3), Block(width=128))


@model()
def WideResNet101_2() -> Architecture:
    """WideResNet-101-2: 126,886,696 parameters, 22,753.1 million MACs at 224 px."""
    return resnet((3, 4, 23, 3), Block(width=128))

"""Inception v3: Szegedy et al. 2015, "Rethinking the Inception Architecture for Computer Vision".

Layer names are those of timm's and torchvision's `inception_v3`, to whose logits the network is
equal.
"""

from __future__ import annotations

from keras import KerasTensor, layers

from kapps import _layers
from kapps._errors import InputError
from kapps._layers import act, avg_pool, bn, conv, max_pool
from kapps._model import HALF, model
from kapps._network import Architecture, Net

_Kernel = int | tuple[int, int]


def _unit(
    x: KerasTensor,
    filters: int,
    kernel: _Kernel,
    path: str,
    *,
    stride: int = 1,
    padding: _layers.Padding = "symmetric",
) -> KerasTensor:
    """Convolution, BN, ReLU."""
    x = conv(x, filters, kernel, f"{path}.conv", stride=stride, padding=padding)
    return act(bn(x, f"{path}.bn", epsilon=1e-3), "relu", f"{path}.act")


def _chain(
    x: KerasTensor, path: str, steps: tuple[tuple[int, _Kernel], ...], *, stride: int = 1
) -> KerasTensor:
    """Units of these filters and kernels, numbered; a stride is the last one's, without padding."""
    for i, (filters, kernel) in enumerate(steps, start=1):
        last = i == len(steps) and stride > 1
        x = _unit(
            x,
            filters,
            kernel,
            f"{path}_{i}",
            stride=stride if last else 1,
            padding="valid" if last else "symmetric",
        )
    return x


def _pool_unit(x: KerasTensor, filters: int, path: str) -> KerasTensor:
    """3x3 mean, 1x1."""
    x = avg_pool(x, 3, 1, f"{path}.avg_pool", padding="symmetric")
    return _unit(x, filters, 1, f"{path}.branch_pool")


def _concat(branches: list[KerasTensor], path: str) -> KerasTensor:
    return layers.Concatenate(name=_layers.layer_name(path) + "_concat")(branches)


def _module_a(x: KerasTensor, pooled: int, path: str) -> KerasTensor:
    """1x1 | 1x1, 5x5 | 1x1, 3x3, 3x3 | 3x3 mean, 1x1 (figure 5 of the paper, with a 5x5 left)."""
    branches = [
        _unit(x, 64, 1, f"{path}.branch1x1"),
        _chain(x, f"{path}.branch5x5", ((48, 1), (64, 5))),
        _chain(x, f"{path}.branch3x3dbl", ((64, 1), (96, 3), (96, 3))),
        _pool_unit(x, pooled, path),
    ]
    return _concat(branches, path)


def _reduction_b(x: KerasTensor, path: str) -> KerasTensor:
    """3x3 at stride 2 | 1x1, 3x3, 3x3 at stride 2 | 3x3 max-pool at stride 2 (figure 10)."""
    branches = [
        _unit(x, 384, 3, f"{path}.branch3x3", stride=2, padding="valid"),
        _chain(x, f"{path}.branch3x3dbl", ((64, 1), (96, 3), (96, 3)), stride=2),
        max_pool(x, 3, 2, f"{path}.branch_pool"),
    ]
    return _concat(branches, path)


def _module_c(x: KerasTensor, c: int, path: str) -> KerasTensor:
    """1x1 | 1x1, 1x7, 7x1 | 1x1, 7x1, 1x7, 7x1, 1x7 | 3x3 mean, 1x1 (figure 6, n = 7)."""
    wide, high = (1, 7), (7, 1)
    double = ((c, 1), (c, high), (c, wide), (c, high), (192, wide))
    branches = [
        _unit(x, 192, 1, f"{path}.branch1x1"),
        _chain(x, f"{path}.branch7x7", ((c, 1), (c, wide), (192, high))),
        _chain(x, f"{path}.branch7x7dbl", double),
        _pool_unit(x, 192, path),
    ]
    return _concat(branches, path)


def _reduction_d(x: KerasTensor, path: str) -> KerasTensor:
    """1x1, 3x3 at stride 2 | 1x1, 1x7, 7x1, 3x3 at stride 2 | 3x3 max-pool at stride 2."""
    long = ((192, 1), (192, (1, 7)), (192, (7, 1)), (192, 3))
    branches = [
        _chain(x, f"{path}.branch3x3", ((192, 1), (320, 3)), stride=2),
        _chain(x, f"{path}.branch7x7x3", long, stride=2),
        max_pool(x, 3, 2, f"{path}.branch_pool"),
    ]
    return _concat(branches, path)


def _fork(x: KerasTensor, path: str) -> list[KerasTensor]:
    """1x3 | 3x1, of the same input."""
    return [_unit(x, 384, (1, 3), f"{path}a"), _unit(x, 384, (3, 1), f"{path}b")]


def _module_e(x: KerasTensor, path: str) -> KerasTensor:
    """1x1 | 1x1, (1x3 | 3x1) | 1x1, 3x3, (1x3 | 3x1) | 3x3 mean, 1x1 (figure 7)."""
    single = _unit(x, 384, 1, f"{path}.branch3x3_1")
    double = _chain(x, f"{path}.branch3x3dbl", ((448, 1), (384, 3)))
    branches = [
        _unit(x, 320, 1, f"{path}.branch1x1"),
        *_fork(single, f"{path}.branch3x3_2"),
        *_fork(double, f"{path}.branch3x3dbl_3"),
        _pool_unit(x, 192, path),
    ]
    return _concat(branches, path)


def _auxiliary(x: KerasTensor, net: Net) -> KerasTensor:
    """5x5 mean at stride 3, 1x1, 5x5, global mean, classifier (figure 8)."""
    path = "AuxLogits"
    if any(side is not None and side < 17 for side in x.shape[1:3]):
        raise InputError(
            "InceptionV3: the auxiliary classifier needs a map of 17x17, this one has "
            f"{x.shape[1]}x{x.shape[2]}; give an input of 299 pixels a side, or aux=False"
        )
    x = _unit(avg_pool(x, 5, 3, f"{path}.pool"), 128, 1, f"{path}.conv0")
    x = _unit(x, 768, 5, f"{path}.conv1", padding="valid")
    return net.classifier(_layers.global_pool(x, f"{path}.global_pool"), f"{path}.fc")


# The authors' own code takes images in -1..1; so do the weights that come from it.
@model(size=299, min_size=75, dropout_rate=0.2, mean=HALF, std=HALF)
def InceptionV3(aux: bool = False) -> Architecture:
    """Inception v3: 23,834,568 parameters, 5,713.2 million MACs at 299 px.

    With `aux`, and with the classifier, the model has two outputs: the main one and that of the
    auxiliary classifier on the last map of 17x17, both through `classifier_activation`; 27,161,264
    parameters. It is for training: the model's `auxiliary_weights` are what its loss counts.
    """
    taps: list[KerasTensor] = []  # what the auxiliary classifier sees

    def features(x: KerasTensor, net: Net) -> KerasTensor:
        """The stem, 3 modules at stride 8, 4 at 16 and 2 at 32, reductions between: table 1."""
        x = _unit(x, 32, 3, "Conv2d_1a_3x3", stride=2, padding="valid")
        x = _unit(x, 32, 3, "Conv2d_2a_3x3", padding="valid")
        x = max_pool(_unit(x, 64, 3, "Conv2d_2b_3x3"), 3, 2, "Pool1")
        x = _unit(x, 80, 1, "Conv2d_3b_1x1")
        x = max_pool(_unit(x, 192, 3, "Conv2d_4a_3x3", padding="valid"), 3, 2, "Pool2")
        for name, pooled in (("5b", 32), ("5c", 64), ("5d", 64)):
            x = _module_a(x, pooled, f"Mixed_{name}")
        x = _reduction_b(x, "Mixed_6a")
        for name, channels in (("6b", 128), ("6c", 160), ("6d", 160), ("6e", 192)):
            x = _module_c(x, channels, f"Mixed_{name}")
        taps.append(x)
        x = _reduction_d(x, "Mixed_7a")
        return _module_e(_module_e(x, "Mixed_7b"), "Mixed_7c")

    def head(x: KerasTensor, net: Net) -> KerasTensor | list[KerasTensor]:
        """Global mean, dropout, classifier."""
        x = net.classifier(net.dropout(_layers.global_pool(x, "global_pool")), "fc")
        return [x, _auxiliary(taps[-1], net)] if aux else x

    # The weight of the loss is that of the authors' training code, which the paper leaves out:
    # https://github.com/tensorflow/models, research/inception/inception/inception_model.py.
    return Architecture(features, head, auxiliary=("AuxLogits.",), auxiliary_weight=0.4)

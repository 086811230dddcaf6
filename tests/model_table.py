"""Every public model: the one table that drives the model tests and the golden files.

No row, no merge: `test_models.py` compares the table with `kapps.list_models()`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

GOLDENS = Path(__file__).parent / "goldens"
GOLDEN_IMAGES = 3
_CIRCLE = 65_537


class Row(NamedTuple):
    """A public builder, called with these arguments."""

    name: str
    input_shape: tuple[int, int, int]
    """The default input: parameters and MACs hold for it."""
    parameters: int
    """Trainable ones."""
    macs: float | None = None
    """Multiply-accumulates of an image, millions: measured on the peer, or printed in the paper."""
    peer: str = ""
    """library:name, as make_goldens.py builds it; empty for a network that no library has."""
    golden_size: int = 64
    """Height and width of the images in the tests, pixels: a multiple of 4."""
    min_size: int = 32
    full: bool = False
    """Whether all is tested: for one network, and a small one, of each kind."""
    arguments: Mapping[str, Any] = {}
    printed: str = ""
    """The parameters as the paper prints them, millions."""
    deviates: str = ""
    """What the paper prints where it does not follow from its own layers: the docstring says so."""

    @property
    def id(self) -> str:
        arguments = ",".join(f"{key}={value}" for key, value in self.arguments.items())
        return f"{self.name}({arguments})" if arguments else self.name


# Name, size of the input, parameters, MACs (millions), peer. MACs were measured on the peers.
_PEERS: tuple[tuple[str, int, int, float, str], ...] = (
    ("AlexNet", 224, 61_100_840, 714.2, "torchvision:alexnet"),
    ("VGG11", 224, 132_863_336, 7609.1, "timm:vgg11"),
    ("VGG11_BN", 224, 132_868_840, 7609.1, "timm:vgg11_bn"),
    ("VGG13", 224, 133_047_848, 11308.5, "timm:vgg13"),
    ("VGG13_BN", 224, 133_053_736, 11308.5, "timm:vgg13_bn"),
    ("VGG16", 224, 138_357_544, 15470.3, "timm:vgg16"),
    ("VGG16_BN", 224, 138_365_992, 15470.3, "timm:vgg16_bn"),
    ("VGG19", 224, 143_667_240, 19632.1, "timm:vgg19"),
    ("VGG19_BN", 224, 143_678_248, 19632.1, "timm:vgg19_bn"),
    ("GoogLeNet", 224, 6_624_904, 1498.4, "torchvision:googlenet"),
    ("InceptionV3", 299, 23_834_568, 5713.2, "timm:inception_v3"),
    ("ResNet18", 224, 11_689_512, 1814.1, "timm:resnet18"),
    ("ResNet34", 224, 21_797_672, 3663.8, "timm:resnet34"),
    ("ResNet50", 224, 25_557_032, 4089.2, "timm:resnet50"),
    ("ResNet101", 224, 44_549_160, 7801.4, "timm:resnet101"),
    ("ResNet152", 224, 60_192_808, 11513.6, "timm:resnet152"),
    ("ResNet18V2", 224, 11_687_720, 1814.1, "timm:resnetv2_18"),
    ("ResNet34V2", 224, 21_795_880, 3663.8, "timm:resnetv2_34"),
    ("ResNet50V2", 224, 25_549_352, 4089.2, "timm:resnetv2_50"),
    ("ResNet101V2", 224, 44_541_480, 7801.4, "timm:resnetv2_101"),
    ("ResNet152V2", 224, 60_185_128, 11513.6, "timm:resnetv2_152"),
    ("WideResNet50_2", 224, 68_883_240, 11398.0, "timm:wide_resnet50_2"),
    ("WideResNet101_2", 224, 126_886_696, 22753.1, "timm:wide_resnet101_2"),
    ("ResNeXt50", 224, 25_028_904, 4230.5, "timm:resnext50_32x4d"),
    ("ResNeXt101_32x4d", 224, 44_177_704, 7970.0, "timm:resnext101_32x4d"),
    ("ResNeXt101", 224, 88_791_336, 16414.0, "timm:resnext101_32x8d"),
    ("ResNeXt101_64x4d", 224, 83_455_272, 15460.3, "timm:resnext101_64x4d"),
    ("DenseNet121", 224, 7_978_856, 2834.2, "timm:densenet121"),
    ("DenseNet161", 224, 28_681_000, 7727.9, "timm:densenet161"),
    ("DenseNet169", 224, 14_149_480, 3359.8, "timm:densenet169"),
    ("DenseNet201", 224, 20_013_928, 4291.4, "timm:densenet201"),
    ("SEResNet18", 224, 11_779_624, 1814.2, "timm:seresnet18"),
    ("SEResNet34", 224, 21_960_416, 3663.9, "timm:seresnet34"),
    ("SEResNet50", 224, 28_088_024, 4091.7, "timm:seresnet50"),
    ("SEResNet101", 224, 49_326_872, 7806.1, "timm:seresnet101"),
    ("SEResNet152", 224, 66_821_848, 11520.2, "timm:seresnet152"),
    ("SEResNeXt50", 224, 27_559_896, 4233.0, "timm:seresnext50_32x4d"),
    ("SEResNeXt101", 224, 48_955_416, 7974.7, "timm:seresnext101_32x4d"),
    ("SENet154", 224, 115_088_984, 20688.4, "timm:senet154"),
    ("MobileNet", 224, 4_231_976, 568.7, "timm:mobilenetv1_100"),
    ("MobileNet_125", 224, 6_270_840, 879.5, "timm:mobilenetv1_125"),
    ("MobileNetV2_035", 224, 1_677_128, 59.3, "timm:mobilenetv2_035"),
    ("MobileNetV2_050", 224, 1_968_680, 97.1, "timm:mobilenetv2_050"),
    ("MobileNetV2_075", 224, 2_636_424, 209.1, "timm:mobilenetv2_075"),
    ("MobileNetV2", 224, 3_504_872, 300.8, "timm:mobilenetv2_100"),
    ("MobileNetV2_140", 224, 6_108_776, 582.2, "timm:mobilenetv2_140"),
    ("MobileNetV3Small_050", 224, 1_593_224, 24.2, "timm:mobilenetv3_small_050"),
    ("MobileNetV3Small_075", 224, 2_041_872, 43.4, "timm:mobilenetv3_small_075"),
    ("MobileNetV3Small", 224, 2_542_856, 56.5, "timm:mobilenetv3_small_100"),
    ("MobileNetV3Large_075", 224, 3_993_528, 154.6, "timm:mobilenetv3_large_075"),
    ("MobileNetV3Large", 224, 5_483_032, 216.6, "timm:mobilenetv3_large_100"),
    ("MobileNetV4ConvSmall_050", 224, 2_238_952, 64.7, "timm:mobilenetv4_conv_small_050"),
    ("MobileNetV4ConvSmall", 224, 3_774_024, 186.0, "timm:mobilenetv4_conv_small"),
    ("MobileNetV4ConvMedium", 256, 9_715_512, 1080.2, "timm:mobilenetv4_conv_medium"),
    ("MobileNetV4ConvLarge", 384, 32_590_864, 6376.2, "timm:mobilenetv4_conv_large"),
    ("MobileNetV4HybridMedium", 256, 11_074_648, 1271.2, "timm:mobilenetv4_hybrid_medium"),
    ("MobileNetV4HybridLarge", 384, 37_764_624, 7711.9, "timm:mobilenetv4_hybrid_large"),
    ("MobileOneS0", 224, 5_293_272, 1051.9, "timm:mobileone_s0"),
    ("MobileOneS1", 224, 4_825_192, 830.1, "timm:mobileone_s1"),
    ("MobileOneS2", 224, 7_884_648, 1304.0, "timm:mobileone_s2"),
    ("MobileOneS3", 224, 10_170_600, 1902.1, "timm:mobileone_s3"),
    ("MobileOneS4", 224, 14_951_248, 2986.8, "timm:mobileone_s4"),
    ("GhostNetV2", 224, 6_156_908, 167.0, "timm:ghostnetv2_100"),
    ("GhostNetV2_130", 224, 8_960_404, 269.3, "timm:ghostnetv2_130"),
    ("GhostNetV2_160", 224, 12_392_698, 398.6, "timm:ghostnetv2_160"),
    ("ShuffleNetV2_x0_5", 224, 1_366_792, 40.5, "torchvision:shufflenet_v2_x0_5"),
    ("ShuffleNetV2_x1_0", 224, 2_278_604, 144.9, "torchvision:shufflenet_v2_x1_0"),
    ("ShuffleNetV2_x1_5", 224, 3_503_624, 295.8, "torchvision:shufflenet_v2_x1_5"),
    ("ShuffleNetV2_x2_0", 224, 7_393_996, 583.3, "torchvision:shufflenet_v2_x2_0"),
    ("EfficientNetB0", 224, 5_288_548, 385.8, "timm:tf_efficientnet_b0"),
    ("EfficientNetB1", 240, 7_794_184, 686.8, "timm:tf_efficientnet_b1"),
    ("EfficientNetB2", 260, 9_109_994, 993.6, "timm:tf_efficientnet_b2"),
    ("EfficientNetB3", 300, 12_233_232, 1827.1, "timm:tf_efficientnet_b3"),
    ("EfficientNetB4", 380, 19_341_616, 4393.8, "timm:tf_efficientnet_b4"),
    ("EfficientNetB5", 456, 30_389_784, 10266.4, "timm:tf_efficientnet_b5"),
    ("EfficientNetB6", 528, 43_040_704, 19067.6, "timm:tf_efficientnet_b6"),
    ("EfficientNetB7", 600, 66_347_960, 37745.9, "timm:tf_efficientnet_b7"),
    ("EfficientNetLite0", 224, 4_652_008, 385.2, "timm:tf_efficientnet_lite0"),
    ("EfficientNetLite1", 240, 5_416_680, 600.2, "timm:tf_efficientnet_lite1"),
    ("EfficientNetLite2", 260, 6_092_072, 859.7, "timm:tf_efficientnet_lite2"),
    ("EfficientNetLite3", 300, 8_197_096, 1607.6, "timm:tf_efficientnet_lite3"),
    ("EfficientNetLite4", 380, 13_006_568, 3943.6, "timm:tf_efficientnet_lite4"),
    ("EfficientNetV2B0", 192, 7_139_704, 528.2, "timm:tf_efficientnetv2_b0"),
    ("EfficientNetV2B1", 192, 8_141_052, 747.0, "timm:tf_efficientnetv2_b1"),
    ("EfficientNetV2B2", 208, 10_096_086, 1043.5, "timm:tf_efficientnetv2_b2"),
    ("EfficientNetV2B3", 240, 14_358_406, 1908.0, "timm:tf_efficientnetv2_b3"),
    ("EfficientNetV2S", 300, 21_458_488, 5307.6, "timm:tf_efficientnetv2_s"),
    ("EfficientNetV2M", 384, 54_139_356, 15736.8, "timm:tf_efficientnetv2_m"),
    ("EfficientNetV2L", 384, 118_515_272, 35899.4, "timm:tf_efficientnetv2_l"),
    ("EfficientNetV2XL", 384, 208_119_808, 52529.3, "timm:tf_efficientnetv2_xl"),
)

# Of 80 pixels GhostNetV2's gates are enlarged to 5 and 3, as to 7 of its own 224: the odd sizes.
_SIZES = {"GhostNetV2": 80, "GhostNetV2_130": 80, "GhostNetV2_160": 80, "InceptionV3": 96}
_MIN_SIZES = {
    "AlexNet": 63,
    "DenseNet121": 29,
    "DenseNet161": 29,
    "DenseNet169": 29,
    "DenseNet201": 29,
    "GhostNetV2": 33,
    "GhostNetV2_130": 33,
    "GhostNetV2_160": 33,
    "GoogLeNet": 15,
    "InceptionV3": 75,
}
_FULL = {
    "AlexNet",
    "VGG11_BN",
    "GoogLeNet",
    "InceptionV3",
    "ResNet18",
    "ResNet50",
    "ResNet18V2",
    "ResNet50V2",
    "ResNeXt50",
    "DenseNet121",
    "SEResNet18",
    "SEResNeXt50",
    "MobileNet",
    "MobileNetV2_035",
    "MobileNetV3Small",
    "MobileNetV4ConvSmall_050",
    "MobileNetV4HybridMedium",
    "MobileOneS1",
    "GhostNetV2",
    "ShuffleNetV2_x0_5",
    "EfficientNetB0",
    "EfficientNetLite0",
    "EfficientNetV2B0",
}

_IMAGENET, _CIFAR = (224, 224, 3), (32, 32, 3)

TABLE = [
    *(
        Row(
            name,
            (size, size, 3),
            parameters,
            macs,
            peer,
            golden_size=_SIZES.get(name, 64),
            min_size=_MIN_SIZES.get(name, 32),
            full=name in _FULL,
        )
        for name, size, parameters, macs, peer in _PEERS
    ),
    # Families at their defaults, which are networks of the table above.
    Row("ResNet", _IMAGENET, 25_557_032, 4089.2),
    Row("ResNetV2", _IMAGENET, 25_549_352, 4089.2),
    Row("ShuffleNetV2", _IMAGENET, 2_278_604, 144.9),
    Row("EfficientNet", _IMAGENET, 5_288_548, 385.8),
    Row("EfficientNetLite", _IMAGENET, 4_652_008, 385.2),
    Row("EfficientNetV2", (192, 192, 3), 7_139_704, 528.2),
    Row("DenseNet", _IMAGENET, 7_978_856, 2834.2, min_size=29),
    Row(
        "EfficientNet",
        (260, 260, 3),
        9_109_994,
        993.6,
        arguments={"width": 1.1, "depth": 1.2, "resolution": 260},
    ),
    # LeCun et al. 1998; the modern form is PyTorch's tutorial network.
    Row(
        "LeNet5", (32, 32, 1), 61_706, peer="pytorch:lenet", golden_size=32, min_size=16, full=True
    ),
    Row(
        "LeNet5Original",
        (32, 32, 1),
        60_000,
        golden_size=32,
        min_size=16,
        full=True,
        printed="0.060",
    ),
    # Krizhevsky et al. 2012
    Row("AlexNetOriginal", (227, 227, 3), 60_965_224, golden_size=68, min_size=67, full=True),
    # Lin et al. 2013
    Row("NiN", _CIFAR, 966_986, golden_size=32, min_size=4, full=True, printed="0.97"),
    # Szegedy et al. 2014, table 1
    Row(
        "GoogLeNetOriginal",
        _IMAGENET,
        6_998_552,
        1582.7,
        deviates="1.5 billion",
        min_size=31,
        full=True,
    ),
    # Hu et al. 2018
    Row("SEGoogLeNet", _IMAGENET, 7_105_007, min_size=15, full=True),
    # He et al. 2015: figure 3, and table 6
    Row("PlainNet18", _IMAGENET, 11_515_688, full=True),
    Row("PlainNet34", _IMAGENET, 21_623_848),
    Row("CifarResNet", _CIFAR, 269_722, golden_size=32, min_size=4, full=True, printed="0.27"),
    Row(
        "CifarResNet",
        _CIFAR,
        464_154,
        golden_size=32,
        min_size=4,
        arguments={"depth": 32},
        printed="0.46",
    ),
    Row(
        "CifarResNet",
        _CIFAR,
        658_586,
        golden_size=32,
        min_size=4,
        arguments={"depth": 44},
        printed="0.66",
    ),
    Row(
        "CifarResNet",
        _CIFAR,
        853_018,
        golden_size=32,
        min_size=4,
        arguments={"depth": 56},
        printed="0.85",
    ),
    Row(
        "CifarResNet",
        _CIFAR,
        1_727_962,
        golden_size=32,
        min_size=4,
        arguments={"depth": 110},
        printed="1.7",
    ),
    Row(
        "CifarResNet",
        _CIFAR,
        19_421_274,
        golden_size=32,
        min_size=4,
        arguments={"depth": 1202},
        printed="19.4",
    ),
    Row(
        "CifarResNet",
        _CIFAR,
        269_722,
        golden_size=32,
        min_size=4,
        arguments={"depth": 20, "residual": False},
    ),
    # He et al. 2016
    Row("CifarResNetV2", _CIFAR, 1_703_258, golden_size=32, min_size=4, printed="1.7"),
    Row(
        "CifarResNetV2",
        _CIFAR,
        1_727_962,
        golden_size=32,
        min_size=4,
        arguments={"depth": 110, "bottleneck": False},
    ),
    Row(
        "CifarResNetV2",
        _CIFAR,
        219_482,
        golden_size=32,
        min_size=4,
        full=True,
        arguments={"depth": 20},
    ),
    Row(
        "CifarResNetV2",
        _CIFAR,
        10_327_706,
        golden_size=32,
        min_size=4,
        arguments={"depth": 1001},
        deviates="10.2",
    ),
    # Zagoruyko and Komodakis 2016, table 4
    Row("WideResNet", _CIFAR, 36_479_194, golden_size=32, min_size=4, printed="36.5"),
    Row(
        "WideResNet",
        _CIFAR,
        77_850,
        golden_size=32,
        min_size=4,
        full=True,
        arguments={"depth": 10, "width": 1},
    ),
    Row("WideResNet16_8", _CIFAR, 10_961_370, golden_size=32, min_size=4, printed="11.0"),
    Row("WideResNet28_10", _CIFAR, 36_479_194, golden_size=32, min_size=4, printed="36.5"),
    Row("WideResNet40_4", _CIFAR, 8_949_210, golden_size=32, min_size=4, printed="8.9"),
    Row(
        "WideResNet",
        _CIFAR,
        17_158_106,
        golden_size=32,
        min_size=4,
        arguments={"depth": 22, "width": 8},
        printed="17.2",
    ),
    # Huang et al. 2017, tables 1 and 2
    Row("DenseNet264", _IMAGENET, 33_337_704, min_size=29, printed="33.3"),
    Row(
        "CifarDenseNet",
        _CIFAR,
        1_019_722,
        golden_size=32,
        min_size=4,
        full=True,
        printed="1.0",
    ),
    Row(
        "CifarDenseNet",
        _CIFAR,
        6_979_642,
        golden_size=32,
        min_size=4,
        arguments={"depth": 100},
        printed="7.0",
    ),
    Row(
        "CifarDenseNet",
        _CIFAR,
        769_162,
        golden_size=32,
        min_size=4,
        arguments={"depth": 100, "growth": 12, "bottleneck": True, "compression": 0.5},
        printed="0.8",
    ),
    Row(
        "CifarDenseNet",
        _CIFAR,
        15_324_406,
        golden_size=32,
        min_size=4,
        arguments={"depth": 250, "growth": 24, "bottleneck": True, "compression": 0.5},
        printed="15.3",
    ),
    Row(
        "CifarDenseNet",
        _CIFAR,
        25_624_430,
        golden_size=32,
        min_size=4,
        arguments={"depth": 190, "growth": 40, "bottleneck": True, "compression": 0.5},
        printed="25.6",
    ),
    # Han et al. 2017, table 2
    Row("PyramidNet", _CIFAR, 1_772_706, golden_size=32, min_size=1, deviates="1.7"),
    Row(
        "PyramidNet",
        _CIFAR,
        3_904_446,
        golden_size=32,
        min_size=1,
        arguments={"alpha": 84},
        deviates="3.8",
    ),
    Row(
        "PyramidNet",
        _CIFAR,
        28_485_477,
        golden_size=32,
        min_size=1,
        arguments={"alpha": 270},
        deviates="28.3",
    ),
    Row(
        "PyramidNet",
        _CIFAR,
        26_210_842,
        golden_size=32,
        min_size=1,
        arguments={"depth": 272, "alpha": 200, "bottleneck": True},
        deviates="26.0",
    ),
    Row(
        "PyramidNet",
        _CIFAR,
        310_845,
        golden_size=32,
        min_size=1,
        full=True,
        arguments={"depth": 20},
    ),
    Row("PyramidNet200", _IMAGENET, 62_368_168, deviates="62.1"),
    # Xie et al. 2017
    Row("CifarResNeXt", _CIFAR, 34_426_698, golden_size=32, min_size=4, printed="34.4"),
    Row(
        "CifarResNeXt",
        _CIFAR,
        68_155_210,
        golden_size=32,
        min_size=4,
        arguments={"cardinality": 16},
        deviates="68.1",
    ),
    Row(
        "CifarResNeXt",
        _CIFAR,
        996_298,
        golden_size=32,
        min_size=4,
        full=True,
        arguments={"depth": 11, "cardinality": 4, "width": 8},
    ),
    # Zhang et al. 2018, tables 1 and 2: MACs
    Row("ShuffleNet", _IMAGENET, 1_865_728, 137, full=True),
    Row("ShuffleNet", _IMAGENET, 1_531_936, 143, arguments={"groups": 1}),
    Row("ShuffleNet", _IMAGENET, 1_733_848, 140, arguments={"groups": 2}),
    Row("ShuffleNet", _IMAGENET, 1_968_344, 133, arguments={"groups": 4}),
    Row("ShuffleNet", _IMAGENET, 2_434_768, 137, arguments={"groups": 8}),
    Row("ShuffleNet", _IMAGENET, 306_124, 13, arguments={"scale": 0.25}),
    Row("ShuffleNet", _IMAGENET, 718_324, 38, arguments={"scale": 0.5}),
    # Howard et al. 2017, tables 6 and 7
    Row("MobileNet", _IMAGENET, 2_585_560, 325, arguments={"alpha": 0.75}, printed="2.6"),
    Row("MobileNet", _IMAGENET, 1_331_592, 149, arguments={"alpha": 0.5}, printed="1.3"),
    Row("MobileNet", _IMAGENET, 470_072, 41, arguments={"alpha": 0.25}, printed="0.5"),
]


def tensor(name: str, shape: tuple[int, ...], scale: float = 1.0) -> np.ndarray:
    """The golden weights: a function of a published tensor's name and shape, float32.

    Kernels keep the activations in scale (He et al. 2015); batch norms get statistics and an
    affine part that are not trivial, so that a swapped one shows. `scale` is the standard deviation
    of what a batch norm gets, as make_goldens.py found it: without it the signal dies in some
    networks, and explodes in others. Numpy guarantees that `RandomState` gives the same numbers
    for ever.
    """
    random = np.random.RandomState(int(hashlib.sha256(name.encode()).hexdigest()[:8], 16))
    # Drawing is what costs: a large tensor goes round a circle of numbers, whose length is prime,
    # so that no two of its rows or filters are the same.
    drawn = random.standard_normal(min(math.prod(shape), _CIRCLE))
    component = name.rpartition(".")[2]
    if component == "running_var":
        value = scale**2 * np.exp(0.2 * drawn)
    elif component == "running_mean":
        value = scale * 0.1 * drawn
    elif component == "weight" and len(shape) == 1:
        value = 1 + 0.1 * drawn
    elif component == "weight":
        value = drawn * np.sqrt(2 / math.prod(shape[1:]))
    else:  # bias
        value = 0.1 * drawn
    return np.resize(value.astype(np.float32), shape)


def batch_norms(names: Iterable[str]) -> list[str]:
    """The paths of the batch norms among these tensors, in the order of the stored scales."""
    return sorted(name.removesuffix(".running_var") for name in names if "running_var" in name)


def golden_images(row: Row) -> np.ndarray:
    """Normalized images (n, h, w, c), float32, that differ in large structure and in contrast."""
    random = np.random.RandomState(7)
    size, channels = row.golden_size, row.input_shape[2]
    coarse = random.standard_normal((GOLDEN_IMAGES, 4, 4, channels)).repeat(size // 4, 1)
    fine = random.standard_normal((GOLDEN_IMAGES, size, size, channels))
    contrast = np.array([0.5, 1, 2]).reshape(-1, 1, 1, 1)
    return (contrast * (coarse.repeat(size // 4, 2) + 0.3 * fine)).astype(np.float32)

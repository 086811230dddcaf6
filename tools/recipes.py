"""The recipes by name: sets of hyperparameters, each with its source.

Where a paper is silent, the setting is that of the authors' code, which is then named. What is
expected is what the source states; "not reproduced here" says that no run of this trainer has
shown it.
"""

from __future__ import annotations

import dataclasses

from kapps._errors import unknown
from kapps.tools.recipe import Recipe

__all__ = ["RECIPES", "Recipe", "get_recipe"]


def _command(model: str, recipe: str, dataset: str = "imagenet2012", more: str = "") -> str:
    return (
        f"kapps-train --model={model} --dataset={dataset} --recipe={recipe}{more} "
        "--strategy=mirrored --workdir=DIR"
    )


_DEFAULT = Recipe(
    source="Loshchilov and Hutter 2019, Decoupled Weight Decay Regularization (AdamW, cosine)",
    command="kapps-train --model=MobileNetV3Small --dataset=folder:PATH --workdir=DIR",
    expected="depends on the data set",
    # For small data sets, whose 30 epochs are few steps: at a rate of 1e-3, and with parts of 8 %
    # of the image, a small network has not learned even what it was shown (docs/training.md).
    learning_rate=3e-3,
    warmup_epochs=1.0,
    train_crop="random",
    crop_area=0.75,
    flip=0.5,
)

_DIGITS = dataclasses.replace(
    _DEFAULT,
    source="tuned for scikit-learn's 1,797 digits, of which 1,197 are for training",
    command="kapps-train --model=MobileNetV3Small --dataset=digits --recipe=digits --workdir=DIR",
    expected="validation top-1 of 0.99 to 1.00, held-out 0.989 to 1.000, seed 0, by network",
    cost="half a minute to two minutes on two cores, by network",
    learning_rate=1e-2,
    label_smoothing=0.1,
    batch_size=32,
    image_size=64,
    crop=1.0,
    flip=0.0,  # mirrored digits are no digits
    bn_momentum=0.9,  # a thousand steps at most: the usual 0.99 would long remember the start
    # At most 2 of the 240 validation images wrong, four epochs in a row: at the high rates of the
    # beginning two epochs are passed by luck, and held-out images are then named worse.
    stop_at=0.99,
    stop_patience=4,
)

# Of SGD as the papers of the years from 2012 to 2017 have it.
_SGD = Recipe(
    source="",
    command="",
    expected="",
    optimizer="sgd",
    learning_rate=0.1,
    weight_decay=1e-4,
    batch_size=256,
    epochs=90,
    image_size=224,
    crop=0.875,
    flip=0.5,
)

_ALEXNET = dataclasses.replace(
    _SGD,
    source="Krizhevsky et al. 2012, ImageNet Classification with Deep Convolutional Neural "
    "Networks, sections 4 and 5; the rate is divided where they did so by hand",
    command=_command("AlexNetOriginal", "alexnet"),
    expected="ImageNet top-1 59.3 %, top-5 81.8 % (table 2, one network); not reproduced here",
    cost="five to six days on two GTX 580 (section 5)",
    learning_rate=0.01,
    weight_decay=5e-4,
    batch_size=128,
    image_size=227,
    schedule="plateau",
    patience=5,
    train_crop="scale",
    scales=(256 / 227, 256 / 227),
    lighting=0.1,
    crop=227 / 256,
)

_VGG = dataclasses.replace(
    _ALEXNET,
    source="Simonyan and Zisserman 2015, Very Deep Convolutional Networks, section 3.1",
    command=_command("VGG16", "vgg"),
    expected="ImageNet top-1 74.4 %, top-5 91.9 % of VGG16 at one scale (table 3, D); not "
    "reproduced here",
    cost="two to three weeks on four Titan Black (section 3.3)",
    batch_size=256,
    epochs=74,
    image_size=224,
    scales=(256 / 224, 512 / 224),
    crop=224 / 384,
)

_RESNET = dataclasses.replace(
    _SGD,
    source="He et al. 2015, Deep Residual Learning for Image Recognition, section 3.4; 600,000 "
    "steps of 256 are 120 epochs",
    command=_command("ResNet50", "resnet"),
    expected="ImageNet top-1 of ResNet50 75.3 % of one central crop (the authors' models); not "
    "reproduced here",
    cost="29 hours on eight P100 (Goyal et al. 2017, section 1, for 90 epochs)",
    epochs=120,
    schedule="plateau",
    patience=5,
    train_crop="scale",
    lighting=0.1,
)

# Section 4.2: 64,000 steps of 128, the rate divided after 32,000 and 48,000; an epoch of 50,000
# images has 390.
_CIFAR_RESNET = dataclasses.replace(
    _SGD,
    source="He et al. 2015, Deep Residual Learning for Image Recognition, section 4.2",
    command=_command("CifarResNet", "cifar_resnet", "cifar10", " --arguments=depth=56"),
    expected="CIFAR-10 91.25 % of 20 layers, 93.03 % of 56, 93.57 % of 110 (table 6); not "
    "reproduced here",
    batch_size=128,
    epochs=164,
    image_size=32,
    schedule="steps",
    boundaries=(82.0, 123.0),
    train_crop="shift",
    crop=1.0,
)

_WRN = dataclasses.replace(
    _CIFAR_RESNET,
    source="Zagoruyko and Komodakis 2016, Wide Residual Networks, section 3",
    command=_command("WideResNet28_10", "wrn", "cifar10"),
    expected="CIFAR-10 96.0 %, CIFAR-100 80.75 % of WRN-28-10 (table 5); not reproduced here",
    nesterov=True,
    weight_decay=5e-4,
    epochs=200,
    boundaries=(60.0, 120.0, 160.0),
    factor=0.2,
)

_CIFAR_DENSENET = dataclasses.replace(
    _CIFAR_RESNET,
    source="Huang et al. 2017, Densely Connected Convolutional Networks, section 4.2",
    command=_command("CifarDenseNet", "cifar_densenet", "cifar10"),
    expected="CIFAR-10 94.76 % of 40 layers, k = 12 (table 2); not reproduced here",
    nesterov=True,
    batch_size=64,
    epochs=300,
    boundaries=(150.0, 225.0),
)

_PYRAMIDNET = dataclasses.replace(
    _CIFAR_DENSENET,
    source="Han et al. 2017, Deep Pyramidal Residual Networks, section 4; for CIFAR-100 the rate "
    "is 0.5",
    command=_command("PyramidNet", "pyramidnet", "cifar10"),
    expected="CIFAR-10 95.42 % of 110 layers, alpha = 48 (table 4); not reproduced here",
    batch_size=128,
)

_CIFAR_RESNEXT = dataclasses.replace(
    _CIFAR_RESNET,
    source="Xie et al. 2017, Aggregated Residual Transformations, appendix A; what it leaves to "
    "fb.resnet.torch is Nesterov's momentum",
    command=_command("CifarResNeXt", "cifar_resnext", "cifar10"),
    expected="CIFAR-10 96.35 % of 29 layers, 8x64d (table 7); not reproduced here",
    nesterov=True,
    weight_decay=5e-4,
    epochs=300,
    boundaries=(150.0, 225.0),
)

_INCEPTION = dataclasses.replace(
    _SGD,
    source="Szegedy et al. 2015, Rethinking the Inception Architecture, section 8 and 7: 50 "
    "replicas of 32 images; here they are one batch",
    command=_command("InceptionV3", "inception", more=" --arguments=aux=True"),
    expected="ImageNet top-1 78.8 % of one crop (table 3); not reproduced here",
    optimizer="rmsprop",
    epsilon=1.0,
    learning_rate=0.045,
    weight_decay=4e-5,  # the authors' code
    clip_norm=2.0,
    average=0.9999,  # the authors' code
    batch_size=1600,
    epochs=100,
    image_size=299,
    schedule="exponential",
    factor=0.94,
    decay_epochs=2.0,
    train_crop="random",
    label_smoothing=0.1,
    brightness=32 / 255,  # the authors' code: distort_color
    saturation=0.5,
)

_MOBILENET_V2 = dataclasses.replace(
    _INCEPTION,
    source="Sandler et al. 2018, MobileNetV2, section 6.1: 16 replicas of 96 images; here they "
    "are one batch, with a rate of 16 times 0.045, as the authors' code has it where gradients "
    "are averaged",
    command=_command("MobileNetV2", "mobilenet_v2"),
    expected="ImageNet top-1 72.0 % (table 4); not reproduced here",
    learning_rate=16 * 0.045,
    clip_norm=None,
    batch_size=1536,
    epochs=300,  # the authors' code: until it converges
    image_size=224,
    factor=0.98,
    decay_epochs=1.0,
)

_MOBILENET_V3 = dataclasses.replace(
    _MOBILENET_V2,
    source="Howard et al. 2019, Searching for MobileNetV3, section 6.1.1; epsilon, warm-up and "
    "label smoothing are those of MnasNet's code, the length is that of torchvision's",
    command=_command("MobileNetV3Large", "mobilenet_v3"),
    expected="ImageNet top-1 75.2 % of Large, 67.4 % of Small (table 3); not reproduced here",
    epsilon=1e-3,
    learning_rate=0.1,
    weight_decay=1e-5,
    batch_size=4096,
    epochs=600,
    warmup_epochs=5.0,
    factor=0.99,
    decay_epochs=3.0,
    dropout_rate=0.2,
    bn_momentum=0.99,
)

_SHUFFLENET = dataclasses.replace(
    _SGD,
    source="Ma et al. 2018 (ShuffleNet V2, section 4), who train as Zhang et al. 2018 (ShuffleNet, "
    "section 4) do: batch 1024, 300,000 steps, learning rate 0.5 falling linearly to 0; label "
    "smoothing and colours are of the authors' code, "
    "https://github.com/megvii-model/ShuffleNet-Series",
    command=_command("ShuffleNetV2_x0_5", "shufflenet"),
    expected="ShuffleNetV2_x0_5: ImageNet top-1 60.3 % (Ma et al. 2018, table 8); not reproduced "
    "here",
    learning_rate=0.5,
    weight_decay=4e-5,
    batch_size=1024,
    epochs=240,  # 300,000 steps of 1024 are 239.8 times 1,281,167 images
    schedule="linear",
    train_crop="random",
    brightness=0.4,
    contrast=0.4,
    saturation=0.4,
    label_smoothing=0.1,
)

_EFFICIENTNET = dataclasses.replace(
    _MOBILENET_V2,
    source="Tan and Le 2019, EfficientNet, section 5.2; batch, length, warm-up, label smoothing "
    "and average are of the authors' code",
    command=_command("EfficientNetB0", "efficientnet"),
    expected="ImageNet top-1 77.1 % of B0 (table 2); not reproduced here",
    epsilon=1e-3,  # the authors' code
    learning_rate=0.256,
    weight_decay=1e-5,
    batch_size=4096,
    epochs=350,
    image_size=None,
    warmup_epochs=5.0,
    factor=0.97,
    decay_epochs=2.4,
    brightness=0.0,
    saturation=0.0,
    policy="autoaugment-imagenet",
    drop_path_rate=0.2,
    bn_momentum=0.99,
    interpolation="bicubic",
)

# Table 6, of S; M and L end at 380 px, a magnitude of 20 and 25, dropout 0.4 and 0.5, and mixup
# 0.2 and 0.5.
_EFFICIENTNET_V2 = dataclasses.replace(
    _EFFICIENTNET,
    source="Tan and Le 2021, EfficientNetV2, section 5.1 and table 6 (of S)",
    command=_command("EfficientNetV2S", "efficientnet_v2"),
    expected="ImageNet top-1 83.9 % of S (table 7); not reproduced here",
    image_size=300,
    eval_size=384,
    crop=1.0,
    policy="randaugment",
    policy_magnitude=15.0,
    dropout_rate=0.3,
    stages=4,
    start=(("image_size", 128.0), ("policy_magnitude", 5.0), ("dropout_rate", 0.1)),
)

_A2 = Recipe(
    source="Wightman et al. 2021, ResNet strikes back, table 2, A2",
    command=_command("ResNet50", "strikes_back_a2"),
    expected="ImageNet top-1 79.8 % of ResNet50 (table 1); not reproduced here",
    cost="55 hours on four V100 (table 2)",
    optimizer="lamb",
    learning_rate=5e-3,
    weight_decay=0.02,
    epsilon=1e-6,
    batch_size=2048,
    epochs=300,
    image_size=224,
    warmup_epochs=5.0,
    warmup_start=0.02,  # timm's default of 1e-4
    rate_by_epoch=True,
    crop=0.95,
    interpolation="bicubic",
    train_crop="random",
    flip=0.5,
    policy="randaugment-increasing",
    policy_magnitude=7.0,
    policy_deviation=0.5,
    mixup=0.1,
    cutmix=1.0,
    repeats=3,
    loss="binary",
    drop_path_rate=0.05,
)

_A1 = dataclasses.replace(
    _A2,
    source="Wightman et al. 2021, ResNet strikes back, table 2, A1",
    command=_command("ResNet50", "strikes_back_a1"),
    expected="ImageNet top-1 80.4 % of ResNet50 (table 1); not reproduced here",
    cost="110 hours on four V100 (table 2)",
    weight_decay=0.01,
    epochs=600,
    label_smoothing=0.1,
    mixup=0.2,
)

_A3 = dataclasses.replace(
    _A2,
    source="Wightman et al. 2021, ResNet strikes back, table 2, A3",
    command=_command("ResNet50", "strikes_back_a3"),
    expected="ImageNet top-1 78.1 % of ResNet50 (table 1); not reproduced here",
    cost="15 hours on four V100 (table 2)",
    learning_rate=8e-3,
    warmup_start=0.0125,  # likewise
    epochs=100,
    image_size=160,
    eval_size=224,
    policy_magnitude=6.0,
    repeats=1,
    drop_path_rate=None,
)

_TORCHVISION_V2 = dataclasses.replace(
    _SGD,
    source="torchvision's second weights, "
    "https://pytorch.org/blog/how-to-train-state-of-the-art-models-using-torchvision-latest-primitives",
    command=_command("ResNet50", "torchvision_v2"),
    expected="ImageNet top-1 80.9 % of ResNet50 (torchvision's IMAGENET1K_V2); not reproduced here",
    learning_rate=0.5,
    weight_decay=2e-5,
    # 0.99998 an image of 600 epochs' average, updated once in 32 steps of 1024: 1 - 2e-5 * 1024 /
    # 600 a step.
    average=1 - 2e-5 * 1024 / 600,
    batch_size=1024,
    epochs=600,
    image_size=176,
    eval_size=224,
    schedule="cosine",
    rate_by_epoch=True,
    warmup_epochs=5.0,
    warmup_start=0.01,
    crop=224 / 232,
    train_crop="random",
    policy="trivialaugment-wide",
    erasing=0.1,
    mixup=0.2,
    cutmix=1.0,
    repeats=4,
    label_smoothing=0.1,
)

RECIPES: dict[str, Recipe] = {
    "alexnet": _ALEXNET,
    "cifar_densenet": _CIFAR_DENSENET,
    "cifar_resnet": _CIFAR_RESNET,
    "cifar_resnext": _CIFAR_RESNEXT,
    "default": _DEFAULT,
    "digits": _DIGITS,
    "efficientnet": _EFFICIENTNET,
    "efficientnet_v2": _EFFICIENTNET_V2,
    "inception": _INCEPTION,
    "mobilenet_v2": _MOBILENET_V2,
    "mobilenet_v3": _MOBILENET_V3,
    "pyramidnet": _PYRAMIDNET,
    "resnet": _RESNET,
    "shufflenet": _SHUFFLENET,
    "strikes_back_a1": _A1,
    "strikes_back_a2": _A2,
    "strikes_back_a3": _A3,
    "torchvision_v2": _TORCHVISION_V2,
    "vgg": _VGG,
    "wrn": _WRN,
}


def get_recipe(name: str) -> Recipe:
    """The recipe of that name.

    Raises:
        InputError: there is none; the nearest names are proposed.
    """
    if name not in RECIPES:
        raise unknown("recipe", name, RECIPES)
    return RECIPES[name]

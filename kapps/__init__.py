"""CNN models for Keras 3, with a trainer that scales out and a road to the phone.

Every builder has the signature of `keras.applications`, takes images in 0..255, and is numerically
equal to its reference implementation. `kapps.list_models()` names them.
"""

from typing import TYPE_CHECKING

from kapps._errors import InputError
from kapps._lazy import lazy_names

if TYPE_CHECKING:
    from kapps._model import Builder, get_builder, list_models, preprocess_input
    from kapps.efficientnet import EfficientNetLite0
    from kapps.lenet import LeNet5
    from kapps.mobilenet_v3 import MobileNetV3Small
    from kapps.shufflenet_v2 import ShuffleNetV2_x0_5
    from kapps.weights import load_weights, save_weights

__version__ = "0.1.0"

__all__ = [
    "Builder",
    "EfficientNetLite0",
    "InputError",
    "LeNet5",
    "MobileNetV3Small",
    "ShuffleNetV2_x0_5",
    "get_builder",
    "list_models",
    "load_weights",
    "preprocess_input",
    "save_weights",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "_model": ("Builder", "get_builder", "list_models", "preprocess_input"),
        "efficientnet": ("EfficientNetLite0",),
        "lenet": ("LeNet5",),
        "mobilenet_v3": ("MobileNetV3Small",),
        "shufflenet_v2": ("ShuffleNetV2_x0_5",),
        "weights": ("load_weights", "save_weights"),
    },
)

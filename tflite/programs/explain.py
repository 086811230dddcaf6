"""Shows what a network sees: maps of what speaks for a class, each with a score below it.

Give image files and folders, or a --dataset; without either it takes images that the run validates
on. Writes index.html, which needs nothing beside it, and the pictures as PNG files. Examples:

  kapps-explain --workdir=runs/pets cat.jpg photos/
  kapps-explain --workdir=runs/pets --targets=cat,dog --methods=grad_cam,occlusion cat.jpg
  kapps-explain --model=MobileNetV3Small --weights=imagenet photos/ --sanity
  kapps-explain --keras=net.keras --labels=names.txt photos/ --sections=all
"""

from __future__ import annotations

from pathlib import Path

from absl import flags

from kapps._errors import InputError, printable
from kapps.tflite.child import MOST_SECONDS
from kapps.tflite.programs import model_flags
from kapps.tools import cli
from kapps.tools.streams import start_keras

_MODEL = model_flags.define()
_LABELS = flags.DEFINE_string("labels", None, "file with the name of each class, one a line")
_DATASET = flags.DEFINE_string("dataset", None, "as for kapps-train; by default that of the run")
_SPLIT = flags.DEFINE_string("split", "validation", "train, validation or test")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "where the TensorFlow data sets lie")
_IMAGES = flags.DEFINE_integer("images", 8, "how many of the data set", lower_bound=1)
_METHODS = flags.DEFINE_list(
    "methods",
    None,
    "with commas, of cam, grad_cam, grad_cam_plus_plus, layer_cam, score_cam, occlusion, saliency, "
    "smooth_grad, integrated_gradients, guided_backpropagation; or all (default: "
    "grad_cam,smooth_grad,integrated_gradients)",
)
_LAYER = flags.DEFINE_string(
    "layer", None, "whose map Grad-CAM and its kin explain; by default the one that the head takes"
)
_TARGETS = flags.DEFINE_list(
    "targets", None, "classes to explain, names or numbers; by default each image's predicted one"
)
_BOXES = flags.DEFINE_string(
    "boxes",
    None,
    "JSON file of where the objects are, for the pointing game: "
    '{"cat.jpg": [[left, top, right, bottom]]}, in pixels of the picture',
)
_SANITY = flags.DEFINE_boolean(
    "sanity", False, "check whether the methods see the weights at all, by randomizing them"
)
_SECTIONS = flags.DEFINE_list(
    "sections",
    None,
    "what else is shown: filters, activations, patches, map, classes, inversion, lesions; all, or "
    "none (default: filters,activations)",
)
_OUTPUT = flags.DEFINE_string("output", "build/explain", "folder of the page and the pictures")
_TIME_LIMIT = flags.DEFINE_float(
    "time_limit", 3600, "seconds for a file of --keras", lower_bound=1, upper_bound=MOST_SECONDS
)
_JSON = cli.define_json()


def main(argv: list[str]) -> int | None:
    """Explains, prints a line an image and class, and where the page is."""
    if argv[1:] and _DATASET.value is not None:
        raise InputError("give either images or --dataset")
    if _BOXES.value is not None and not argv[1:]:
        raise InputError("--boxes is of image files: name them as well")
    if _MODEL.is_for_another_process():
        return _MODEL.start_anew("explain", _TIME_LIMIT.value)
    start_keras()
    from kapps.tflite import explanation

    source = _MODEL.load(_LABELS.value)
    request = explanation.Request(
        argv[1:],
        _DATASET.value,
        _SPLIT.value,
        _DATA_DIR.value,
        _IMAGES.value,
        _METHODS.value,
        _LAYER.value,
        _TARGETS.value or (),
        _BOXES.value,
        _SECTIONS.value or explanation.Request.sections,
        _SANITY.value,
    )
    figures = explanation.explain(source, request, _OUTPUT.value)
    lines = [*map(explanation.line, figures), printable(Path(_OUTPUT.value) / "index.html")]
    cli.put_out("\n".join(lines), figures, _JSON)
    return None


def run() -> None:
    cli.run(main, files="[IMAGE...]")


if __name__ == "__main__":
    run()

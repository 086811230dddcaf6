"""Tells the top-1 and top-5 accuracy of a training run, of a file of weights or of a .tflite file.

Examples:

  kapps-evaluate --workdir=/tmp/run --split=test
  kapps-evaluate --model=MobileNetV3Small --weights=FILE --dataset=folder:PATH
  kapps-evaluate --tflite=net_int8.tflite --dataset=digits --split=test --json=net_int8.json
  kapps-evaluate --workdir=/tmp/run --split=test --report=/tmp/report

With --attack_eps it tells as well what is left of the accuracy on attacked images: of a run those
that its own gradients make, of a file those that the run's gradients make, or --attack=square,
which only asks the file for its scores:

  kapps-evaluate --workdir=/tmp/run --attack_eps=1,2,4,8
  kapps-evaluate --tflite=net_int8.tflite --dataset=digits --attack_eps=1,2,4,8 \\
    --attack_model=/tmp/run --json=net_int8.json

The figures of .tflite files are what kapps-report puts beside those of kapps-benchmark.
"""

from __future__ import annotations

from pathlib import Path

from absl import flags

from kapps._errors import InputError, printable
from kapps.tflite.programs import attack_flags, model_flags
from kapps.tflite.quantizations import VARIANTS
from kapps.tools import cli
from kapps.tools.streams import start_keras

_WORKDIR = flags.DEFINE_string("workdir", None, "folder of a finished training run")
_MODEL = flags.DEFINE_string("model", None, "network of --weights, or name in the report")
_WEIGHTS = flags.DEFINE_string("weights", None, "file of weights, in place of --workdir")
_ARGUMENTS = model_flags.define_arguments()
_TFLITE = flags.DEFINE_string("tflite", None, "file to evaluate, in place of weights")
_VARIANT = flags.DEFINE_enum(
    "variant",
    None,
    VARIANTS,
    "how the file of --tflite is quantized; by default what the file says",
)
_SPLIT = model_flags.define_split()
_IMAGE_SIZE = flags.DEFINE_integer(
    "image_size",
    None,
    "height and width of the input, pixels; by default the run's, or the network's",
)
_REPORT = flags.DEFINE_string(
    "report",
    None,
    "folder for a page on what goes wrong: figures by class, the confusion matrix, and the worst "
    "mistakes with their images; of a run or of weights, not of --tflite",
)
_EXIT = flags.DEFINE_float(
    "exit_confidence",
    None,
    "of a run with auxiliary classifiers: the probability at which an image ends at one of them; "
    "tells the accuracy and what an image costs on average",
    lower_bound=0,
    upper_bound=1,
)
_ATTACK = attack_flags.define()
_JSON = cli.define_json()


def main(argv: list[str]) -> int | None:
    """Evaluates, prints one line, and where the report is."""
    cli.check_output(_JSON)
    given = [flag.value for flag in (_WEIGHTS, _ARGUMENTS, _IMAGE_SIZE)]
    if _TFLITE.value is not None and any(given):
        raise InputError("--tflite goes without --weights and --image_size: the file has both")
    if _TFLITE.value is not None and _REPORT.value is not None:
        raise InputError(
            "--report is of a network in Keras, and --tflite gives no probabilities of single "
            "images; give the --workdir or the --weights that the file was made of"
        )
    if _TFLITE.value is None and _VARIANT.value is not None:
        raise InputError("--variant belongs to --tflite")
    if _TFLITE.value is None and (_WORKDIR.value is None) == (_WEIGHTS.value is None):
        raise InputError("give either --workdir of a run, or --weights with --model and --dataset")
    if _WORKDIR.value is not None and _TFLITE.value is None and any([_MODEL.value, *given[1:]]):
        raise InputError("--model and --image_size belong to --weights; a run knows its own")
    if _EXIT.value is not None and (
        _WORKDIR.value is None or _TFLITE.value is not None or _REPORT.value is not None
    ):
        raise InputError("--exit_confidence is of a run: give --workdir, no --tflite or --report")
    _ATTACK.check(_TFLITE.value is not None, _WORKDIR.value is not None, _EXIT.value is not None)
    start_keras()
    from kapps.tflite import evaluation

    split, attacked = _SPLIT.value, _ATTACK.value
    result: evaluation.Result
    if _TFLITE.value is not None:
        result = evaluation.evaluate_tflite(
            _TFLITE.value,
            split,
            _WORKDIR.value,
            model=_MODEL.value,
            variant=_VARIANT.value,
            attacked=attacked,
        )
    elif _EXIT.value is not None:
        result = evaluation.evaluate_exits(_WORKDIR.value, split, _EXIT.value)
    elif _WORKDIR.value is not None:
        result = evaluation.evaluate_run(_WORKDIR.value, split, _REPORT.value, attacked)
    else:
        name, _ = cli.required(_MODEL, _SPLIT.dataset)
        result = evaluation.evaluate_weights(
            name,
            _WEIGHTS.value,
            split,
            arguments=_ARGUMENTS.value,
            image_size=_IMAGE_SIZE.value,
            report=_REPORT.value,
            attacked=attacked,
        )
    text = evaluation.line(result)
    if _REPORT.value is not None:
        text += "\n" + printable(Path(_REPORT.value) / "index.html")
    cli.put_out(text, evaluation.figures(result), _JSON)
    return None


def run() -> None:
    cli.run(main)


if __name__ == "__main__":
    run()

"""Converts a network to verified .tflite files with labels and metadata, or to an ONNX file.

Examples:

  kapps-convert --workdir=/tmp/run --output=net.tflite --quantization=float32,float16,int8
  kapps-convert --model=MobileNetV3Small --weights=imagenet --calibration=folder:PATH --output=FILE
  kapps-convert --workdir=/tmp/run --output=net.tflite --quantization=mixed --target_loss=0.005
  kapps-convert --workdir=/tmp/run --output=net.onnx --format=onnx
  kapps-convert --keras=FILE --labels=FILE --calibration=folder:PATH --output=FILE
  kapps-convert --workdir=/tmp/run --output=net.tflite --web=net.html
"""

from __future__ import annotations

import sys
from pathlib import Path

from absl import flags

from kapps._errors import InputError
from kapps.tflite.child import MOST_SECONDS
from kapps.tflite.programs import model_flags
from kapps.tools import cli
from kapps.tools.streams import start_keras

_MODEL = model_flags.define()
_LABELS = flags.DEFINE_string("labels", None, "file with the name of each class, one a line")
_OUTPUT = flags.DEFINE_string(
    "output", None, "the .tflite file; of several quantizations each adds its name: net_int8.tflite"
)
_QUANTIZATION = flags.DEFINE_list(
    "quantization",
    "float32",
    "float32, float16, dynamic, int4, int4_blockwise, int8, mixed or int16x8; several with commas",
)
_FORMAT = flags.DEFINE_enum(
    "format", "tflite", ["tflite", "onnx"], "onnx: float32, for ONNX Runtime (extra onnx)"
)
_IO = flags.DEFINE_string(
    "io",
    None,
    "type of input and output: for int8 and mixed uint8 (the default), int8 or float32; for "
    "int16x8 float32 (the default) or int16",
)
_TARGET_LOSS = flags.DEFINE_float(
    "target_loss",
    None,
    "of mixed, and needed for it: the largest share of the calibration images, such as 0.005, that "
    "the file may put into another class than the float network; the layers that lose most stay in "
    "float until it is reached",
)
_IMAGES = model_flags.define_images()
_TIME_LIMIT = flags.DEFINE_float(
    "time_limit", 3600, "seconds for a file of --keras", lower_bound=1, upper_bound=MOST_SECONDS
)
_WEB = flags.DEFINE_string(
    "web", None, "HTML file, beside the .tflite file: a page that classifies pictures with it"
)
_LITERTJS = flags.DEFINE_string(
    "litertjs", "node_modules", "folder in which npm has put @litertjs/core, for --web"
)
_ABOUT = model_flags.define_about()


def main(argv: list[str]) -> int | None:
    """Converts, and prints a line for each file."""
    (output,) = cli.required(_OUTPUT)
    quantizations = list(dict.fromkeys(_QUANTIZATION.value))
    if not quantizations:
        raise InputError("--quantization is empty; --help lists those there are")
    if _WEB.value:
        from kapps.tflite.web import check_litertjs

        if len(quantizations) > 1:
            raise InputError("--web makes a page of one file: give one --quantization")
        check_litertjs(_LITERTJS.value)
    if _MODEL.is_for_another_process():
        return _MODEL.start_anew("convert", _TIME_LIMIT.value)
    start_keras()
    from kapps.tflite import conversion_run, four_bits
    from kapps.tflite.quantizations import check_quantization, check_target
    from kapps.tools.progress import progress_bar

    for quantization in quantizations:  # before the images are read
        check_quantization(quantization, _IO.value, _FORMAT.value)
        four_bits.check_installed(quantization)
    check_target("mixed" if "mixed" in quantizations else quantizations[0], _TARGET_LOSS.value)
    source = _MODEL.load(_LABELS.value)
    images = conversion_run.read_images(
        source, _IMAGES.value, lambda line: print(line, file=sys.stderr, flush=True)
    )
    with progress_bar(len(quantizations), "file", "converting") as bar:
        for conversion in conversion_run.convert_each(
            source,
            Path(output),
            quantizations,
            images,
            io=_IO.value,
            about=_ABOUT.value,
            target_loss=_TARGET_LOSS.value,
            file_format=_FORMAT.value,
        ):
            bar.write(conversion_run.summary(conversion), file=sys.stdout)
            bar.update()
    if _WEB.value:
        from kapps.tflite.web import web_page

        print(web_page(output, _WEB.value, litertjs=_LITERTJS.value))
    return None


def run() -> None:
    cli.run(main)


if __name__ == "__main__":
    run()

"""Runs .tflite files on images; needs numpy and ai-edge-litert only.

  python3 arm_classify.py FILE INPUTS.npy OUTPUTS.npy [FILE INPUTS.npy OUTPUTS.npy]...

The images are in the range 0..255, and the outputs as they come: of an int8 file, in its steps.
"""

import sys

import numpy as np
from ai_edge_litert.interpreter import Interpreter


def main() -> None:
    rest = sys.argv[1:]
    while rest:
        file, images, outputs, *rest = rest
        interpreter = Interpreter(file, num_threads=1)
        interpreter.allocate_tensors()
        (into,), (out,) = interpreter.get_input_details(), interpreter.get_output_details()
        found = []
        for image in np.load(images):
            pixels = image[None].astype("float64")
            scale, zero_point = into["quantization"]
            if scale:
                pixels = np.round(pixels / scale) + zero_point
            interpreter.set_tensor(into["index"], pixels.astype(into["dtype"]))
            interpreter.invoke()
            found.append(interpreter.get_tensor(out["index"])[0])
        np.save(outputs, found)


if __name__ == "__main__":
    main()

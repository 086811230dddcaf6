"""Classifies images with MediaPipe: `python mediapipe_classify.py IMAGES FILE...`.

Run by an interpreter that has MediaPipe. IMAGES is a .npy file of images of one size, or an .npz
file of images of any size, of which the central squares are classified, as in the README. Prints
JSON: for each file and image, the score of each label.
"""

from __future__ import annotations

import json
import sys

import mediapipe as mp
import numpy as np
from mediapipe.tasks.python import BaseOptions, vision
from mediapipe.tasks.python.components.containers.rect import RectF
from mediapipe.tasks.python.vision.core.image_processing_options import ImageProcessingOptions


def central_square(image: np.ndarray) -> ImageProcessingOptions:
    height, width = image.shape[:2]
    side = min(width, height)
    left, top = round((width - side) / 2), round((height - side) / 2)
    square = RectF(left / width, top / height, (top + side) / height, (left + side) / width)
    return ImageProcessingOptions(square)


def scores(file: str, images: list[np.ndarray], square: bool) -> list[dict[str, float]]:
    options = vision.ImageClassifierOptions(BaseOptions(model_asset_path=file), max_results=-1)
    with vision.ImageClassifier.create_from_options(options) as classifier:
        results = [
            classifier.classify(
                mp.Image(image_format=mp.ImageFormat.SRGB, data=image),
                central_square(image) if square else None,
            )
            for image in images
        ]
    return [
        {c.category_name: c.score for c in result.classifications[0].categories}
        for result in results
    ]


if __name__ == "__main__":
    loaded = np.load(sys.argv[1])
    square = not isinstance(loaded, np.ndarray)
    images = list(loaded.values()) if square else list(loaded)
    print(json.dumps({file: scores(file, images, square) for file in sys.argv[2:]}))

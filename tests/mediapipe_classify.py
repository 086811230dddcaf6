"""Classifies images with MediaPipe: `python mediapipe_classify.py IMAGES.npy FILE...`.

Run by an interpreter that has MediaPipe. Prints JSON: for each file and image, the score of each
label.
"""

from __future__ import annotations

import json
import sys

import mediapipe as mp
import numpy as np
from mediapipe.tasks.python import BaseOptions, vision


def scores(file: str, images: np.ndarray) -> list[dict[str, float]]:
    options = vision.ImageClassifierOptions(BaseOptions(model_asset_path=file), max_results=-1)
    with vision.ImageClassifier.create_from_options(options) as classifier:
        results = [
            classifier.classify(mp.Image(image_format=mp.ImageFormat.SRGB, data=image))
            for image in images
        ]
    return [
        {c.category_name: c.score for c in result.classifications[0].categories}
        for result in results
    ]


if __name__ == "__main__":
    images = np.load(sys.argv[1])
    print(json.dumps({file: scores(file, images) for file in sys.argv[2:]}))

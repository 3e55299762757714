"""scikit-learn's handwritten digits, 8 x 8: real images that come with an installed package.

Alpaydin & Kaynak 1998 (UCI's optdigits, test part): 1,797 images of 13 writers.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Integer

from jaxstab.data.images import ImageData, image_data

CLASSES = tuple("0123456789")
"""What the labels 0, 1, ... stand for."""

TEST_EVERY = 5
"""Of each digit, every fifth image in the file's order is for testing."""


def load() -> ImageData:
    """1,442 training and 355 test images of 64 pixels: one fixed split, balanced over the digits."""
    from sklearn.datasets import load_digits  # half a second: only for those who ask for it

    rows, labels = load_digits(return_X_y=True)
    images = np.asarray(rows, np.uint8).reshape(-1, 8, 8)
    labels = np.asarray(labels, np.int32)
    test = is_test(labels)
    return image_data(images[~test], labels[~test], images[test], labels[test], white=16)


def is_test(labels: Integer[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
    """Whether an image is held out: the fifth, tenth, ... of its own label."""
    test = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        test[np.flatnonzero(labels == label)[TEST_EVERY - 1 :: TEST_EVERY]] = True
    return test

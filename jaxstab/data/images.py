"""What an image classifier is fed: labelled images, split, of whatever dataset."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float, Integer


class DataError(RuntimeError):
    """Data that cannot be had or cannot be right: one line that names the file and what to do."""


class ImageData(NamedTuple):
    """Labelled images, split; a pytree of host arrays. Pixels are float32 in [0, 1], a row for each image."""

    train_images: Float[np.ndarray | Array, "train pixels"]
    train_labels: Integer[np.ndarray | Array, " train"]
    test_images: Float[np.ndarray | Array, "test pixels"]
    test_labels: Integer[np.ndarray | Array, " test"]

    @property
    def side(self) -> int:
        """Height and width of an image, in pixels."""
        return round(self.train_images.shape[1] ** 0.5)


def image_data(
    train_images: Integer[np.ndarray, "train height width"],
    train_labels: Integer[np.ndarray, " train"],
    test_images: Integer[np.ndarray, "test height width"],
    test_labels: Integer[np.ndarray, " test"],
    white: float | int,
) -> ImageData:
    """Pixels of 0..`white` as float32 in [0, 1], rows flat, labels int32; read-only, for they are shared."""
    splits = [(train_images, train_labels), (test_images, test_labels)]
    arrays = []
    for images, labels in splits:
        rows = images.reshape(len(images), -1).astype(np.float32) / np.float32(white)
        arrays += [rows, labels.astype(np.int32)]
    for array in arrays:
        array.setflags(write=False)
    return ImageData(*arrays)

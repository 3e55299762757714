"""What the image classifier is fed, and `load`, which gets it by name."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float, Integer

from jaxstab.errors import require_choice


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


CLASSES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "digits": tuple("0123456789"),
        "fashion_mnist": (
            "T-shirt/top",
            "Trouser",
            "Pullover",
            "Dress",
            "Coat",
            "Sandal",
            "Shirt",
            "Sneaker",
            "Bag",
            "Ankle boot",
        ),
    }
)
"""dataset -> the names of its labels 0, 1, ..."""

NAMES: tuple[str, ...] = tuple(CLASSES)


def load(name: object) -> ImageData:
    """The dataset of that name, read once in a process; the same arrays are handed out again.

    Errors: UsageError for an unknown name; DataError where Fashion-MNIST cannot be had (nothing is put in
    its place).
    """
    dataset = require_choice(name, NAMES, "dataset")
    return _load(dataset, tuple(os.environ.get(variable) for variable in ENVIRONMENT))


ENVIRONMENT = ("JAXSTAB_FASHION_MNIST", "TFDS_DATA_DIR")
"""Variables that say where the data lie."""


@functools.lru_cache(maxsize=4)
def _load(dataset: str, environment: tuple[str | None, ...]) -> ImageData:
    return _loader(dataset)()


def _loader(dataset: str) -> Callable[[], ImageData]:
    # imported late: scikit-learn and tensorflow-datasets take half a second each
    if dataset == "digits":
        from jaxstab.data import digits

        return digits.load
    from jaxstab.data import fashion_mnist

    return fashion_mnist.load

"""The datasets by name, each read once in a process."""

from __future__ import annotations

import functools
import os

from jaxstab.data import digits, fashion_mnist
from jaxstab.data.images import ImageData
from jaxstab.errors import require_choice

DATASETS = {"digits": digits, "fashion_mnist": fashion_mnist}
NAMES = tuple(DATASETS)


def classes(name: object) -> tuple[str, ...]:
    """What the dataset's labels 0, 1, ... stand for. UsageError for an unknown name."""
    return DATASETS[require_choice(name, NAMES, "dataset")].CLASSES


def load(name: object, folder: str | os.PathLike[str] | None = None) -> ImageData:
    """The dataset of that name; the same arrays are handed out again.

    Fashion-MNIST is that of `folder`, by default of JAXSTAB_FASHION_MNIST; without either, tensorflow-datasets
    is asked (prepared once in TFDS_DATA_DIR, by default ~/tensorflow_datasets). The digits need no folder.

    Errors: UsageError for an unknown name; DataError, one line, where Fashion-MNIST cannot be had or is damaged
    (nothing is put in its place).
    """
    dataset = require_choice(name, NAMES, "dataset")
    return _load(fashion_mnist.find(folder) if dataset == "fashion_mnist" else None)


@functools.lru_cache(maxsize=4)
def _load(place: fashion_mnist.Place | None) -> ImageData:
    if place is None:
        return digits.load()
    if place.folder is not None:
        return fashion_mnist.read_folder(place.folder)
    from jaxstab.data import fashion_mnist_tfds  # tensorflow-datasets takes half a second

    return fashion_mnist_tfds.read(place.data_dir)

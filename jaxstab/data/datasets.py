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

    `folder` is where Fashion-MNIST's files lie, if not where `fashion_mnist.find` looks; the digits need none.

    Errors: UsageError for an unknown name; DataError where Fashion-MNIST cannot be had (nothing is put in
    its place).
    """
    dataset = require_choice(name, NAMES, "dataset")
    return _load(fashion_mnist.find(folder) if dataset == "fashion_mnist" else None)


@functools.lru_cache(maxsize=4)
def _load(place: fashion_mnist.Place | None) -> ImageData:
    return digits.load() if place is None else fashion_mnist.load(place.folder)

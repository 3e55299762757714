"""Fashion-MNIST (Xiao, Rasul & Vollgraf 2017, arXiv:1708.07747): what it is, and its four official files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from jaxstab.data import idx
from jaxstab.data.images import DataError, ImageData, image_data

CLASSES = (
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
)
"""What the labels 0, 1, ... stand for."""

FOLDER, DATA_DIR = "JAXSTAB_FASHION_MNIST", "TFDS_DATA_DIR"
"""The user's environment variables: a folder with the four official files; tensorflow-datasets' own folder."""

FILES = {
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}
"""split -> (images, labels)."""

HINT = f"Name a folder with the four official files: --fashion-mnist DIR, folder=, or the variable {FOLDER}."


class Place(NamedTuple):
    """Where to look: in `folder`, with the four official files, or else in tensorflow-datasets' `data_dir`."""

    folder: str | None
    data_dir: str | None


def find(folder: str | os.PathLike[str] | None = None) -> Place:
    """Where to look if `folder` is given, and where the user's environment says if it is not."""
    chosen = os.environ.get(FOLDER) if folder is None else os.fspath(folder)
    return Place(chosen or None, os.environ.get(DATA_DIR))


def read_folder(folder: str | os.PathLike[str]) -> ImageData:
    """The four official files of `folder`, any number of images. DataError if one is missing or damaged."""
    if not Path(folder).is_dir():
        raise DataError(f"{folder} is not a folder. {HINT}")
    splits = [idx.read_split(Path(folder, images), Path(folder, labels)) for images, labels in FILES.values()]
    return image_data(*splits[0], *splits[1], white=255)

"""What stands in for Fashion-MNIST where it cannot be had: the one place where data are substituted, aloud."""

from __future__ import annotations

import functools
import os
from typing import NamedTuple

from jaxstab.data import datasets, fashion_mnist
from jaxstab.data.images import DataError, ImageData

OFFICIAL_IMAGES = 60_000


class Chosen(NamedTuple):
    """A dataset's name, its images, and notes that say so if they are not the whole of Fashion-MNIST."""

    dataset: str
    images: ImageData
    notes: tuple[str, ...]

    def epochs_of(self, updates: int, batch_size: int) -> int:
        """How many epochs of these images make at least so many updates."""
        steps = -(-len(self.images.train_images) // batch_size)
        return -(-updates // steps)


def images_or_digits(folder: str | os.PathLike[str] | None = None) -> Chosen:
    """Fashion-MNIST, or the digits where it cannot be had.

    Errors: DataError where a folder is named (here, or by the user's environment) and its files are not
    right: whoever names one wants that one.
    """
    return _choose(fashion_mnist.find(folder))


@functools.lru_cache(maxsize=4)
def _choose(place: fashion_mnist.Place) -> Chosen:
    """Cached, so that a network that does not answer is waited for once."""
    try:
        images = datasets.load("fashion_mnist", place.folder)
    except DataError as error:
        if place.folder:
            raise
        reason = str(error).split(". ")[0].split(" (")[0].rstrip(".")
        digits = datasets.load("digits")
        substituted = (
            f"Substituted data: {len(digits.train_images):,} of scikit-learn's digits (8 x 8 pixels), not"
            f" Fashion-MNIST's {OFFICIAL_IMAGES:,} training images (28 x 28)."
        )
        return Chosen("digits", digits, (substituted, f"{reason}."))
    found = len(images.train_images)
    part = f"A part of Fashion-MNIST: {found:,} training images, not {OFFICIAL_IMAGES:,}."
    return Chosen("fashion_mnist", images, () if found == OFFICIAL_IMAGES else (part,))

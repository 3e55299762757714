"""What stands in for Fashion-MNIST where it cannot be had: the one place where data are substituted, aloud."""

from __future__ import annotations

import functools
import os

from jaxstab.data import fashion_mnist, images

OFFICIAL_IMAGES = 60_000


def images_or_digits() -> tuple[str, tuple[str, ...]]:
    """The name of the dataset to use, and notes that say so if it is not the whole of Fashion-MNIST.

    Errors: DataError where a folder was named (JAXSTAB_FASHION_MNIST) and its files are not right: whoever
    names one wants that one.
    """
    return _choose(tuple(os.environ.get(variable) for variable in images.ENVIRONMENT))


@functools.lru_cache(maxsize=4)
def _choose(environment: tuple[str | None, ...]) -> tuple[str, tuple[str, ...]]:
    """Cached, so that a network that does not answer is waited for once."""
    try:
        found = len(images.load("fashion_mnist").train_images)
    except images.DataError as error:
        if os.environ.get(fashion_mnist.FOLDER):
            raise
        reason = str(error).split(". ")[0].split(" (")[0].rstrip(".")
        digits = len(images.load("digits").train_images)
        return "digits", (
            f"Substituted data: {digits:,} of scikit-learn's digits (8 x 8 pixels), not Fashion-MNIST's"
            f" {OFFICIAL_IMAGES:,} training images (28 x 28).",
            f"{reason}.",
        )
    if found == OFFICIAL_IMAGES:
        return "fashion_mnist", ()
    return "fashion_mnist", (f"A part of Fashion-MNIST: {found:,} training images, not {OFFICIAL_IMAGES:,}.",)


def epochs_of(updates: int, dataset: str, batch_size: int) -> int:
    """How many epochs of that dataset make at least so many updates."""
    steps = -(-len(images.load(dataset).train_images) // batch_size)
    return -(-updates // steps)

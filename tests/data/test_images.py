"""The common type of all datasets of images."""

import jax
import numpy as np
import pytest

from jaxstab.data import images


def make(n_train=3, n_test=2):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (n_train + n_test, 4, 4), dtype=np.uint8)
    labels = rng.integers(0, 10, n_train + n_test)
    return images.image_data(
        pixels[:n_train], labels[:n_train], pixels[n_train:], labels[n_train:], white=255
    ), pixels


def test_pixels_are_float32_between_0_and_1():
    data, pixels = make()
    assert data.train_images.dtype == np.float32
    assert data.train_labels.dtype == np.int32
    assert data.side == 4
    np.testing.assert_array_equal(np.rint(data.train_images * 255), pixels[:3].reshape(3, 16))
    assert images.image_data(
        np.full((1, 2, 2), 255, np.uint8),
        np.zeros(1, int),
        np.zeros((1, 2, 2), np.uint8),
        np.zeros(1, int),
        255,
    ).train_images.tolist() == [[1.0] * 4]


def test_the_arrays_are_shared_and_therefore_read_only():
    data, _ = make()
    with pytest.raises(ValueError, match="read-only"):
        data.train_images[0, 0] = 1


def test_it_is_a_pytree_of_four_arrays():
    data, _ = make()
    assert len(jax.tree.leaves(data)) == 4
    assert jax.jit(lambda lane: lane.train_images.sum())(data) > 0

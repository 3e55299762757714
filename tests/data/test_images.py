"""`load` by name, and the common type."""

import jax
import numpy as np
import pytest

from jaxstab.data import fashion_mnist, images
from jaxstab.errors import UsageError


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


def test_load_reads_once():
    assert images.load("digits") is images.load("digits")


def test_load_refuses_an_unknown_name():
    with pytest.raises(UsageError, match=r"'fashion_mnist'.*Choices: digits, fashion_mnist"):
        images.load("fashion_mnits")
    with pytest.raises(UsageError):
        images.load(None)


def test_load_follows_the_environment(monkeypatch, tmp_path):
    data, _ = make()
    monkeypatch.setattr(fashion_mnist, "read_folder", lambda folder: data if folder == "here" else None)
    monkeypatch.setenv("JAXSTAB_FASHION_MNIST", "here")
    assert images.load("fashion_mnist") is data
    monkeypatch.setattr(fashion_mnist, "read_folder", lambda folder: make(5)[0])
    assert images.load("fashion_mnist") is data
    monkeypatch.setenv("JAXSTAB_FASHION_MNIST", "there")
    assert len(images.load("fashion_mnist").train_images) == 5


def test_every_label_has_a_name():
    assert tuple(images.CLASSES) == images.NAMES
    assert all(len(set(names)) == 10 for names in images.CLASSES.values())

"""scikit-learn's digits: the split is fixed, balanced, complete."""

import hashlib

import numpy as np
from sklearn.datasets import load_digits

from jaxstab.data import digits


def test_sizes_and_range():
    data = digits.load()
    assert data.train_images.shape == (1442, 64)
    assert data.test_images.shape == (355, 64)
    assert data.train_images.min() == 0
    assert data.train_images.max() == 1
    assert data.side == 8


def test_every_image_is_in_one_half():
    data, bunch = digits.load(), load_digits()
    ours = np.concatenate([data.train_images, data.test_images])
    theirs = bunch.data.astype(np.float32) / 16
    np.testing.assert_array_equal(ours[np.lexsort(ours.T)], theirs[np.lexsort(theirs.T)])
    np.testing.assert_array_equal(data.test_images, theirs[digits.is_test(bunch.target)])
    np.testing.assert_array_equal(data.test_labels, bunch.target[digits.is_test(bunch.target)])


def test_a_fifth_of_every_digit_is_held_out():
    data = digits.load()
    held_out, kept = np.bincount(data.test_labels), np.bincount(data.train_labels)
    np.testing.assert_array_equal(held_out, (held_out + kept) // digits.TEST_EVERY)


def test_the_split_is_the_same_everywhere():
    labels = np.array([0, 1, 0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0, 0])
    assert np.flatnonzero(digits.is_test(labels)).tolist() == [5, 9, 14]
    digest = hashlib.sha256(digits.load().test_labels.astype("<i4").tobytes()).hexdigest()
    assert digest[:16] == "63e8dadd68cb18c9"

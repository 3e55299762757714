"""Datasets by name: each read once, from where it was said."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxstab.data import datasets, fashion_mnist, fashion_mnist_tfds, images
from jaxstab.errors import UsageError


def test_load_reads_once():
    assert datasets.load("digits") is datasets.load("digits")


def test_load_refuses_an_unknown_name():
    with pytest.raises(UsageError, match=r"'fashion_mnist'.*Choices: digits, fashion_mnist"):
        datasets.load("fashion_mnits")
    with pytest.raises(UsageError):
        datasets.load(None)


def make(n):
    """A dataset of `n` training images."""
    return images.image_data(
        np.zeros((n, 4, 4), int), np.zeros(n, int), np.zeros((1, 4, 4), int), np.zeros(1, int), 1
    )


def test_load_follows_the_environment(monkeypatch):
    data = make(3)
    monkeypatch.setattr(fashion_mnist, "read_folder", lambda folder: data if folder == "here" else None)
    monkeypatch.setenv("JAXSTAB_FASHION_MNIST", "here")
    assert datasets.load("fashion_mnist") is data
    monkeypatch.setattr(fashion_mnist, "read_folder", lambda folder: make(5))
    assert datasets.load("fashion_mnist") is data
    monkeypatch.setenv("JAXSTAB_FASHION_MNIST", "there")
    assert len(datasets.load("fashion_mnist").train_images) == 5
    monkeypatch.delenv("JAXSTAB_FASHION_MNIST")
    monkeypatch.setattr(fashion_mnist_tfds, "read", lambda data_dir: make(len(data_dir)))
    for prepared in ("one", "eleven"):
        monkeypatch.setenv("TFDS_DATA_DIR", prepared)
        assert len(datasets.load("fashion_mnist").train_images) == len(prepared)


def test_a_folder_that_is_given_goes_before_the_environments(monkeypatch):
    monkeypatch.setattr(fashion_mnist, "read_folder", lambda folder: make(len(folder)))
    monkeypatch.setenv("JAXSTAB_FASHION_MNIST", "environment")
    for folder in (Path("ours"), "theirs"):
        assert len(datasets.load("fashion_mnist", folder).train_images) == len(str(folder))
    assert datasets.load("digits", "nowhere") is datasets.load("digits")


def test_every_label_has_a_name():
    for name in datasets.NAMES:
        assert len(set(datasets.classes(name))) == 10
    with pytest.raises(UsageError, match=r"'mnist'.*Choices: digits, fashion_mnist"):
        datasets.classes("mnist")


def test_asking_for_names_loads_no_heavy_package():
    code = """
import sys
from jaxstab.data import datasets
[datasets.classes(name) for name in datasets.NAMES]
print(*({"sklearn", "tensorflow_datasets", "PIL"} & {*sys.modules}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []

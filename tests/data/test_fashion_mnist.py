"""Fashion-MNIST from a folder, through tensorflow-datasets from a server on this machine, and not at all."""

import functools
import gzip
import hashlib
import http.server
import io
import shutil
import socket
import struct
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from jaxstab.data import fashion_mnist, fashion_mnist_tfds
from jaxstab.data.fashion_mnist_builder import FashionMnist, encode_png
from jaxstab.data.images import DataError
from jaxstab.errors import UsageError

REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "fashion-mnist-5k"
needs_real = pytest.mark.skipif(
    not REAL.is_dir(), reason=f"no {REAL}: the real images are not part of the package"
)
needs_array_record = pytest.mark.skipif(
    sys.platform != "linux", reason="array_record has wheels for Linux only"
)


def write_official(folder, n_train=12, n_test=5):
    """The four files, random pixels; small."""
    rng = np.random.default_rng(0)
    folder.mkdir(exist_ok=True)
    for split, count in (("train", n_train), ("test", n_test)):
        images, labels = fashion_mnist.FILES[split]
        pixels = rng.integers(0, 256, count * 784, dtype=np.uint8).tobytes()
        classes = (np.arange(count) % 10).astype(np.uint8).tobytes()
        (folder / images).write_bytes(gzip.compress(struct.pack(">4I", 2051, count, 28, 28) + pixels))
        (folder / labels).write_bytes(gzip.compress(struct.pack(">2I", 2049, count) + classes))
    return folder


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A server with the four files on this machine, and a builder that downloads from it."""
    folder = write_official(tmp_path / "served")
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        contents = {
            path.name: (path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())
            for path in folder.iterdir()
        }
        monkeypatch.setattr(FashionMnist, "URL", f"http://127.0.0.1:{running.server_port}/")
        monkeypatch.setattr(FashionMnist, "CONTENTS", contents)
        yield folder
        running.shutdown()
        thread.join()


def files_in(folder):
    return sorted(path.name for path in Path(folder).rglob("*") if path.is_file())


@needs_real
def test_the_real_images():
    data = fashion_mnist.read_folder(REAL)
    assert data.train_images.shape == (4000, 784)
    assert data.test_images.shape == (998, 784)
    assert data.train_images.min() == 0
    assert data.train_images.max() == 1
    # the mean pixel of the whole set is 0.2860 and its standard deviation 0.3530
    means = data.train_images.mean(axis=1)
    assert abs(means.mean() - 0.2860) < 5 * means.std() / np.sqrt(len(means))
    counts = np.bincount(data.train_labels, minlength=10)
    assert (abs(counts - 400) < 5 * np.sqrt(360)).all()


def test_a_folder_of_official_files(tmp_path):
    data = fashion_mnist.read_folder(write_official(tmp_path / "here"))
    assert data.train_images.shape == (12, 784)
    assert data.test_labels.tolist() == [0, 1, 2, 3, 4]


def test_where_to_look(tmp_path, monkeypatch):
    monkeypatch.setenv(fashion_mnist.FOLDER, "theirs")
    monkeypatch.setenv(fashion_mnist.DATA_DIR, "prepared")
    assert fashion_mnist.find(tmp_path) == (str(tmp_path), "prepared")
    assert fashion_mnist.find() == ("theirs", "prepared")
    monkeypatch.setenv(fashion_mnist.FOLDER, "")  # as good as not set
    assert fashion_mnist.find() == (None, "prepared")


def test_a_folder_that_is_none_or_incomplete(tmp_path):
    with pytest.raises(DataError, match="is not a folder"):
        fashion_mnist.read_folder(tmp_path / "nowhere")
    (write_official(tmp_path / "here") / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError, match=r"t10k-labels-idx1-ubyte.gz: no such file"):
        fashion_mnist.read_folder(tmp_path / "here")
    assert not issubclass(DataError, UsageError)


@needs_array_record
def test_downloaded_prepared_and_read_without_tensorflow(server, tmp_path, monkeypatch, capsys):
    from_folder = fashion_mnist.read_folder(server)
    data = fashion_mnist_tfds.read(tmp_path / "tfds")
    assert "tensorflow" not in sys.modules
    for ours, theirs in zip(data, from_folder, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    prepared = tmp_path / "tfds" / "fashion_mnist" / "3.0.1"
    assert "fashion_mnist-train.array_record-00000-of-00001" in files_in(prepared)
    assert capsys.readouterr().out == ""

    shutil.rmtree(server)  # a second time nothing is asked of the server
    for ours, theirs in zip(fashion_mnist_tfds.read(tmp_path / "tfds"), from_folder, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    shutil.rmtree(prepared)  # nor where the checked files are still there, even with the network gone
    monkeypatch.setattr(fashion_mnist_tfds, "_require_answer", None)
    assert len(fashion_mnist_tfds.read(tmp_path / "tfds").train_images) == 12


@needs_array_record
@pytest.mark.parametrize("damage", ["wrong checksum", "missing", "cut"])
def test_a_failed_download_leaves_nothing_half_prepared(server, tmp_path, damage):
    largest = server / "train-images-idx3-ubyte.gz"
    whole = largest.read_bytes()
    if damage == "missing":
        largest.unlink()
    else:
        largest.write_bytes(whole[:-9] if damage == "cut" else whole[:-1] + b"\x01")
    with pytest.raises(DataError, match="404" if damage == "missing" else "wrong checksum") as refusal:
        fashion_mnist_tfds.read(tmp_path / "tfds")
    assert "\n" not in str(refusal.value)
    assert not [name for name in files_in(tmp_path / "tfds") if "train-images" in name]
    assert not list((tmp_path / "tfds").rglob("*.tmp.*"))
    assert not list((tmp_path / "tfds").rglob("*3.0.1*"))
    largest.write_bytes(whole)
    assert len(fashion_mnist_tfds.read(tmp_path / "tfds").train_images) == 12


@needs_array_record
def test_a_dead_network_is_one_line_at_once(tmp_path, monkeypatch):
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))  # and nobody listens
        monkeypatch.setattr(FashionMnist, "URL", f"http://127.0.0.1:{unheard.getsockname()[1]}/")
        start = time.monotonic()
        with pytest.raises(
            DataError, match=r"no answer from .*--fashion-mnist.*JAXSTAB_FASHION_MNIST"
        ) as refusal:
            fashion_mnist_tfds.read(tmp_path / "tfds")
    assert time.monotonic() - start < fashion_mnist_tfds.TIMEOUT
    assert "\n" not in str(refusal.value)
    assert not list(tmp_path.iterdir())


@needs_array_record
def test_a_name_that_does_not_resolve(tmp_path, monkeypatch):
    monkeypatch.setattr(FashionMnist, "URL", "http://fashion-mnist.invalid/")  # RFC 2606: never exists
    with pytest.raises(DataError, match=r"no answer from http://fashion-mnist.invalid/"):
        fashion_mnist_tfds.read(tmp_path / "tfds")
    assert not list(tmp_path.iterdir())


@needs_array_record
def test_another_format_in_the_way(server, tmp_path):
    fashion_mnist_tfds.read(tmp_path / "tfds")
    info = tmp_path / "tfds" / "fashion_mnist" / "3.0.1" / "dataset_info.json"
    info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
    with pytest.raises(DataError, match="only TensorFlow reads") as refusal:
        fashion_mnist_tfds.read(tmp_path / "tfds")
    assert "\n" not in str(refusal.value)


@needs_array_record
def test_a_prepared_file_that_was_cut(server, tmp_path):
    fashion_mnist_tfds.read(tmp_path / "tfds")
    record = next((tmp_path / "tfds").rglob("fashion_mnist-train.array_record*"))
    record.write_bytes(record.read_bytes()[:-100])
    with pytest.raises(DataError, match="cannot be had") as refusal:
        fashion_mnist_tfds.read(tmp_path / "tfds")
    assert "\n" not in str(refusal.value)


def test_without_array_record_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(fashion_mnist_tfds.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"array_record.*JAXSTAB_FASHION_MNIST"):
        fashion_mnist_tfds.read(tmp_path)


def test_a_png_file_holds_every_grey_value():
    every = np.arange(256, dtype=np.uint8)
    for image in (
        every.reshape(16, 16),
        every[None],
        np.zeros((1, 3), np.uint8),
        np.full((5, 2), 255, np.uint8),
    ):
        written = encode_png(image)
        opened = Image.open(io.BytesIO(written))
        assert (opened.format, opened.mode) == ("PNG", "L")
        np.testing.assert_array_equal(np.asarray(opened), image)


@needs_array_record
def test_name_version_features_and_checksums_are_the_stock_builders(tmp_path):
    stock = tfds.image_classification.FashionMNIST(data_dir=tmp_path)
    ours = FashionMnist(data_dir=tmp_path)
    assert ours.info.full_name == stock.info.full_name
    assert ours.info.features["label"].names == stock.info.features["label"].names
    assert ours.info.features["image"].shape == stock.info.features["image"].shape
    registered = tfds.core.download.checksums.get_all_url_infos()
    assert ours.URL == type(stock).URL
    assert {url: registered[url] for url in ours.url_infos} == ours.url_infos

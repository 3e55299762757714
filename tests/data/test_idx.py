"""IDX files: read back what was written; every damage gets its own single line."""

import gzip
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxstab.data import idx
from jaxstab.data.images import DataError

IMAGES = np.random.default_rng(0).integers(0, 256, (7, 28, 28), dtype=np.uint8)
LABELS = np.arange(7, dtype=np.uint8)


def encode(array, magic=None, shape=None):
    """A gzipped IDX file; `magic` and `shape` may lie."""
    shape = array.shape if shape is None else shape
    magic = 2048 + array.ndim if magic is None else magic
    return gzip.compress(struct.pack(f">{1 + len(shape)}I", magic, *shape) + array.tobytes(), 1)


def write(folder, images=None, labels=None):
    paths = folder / "images.gz", folder / "labels.gz"
    paths[0].write_bytes(encode(IMAGES) if images is None else images)
    paths[1].write_bytes(encode(LABELS) if labels is None else labels)
    return paths


def test_what_was_written_is_read(tmp_path):
    images, labels = idx.read_split(*write(tmp_path))
    np.testing.assert_array_equal(images, IMAGES)
    np.testing.assert_array_equal(labels, LABELS)


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        ({"images": encode(IMAGES)[:-2000]}, "truncated"),
        ({"images": encode(IMAGES)[:-1]}, "truncated"),
        ({"labels": b""}, "magic number 0, not 2049"),
        ({"labels": gzip.compress(b"\0\0\x08\x01")}, "4 bytes are too few"),
        ({"images": b"<html>404</html>"}, "not gzip"),
        ({"images": encode(IMAGES)[:500] + b"damage" + encode(IMAGES)[506:]}, "damaged"),
        ({"images": encode(LABELS)}, "magic number 2049, not 2051"),
        ({"labels": encode(LABELS, magic=2051)}, "magic number 2051, not 2049"),
        ({"images": encode(IMAGES, shape=(8, 28, 28))}, "announces 6272 bytes of data, and 5488 follow"),
        ({"images": encode(IMAGES, shape=(6, 28, 28))}, "announces 4704"),
        (
            {"images": encode(IMAGES, shape=(2**32 - 1, 2**32 - 1, 2**32 - 1))},
            "announces 79228162458924105385",
        ),
        ({"images": encode(IMAGES[:0])}, "no data"),
        ({"images": encode(IMAGES[:, :14])}, "images of 14 x 28"),
        ({"labels": encode(LABELS[:6])}, "7 images.*6 labels"),
        ({"labels": encode(LABELS + 4)}, "label 10 is outside 0..9"),
    ],
)
def test_damage_gets_one_line(tmp_path, damage, line):
    with pytest.raises(DataError, match=line) as refusal:
        idx.read_split(*write(tmp_path, **damage))
    assert "\n" not in str(refusal.value)
    assert str(tmp_path) in str(refusal.value)


def test_a_missing_file_and_a_folder_in_its_place(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        idx.read_idx(tmp_path / "nothing.gz", idx.LABELS_MAGIC)
    with pytest.raises(DataError, match="cannot be read"):
        idx.read_idx(tmp_path, idx.LABELS_MAGIC)


@given(st.integers(0, len(encode(LABELS)) - 1), st.integers(1, 255))
def test_a_flipped_byte_is_seen_or_harmless(tmp_path_factory, at, flip):
    """gzip's checksum covers the content; a flip in its own header may change nothing that is read."""
    damaged = bytearray(encode(LABELS))
    damaged[at] ^= flip
    path = tmp_path_factory.mktemp("flip") / "labels.gz"
    path.write_bytes(damaged)
    try:
        read, refusal = idx.read_idx(path, idx.LABELS_MAGIC), ""
    except DataError as error:
        read, refusal = LABELS, str(error)
    np.testing.assert_array_equal(read, LABELS)
    assert "\n" not in refusal

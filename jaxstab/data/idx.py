"""The gzipped IDX files in which MNIST and its kin are published, read with the standard library.

A header of big-endian 32-bit numbers, (magic, count) for labels and (magic, count, rows, columns) for images,
then unsigned bytes. http://yann.lecun.com/exdb/mnist
"""

from __future__ import annotations

import gzip
import os
import struct
import zlib
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from jaxstab.data.images import DataError

IMAGES_MAGIC, LABELS_MAGIC = 2051, 2049


def read_split(
    images_path: str | os.PathLike[str],
    labels_path: str | os.PathLike[str],
    side: int = 28,
    classes: int = 10,
) -> tuple[UInt8[np.ndarray, "n side side"], UInt8[np.ndarray, " n"]]:
    """Images and labels that belong together. DataError, one line, for anything that is not right."""
    images = read_idx(images_path, IMAGES_MAGIC)
    labels = read_idx(labels_path, LABELS_MAGIC)
    if images.shape[1:] != (side, side):
        raise DataError(
            f"{images_path}: images of {images.shape[1]} x {images.shape[2]}, not {side} x {side}."
        )
    if len(images) != len(labels):
        raise DataError(f"{images_path} holds {len(images)} images, {labels_path} {len(labels)} labels.")
    if labels.max() >= classes:
        raise DataError(f"{labels_path}: label {labels.max()} is outside 0..{classes - 1}.")
    return images, labels


def read_idx(path: str | os.PathLike[str], magic: int) -> UInt8[np.ndarray, "n ..."]:
    """The array in one gzipped file; `magic` says what it must be. DataError for a damaged or other file."""
    content = _decompress(Path(path))
    n_axes = magic % 256
    header = 4 * (1 + n_axes)
    found = int.from_bytes(content[:4])
    if found != magic:
        raise DataError(f"{path}: magic number {found}, not {magic}: another kind of file.")
    if len(content) < header:
        raise DataError(f"{path}: {len(content)} bytes are too few for a header of {header}.")
    shape = struct.unpack(f">{n_axes}I", content[4:header])
    if 0 in shape:
        raise DataError(f"{path}: its header announces no data ({' x '.join(map(str, shape))}).")
    announced, got = int(np.prod(shape, dtype=object)), len(content) - header
    if announced != got:
        raise DataError(f"{path}: its header announces {announced} bytes of data, and {got} follow.")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def _decompress(path: Path) -> bytes:
    try:
        with gzip.open(path) as file:
            return file.read()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file.") from None
    except EOFError:
        raise DataError(f"{path}: truncated, the gzip stream ends before its end.") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: damaged or not gzip ({error}).") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}).") from None

"""Fashion-MNIST through tensorflow-datasets, without TensorFlow.

Downloaded and checked by its own manager, prepared as array_record (for which the stock builder needs
TensorFlow), and read.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Int64, UInt8
from PIL import Image

from jaxstab.data.fashion_mnist import FILES, HINT
from jaxstab.data.fashion_mnist_builder import FashionMnist
from jaxstab.data.images import DataError, ImageData, image_data

TIMEOUT = 10.0
"""Seconds to wait for the first answer of the server."""


def read(data_dir: str | os.PathLike[str] | None = None) -> ImageData:
    """The official data, downloaded and prepared in `data_dir` (None: ~/tensorflow_datasets) where they are not.

    Errors: DataError, one line, for a network that does not answer, a checksum that does not agree, a damaged
    file; nothing half-prepared stays behind.
    """
    if importlib.util.find_spec("array_record") is None:
        raise DataError(
            f"array_record, which reads what tensorflow-datasets writes, is not installed. {HINT}"
        )
    try:
        if not FashionMnist(data_dir=data_dir).data_path.exists():
            _prepare(FashionMnist(data_dir=data_dir))
        builder = FashionMnist(data_dir=data_dir)
        return image_data(*_read_split(builder, "train"), *_read_split(builder, "test"), white=255)
    except NotImplementedError:
        where = FashionMnist(data_dir=data_dir).data_dir
        raise DataError(f"{where} is in a format that only TensorFlow reads. Remove it, or: {HINT}") from None
    except DataError:
        raise
    except Exception as error:  # of requests, urllib3, array_record, protobuf, and tensorflow-datasets' own
        reason = (str(error).splitlines() or [""])[0].strip().rstrip(":")
        raise DataError(f"Fashion-MNIST cannot be had: {type(error).__name__}: {reason}. {HINT}") from error


def _prepare(builder: FashionMnist) -> None:
    """Download and write. A failed attempt leaves what was complete: files whose checksum agreed."""
    downloads = Path(builder._data_dir_root) / "downloads"
    if not _is_downloaded(downloads):
        _require_answer(builder.URL)
    config = tfds.download.DownloadConfig(try_download_gcs=False, force_checksums_validation=True)
    # its announcement goes to standard output, which belongs to whoever called
    with _removing_partial_downloads(downloads), contextlib.redirect_stdout(sys.stderr):
        try:
            builder.download_and_prepare(
                download_dir=downloads, download_config=config, file_format="array_record"
            )
        except OSError:
            if not builder.data_path.exists():  # else another process was first with the same
                raise


def _is_downloaded(downloads: Path) -> bool:
    stems = [name.removesuffix(".gz") for names in FILES.values() for name in names]
    return all(any(path.is_file() for path in downloads.rglob(f"*{stem}*.gz")) for stem in stems)


def _require_answer(url: str) -> None:
    # tensorflow-datasets would retry for 200 s and leave a folder behind
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=TIMEOUT).close()
    except urllib.error.HTTPError as answer:
        answer.close()  # an answer all the same; what it says of a file is seen when that is asked for
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise DataError(
            f"Fashion-MNIST cannot be downloaded: no answer from {url} ({reason}). {HINT}"
        ) from None


@contextlib.contextmanager
def _removing_partial_downloads(downloads: Path) -> Iterator[None]:
    before = set(downloads.rglob("*.tmp.*"))
    try:
        yield
    finally:
        for path in sorted(set(downloads.rglob("*.tmp.*")) - before, reverse=True):
            for file in path.iterdir():
                file.unlink()
            path.rmdir()


def _read_split(
    builder: FashionMnist, split: str
) -> tuple[UInt8[np.ndarray, "n 28 28"], Int64[np.ndarray, " n"]]:
    # decoded here, for tensorflow-datasets first complains that there is no OpenCV
    reader: Any = builder  # its methods are wrapped, and have lost their types
    source = reader.as_data_source(split=split, decoders={"image": tfds.decode.SkipDecoding()})
    examples = source.__getitems__(range(len(source)))
    images = np.stack([np.asarray(Image.open(io.BytesIO(example["image"]))) for example in examples])
    return images, np.array([example["label"] for example in examples], np.int64)

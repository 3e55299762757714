"""Fashion-MNIST for tensorflow-datasets, without TensorFlow.

The stock builder's extractor, reader and PNG encoder call TensorFlow (tensorflow/datasets#11058). This one
reads the gzip files itself and yields PNG bytes; name, version and features are the stock builder's.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import UInt8
from PIL import Image
from tensorflow_datasets.core.download.checksums import UrlInfo
from tensorflow_datasets.core.utils import Size

from jaxstab.data import idx
from jaxstab.data.fashion_mnist import CLASSES, FILES

CITATION = """@article{xiao2017fashion,
  title={Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms},
  author={Xiao, Han and Rasul, Kashif and Vollgraf, Roland},
  journal={arXiv:1708.07747},
  year={2017}
}"""


def encode_png(image: UInt8[np.ndarray, "height width"]) -> bytes:
    """A grey PNG file, 8 bits."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, format="PNG")
    return file.getvalue()


class FashionMnist(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """60,000 and 10,000 images of 28 x 28 x 1, in the order of the official files."""

    name = "fashion_mnist"
    VERSION = tfds.core.Version("3.0.1")
    URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
    CONTENTS: ClassVar[Mapping[str, tuple[int, str]]] = {
        "train-images-idx3-ubyte.gz": (
            26421880,
            "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        ),
        "train-labels-idx1-ubyte.gz": (
            29515,
            "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
        ),
        "t10k-images-idx3-ubyte.gz": (
            4422102,
            "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        ),
        "t10k-labels-idx1-ubyte.gz": (
            5148,
            "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        ),
    }
    """file -> (bytes, SHA-256), as tensorflow-datasets registers them."""

    @property
    def url_infos(self) -> dict[str, Any]:  # type: ignore[override]
        """What the download manager checks each file against."""
        return {
            self.URL + name: UrlInfo(Size(size), sha256, name)
            for name, (size, sha256) in self.CONTENTS.items()
        }

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(shape=(28, 28, 1)),
            "label": tfds.features.ClassLabel(names=list(CLASSES)),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description="Zalando's article images, a drop-in replacement of MNIST.",
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label"),
            homepage="https://github.com/zalandoresearch/fashion-mnist",
            citation=CITATION,
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        # One after the other, labels first: a failure shows soon and leaves no other download running.
        names = sorted(self.CONTENTS, key=lambda name: self.CONTENTS[name][0])
        paths = {name: dl_manager.download(self.URL + name) for name in names}
        return {
            split: self._generate_examples(paths[images], paths[labels])
            for split, (images, labels) in FILES.items()
        }

    def _generate_examples(self, images_path: Any, labels_path: Any) -> Iterator[tuple[int, dict[str, Any]]]:
        images, labels = idx.read_split(images_path, labels_path)
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield index, {"image": encode_png(image), "label": int(label)}

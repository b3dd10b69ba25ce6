"""What the tests of packing and of reading packed images share."""

import io

import numpy as np
import pytest
from PIL import Image

from metricjax.data.datasets import Dataset, Split
from metricjax.data.formats import packing
from metricjax.errors import InputError

SHARD = "images-00000.array_record"


def silent(_):
    """Nobody listens."""


def pack(dataset, out, **options):
    packing.pack(dataset, str(out), **{"say": silent, "threads": 2, **options})
    return str(out)


def photo(seed, size):
    """Smooth colours, as JPEG likes them."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def noise(seed, size=(12, 10)):
    shape = (size[1], size[0], 3)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    return Image.fromarray(pixels)


def make_photos(root):
    """Six classes of three images, with categories, queries and a gallery."""
    lines = ["path,label,category,split,is_query,is_gallery"]
    for c in range(6):
        for i in range(3):
            path = root / f"class {c}" / f"{i}.{'png' if i else 'jpg'}"
            path.parent.mkdir(parents=True, exist_ok=True)
            noise(10 * c + i).save(path)
            split = "train" if c < 3 else "test"
            flags = f"{split == 'train' or i > 0},{i < 2}"
            line = f"class {c}/{path.name},c{c},g{c % 2},{split},{flags}"
            lines.append(line)
    (root / "labels.csv").write_text("\n".join(lines))
    return root


def files(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def refuse(function, *arguments, **options):
    """The one sentence with which it is refused."""
    with pytest.raises(InputError) as caught:
        function(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


class Images:
    """A reader of images that are in memory, and of their files."""

    def __init__(self, images, contents):
        self.images, self.contents = images, contents

    def __call__(self, index):
        return np.asarray(self.images[index])

    def encoded(self, index):
        return self.contents[index]


def two_classes(images, contents):
    """The same images on both sides: class a to train, class b to test."""
    sides = (
        Split(
            labels=np.zeros(len(images), int),
            class_names=(name,),
            names=tuple(f"{name}/{i}" for i in range(len(images))),
            reader=Images(images, contents),
        )
        for name in "ab"
    )
    return Dataset("drawn", *sides)


def saved(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()

"""The four benchmarks of the papers, from the archives that people have.

CUB-200-2011, Cars196, Stanford Online Products and In-Shop Clothes Retrieval, divided
as the papers divide them: no class is both learnt and searched.
"""

import os
from collections.abc import Callable
from dataclasses import astuple, dataclass

import numpy as np

from metricjax.data.benchmarks import cars_layouts, layouts
from metricjax.data.benchmarks.layouts import Layout
from metricjax.data.datasets import Dataset, Split
from metricjax.data.formats import image_rows
from metricjax.data.formats.file_tree import Files, absent, open_files
from metricjax.errors import InputError


@dataclass(frozen=True)
class Counts:
    """What the papers count; where not every test image is a query, the others are
    the gallery."""

    train_images: int
    train_classes: int
    test_images: int
    test_classes: int
    queries: int


@dataclass(frozen=True)
class _Benchmark:
    title: str
    files: str
    page: str
    counts: Counts
    layout: Callable[[Files, int, bool], Layout | None]


KNOWN = {
    "cub": _Benchmark(
        "CUB-200-2011",
        "CUB_200_2011.tgz (images/, images.txt, image_class_labels.txt, "
        "bounding_boxes.txt)",
        "https://www.vision.caltech.edu/datasets/cub_200_2011/",
        Counts(5_864, 100, 5_924, 100, 5_924),
        layouts.cub,
    ),
    "cars": _Benchmark(
        "Cars196",
        "car_ims/ and cars_annos.mat, or cars_train/, cars_test/ and devkit/ with "
        "cars_test_annos_withlabels.mat",
        "https://ai.stanford.edu/~jkrause/cars/car_dataset.html",
        Counts(8_054, 98, 8_131, 98, 8_131),
        cars_layouts.cars,
    ),
    "sop": _Benchmark(
        "Stanford Online Products",
        "Stanford_Online_Products.zip (Ebay_train.txt, Ebay_test.txt)",
        "https://cvgl.stanford.edu/projects/lifted_struct/",
        Counts(59_551, 11_318, 60_502, 11_316, 60_502),
        layouts.sop,
    ),
    "inshop": _Benchmark(
        "In-Shop Clothes Retrieval",
        "img.zip and list_eval_partition.txt",
        "https://mmlab.ie.cuhk.edu.hk/projects/DeepFashion/InShopRetrieval.html",
        Counts(25_882, 3_997, 14_218 + 12_612, 3_985, 14_218),
        layouts.inshop,
    ),
}


def open(
    name: str, root: str | None = None, *, cropped: bool = False, channels: int = 3
) -> Dataset:
    """Opens a benchmark.

    Args:
      name: "cub", "cars", "sop" or "inshop".
      root: a directory, .zip or .tar (.tar.gz) of the official files, which lie at its
        top or one or two folders below; see `KNOWN` for their names.
      cropped: crop each image to its official bounding box; of CUB and Cars only.
      channels: 3 (colour) or 1 (grey).

    Raises:
      InputError: the files are not there, not all there, or not what they should be.
    """
    benchmark = KNOWN[name]
    image_rows.check_channels(channels)
    if cropped and name in ("sop", "inshop"):
        raise InputError(
            f"{benchmark.title} comes without the bounding boxes that cropped=True "
            "crops to: leave data.cropped at False."
        )
    if not root or not os.path.exists(os.path.expanduser(root)):
        where = f"in {root!r}, which does not exist" if root else "with no data.root"
        raise InputError(_advice(name, f"looked for {where}"))
    files = open_files(root)
    layout = benchmark.layout(files, benchmark.counts.train_classes, cropped)
    if layout is None:
        raise InputError(_advice(name, f"not found in {files.root!r}"))
    _check_present(benchmark, layout)
    train = [row for row in layout.rows if row.split == "train"]
    test = [row for row in layout.rows if row.split == "test"]
    image_rows.check_splits(files.root, train, test)
    fingerprint = image_rows.fingerprint(layout.rows)
    train, test = (
        image_rows.make_split(layout.images, rows, channels) for rows in (train, test)
    )
    notes = [*files.notes, *layout.notes]
    notes += _notes(benchmark, layout.name, train, test, cropped, fingerprint)
    return Dataset(name, train, test, notes=tuple(notes), fingerprint=fingerprint)


def _advice(name: str, what: str) -> str:
    """What is missing, how to get it and what to do with it."""
    benchmark = KNOWN[name]
    return (
        f"{benchmark.title} ({name!r}) was {what}: get {benchmark.files} from "
        f"{benchmark.page} and let data.root name the directory or the archive that "
        "holds them."
    )


def _check_present(benchmark: _Benchmark, layout: Layout) -> None:
    missing = absent(layout.images, [row.path for row in layout.rows])
    if missing:
        raise InputError(
            f"{len(missing)} of the {len(layout.rows)} images that {layout.name!r} of "
            f"{benchmark.title} names are not in {layout.images.root!r}, the first "
            f"{missing[0]!r}: unpack or copy the images again, beside their list."
        )


def _notes(
    benchmark: _Benchmark,
    layout: str,
    train: Split,
    test: Split,
    cropped: bool,
    fingerprint: str,
) -> list[str]:
    """What was opened, and whether it is what the papers used."""
    found = Counts(
        len(train),
        train.num_classes,
        len(test),
        test.num_classes,
        int(test.is_query.sum()),
    )
    tested = f"test {found.test_images:,}"
    if found.queries < found.test_images:
        gallery = int(np.sum(test.is_gallery))
        tested = f"test {found.queries:,} queries and a gallery of {gallery:,}"
    shown = "images cropped to the official bounding boxes" if cropped else "images"
    notes = [
        f"{benchmark.title}, layout {layout!r}: train {found.train_images:,} {shown} "
        f"of {found.train_classes:,} classes, {tested} of {found.test_classes:,}; "
        f"sha256 of the sorted (path, label) list {fingerprint[:12]}…"
    ]
    names = ("training images", "training classes", "test images", "test classes")
    differing = [
        f"{expected:,} {name} expected, {actual:,} found"
        for name, expected, actual in zip(
            (*names, "queries"), astuple(benchmark.counts), astuple(found), strict=True
        )
        if expected != actual
    ]
    if differing:
        notes.append(
            f"Mismatch: these files are not {benchmark.title} as the papers count it "
            f"({'; '.join(differing)}): results do not compare with theirs."
        )
    return notes

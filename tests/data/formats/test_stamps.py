"""What tells an image from another one without decoding it, of each kind of source."""

import os
import tarfile
import zipfile

import numpy as np
import pytest
from packing_helpers import make_photos, noise, pack

from metricjax.data import open_dataset
from metricjax.data.collections import open_collection
from metricjax.data.splits import with_turns


@pytest.fixture
def photos(tmp_path):
    return make_photos(tmp_path / "photos")


def stamps(source):
    split = open_collection(source)
    return [split.stamp(i) for i in range(len(split))]


def zipped(photos, path):
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(photos.rglob("*.*")):
            archive.write(file, file.relative_to(photos))
    return path


def tarred(photos, path):
    with tarfile.open(path, "w") as archive:
        archive.add(photos, "photos")
    return path


def packed(photos, path):
    return pack(open_dataset("folder", str(photos)), path)


@pytest.mark.parametrize("kind", ["directory", "list", "zip", "packed"])
def test_the_stamp_of_an_image_that_changed(photos, tmp_path, kind):
    makers = {"zip": zipped, "packed": packed}
    listed = [str(path) for path in sorted(photos.glob("*/*"))]
    (tmp_path / "list.txt").write_text("\n".join(listed))
    places = {"directory": photos, "list": tmp_path / "list.txt"}
    source = places.get(kind) or makers[kind](photos, tmp_path / "first")
    before = stamps(source)
    assert before == stamps(source)
    noise(99).save(photos / "class 1" / "1.png")
    source = places.get(kind) or makers[kind](photos, tmp_path / "second")
    after = stamps(source)
    differ = [
        i for i, pair in enumerate(zip(before, after, strict=True)) if len({*pair}) > 1
    ]
    assert differ == [4]


def test_a_tar_changes_as_a_whole(photos, tmp_path):
    path = tarred(photos, tmp_path / "a.tar")
    before = stamps(path)
    assert before == stamps(path)
    os.utime(path, (1, 1))
    assert not set(before) & set(stamps(path))


def test_images_without_files():
    train = open_dataset("glyphs", size=8).train
    again = open_dataset("glyphs", size=8).train
    assert train.stamp(3) == again.stamp(3) != train.stamp(4)
    turned = with_turns(train, 2)
    assert turned.stamp(3) == train.stamp(3) != turned.stamp(3 + len(train))
    part = train.subset(np.array([9, 3]))
    assert part.stamp(1) == train.stamp(3)


def test_a_line_without_a_file(photos, tmp_path):
    (tmp_path / "list").write_text("photos/class 0/1.png\nphotos/gone.png\n")
    assert stamps(tmp_path / "list")[1] == "not to be read"

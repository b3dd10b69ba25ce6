"""Collections: folders, archives, lists and data sets, whole, in order, as they lie."""

import os
import zipfile

import numpy as np
import pytest
from packing_helpers import make_photos, noise, pack

from metricjax.data import open_dataset
from metricjax.data.collections import open_collection
from metricjax.data.datasets import UnreadableImage
from metricjax.errors import InputError


def write(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise(seed).save(path)
    return path


def refuse(source, **options):
    """The one sentence with which it is refused."""
    with pytest.raises(InputError) as caught:
        open_collection(source, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def mixed(tmp_path):
    """Images at the top and in folders, one of one image, and what is no image."""
    root = tmp_path / "mixed"
    for seed, path in enumerate(["b.png", "cats/2.png", "cats/1.png", "dogs/x/1.png"]):
        write(root / path, seed)
    (root / "notes.txt").write_text("no image")
    (root / "cats" / "empty.png").touch()
    return root


MIXED = ["b.png", "cats/1.png", "cats/2.png", "dogs/x/1.png"]


def test_every_image_of_a_folder(mixed):
    said = []
    split = open_collection(mixed, say=said.append)
    assert list(split.names) == MIXED
    assert list(split.class_names) == ["", "cats", "dogs/x"]
    assert split.labels.tolist() == [0, 1, 1, 2]
    np.testing.assert_array_equal(split.read(2), np.asarray(noise(1)))
    assert said == [
        "2 of 6 files are left out, the first 'cats/empty.png' (it is empty)."
    ]
    assert open_collection(mixed, channels=1).read(0).shape == (10, 12, 1)


def test_an_archive_is_read_like_its_folder(mixed, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for path in sorted(mixed.rglob("*")):
            archive.write(path, f"top/{path.relative_to(mixed)}")
    split = open_collection(tmp_path / "a.zip")
    assert list(split.names) == [f"top/{name}" for name in MIXED]
    assert list(split.class_names) == ["", "cats", "dogs/x"]


def test_a_flat_folder_is_one_class_without_a_name(tmp_path):
    write(tmp_path / "a.png")
    split = open_collection(str(tmp_path))
    assert (list(split.names), list(split.class_names)) == (["a.png"], [""])


def test_one_image(tmp_path, monkeypatch):
    path = write(tmp_path / "a.png", 5)
    monkeypatch.chdir(tmp_path)
    for source, name in (("a.png", "a.png"), (path, "a.png")):
        split = open_collection(source)
        assert list(split.names) == [name] and list(split.class_names) == [""]
        np.testing.assert_array_equal(split.read(0), np.asarray(noise(5)))


def test_a_list_keeps_its_order_and_what_it_repeats(mixed):
    lines = ["cats/2.png", "b.png", "", "cats/2.png", "cats/gone.png", "notes.txt"]
    (mixed / "list.txt").write_text("\n".join(lines) + "\n")
    split = open_collection(mixed / "list.txt")
    assert list(split.names) == [line for line in lines if line]
    assert list(split.class_names) == ["", "cats"]
    assert split.labels.tolist() == [1, 0, 1, 1, 0]
    np.testing.assert_array_equal(split.read(0), split.read(2))
    for number, reason in ((3, "No such file"), (4, "not an image")):
        with pytest.raises(UnreadableImage, match=reason):
            split.read(number)


def test_a_list_of_whole_paths(mixed, tmp_path):
    paths = [str(mixed / name) for name in MIXED[1:]]
    (tmp_path / "list").write_bytes("\r\n".join(paths).encode("utf-8-sig"))
    split = open_collection(tmp_path / "list")
    assert list(split.names) == paths
    assert list(split.class_names) == ["cats", "dogs/x"]
    (tmp_path / "list").write_text("\n".join([paths[0], "mixed/b.png"]))
    split = open_collection(tmp_path / "list")
    assert list(split.class_names) == [str(mixed / "cats"), "mixed"]
    assert split.read(1).shape == (10, 12, 3)


def test_a_table_lists_every_split(tmp_path):
    root = make_photos(tmp_path / "photos")
    table = (root / "labels.csv").read_text().replace("test", "val", 4)
    (root / "labels.csv").write_text(table)
    for source in (root, root / "labels.csv"):
        split = open_collection(source)
        assert len(split) == 18 and split.num_classes == 6
        assert list(split.category_names) == ["g0", "g1"]
        assert split.is_gallery.sum() == 12
    (root / "class 2" / "2.png").write_bytes(b"")
    assert len(open_collection(root)) == 18


def test_folders_called_train_and_test(tmp_path):
    for number, part in enumerate(("train", "val", "test")):
        write(tmp_path / part / "same" / "1.png", number)
        write(tmp_path / part / part / "1.png", number)
    split = open_collection(tmp_path)
    assert list(split.class_names) == ["same", "test", "train", "val"]
    assert split.labels.tolist() == [0, 1, 0, 2, 0, 3]


@pytest.mark.parametrize("is_packed", [False, True])
def test_parts_are_those_of_training(tmp_path, is_packed):
    root = make_photos(tmp_path / "photos")
    dataset = open_dataset("folder", str(root))
    if is_packed:
        root = pack(dataset, tmp_path / "packed")
    train, test, both = (
        open_collection(root, part=part) for part in ("train", "test", "all")
    )
    assert list(train.names) == list(dataset.train.names)
    assert list(test.names) == list(dataset.test.names)
    assert sorted(both.names) == sorted([*train.names, *test.names])
    for split in (train, test, both):
        number = split.names.index(split.names[-1])
        name = split.class_names[split.labels[number]]
        assert name == f"c{split.names[number][6]}"
        assert split.category_names[split.categories[number]] == f"g{int(name[1]) % 2}"
        assert split.read(number).shape == (10, 12, 3)
    assert both.encoded(17) == test.encoded(8)
    np.testing.assert_array_equal(both.is_query[9:], test.is_query)


def test_a_data_set_by_name():
    said = []
    options = dict(name="glyphs", size=8, seed=3)
    both = open_collection(None, **options, say=said.append)
    train, test = (open_collection(None, part=p, **options) for p in ("train", "test"))
    assert len(both) == len(train) + len(test)
    assert both.num_classes == train.num_classes + test.num_classes
    np.testing.assert_array_equal(both.read(len(train) + 5), test.read(5))
    assert both.class_names[both.labels[7]] == train.class_names[train.labels[7]]
    assert "1,215" in said[0] or "letters" in said[0]


def test_packed_as_a_closed_set(tmp_path):
    for part in ("train", "test"):
        for i in range(2):
            write(tmp_path / "photos" / part / "same" / f"{i}.png", i)
            write(tmp_path / "photos" / part / part / f"{i}.png", i)
    dataset = open_dataset("folder", str(tmp_path / "photos"), closed_set=True)
    packed = open_collection(pack(dataset, tmp_path / "packed"))
    assert list(packed.class_names) == ["same", "test", "train"]


def test_what_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.png").write_text("no image")
    assert "does not exist" in refuse(tmp_path / "nowhere")
    assert "No images are named" in refuse(None)
    assert "There is no image in" in refuse(tmp_path / "empty")
    assert "(1 other files)" in refuse(tmp_path / "texts")
    assert "must be all, train, test" in refuse(tmp_path, part="val")
    assert "channels is 2" in refuse(tmp_path, channels=2)
    assert "no option 'cropped'" in refuse(tmp_path, cropped=True)
    assert "did you mean 'glyphs'" in refuse(None, name="glyph")
    path = tmp_path / "some"
    for content, words in (
        (b"", "is empty"),
        (b"\n \n", "is empty"),
        (b"gone.png\n", "None of the 1 lines"),
        (bytes(range(256)), "nor a text list"),
        (b"\0\1\2", "nor a text list"),
        (b"PK\x03\x04 and no more", "damaged"),
    ):
        path.write_bytes(content)
        assert words in refuse(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(tmp_path):
    path = write(tmp_path / "a.png")
    path.chmod(0)
    assert "cannot be read" in refuse(path)

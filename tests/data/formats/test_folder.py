"""Folders, .zip and labels.csv: what is read, what is refused, in which words."""

import os
import pickle
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from paths import real_data
from PIL import Image

from metricjax.data import open_dataset, pipeline
from metricjax.data.datasets import UnreadableImage
from metricjax.data.samplers.class_balanced import PKSampler
from metricjax.data.transforms import TransformConfig, build
from metricjax.errors import InputError


def write_image(path, value=0, size=(12, 10)):
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (size[1], size[0], 3)
    pixels = np.random.default_rng(value).integers(0, 256, shape, dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


def make_folder(root, classes=6, images=3):
    for c in range(classes):
        for i in range(images):
            write_image(root / f"class{c}" / f"{i}.png", value=10 * c + i)
    return root


def write_table(root, text):
    root.mkdir(exist_ok=True)
    (root / "labels.csv").write_text(text)
    return root


def make_zip(folder, path, compression=zipfile.ZIP_DEFLATED, prefix=""):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, prefix + str(file.relative_to(folder)))
    return path


def refuse(root, **options):
    """The one sentence with which opening is refused."""
    with pytest.raises(InputError) as caught:
        open_dataset("folder", root if root is None else str(root), **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_class_folders_are_halved_by_name(tmp_path):
    dataset = open_dataset("folder", str(make_folder(tmp_path)))
    assert dataset.name == "folder"
    assert list(dataset.train.class_names) == ["class0", "class1", "class2"]
    assert list(dataset.test.class_names) == ["class3", "class4", "class5"]
    assert dataset.train.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert dataset.test.names[0] == "class3/0.png"
    assert dataset.test.categories is None
    assert "first 3 of the 6 sorted class names" in dataset.notes[0]
    pixels = write_image(tmp_path / "class4" / "1.png", value=41)
    np.testing.assert_array_equal(dataset.test.read(4), pixels)
    grey = open_dataset("folder", str(tmp_path), channels=1)
    assert grey.test.read(4).shape == (10, 12, 1)


@pytest.mark.parametrize("prefix", ["", "photos/"])
@pytest.mark.parametrize(
    "compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA]
)
def test_a_zip_is_read_like_its_folder(tmp_path, prefix, compression):
    folder = make_folder(tmp_path / "folder")
    archive = make_zip(folder, tmp_path / "a.zip", compression, prefix)
    left = open_dataset("folder", str(folder))
    right = open_dataset("folder", str(archive))
    assert list(left.test.class_names) == list(right.test.class_names)
    assert [prefix + name for name in left.test.names] == list(right.test.names)
    with ThreadPoolExecutor(4) as pool:
        images = list(pool.map(right.test.read, list(range(9)) * 4))
    for i, image in enumerate(images):
        np.testing.assert_array_equal(image, left.test.read(i % 9))
    again = pickle.loads(pickle.dumps(right.test))
    np.testing.assert_array_equal(again.read(3), images[3])


@pytest.mark.parametrize("kind", ["tar", "tar.gz"])
def test_a_tar_is_read_like_its_folder(tmp_path, kind):
    folder = make_folder(tmp_path / "photos")
    archive = tmp_path / f"photos.{kind}"
    with tarfile.open(archive, "w:" + kind[4:]) as file:
        file.add(folder, "photos")
    left = open_dataset("folder", str(folder))
    right = open_dataset("folder", str(archive))
    assert list(left.test.class_names) == list(right.test.class_names)
    assert left.fingerprint == right.fingerprint
    assert left.notes == right.notes[-len(left.notes) :]
    for i in range(9):
        np.testing.assert_array_equal(left.test.read(i), right.test.read(i))
        assert left.test.encoded(i) == right.test.encoded(i)


def test_names_in_any_script_and_of_two_lines(tmp_path):
    for c in ("ж", "猫", "a\nb", " c "):
        for i in range(2):
            write_image(tmp_path / c / f"{i}\n.png", value=i)
    (tmp_path / "猫" / "\n.png").touch()
    dataset = open_dataset("folder", str(tmp_path))
    assert list(dataset.train.class_names) == [" c ", "a\nb"]
    assert dataset.test.read(0).shape == (10, 12, 3)
    assert dataset.skipped == (("猫/\n.png", "it is empty"),)
    assert not any("\n" in note for note in dataset.notes)


def test_folders_called_train_and_test_are_the_split(tmp_path):
    make_folder(tmp_path / "train", classes=2)
    for i in range(3):
        for name in ("x", "y"):
            write_image(tmp_path / "val" / name / f"{i}.png")
    dataset = open_dataset("folder", str(tmp_path))
    assert list(dataset.train.class_names) == ["class0", "class1"]
    assert list(dataset.test.class_names) == ["x", "y"]
    make_folder(tmp_path / "val", classes=1)
    assert "1 classes" in refuse(tmp_path) and "'class0'" in refuse(tmp_path)
    closed = open_dataset("folder", str(tmp_path), closed_set=True)
    assert list(closed.test.class_names) == ["class0", "x", "y"]


TABLE = """path,label,category,split,is_query,is_gallery
a/1.png,red,warm,train,,
a/2.png,red,warm,train,,
a/3.png,blue,cold,train,,
a/4.png,blue,cold,train,,
b/1.png,green,cold,validation,True,False
b/2.png,green,cold,validation,False,True
b/3.png,pink,warm,validation,True,True
b/4.png,pink,warm,validation,1,1.0
"""


@pytest.fixture
def tabled(tmp_path):
    for folder in "ab":
        for i in range(1, 5):
            write_image(tmp_path / "data" / folder / f"{i}.png", value=i)
    return write_table(tmp_path / "data", TABLE)


@pytest.mark.parametrize("kind", ["folder", "zip", "nested zip", "csv"])
def test_labels_csv(tabled, tmp_path, kind):
    root = {
        "folder": lambda: tabled,
        "zip": lambda: make_zip(tabled, tmp_path / "a.zip"),
        "nested zip": lambda: make_zip(tabled, tmp_path / "a.zip", prefix="top/"),
        "csv": lambda: (tabled / "labels.csv").rename(tabled / "df.csv"),
    }[kind]()
    dataset = open_dataset("folder", str(root))
    train, test = dataset.train, dataset.test
    assert list(train.class_names) == ["blue", "red"]
    assert train.labels.tolist() == [1, 1, 0, 0]
    assert list(test.category_names) == ["cold", "warm"]
    assert test.categories.tolist() == [0, 0, 1, 1]
    assert test.is_query.tolist() == [True, False, True, True]
    assert test.is_gallery.tolist() == [False, True, True, True]
    assert train.is_query.all()
    assert test.read(0).shape == (10, 12, 3)
    assert any("validation split is the test split" in note for note in dataset.notes)


def test_a_table_spares_walking_the_directory(tabled, monkeypatch):
    monkeypatch.setattr(os, "walk", None)
    assert len(open_dataset("folder", str(tabled)).train) == 4


def test_open_metric_learning_table_with_boxes(tabled):
    lines = TABLE.splitlines()
    boxes = [lines[0] + ",sequence,x_1,x_2,y_1,y_2"]
    boxes += [line + ",0,1,2,3,4" for line in lines[1:]]
    write_table(tabled, "\ufeff" + "\n".join(boxes))
    notes = open_dataset("folder", str(tabled)).notes
    assert any("not cropped" in note for note in notes)


def test_validation_beside_test_is_left_out(tabled):
    table = TABLE.replace("pink,warm,validation", "pink,warm,test")
    dataset = open_dataset("folder", str(write_table(tabled, table)))
    assert list(dataset.test.class_names) == ["pink"]
    assert any("2 images of the validation split" in note for note in dataset.notes)


def test_numbers_as_labels_are_sorted_by_value(tmp_path):
    lines = ["path,label"]
    for c in (2, 10, 9, 1):
        for i in range(2):
            write_image(tmp_path / f"{c}_{i}.png")
            lines.append(f"{c}_{i}.png,{c}")
    dataset = open_dataset("folder", str(write_table(tmp_path, "\n".join(lines))))
    assert list(dataset.train.class_names) == ["1", "2"]
    assert list(dataset.test.class_names) == ["9", "10"]


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("file,label\n", "no column 'path', only file, label"),
        ("", "no column 'path', only none"),
        (TABLE.replace("a/2", "a/7").replace("b/4", "b/9"), "2 files.*'a/7.png'"),
        (TABLE.replace("a/2", "a/1"), "1 files more than once, the first 'a/1.png'"),
        (TABLE.replace("a/2", "../a/2"), "line 3: the path '../a/2.png' leads out"),
        (TABLE.replace("a/2", "/etc/2"), "leads out"),
        (TABLE.replace("red,warm", ",warm"), "line 2: the label is empty"),
        (TABLE.replace("cold,train", "cold,trian"), "line 4: the split is 'trian'"),
        (TABLE.replace("cold,train", "cold,"), "not to 2 others"),
        (TABLE.replace("True,False", "maybe,False"), "line 6: is_query is 'maybe'"),
        (TABLE.replace("validation", "train"), "no image for test"),
        (TABLE.replace("green", "red"), "1 classes .* in both splits, the first 'red'"),
        (
            TABLE.replace("True,", "False,").replace("1,1.0", "0,1"),
            "is_query is false for every test image",
        ),
    ],
)
def test_bad_tables(tabled, table, words):
    write_table(tabled, table)
    with pytest.raises(InputError, match=words):
        open_dataset("folder", str(tabled))


def test_a_table_that_is_not_text(tabled):
    (tabled / "labels.csv").write_bytes(b"path,label\n\xff\xfe,\x80")
    assert "not UTF-8" in refuse(tabled)


def test_bad_roots(tmp_path):
    assert "needs data.root" in refuse(None)
    assert "does not exist" in refuse(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "no file" in refuse(tmp_path / "empty")
    (tmp_path / "no.zip").write_text("I am no archive")
    assert "neither a directory nor a .zip" in refuse(tmp_path / "no.zip")
    assert "channels is 2" in refuse(tmp_path, channels=2)


@pytest.mark.parametrize(
    ("classes", "images", "words"),
    [
        (1, 5, "of one class, 'class0'"),
        (5, 1, "only one image"),
        (3, 4, "cannot be halved"),
    ],
)
def test_too_little_to_learn_from(tmp_path, classes, images, words):
    assert words in refuse(make_folder(tmp_path, classes, images))


def test_images_without_class_folder(tmp_path):
    write_image(tmp_path / "a.png")
    assert "no readable image in a class folder" in refuse(tmp_path)
    make_folder(tmp_path)
    notes = open_dataset("folder", str(tmp_path)).notes
    assert any("1 files lie in no class folder" in note for note in notes)


@pytest.mark.parametrize("member", ["../evil.png", "/evil.png", "a/../../b", "C:\\b"])
def test_a_zip_that_leads_out_is_refused(tmp_path, member):
    archive = make_zip(make_folder(tmp_path / "folder"), tmp_path / "a.zip")
    with zipfile.ZipFile(archive, "a") as file:
        file.writestr(member, b"boo")
    assert "leads out of the archive" in refuse(archive)


@pytest.mark.parametrize("as_zip", [False, True])
def test_unusable_files_are_skipped_counted_and_named(tmp_path, as_zip):
    root = make_folder(tmp_path / "folder")
    (root / "class0" / "empty.jpg").touch()
    (root / "class1" / "text.png").write_text("hello")
    (root / "class1" / ".DS_Store").write_text("clutter, not worth a word")
    (root / "class2" / "2.png").rename(root / "class2" / "lying.jpg")
    root = make_zip(root, tmp_path / "a.zip") if as_zip else root
    dataset = open_dataset("folder", str(root))
    assert dataset.skipped == (
        ("class0/empty.jpg", "it is empty"),
        ("class1/text.png", "it is not an image"),
    )
    assert any("2 of 20 files are left out" in note for note in dataset.notes)
    assert "class2/lying.jpg" in dataset.train.names
    for i in range(len(dataset.train)):
        dataset.train.read(i)


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_links(tmp_path):
    root = make_folder(tmp_path / "folder")
    (root / "class0" / "gone.png").symlink_to(tmp_path / "nothing")
    (root / "class1" / "round").symlink_to(root, target_is_directory=True)
    dataset = open_dataset("folder", str(root))
    assert [name for name, _ in dataset.skipped] == ["class0/gone.png"]
    assert len(dataset.train) + len(dataset.test) == 18


@pytest.mark.parametrize("as_zip", [False, True])
def test_truncated_images_are_found_at_decoding(tmp_path, as_zip):
    root = make_folder(tmp_path / "folder", classes=8, images=4)
    for name in ("class0/1.png", "class5/3.png"):
        content = (root / name).read_bytes()
        (root / name).write_bytes(content[: len(content) // 2])
    root = make_zip(root, tmp_path / "a.zip") if as_zip else root
    dataset = open_dataset("folder", str(root))
    assert not dataset.skipped
    with pytest.raises(UnreadableImage, match="class0/1.png cannot be read: "):
        dataset.train.read(1)
    skipped = pipeline.SkipLog()
    transform = build(TransformConfig("resize_crop", 8, 3))
    sampler = PKSampler(dataset.train.labels, 8, 2, seed=0)
    with pipeline.train_batches(
        dataset.train,
        sampler,
        transform,
        seed=0,
        start_step=0,
        num_steps=8,
        threads=2,
        skipped=skipped,
    ) as batches:
        assert all(1 not in batch["indices"] for batch in batches)
    with pipeline.test_batches(
        dataset.test, transform, 8, threads=2, skipped=skipped
    ) as batches:
        valid = np.concatenate([batch["valid"] for batch in batches])
    assert np.flatnonzero(~valid).tolist() == [7]
    assert [name for name, _ in skipped.items()] == ["class0/1.png", "class5/3.png"]


def test_a_damaged_zip_member_is_unreadable(tmp_path):
    root = make_folder(tmp_path / "folder")
    archive = make_zip(root, tmp_path / "a.zip", zipfile.ZIP_STORED)
    dataset = open_dataset("folder", str(archive))
    content = bytearray(archive.read_bytes())
    at = content.index((root / "class0" / "0.png").read_bytes())
    content[at + 60] ^= 255
    archive.write_bytes(content)
    with pytest.raises(UnreadableImage, match="checksum"):
        dataset.train.read(0)


def test_files_removed_after_opening_are_unreadable(tmp_path):
    dataset = open_dataset("folder", str(make_folder(tmp_path)))
    (tmp_path / "class0" / "0.png").unlink()
    with pytest.raises(UnreadableImage, match="No such file"):
        dataset.train.read(0)


def test_classes_of_one_image_are_legal_and_counted(tmp_path):
    root = make_folder(tmp_path)
    write_image(root / "class0a" / "only.png")
    write_image(root / "class9" / "only.png")
    notes = " ".join(open_dataset("folder", str(root)).notes)
    assert "1 of the 4 train classes have one image" in notes
    assert "1 of the 4 test classes have one image" in notes


@pytest.mark.parametrize(
    ("name", "channels", "counts"),
    [
        ("omniglot.zip", 1, (964, 19280, 659, 13180)),
        ("grocery.zip", 3, (38, 2865, 43, 2556)),
    ],
)
def test_real_archives(name, channels, counts):
    """Counts from the SOURCE.md inside each archive."""
    dataset = open_dataset("folder", real_data(name), channels=channels)
    train, test = dataset.train, dataset.test
    assert (train.num_classes, len(train), test.num_classes, len(test)) == counts
    assert not dataset.skipped
    assert train.categories is not None
    assert test.read(0).shape[2] == channels

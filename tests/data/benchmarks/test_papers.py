"""CUB, Cars196, SOP and In-Shop in tiny, laid out as people have them."""

import dataclasses
import hashlib
import io
import os
import re
import tarfile
import zipfile

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from metricjax import config as configs
from metricjax.config import parsing
from metricjax.data import open_dataset
from metricjax.data.benchmarks import papers
from metricjax.data.datasets import UnreadableImage
from metricjax.errors import InputError
from metricjax.training.run import open_data

KINDS = ("directory", "zip", "tar", "tar.gz")
SIZE = (12, 10)


def picture(value):
    """An image file, each of whose pixels says its place: (value, row, column)."""
    width, height = SIZE
    pixels = np.full((height, width, 3), value, np.uint8)
    pixels[:, :, 1] = np.arange(height)[:, None]
    pixels[:, :, 2] = np.arange(width)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def mat(**variables):
    """A .mat file; a list of dictionaries becomes a struct array, as MATLAB's."""
    from scipy.io import savemat

    for name, value in variables.items():
        array = np.empty((1, len(value)), object)
        array[0] = value
        if value and isinstance(value[0], dict):
            fields = [(field, object) for field in value[0]]
            array = np.empty((1, len(value)), fields)
            for i, row in enumerate(value):
                array[0, i] = tuple(row.values())
        variables[name] = array
    file = io.BytesIO()
    savemat(file, variables)
    return file.getvalue()


# Each layout is a dictionary of its files. Six classes of two images; the value of an
# image is 10 x class + its number, so that a test knows what it shows.


def cub(ids=(1, 2, 3, 4, 5, 6)):
    images, labels, boxes, names, files = [], [], [], [], {}
    for c in ids:
        names.append(f"{c} {c:03d}.Bird_{c}\n")
        for i in (1, 2):
            number, path = len(images) + 1, f"{c:03d}.Bird_{c}/Bird_{c}_{i}.jpg"
            images.append(f"{number} {path}\n")
            labels.append(f"{number} {c}\n")
            boxes.append(f"{number} 2.0 3.0 5.0 4.0\n")
            files[f"images/{path}"] = picture(10 * c % 250 + i)
    for name, lines in (
        ("images.txt", images),
        ("image_class_labels.txt", labels),
        ("bounding_boxes.txt", boxes),
        ("classes.txt", names),
    ):
        files[name] = "".join(lines).encode()
    return files


CAR_NAMES = [
    "AM General Hummer SUV 2000",
    "Acura TL Sedan 2012",
    "Acura Integra Type R 2001",
    "FIAT 500 Abarth 2012",
    "Ram C/V Cargo Van Minivan 2012",
    "smart fortwo Convertible 2012",
]
BOX = {"bbox_x1": 3, "bbox_y1": 4, "bbox_x2": 7, "bbox_y2": 7}


def cars_one_folder(names=CAR_NAMES):
    annotations, files = [], {}
    for c in range(1, len(names) + 1):
        for i in (1, 2):
            path = f"car_ims/{len(annotations) + 1:06d}.jpg"
            files[path] = picture(10 * c % 250 + i)
            row = {"relative_im_path": path, **BOX, "class": c, "test": i - 1}
            annotations.append(row)
    annos = mat(annotations=annotations, class_names=names)
    return files | {"cars_annos.mat": annos}


def cars_two_folders(kit="devkit/", test_annos="", nested=False, meta=True):
    files = {}
    for i, part in ((1, "cars_train"), (2, "cars_test")):
        folder = f"{part}/{part}" if nested else part
        annotations = []
        for c in range(1, len(CAR_NAMES) + 1):
            files[f"{folder}/{c:05d}.jpg"] = picture(10 * c + i)
            annotations.append({**BOX, "class": c, "fname": f"{c:05d}.jpg"})
        if part == "cars_train":
            files[f"{kit}cars_train_annos.mat"] = mat(annotations=annotations)
            continue
        name = "cars_test_annos_withlabels.mat"
        files[test_annos + name] = mat(annotations=annotations)
        for row in annotations:
            del row["class"]
        files[f"{kit}cars_test_annos.mat"] = mat(annotations=annotations)
    if meta:
        files[f"{kit}cars_meta.mat"] = mat(class_names=CAR_NAMES)
    return files


def cars_class_folders(above="car_data/car_data/", tables=True):
    files, annos = {}, {"train": [], "test": []}
    for c, name in enumerate(CAR_NAMES, 1):
        for i, part in ((1, "train"), (2, "test")):
            folder = name.replace("/", "-")
            files[f"{above}{part}/{folder}/{c:05d}.jpg"] = picture(10 * c + i)
            annos[part].append(f"{c:05d}.jpg,3,4,7,7,{c}\n")
    if tables:
        files["names.csv"] = "".join(f"{name}\n" for name in CAR_NAMES).encode()
        for part, lines in annos.items():
            files[f"anno_{part}.csv"] = "".join(lines).encode()
    return files


def sop():
    files, number = {}, 0
    for split, first in (("train", 1), ("test", 4)):
        lines = ["image_id class_id super_class_id path\n"]
        for c in range(first, first + 3):
            kind, super_class = [("bicycle", 1), ("coffee_maker", 4)][c % 2]
            for i in (1, 2):
                number += 1
                path = f"{kind}_final/11{c:010d}_{i - 1}.JPG"
                lines.append(f"{number} {c} {super_class} {path}\n")
                files[path] = picture(10 * c + i)
        files[f"Ebay_{split}.txt"] = "".join(lines).encode()
    return files


def inshop(folder="Eval/", images=""):
    lines, files = [], {}
    for c in range(1, 7):
        kind = "WOMEN/Dresses" if c % 2 else "MEN/Jackets_Vests"
        for i in (1, 2):
            path = f"img/{kind}/id_{c:08d}/0{i}_1_front.jpg"
            status = "train" if c <= 3 else ("query", "gallery")[i - 1]
            lines.append(f"{path}    id_{c:08d}    {status}\n")
            files[images + path] = picture(10 * c + i)
    head = f"{len(lines)}\nimage_name item_id evaluation_status\n"
    files[f"{folder}list_eval_partition.txt"] = (head + "".join(lines)).encode()
    return files


LAYOUTS = {
    "cub": ("cub", cub),
    "car_ims": ("cars", cars_one_folder),
    "cars_train": ("cars", cars_two_folders),
    "kaggle": ("cars", lambda: cars_two_folders("car_devkit/devkit/", nested=True)),
    "kit": ("cars", lambda: cars_two_folders("devkit/", "devkit/")),
    "classes": ("cars", cars_class_folders),
    "bare classes": ("cars", lambda: cars_class_folders("", tables=False)),
    "sop": ("sop", sop),
    "inshop": ("inshop", inshop),
    "inshop at the root": ("inshop", lambda: inshop("")),
    "inshop Img": ("inshop", lambda: inshop("Anno/", "Img/")),
}
CROPPABLE = ["cub", "car_ims", "cars_train", "kaggle", "classes"]


def write(kind, path, files, prefix=""):
    """The files as a directory or an archive at `path`; returns it as data.root."""
    files = {prefix + name: content for name, content in files.items()}
    if kind == "directory":
        for name, content in files.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(content)
    elif kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
    else:
        with tarfile.open(path, "w:" + kind[4:]) as archive:
            for name, content in files.items():
                member = tarfile.TarInfo("./" + name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return str(path)


@pytest.fixture(autouse=True)
def tiny_counts(monkeypatch):
    """The papers' counts for six classes of two images."""
    for name, benchmark in papers.KNOWN.items():
        queries = 3 if name == "inshop" else 6
        counts = papers.Counts(6, 3, 6, 3, queries)
        changed = dataclasses.replace(benchmark, counts=counts)
        monkeypatch.setitem(papers.KNOWN, name, changed)


def refuse(name, root, **options):
    """The one sentence with which opening is refused."""
    with pytest.raises(InputError) as caught:
        open_dataset(name, root, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def shown(split):
    """{(class, its image's number)} as the pixels say it."""
    values = {int(split.read(i)[0, 0, 0]) for i in range(len(split))}
    return {divmod(value, 10) for value in values}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(tmp_path, layout, kind):
    name, make = LAYOUTS[layout]
    dataset = open_dataset(name, write(kind, tmp_path / "data", make()))
    assert dataset.name == name
    assert shown(dataset.train) == {(c, i) for c in (1, 2, 3) for i in (1, 2)}
    assert shown(dataset.test) == {(c, i) for c in (4, 5, 6) for i in (1, 2)}
    for split in (dataset.train, dataset.test):
        assert split.num_classes == 3
        of_label = {}
        for i, label in enumerate(split.labels):
            of_label.setdefault(label, set()).add(int(split.read(i)[0, 0, 0]) // 10)
        assert all(len(classes) == 1 for classes in of_label.values())
    assert not any("Mismatch" in note for note in dataset.notes)
    assert "train 6 images of 3 classes, test" in dataset.notes[-1]
    assert f"label) list {dataset.fingerprint[:12]}…" in dataset.notes[-1]
    assert len(dataset.notes) < 4


@pytest.mark.parametrize("prefix", ["CUB_200_2011/", "a/b/"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", ["cub", "car_ims", "kaggle", "sop", "inshop"])
def test_one_or_two_folders_below(tmp_path, layout, kind, prefix):
    name, make = LAYOUTS[layout]
    top = open_dataset(name, write("directory", tmp_path / "top", make()))
    below = open_dataset(name, write(kind, tmp_path / "below", make(), prefix))
    assert below.train.names[0] == prefix + top.train.names[0]
    assert below.fingerprint == top.fingerprint
    np.testing.assert_array_equal(below.test.labels, top.test.labels)


def test_names_of_classes_and_categories(tmp_path):
    def opened(layout):
        name, make = LAYOUTS[layout]
        return open_dataset(name, write("zip", tmp_path / layout, make()))

    assert opened("cub").test.class_names == ("004.Bird_4", "005.Bird_5", "006.Bird_6")
    for layout in ("car_ims", "cars_train", "kaggle"):
        assert set(opened(layout).train.class_names) == set(CAR_NAMES[:3])
        assert set(opened(layout).test.class_names) == set(CAR_NAMES[3:])
    assert "Ram C-V Cargo Van Minivan 2012" in opened("classes").test.class_names
    products = opened("sop").train
    assert products.class_names == ("1", "2", "3")
    assert products.category_names == ("bicycle", "coffee_maker")
    assert products.categories.tolist() == [1, 1, 0, 0, 1, 1]
    clothes = opened("inshop").test
    assert clothes.class_names == ("id_00000004", "id_00000005", "id_00000006")
    assert clothes.category_names == ("MEN/Jackets_Vests", "WOMEN/Dresses")


def test_queries_of_in_shop_are_not_in_the_gallery(tmp_path):
    dataset = open_dataset("inshop", write("zip", tmp_path / "x", inshop()))
    test = dataset.test
    assert test.is_query.tolist() == [True, False] * 3
    assert test.is_gallery.tolist() == [False, True] * 3
    assert "test 3 queries and a gallery of 3 of 3" in dataset.notes[-1]


@pytest.mark.parametrize("folder", ["", "Img/"])
def test_in_shop_with_its_images_zipped_beside_the_list(tmp_path, folder):
    files = inshop()
    images = {name: files.pop(name) for name in list(files) if name.endswith("jpg")}
    write("directory", tmp_path, files)
    (tmp_path / folder).mkdir(exist_ok=True)
    write("zip", tmp_path / folder / "img.zip", images)
    dataset = open_dataset("inshop", str(tmp_path))
    assert shown(dataset.train) == {(c, i) for c in (1, 2, 3) for i in (1, 2)}
    assert f"read from {tmp_path / folder / 'img.zip'}" in dataset.notes[0]


@pytest.mark.parametrize(
    ("name", "make", "last"),
    [
        ("cub", lambda: cub((1, 99, 100, 101, 102, 200)), 100),
        ("cars", lambda: cars_one_folder([f"Car {c}" for c in range(1, 197)]), 98),
    ],
)
def test_the_halves_of_the_papers(tmp_path, monkeypatch, name, make, last):
    monkeypatch.undo()  # With the papers' counts.
    dataset = open_dataset(name, write("zip", tmp_path / "x", make()))

    def numbers(split):
        return {int(c.split(".")[0].split()[-1]) for c in split.class_names}

    assert max(numbers(dataset.train)) == last
    assert min(numbers(dataset.test)) == last + 1
    assert dataset.notes[-1].startswith("Mismatch:")


def test_the_papers_counts(monkeypatch):
    monkeypatch.undo()
    counts = {n: dataclasses.astuple(b.counts) for n, b in papers.KNOWN.items()}
    assert counts == {
        "cub": (5864, 100, 5924, 100, 5924),
        "cars": (8054, 98, 8131, 98, 8131),
        "sop": (59551, 11318, 60502, 11316, 60502),
        "inshop": (25882, 3997, 26830, 3985, 14218),
    }
    assert sum(counts["cub"][::2][:2]) == 11788
    assert sum(counts["cars"][::2][:2]) == 16185
    assert sum(counts["sop"][::2][:2]) == 120053
    assert sum(counts["inshop"][::2][:2]) == 52712


@pytest.mark.parametrize("name", ["cub", "cars", "sop", "inshop"])
def test_other_counts_than_the_papers_are_said(tmp_path, monkeypatch, name):
    monkeypatch.undo()
    files = {layout: make for layout, (_, make) in LAYOUTS.items()}
    root = write("zip", tmp_path / "x", files.get(name, cars_one_folder)())
    if name in ("cub", "cars"):  # All of these classes are of the first half.
        assert "no image for test" in refuse(name, root)
        return
    dataset = open_dataset(name, root)
    counts = papers.KNOWN[name].counts
    assert dataset.notes[-1].startswith("Mismatch: these files are not ")
    assert (
        f"{counts.train_images:,} training images expected, 6 found"
        in (dataset.notes[-1])
    )
    assert shown(dataset.train) == {(c, i) for c in (1, 2, 3) for i in (1, 2)}


@pytest.mark.parametrize("layout", CROPPABLE)
def test_cropping(tmp_path, layout):
    """CUB: left 2, top 3, width 5, height 4. Cars: the same, from 1, both ends in."""
    name, make = LAYOUTS[layout]
    root = write("zip", tmp_path / "x", make())
    whole, cropped = (open_dataset(name, root, cropped=c) for c in (False, True))
    for i in range(6):
        image = whole.test.read(i)
        assert image.shape == (10, 12, 3)
        np.testing.assert_array_equal(cropped.test.read(i), image[3:7, 2:7])
        assert cropped.test.read(i).base is None  # The rest is not kept in memory.
    assert whole.test.encoded(0) == picture(int(whole.test.read(0)[0, 0, 0]))
    assert cropped.test.encoded(0) is None
    assert whole.fingerprint != cropped.fingerprint
    assert "cropped to the official bounding boxes" in cropped.notes[-1]
    assert "cropped" not in whole.notes[-1]
    grey = open_dataset(name, root, cropped=True, channels=1)
    assert grey.train.read(0).shape == (4, 5, 1)


def test_boxes_that_leave_the_image(tmp_path):
    files = cub()
    lines = files["bounding_boxes.txt"].decode().splitlines()
    lines[0] = "1 -5.0 8.0 100.0 100.0"
    lines[1] = "2 12.0 0.0 3.0 3.0"
    files["bounding_boxes.txt"] = "\n".join(lines).encode()
    root = write("directory", tmp_path, files)
    train = open_dataset("cub", root, cropped=True).train
    assert train.read(0).shape == (2, 12, 3)
    with pytest.raises(UnreadableImage, match="Bird_1_2.jpg.*outside of its 12 x 10"):
        train.read(1)


@pytest.mark.parametrize("name", ["sop", "inshop"])
def test_benchmarks_without_boxes_are_not_cropped(tmp_path, name):
    root = write("zip", tmp_path / "x", LAYOUTS[name][1]())
    assert "without the bounding boxes" in refuse(name, root, cropped=True)


def test_cropping_class_folders_needs_the_tables(tmp_path):
    files = cars_class_folders()
    del files["anno_test.csv"]
    root = write("directory", tmp_path, files)
    assert "'anno_test.csv' is missing" in refuse("cars", root, cropped=True)
    assert len(open_dataset("cars", root).test) == 6


def test_the_fingerprint_is_that_of_the_list(tmp_path):
    dataset = open_dataset("cub", write("zip", tmp_path / "x", cub()))
    lines = sorted(
        f"{c:03d}.Bird_{c}/Bird_{c}_{i}.jpg\t{c:03d}.Bird_{c}"
        for c in range(1, 7)
        for i in (1, 2)
    )
    expected = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    assert dataset.fingerprint == expected


def test_class_folders_are_numbered_by_names_csv(tmp_path):
    """Its order, not the alphabet's, says what the first half is."""
    files = cars_class_folders()
    files["names.csv"] = "".join(f"{name}\n" for name in CAR_NAMES[::-1]).encode()
    dataset = open_dataset("cars", write("zip", tmp_path / "x", files))
    assert set(dataset.test.class_names) == set(CAR_NAMES[:3])
    files["names.csv"] = "\n".join(CAR_NAMES[:5]).encode()
    message = refuse("cars", write("zip", tmp_path / "y", files))
    assert "does not name the class 'smart fortwo Convertible 2012'" in message


def test_class_folders_that_are_not_all_there(tmp_path):
    files = cars_class_folders("", tables=False)
    files = {name: c for name, c in files.items() if "FIAT" not in name}
    message = refuse("cars", write("zip", tmp_path / "x", files))
    assert "have 5 class folders, but Cars196 has 6 classes" in message


def test_cars_without_the_names_or_labels(tmp_path):
    files = cars_two_folders(meta=False)
    dataset = open_dataset("cars", write("zip", tmp_path / "x", files))
    assert dataset.train.class_names == ("1", "2", "3")
    assert "cars_meta.mat is missing" in dataset.notes[0]
    del files["cars_test_annos_withlabels.mat"]
    message = refuse("cars", write("zip", tmp_path / "y", files))
    assert "cars_test_annos_withlabels.mat is missing" in message
    files["devkit/cars_test_annos.mat"] = files["devkit/cars_train_annos.mat"]
    dataset = open_dataset("cars", write("zip", tmp_path / "z", files))
    assert len(dataset.test) == 6


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", ["cub", "car_ims", "kaggle", "sop", "inshop"])
def test_images_that_are_not_there(tmp_path, layout, kind):
    name, make = LAYOUTS[layout]
    files = make()
    gone = [path for path in files if path.lower().endswith(".jpg")][3:5]
    files = {path: c for path, c in files.items() if path not in gone}
    message = refuse(name, write(kind, tmp_path / "x", files))
    assert message.startswith("2 of the 12 images") and repr(gone[0]) in message


@pytest.mark.parametrize("name", ["cub", "cars", "sop", "inshop"])
@pytest.mark.parametrize("root", [None, "nowhere", "empty", "other"])
def test_what_is_not_there_is_said_with_its_page(tmp_path, name, root):
    for folder in ("empty", "other/class0"):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    (tmp_path / "other" / "class0" / "x.png").write_bytes(picture(1))
    path = root and str(tmp_path / root)
    message = refuse(name, path)
    assert papers.KNOWN[name].page in message
    assert papers.KNOWN[name].files in message
    assert (repr(path) if root else "no data.root") in message


def replaced(make, name, change):
    files = make()
    files[name] = change(files[name])
    return files


@pytest.mark.parametrize(
    ("name", "files", "words"),
    [
        (
            "cub",
            lambda: replaced(cub, "images.txt", lambda b: b + b"13\n"),
            "line 13: '13' has 1 fields instead of 2",
        ),
        (
            "cub",
            lambda: replaced(cub, "images.txt", lambda b: b + b"99 a/b.jpg\n"),
            "image 99 has no line in image_class_labels.txt",
        ),
        (
            "cub",
            lambda: replaced(cub, "image_class_labels.txt", lambda b: b + b"13 x"),
            "line 13: 'x' is no whole number",
        ),
        (
            "cub",
            lambda: replaced(cub, "images.txt", lambda b: b"\xff\xfe" + b),
            "'images.txt' in .* cannot be read",
        ),
        (
            "cub",
            lambda: replaced(
                cub, "images.txt", lambda b: b.replace(b"001.", b"../../001.")
            ),
            "2 of the 12 images",
        ),
        (
            "cars",
            lambda: cars_one_folder() | {"cars_annos.mat": b"no mat"},
            "'cars_annos.mat' in .* cannot be read",
        ),
        (
            "cars",
            lambda: cars_one_folder() | {"cars_annos.mat": mat(other=["a"])},
            "no annotations with the field 'relative_im_path'",
        ),
        (
            "sop",
            lambda: {n: c for n, c in sop().items() if n != "Ebay_test.txt"},
            "'Ebay_test.txt' is missing",
        ),
        (
            "sop",
            lambda: replaced(sop, "Ebay_test.txt", lambda b: b[b.index(b"\n") + 1 :]),
            "in line 1, not 'image_id class_id super_class_id path'",
        ),
        (
            "sop",
            lambda: sop() | {"Ebay_test.txt": sop()["Ebay_train.txt"]},
            "3 classes of .* are in both splits",
        ),
        (
            "inshop",
            lambda: {"Eval/list_eval_partition.txt": b"000001.jpg 0\n000002.jpg 1\n"},
            "in line 2, not 'image_name item_id evaluation_status'",
        ),
        (
            "inshop",
            lambda: replaced(
                inshop,
                "Eval/list_eval_partition.txt",
                lambda b: b.replace(b"query", b"val"),
            ),
            "the status is 'val'",
        ),
    ],
)
def test_files_that_are_not_what_they_should_be(tmp_path, name, files, words):
    message = refuse(name, write("directory", tmp_path, files()))
    assert re.search(words, message), message


def test_a_directory_with_a_list_is_not_walked(tmp_path, monkeypatch):
    for layout, (name, make) in LAYOUTS.items():
        root = write("directory", tmp_path / layout, make())
        with monkeypatch.context() as patch:
            patch.setattr(os, "walk", None)
            open_dataset(name, root)


def test_damaged_images_are_found_when_they_are_read(tmp_path):
    files = cub()
    files["images/001.Bird_1/Bird_1_1.jpg"] = b"no image"
    train = open_dataset("cub", write("directory", tmp_path, files)).train
    assert train.encoded(0) == b"no image"
    with pytest.raises(UnreadableImage, match="Bird_1_1.jpg cannot be read"):
        train.read(0)
    (tmp_path / "images" / "001.Bird_1" / "Bird_1_2.jpg").unlink()
    with pytest.raises(UnreadableImage, match="No such file"):
        train.encoded(1)


@pytest.mark.parametrize(
    ("name", "cropped", "words"),
    [
        ("cub", True, None),
        ("cub", False, None),
        ("sop", True, "without the bounding boxes"),
        ("folder", True, "'folder' has no option 'cropped'"),
        ("glyphs", True, "'glyphs' has no option 'cropped'"),
    ],
)
def test_the_settings_of_a_run_reach_the_benchmark(tmp_path, name, cropped, words):
    config = configs.default_config()
    config.objective.terms = configs.terms(triplet={})
    config.data.update(ConfigDict(dict(name=name, cropped=cropped)))
    config.data.root = write("directory", tmp_path, cub())
    config.data.transform.channels = 1
    config = parsing.from_config_dict(config)
    if words:
        with pytest.raises(InputError, match=words):
            open_data(config)
        return
    shape = (4, 5, 1) if cropped else (10, 12, 1)
    assert open_data(config).train.read(0).shape == shape

"""What tensorflow-datasets has prepared: joined, halved, read without TensorFlow."""

import io
import json
import pickle
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

from metricjax.data import open_dataset
from metricjax.data.datasets import UnreadableImage
from metricjax.errors import InputError

tfds = pytest.importorskip("tensorflow_datasets", reason="needs the extra tfds")
CLASSES = ("delta", "gamma", "beta", "alpha", "omega")


def picture(value):
    file = io.BytesIO()
    Image.fromarray(np.full((6, 8, 3), value, np.uint8)).save(file, "PNG")
    return file.getvalue()


def prepare(directory, called, features, splits, supervised_keys=None):
    """Prepares {split: [example]} as array_record with a builder of TFDS."""

    class Prepared(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = called
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(features),
                supervised_keys=supervised_keys,
            )

        def _split_generators(self, manager):
            return {split: self._generate_examples(split) for split in splits}

        def _generate_examples(self, split):
            yield from enumerate(splits[split])

    builder = Prepared(data_dir=str(directory), file_format="array_record")
    builder.download_and_prepare()
    return str(directory)


def example(label, value, **more):
    return {"image": io.BytesIO(picture(value)), "label": label, **more}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Five classes in both splits, as TFDS has CUB and Cars; image value 40 x class."""
    features = {
        "image": tfds.features.Image(),
        "label": tfds.features.ClassLabel(names=CLASSES),
        "bbox": tfds.features.BBoxFeature(),
        "segmentation_mask": tfds.features.Image(shape=(None, None, 1)),
        "id": tfds.features.Text(),
    }
    splits = {
        split: [
            example(
                c,
                40 * c + i + first,
                id=f"{c}",
                bbox=tfds.features.BBox(0.0, 0.0, 1.0, 1.0),
                segmentation_mask=io.BytesIO(picture(0)),
            )
            for c in range(5)
            for i in range(2)
        ]
        for split, first in (("train", 0), ("test", 2))
    }
    return prepare(
        tmp_path_factory.mktemp("tfds"), "toy", features, splits, ("image", "label")
    )


def test_splits_are_joined_and_classes_halved_by_number(prepared):
    dataset = open_dataset("tfds:toy", prepared)
    assert dataset.name == "tfds:toy"
    assert set(dataset.train.class_names) == set(CLASSES[:3])
    assert set(dataset.test.class_names) == set(CLASSES[3:])
    assert len(dataset.train) == 12 and len(dataset.test) == 8
    values = []
    for split in (dataset.train, dataset.test):
        for i, label in enumerate(split.labels):
            image = split.read(i)
            values.append(int(image[0, 0, 0]))
            assert image.shape == (6, 8, 3) and image.dtype == np.uint8
            assert CLASSES[values[-1] // 40] == split.class_names[label]
            assert split.encoded(i) == picture(values[-1])
    assert sorted(values) == [40 * c + i for c in range(5) for i in range(4)]
    assert "splits train, test are joined" in dataset.notes[-1]
    assert "tensorflow" not in sys.modules


def test_roots_and_versions(prepared, tmp_path, monkeypatch):
    whole = open_dataset("tfds:toy", prepared)
    version = open_dataset("tfds:toy", f"{prepared}/toy/1.0.0", channels=1)
    assert version.fingerprint == whole.fingerprint
    assert version.train.read(0).shape == (6, 8, 1)
    monkeypatch.setenv("TFDS_DATA_DIR", prepared)
    assert open_dataset("tfds:toy").fingerprint == whole.fingerprint
    for number in ("1.9.0", "1.10.0"):
        shutil.copytree(f"{prepared}/toy/1.0.0", tmp_path / "toy" / number)
    newest = open_dataset("tfds:toy", str(tmp_path))
    assert newest.notes[0] == f"Read from {tmp_path}/toy/1.10.0."


def test_it_can_be_pickled(prepared):
    train = open_dataset("tfds:toy", prepared).train
    again = pickle.loads(pickle.dumps(train))
    np.testing.assert_array_equal(again.read(5), train.read(5))


def test_stanford_online_products_keeps_its_split(tmp_path):
    features = {
        "image": tfds.features.Image(),
        "class_id": tfds.features.ClassLabel(num_classes=4),
        "super_class_id": tfds.features.ClassLabel(names=["bicycle", "chair"]),
        "super_class_id/num": tfds.features.ClassLabel(num_classes=2),
    }
    splits = {
        split: [
            {
                "image": io.BytesIO(picture(c)),
                "class_id": c,
                "super_class_id": c % 2,
                "super_class_id/num": c % 2,
            }
            for c in classes
            for _ in range(2)
        ]
        for split, classes in (("test", (0, 1)), ("train", (2, 3)))
    }
    root = prepare(tmp_path, "stanford_online_products", features, splits)
    dataset = open_dataset("tfds:stanford_online_products", root)
    assert dataset.train.class_names == ("2", "3")
    assert dataset.test.class_names == ("0", "1")
    assert dataset.train.category_names == ("bicycle", "chair")
    for i, label in enumerate(dataset.test.labels):
        assert dataset.test.read(i)[0, 0, 0] == label
        assert dataset.test.categories[i] == label


def test_examples_without_a_class_are_left_out_and_counted(tmp_path):
    features = {
        "image": tfds.features.Image(),
        "label": tfds.features.ClassLabel(num_classes=4),
    }
    splits = {
        "train": [example(c, c) for c in range(4) for _ in range(2)],
        "unlabelled": [example(-1, 9) for _ in range(3)],
    }
    dataset = open_dataset("tfds:toy", prepare(tmp_path, "toy", features, splits))
    assert len(dataset.train) + len(dataset.test) == 8
    assert "3 examples of unlabelled have no class." in dataset.notes


@pytest.mark.parametrize(
    ("features", "words"),
    [
        ({"image": "Image"}, "1 images and 0 class labels"),
        ({"image": "Image", "a": "Label", "b": "Label"}, "1 images and 2 class labels"),
        ({"a": "Label"}, "0 images and 1 class labels"),
    ],
)
def test_examples_of_another_kind_are_refused(tmp_path, features, words):
    kinds = {
        "Image": tfds.features.Image(),
        "Label": tfds.features.ClassLabel(num_classes=2),
    }
    values = {"Image": picture(0), "Label": 1}
    made = {name: values[kind] for name, kind in features.items()}
    if "image" in made:
        made["image"] = io.BytesIO(made["image"])
    features = {name: kinds[kind] for name, kind in features.items()}
    root = prepare(tmp_path, "toy", features, {"train": [made]})
    with pytest.raises(InputError, match=words):
        open_dataset("tfds:toy", root)


@pytest.mark.parametrize("name", ["tfds:cars196", "tfds:toy/large", "tfds:"])
def test_what_is_not_prepared(prepared, name):
    with pytest.raises(InputError, match="TFDS has prepared no data set") as caught:
        open_dataset(name, prepared)
    assert repr(prepared) in str(caught.value)


def test_other_formats_and_damage(prepared, tmp_path):
    directory = shutil.copytree(f"{prepared}/toy/1.0.0", tmp_path / "toy" / "1.0.0")
    info = json.loads((directory / "dataset_info.json").read_text())
    info["fileFormat"] = "tfrecord"
    (directory / "dataset_info.json").write_text(json.dumps(info))
    with pytest.raises(InputError, match="as tfrecord.*file_format='array_record'"):
        open_dataset("tfds:toy", str(tmp_path))
    (directory / "dataset_info.json").write_text("{")
    with pytest.raises(InputError, match="cannot be opened by tensorflow-datasets"):
        open_dataset("tfds:toy", str(tmp_path))
    for word in ("tfd:toy", "folder:toy", "tfds"):
        with pytest.raises(InputError, match="no data set called.*tfds:NAME"):
            open_dataset(word, prepared)


def test_damaged_images_are_unreadable(tmp_path):
    features = {
        "image": tfds.features.Image(),
        "label": tfds.features.ClassLabel(num_classes=4),
    }
    bad = {"image": io.BytesIO(b"no image"), "label": 0}
    splits = {"train": [bad, *(example(c, c) for c in range(4) for _ in range(2))]}
    train = open_dataset("tfds:toy", prepare(tmp_path, "toy", features, splits)).train
    readable = 0
    for i in range(len(train)):
        try:
            readable += train.read(i) is not None
        except UnreadableImage as error:
            assert error.name == train.names[i] and "not an image" in error.reason
    assert readable == 4


def test_a_missing_package_names_the_extra(prepared, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(InputError, match=r"pip install 'metricjax\[tfds\]'"):
        open_dataset("tfds:toy", prepared)


def test_the_first_98_cars_by_name_are_the_first_98_by_number():
    """On this the loader of class folders relies where there is no names.csv."""
    from tensorflow_datasets.image_classification import cars196

    names = cars196._NAMES
    assert len(names) == 196
    assert set(sorted(names)[:98]) == set(names[:98])

"""The check as one calls it: sentences, page, exit code."""

import os
import shutil

import numpy as np
import pytest
from PIL import Image

from metricjax.data import open_dataset
from metricjax.data.datasets import Dataset, Split
from metricjax.diagnostics import dataset_check
from metricjax.errors import InputError


def photo(seed):
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((96, 72), Image.Resampling.BICUBIC)


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "photos"
    for c in range(4):
        folder = root / ("train" if c < 2 else "test") / f"class {c}"
        folder.mkdir(parents=True)
        for i in range(4):
            photo(10 * c + i).save(folder / f"{i}.jpg", quality=92)
    return root


def run(root, page, **options):
    """(exit code, what was said, the page)."""
    said = []
    dataset = open_dataset("folder", str(root), **options)
    code = dataset_check.run(dataset, page, say=said.append)
    assert sorted(path.name for path in page.parent.iterdir()) == [
        page.name,
        "photos",
    ]
    return code, said, page.read_text(encoding="utf-8")


def test_a_sound_set_is_fit(root, tmp_path, capsys):
    code, said, text = run(root, tmp_path / "check.html")
    assert code == 0
    assert said[-2] == "Fit for training." and str(tmp_path / "check.html") in said[-1]
    assert said[0].startswith("Train: 8 readable images of 2 classes")
    assert not any("Look" in sentence for sentence in said)
    assert "<h1>Fit for training</h1>" in text and "<img" not in text
    assert capsys.readouterr() == ("", "")


def test_everything_that_is_found_is_on_the_page(root, tmp_path):
    train, test = root / "train", root / "test"
    shutil.copy(train / "class 0/0.jpg", test / "class 2/leaked.jpg")
    shutil.copy(train / "class 0/1.jpg", train / "class 1/mislabelled.jpg")
    shutil.copy(test / "class 3/1.jpg", test / "class 3/again.jpg")
    (train / "class 0/cut.jpg").write_bytes(
        (train / "class 0/2.jpg").read_bytes()[:800]
    )
    (train / "class 0/list.txt").write_text("no image")
    Image.new("RGB", (96, 72), "white").save(test / "class 3/white.png")
    photo(99).resize((12, 10)).save(test / "class 2/tiny.png")
    (train / "class 9").mkdir()
    photo(98).save(train / "class 9/<script>alert(1)<.png")
    code, said, text = run(root, tmp_path / "check.html")
    assert code == 0 and sum("Look at this" in sentence for sentence in said) == 7
    for heading in (
        "In train and in test",
        "The same under two classes",
        "Unreadable images",
        "Files left out",
        "Unusual images",
        "The smallest classes",
        "Copies within a class",
    ):
        assert f">{heading}</h2>" in text
    assert "<script" not in text and "&lt;script&gt;alert(1)" in text
    assert text.count("<h4>identical</h4>") == 3
    assert 'alt="train, class 0: train/class 0/0.jpg"' in text
    assert 'alt="test, class 2: test/class 2/leaked.jpg"' in text
    assert 'alt="tiny, 12 x 10, class 2: test/class 2/tiny.png"' in text
    assert "one shade, 96 x 72" in text and "train: 1 image, class 9" in text
    assert "one image: it forms no positive pair" in text  # A note of opening.


def test_an_unfit_set_is_said_to_be_and_has_its_page(root, tmp_path):
    shutil.rmtree(root / "test/class 3")
    for path in (root / "train").rglob("*.jpg"):
        shutil.copy(path, root / "test/class 2" / f"{path.parent.name}_{path.name}")
    code, said, text = run(root, tmp_path / "check.html")
    assert code == 2
    assert [s for s in said if s.startswith("Not fit for training: ")] == [
        "Not fit for training: 8 of 12 test images are also in train: what is "
        "measured on them says nothing about new images; split the data anew."
    ]
    assert "<h1>Not fit for training</h1>" in text


def test_nothing_readable(root, tmp_path):
    for path in root.rglob("*.jpg"):
        path.write_bytes(path.read_bytes()[:700])
    code, said, text = run(root, tmp_path / "check.html")
    assert code == 2 and "16 of 16 images cannot be read" in said[0]
    assert "Unreadable images" in text


def test_long_lists_are_cut_and_counted(root, tmp_path):
    for i in range(30):
        shutil.copy(root / "train/class 0/0.jpg", root / f"train/class 1/copy{i}.jpg")
    code, said, text = run(root, tmp_path / "check.html")
    assert "30 pairs; the first 12 are shown." in text
    assert text.count("<h4>identical</h4>") == 12


@pytest.mark.skipif(os.name == "nt", reason="names there are Unicode")
def test_a_name_that_is_not_unicode(root, tmp_path):
    name = os.fsdecode(os.fsencode(root / "train/class 0") + b"/\xff.jpg")
    try:
        shutil.copy(root / "train/class 1/0.jpg", name)
    except OSError:
        pytest.skip("this file system takes no such name")
    code, said, text = run(root, tmp_path / "check.html")
    assert code == 0 and "train/class 0/?.jpg" in "".join(said)


def test_a_name_of_two_lines_is_said_on_one(root, tmp_path):
    shutil.copy(root / "train/class 1/0.jpg", root / "test/class 2/a\nb.jpg")
    _, said, _ = run(root, tmp_path / "check.html")
    assert "test/class 2/a\\nb.jpg" in "".join(said)
    assert not any("\n" in sentence for sentence in said)


@pytest.mark.parametrize("page", ["absent/check.html", "."])
def test_a_page_that_cannot_be_written_is_refused_before_the_work(tmp_path, page):
    def read(index):
        raise AssertionError("the check began")

    split = Split(np.array([0, 0, 1, 1]), ("a", "b"), ("w", "x", "y", "z"), read)
    with pytest.raises(InputError, match="name a file in a directory that exists"):
        dataset_check.run(Dataset("x", split, split), tmp_path / page)
    assert not list(tmp_path.iterdir())


def test_drawn_images_can_be_checked_too(tmp_path):
    glyphs = open_dataset("glyphs", size=16)
    few = Dataset(
        "glyphs", glyphs.train.subset(np.arange(60)), glyphs.test.subset(np.arange(48))
    )
    said = []
    assert dataset_check.run(few, tmp_path / "check.html", say=said.append) == 0
    assert not any("Files" in sentence for sentence in said)

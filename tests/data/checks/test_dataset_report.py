"""What a check finds in folders with known faults."""

import io
import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metricjax.data import open_dataset
from metricjax.data.checks import dataset_report as checking
from metricjax.data.checks.dataset_report import (
    ACROSS_CLASSES,
    ACROSS_SPLITS,
    WITHIN_CLASS,
)
from metricjax.data.datasets import Dataset, Split

# A directory with the real data sets, omniglot.zip and grocery.zip.
REAL_DATA = Path(os.environ.get("METRICJAX_DATA", "data"))


def photo(seed, size=(96, 72)):
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def save(image, path, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


@pytest.fixture
def root(tmp_path):
    """Three classes of three photographs in each split."""
    for c in range(6):
        split = "train" if c < 3 else "test"
        for i in range(3):
            save(photo(10 * c + i), tmp_path / split / f"c{c}" / f"{i}.jpg", quality=92)
    return tmp_path


def check(root, **options):
    return checking.check(open_dataset("folder", str(root), **options))


def found(report):
    """(first, second, relation, identical) of each pair, by name."""
    return {
        (report.name(a), report.name(b), int(relation), bool(same))
        for (a, b), relation, same in zip(
            report.pairs, report.relations, report.identical, strict=True
        )
    }


def test_a_sound_set_has_nothing_wrong(root):
    report = check(root)
    assert not report.unreadable and not len(report.pairs)
    assert not len(report.blank) and not len(report.leaked)
    assert report.sizes.tolist() == [[96, 72]] * 18
    assert report.formats == {"JPEG": 18} and report.modes == {"colour": 18}
    assert report.class_sizes(report.dataset.test).tolist() == [3, 3, 3]
    assert report.name(9) == "test/c3/0.jpg" and report.class_name(9) == "c3"
    assert report.number(*report.place(17)) == 17


@pytest.mark.parametrize(
    "copy, relation",
    [
        ("train/c0/copy.jpg", WITHIN_CLASS),
        ("train/c2/copy.jpg", ACROSS_CLASSES),
        ("test/c4/copy.jpg", ACROSS_SPLITS),
    ],
)
def test_identical_files_by_where_they_lie(root, copy, relation):
    shutil.copy(root / "train/c0/1.jpg", root / copy)
    report = check(root)
    names = sorted(["train/c0/1.jpg", copy], key=lambda n: n.startswith("test"))
    assert found(report) == {(*names, relation, True)}
    assert report.alike.tolist() == [1]
    leaked = [report.name(i) for i in report.leaked]
    assert leaked == ([copy] if relation == ACROSS_SPLITS else [])
    assert not len(report.nearly_leaked)


def saved_again(image, **options):
    buffer = io.BytesIO()
    image.save(buffer, **options)
    return Image.open(buffer)


@pytest.mark.parametrize(
    "change, suffix",
    [
        (lambda image: saved_again(image, format="JPEG", quality=40), "png"),
        (lambda image: image.resize((48, 36)), "png"),
        (lambda image: image.resize((480, 360)), "jpg"),
        (lambda image: image.convert("L"), "png"),
        (lambda image: image.convert("CMYK"), "jpg"),
        (lambda image: image.point(lambda value: int(0.8 * value)), "png"),
    ],
)
def test_changed_copies_are_near_duplicates(root, change, suffix):
    copy = f"test/c5/copy.{suffix}"
    save(change(Image.open(root / "train/c1/2.jpg")), root / copy)
    report = check(root)
    assert found(report) == {("train/c1/2.jpg", copy, ACROSS_SPLITS, False)}
    assert report.alike[0] >= checking.ALIKE
    assert [report.name(i) for i in report.nearly_leaked] == [copy]
    assert not len(report.leaked)


def test_every_copy_of_a_leaked_image_counts(root):
    small = Image.open(root / "train/c1/2.jpg").resize((48, 36))
    for name in ("a.png", "b.png"):
        save(small, root / "test/c5" / name)
    for name in ("c.jpg", "d.jpg"):
        shutil.copy(root / "train/c1/1.jpg", root / "test/c4" / name)
    report = check(root)
    assert [Path(report.name(i)).name for i in report.leaked] == ["c.jpg", "d.jpg"]
    nearly = [Path(report.name(i)).name for i in report.nearly_leaked]
    assert nearly == ["a.png", "b.png"]


def test_a_class_of_both_splits_is_one_class(root):
    shutil.copytree(root / "train/c0", root / "test/c0")
    report = check(root, closed_set=True)
    assert set(report.relations) == {ACROSS_SPLITS} and len(report.leaked) == 3


def test_blank_pictures_are_not_near_duplicates_of_each_other(root):
    for i in range(40):
        image = Image.new("L", (40 + i, 30), 255)
        image.paste(254, (0, 0, 20, 30))
        save(image, root / "train" / f"c{i % 3}" / f"blank{i}.png")
    report = check(root)
    assert len(report.blank) == 40 and not len(report.pairs)


@pytest.mark.parametrize("quality", [50, 95])
@pytest.mark.parametrize("kept", [0.3, 0.7, 0.97])
@pytest.mark.parametrize("size", [(96, 72), (1200, 900)])
def test_a_jpeg_cut_short_is_unreadable(root, size, kept, quality):
    path = save(photo(99, size), root / "train/c0/cut.jpg", quality=quality)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    report = check(root)
    ((image, reason),) = report.unreadable.items()
    assert report.name(image) == "train/c0/cut.jpg"
    assert "truncated" in reason.lower()
    assert report.is_readable.sum() == 18
    assert report.class_sizes(report.dataset.train).tolist() == [3, 3, 3]


@pytest.mark.parametrize("suffix", ["png", "gif", "webp", "tif", "bmp"])
def test_other_damaged_files_are_unreadable_as_the_reader_says(root, suffix):
    path = save(photo(99), root / "test/c3" / f"cut.{suffix}")
    path.write_bytes(path.read_bytes()[:200])
    report = check(root)
    ((image, reason),) = report.unreadable.items()
    split, index = report.place(image)
    with pytest.raises(checking.UnreadableImage) as caught:
        split.read(index)
    assert reason == caught.value.reason


def test_a_damaged_member_of_a_zip_is_unreadable(root, tmp_path):
    target = tmp_path / "a.zip"
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for path in sorted(root.rglob("*.jpg")):
            archive.write(path, str(path.relative_to(root)))
        middle = archive.getinfo("train/c1/1.jpg").header_offset + 500
    content = bytearray(target.read_bytes())
    content[middle] ^= 0xFF
    target.write_bytes(content)
    report = check(target)
    assert [report.name(i) for i in report.unreadable] == ["train/c1/1.jpg"]
    assert "checksum" in next(iter(report.unreadable.values()))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_an_image_of_too_many_pixels_is_unreadable(root, monkeypatch):
    save(photo(99, (300, 200)), root / "train/c0/large.jpg")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40_000)
    report = check(root)
    assert [report.name(i) for i in report.unreadable] == ["train/c0/large.jpg"]


def test_kinds_are_counted_and_sizes_upright(root):
    exif = Image.Exif()
    exif[0x112] = 6
    folder = root / "train/c0"
    save(photo(50), folder / "turned.jpg", exif=exif)
    save(photo(51).convert("L"), folder / "grey.jpg")
    save(photo(52).convert("CMYK"), folder / "cmyk.jpg")
    save(photo(53).convert("RGBA"), folder / "alpha.png")
    save(photo(54).convert("P"), folder / "palette.gif")
    deep = Image.fromarray(np.arange(72 * 96, dtype=np.uint16).reshape(72, 96))
    save(deep, folder / "deep.png")
    report = check(root)
    assert report.formats == {"JPEG": 21, "PNG": 2, "GIF": 1}
    kinds = ("grey", "CMYK", "transparent", "palette", "16 bit")
    assert report.modes == {"colour": 19, **dict.fromkeys(kinds, 1)}
    assert report.turned == 1
    turned = report.dataset.train.names.index("train/c0/turned.jpg")
    assert report.sizes[turned].tolist() == [72, 96]


def test_a_turned_copy_whose_exif_turns_it_back_is_found(root):
    exif = Image.Exif()
    exif[0x112] = 8
    turned = Image.open(root / "train/c0/0.jpg").transpose(Image.Transpose.ROTATE_270)
    save(turned, root / "test/c3/turned.jpg", exif=exif, quality=92)
    report = check(root)
    assert [report.name(i) for i in report.nearly_leaked] == ["test/c3/turned.jpg"]


def drawn(images, labels, calls):
    def read(index):
        calls.append(index)
        return images[index]

    names = tuple(f"{len(calls)}/{i}" for i in range(len(images)))
    return Split(np.array(labels), ("a", "b"), names, read)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("threads", [1, 3])
def test_images_that_are_no_files_are_read_once_each(channels, threads):
    images = [np.asarray(photo(i))[:, :, :channels] for i in range(70)]
    images[69] = images[3]
    labels = [i % 2 for i in range(70)]
    calls, progress = [], []
    dataset = Dataset(
        "x", drawn(images, labels, calls), drawn(images[:2], [0, 1], calls)
    )
    report = checking.check(
        dataset, threads=threads, progress=lambda *numbers: progress.append(numbers)
    )
    assert sorted(calls) == sorted([*range(70), 0, 1])
    assert progress == [(32, 72), (64, 72), (72, 72)]
    assert report.pairs.tolist() == [[3, 69], [0, 70], [1, 71]]
    assert report.identical.all() and report.leaked.tolist() == [70, 71]
    assert report.relations.tolist() == [WITHIN_CLASS, ACROSS_SPLITS, ACROSS_SPLITS]
    assert not report.formats and not report.modes


def test_a_fault_of_the_reader_is_not_hidden():
    def read(index):
        raise KeyError("ours")

    split = Split(np.array([0, 0, 1, 1]), ("a", "b"), ("w", "x", "y", "z"), read)
    with pytest.raises(KeyError, match="ours"):
        checking.check(Dataset("x", split, split))


@pytest.mark.slow
@pytest.mark.parametrize("name, most", [("omniglot", 5), ("grocery", 5)])
def test_false_alarms_are_rare_in_real_data(name, most):
    path = REAL_DATA / f"{name}.zip"
    if not path.exists():
        pytest.skip(f"{path} is not there; METRICJAX_DATA names its directory")
    report = check(path)
    assert not report.unreadable
    across = report.relations != WITHIN_CLASS
    assert across.sum() == 0 and len(report.pairs) <= most

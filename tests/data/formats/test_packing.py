"""Packing: which bytes are stored, what is resumed, left out and refused."""

import io
import json
import subprocess
import sys

import numpy as np
import pytest
from packing_helpers import (
    SHARD,
    files,
    make_photos,
    noise,
    pack,
    photo,
    refuse,
    saved,
    two_classes,
)
from PIL import Image

from metricjax.data import open_dataset
from metricjax.data.datasets import Dataset
from metricjax.data.formats import shard_writer
from metricjax.storage.directories import open_storage


@pytest.fixture
def root(tmp_path):
    return make_photos(tmp_path / "photos")


@pytest.fixture
def dataset(root):
    return open_dataset("folder", str(root))


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(shard_writer, "SHARD_RECORDS", 4)


@pytest.mark.parametrize(
    ("size", "side", "expected"),
    [
        ((90, 60), 30, (45, 30)),
        ((60, 90), 30, (30, 45)),
        ((60, 60), 60, (60, 60)),
        ((61, 61), 60, (60, 60)),
        ((90, 60), 0, (90, 60)),
        ((1, 1), 256, (1, 1)),
        ((2, 500), 1, (1, 250)),
    ],
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", None])
def test_only_larger_images_are_shrunk(tmp_path, size, side, expected, kind):
    image, content = photo(1, size), None
    if kind is not None:
        content = saved(image, kind)
        image = Image.open(io.BytesIO(content)).convert("RGB")
    dataset = two_classes([image], [content])
    packed = open_dataset("packed", pack(dataset, tmp_path / "out", short_side=side))
    found, pixels = packed.test.encoded(0), packed.test.read(0)
    assert pixels.shape[1::-1] == expected
    if size == expected:
        assert found == content if kind else found.startswith(b"\x89PNG")
        np.testing.assert_array_equal(pixels, np.asarray(image))
        return
    assert found.startswith(b"\xff\xd8\xff")
    shrunk = image.resize(expected, Image.Resampling.LANCZOS)
    file = io.BytesIO()
    shrunk.save(file, "JPEG", quality=95, subsampling="4:2:0")
    np.testing.assert_array_equal(pixels, np.asarray(Image.open(file)))
    if kind != "GIF":  # Its palette makes noise of colours, which JPEG smooths.
        assert np.abs(pixels.astype(float) - np.asarray(shrunk)).mean() < 3


def test_turned_grey_and_very_long_images(tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6
    grey = photo(3, (80, 60)).convert("L")
    contents = [
        saved(photo(2, (80, 60)), "JPEG", exif=turned),
        saved(grey, "JPEG"),
        None,
    ]
    long = np.zeros((3, 70_000, 3), np.uint8)
    dataset = two_classes([None, None, long], contents)
    packed = open_dataset("packed", pack(dataset, tmp_path / "out", short_side=2))
    read = packed.train.read
    assert [read(i).shape for i in range(2)] == [(3, 2, 3), (2, 3, 3)]
    assert read(2).shape[0] == 2 and packed.train.encoded(2).startswith(b"\xff\xd8")
    assert Image.open(io.BytesIO(packed.train.encoded(1))).mode == "L"
    long = np.zeros((3, 110_000, 3), np.uint8)
    out = pack(two_classes([long], [None]), tmp_path / "long", short_side=2)
    assert open_dataset("packed", out).train.encoded(0).startswith(b"\x89PNG")


def test_drawn_images_are_as_before(tmp_path):
    glyphs = open_dataset("glyphs", size=8)
    few = Dataset("glyphs", glyphs.train.subset(range(40)), glyphs.test.subset([5, 6]))
    packed = open_dataset("packed", pack(few, tmp_path / "out"), channels=1)
    for index in range(40):
        np.testing.assert_array_equal(packed.train.read(index), few.train.read(index))


@pytest.mark.parametrize("threads", [1, 3, 8])
def test_threads_change_no_byte(dataset, tmp_path, small_shards, threads):
    pack(dataset, tmp_path / "one", threads=1, short_side=8)
    pack(dataset, tmp_path / "other", threads=threads, short_side=8)
    assert files(tmp_path / "one") == files(tmp_path / "other")
    assert len(files(tmp_path / "one")) == 1 + 5


def test_shards_are_full_by_size_or_number(dataset, tmp_path, monkeypatch):
    sizes = [len(dataset.train.encoded(i)) for i in range(9)]
    monkeypatch.setattr(shard_writer, "SHARD_BYTES", sum(sizes[:4]))
    pack(dataset, tmp_path / "out")
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_bytes())
    assert manifest["shards"][0]["records"] == 4
    assert sum(shard["records"] for shard in manifest["shards"]) == 18


# `python -c` of this packs photos/ again and again into a new directory, each time
# killed a moment later and then run to the end; it prints what that said first.
KILLED = """
import os, sys
from metricjax.data import open_dataset
from metricjax.data.formats import packing, shard_writer

shard_writer.SHARD_RECORDS = 6
dataset = open_dataset("folder", "photos")
left = None


def moment(*_):
    global left
    if left is not None:
        left -= 1
        if left < 0:
            os._exit(9)


def stopping(function):
    def stopped(*arguments, **options):
        moment()
        function(*arguments, **options)
        moment()
    return stopped


def pack(out, kill=None):
    global left
    left, said = kill, []
    process = os.fork()
    if process:
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    for name in ("replace", "unlink", "fsync"):
        setattr(os, name, stopping(getattr(os, name)))
    options = {"say": said.append, "progress": moment}
    packing.pack(dataset, out, threads=1, short_side=8, **options)
    print(out, said[0], sep=": ", flush=True)
    os._exit(0)


code, kill = 9, 0
while code == 9:
    code = pack(f"out{kill}", kill)
    assert code in (0, 9)
    assert os.path.exists(f"out{kill}/manifest.json") or code == 9
    assert pack(f"out{kill}") == 0
    kill += 1
"""


def test_killed_at_any_moment_it_goes_on(root, dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(shard_writer, "SHARD_RECORDS", 6)
    command = [sys.executable, "-c", KILLED]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    pack(dataset, tmp_path / "whole", short_side=8)
    whole = files(tmp_path / "whole")
    tried = sorted(tmp_path.glob("out*"))
    assert len(tried) > 40
    assert all(files(directory) == whole for directory in tried)
    for done in (6, 12, 18):
        assert f"Resuming after the {done} images" in result.stdout


def test_an_interrupted_packing_leaves_nothing_half_written(
    dataset, tmp_path, small_shards
):
    def interrupt(done, total):
        assert total == 18
        if done == 11:
            raise KeyboardInterrupt

    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        pack(dataset, out, progress=interrupt)
    assert sorted(files(out)) == [
        SHARD,
        "images-00001.array_record",
        "unfinished.json",
    ]
    assert "not packed to the end" in refuse(open_dataset, "packed", str(out))
    assert "short_side is 256 there and 9 now" in refuse(
        pack, dataset, out, short_side=9
    )
    (out / SHARD).unlink()
    assert f"finished shard {SHARD} is missing" in refuse(pack, dataset, out)


def test_a_finished_packing_is_complete(dataset, tmp_path):
    said = []
    out = pack(dataset, tmp_path / "out")
    before = files(tmp_path / "out")
    pack(dataset, out, say=said.append)
    assert said == [f"{out} is complete: there is nothing to do."]
    assert "cropped is False there and True now" in refuse(
        pack, dataset, out, cropped=True
    )
    other = Dataset("folder", dataset.test, dataset.train)
    assert "listing is" in refuse(pack, other, out)
    assert files(tmp_path / "out") == before


def test_directories_of_something_else(root, dataset, tmp_path):
    assert "holds something else, such as 'class 0'" in refuse(pack, dataset, root)
    out = tmp_path / "out"
    out.mkdir()
    (out / "manifest.json").write_text('{"name": "my web site"}')
    assert "damaged or not one of metricjax" in refuse(pack, dataset, out)
    (out / "manifest.json").rename(out / SHARD)
    assert "holds something else" in refuse(pack, dataset, out)
    (out / SHARD).unlink()
    (out / ".DS_Store").touch()
    pack(dataset, out)
    assert "cannot be used" in refuse(pack, dataset, root / "labels.csv")
    assert "-1" in refuse(pack, dataset, tmp_path / "new", short_side=-1)
    assert not (tmp_path / "new").exists()


def test_two_at_the_same_time(dataset, tmp_path):
    with open_storage(tmp_path / "out").staging():
        assert "Another process" in refuse(pack, dataset, tmp_path / "out")
    pack(dataset, tmp_path / "out")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_images_that_cannot_be_decoded_are_left_out(root, tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    whole = (root / "class 0" / "1.png").read_bytes()
    (root / "class 0" / "1.png").write_bytes(whole[: len(whole) // 2])
    for i, kind in ((0, "jpg"), (1, "png"), (2, "png")):
        noise(1, (40, 30)).save(root / "class 4" / f"{i}.{kind}")
    (root / "class 5" / "2.png").write_text("no image")
    dataset = open_dataset("folder", str(root))
    said = []
    out = pack(dataset, tmp_path / "out", say=said.append)
    packed = open_dataset("packed", out)
    names = [name for name, _ in packed.skipped]
    assert names == [
        "class 5/2.png",
        "class 0/1.png",
        *(f"class 4/{i}" for i in ("0.jpg", "1.png", "2.png")),
    ]
    assert "pixels, the limit" in packed.skipped[-1][1]
    assert "4 of 17 images cannot be decoded" in " ".join(packed.notes)
    assert any("4 of 17 images cannot be decoded" in sentence for sentence in said)
    assert list(packed.test.class_names) == ["c3", "c5"]
    assert packed.test.labels.tolist() == [0, 0, 0, 1, 1]
    for index, name in enumerate(packed.test.names):
        assert packed.test.encoded(index) == (root / name).read_bytes()
    for path in root.glob("class [012]/*"):
        path.write_bytes(whole[:60])
    message = refuse(pack, dataset, tmp_path / "none")
    assert "None of the 9 images of the train split" in message
    assert "class 0/0.jpg" in message

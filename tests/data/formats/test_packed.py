"""Packed images: read as before, from many threads, from a bucket, damaged, refused."""

import json
import os
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np
import pytest
from packing_helpers import SHARD, files, make_photos, pack, refuse, silent, two_classes

from metricjax.data import open_dataset, pipeline
from metricjax.data.checks.packed_integrity import verify
from metricjax.data.datasets import Dataset, Split, UnreadableImage
from metricjax.data.formats import packed as records
from metricjax.data.formats import shard_writer
from metricjax.data.samplers.class_balanced import PKSampler
from metricjax.data.transforms import TransformConfig, build
from metricjax.errors import InputError


@pytest.fixture
def root(tmp_path):
    return make_photos(tmp_path / "photos")


@pytest.fixture
def dataset(root):
    return open_dataset("folder", str(root))


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(shard_writer, "SHARD_RECORDS", 4)


def test_all_but_the_images_is_as_before(dataset, tmp_path):
    packed = open_dataset("packed", pack(dataset, tmp_path / "out"))
    assert packed.name == "packed"
    assert packed.fingerprint == dataset.fingerprint
    assert packed.notes[: len(dataset.notes)] == dataset.notes
    for side in ("train", "test"):
        left, right = getattr(dataset, side), getattr(packed, side)
        for name in ("names", "class_names", "category_names"):
            assert list(getattr(left, name)) == list(getattr(right, name))
        for name in ("labels", "categories", "is_query", "is_gallery"):
            np.testing.assert_array_equal(getattr(left, name), getattr(right, name))
        for index in range(len(left)):
            assert left.encoded(index) == right.encoded(index)
    as_folder = open_dataset("folder", str(tmp_path / "out"))
    assert as_folder.train.names == packed.train.names
    part = packed.test.subset(np.array([4, 2]))
    np.testing.assert_array_equal(part.read(0), dataset.test.read(4))
    assert part.encoded(1) == dataset.test.encoded(2)


def test_batches_are_as_before(root, tmp_path):
    dataset = open_dataset("folder", str(root), channels=1)
    out = pack(dataset, tmp_path / "out", short_side=0)
    packed = open_dataset("packed", out, channels=1)
    transform = build(TransformConfig("affine", 8, 1))
    batches = []
    for each in (dataset, packed):
        sampler = PKSampler(each.train.labels, 4, 2, seed=0)
        steps = {"seed": 3, "start_step": 2, "num_steps": 5, "threads": 2}
        with pipeline.train_batches(each.train, sampler, transform, **steps) as train:
            batches.append(list(train))
        with pipeline.test_batches(each.test, transform, 4, threads=2) as test:
            batches[-1] += list(test)
    for left, right in zip(*batches, strict=True):
        for name, values in left.items():
            np.testing.assert_array_equal(values, right[name])


@pytest.mark.parametrize("channels", [1, 3])
def test_reading_from_many_threads(dataset, tmp_path, small_shards, channels):
    out = pack(dataset, tmp_path / "out")
    packed = open_dataset("packed", out, channels=channels).test
    again = pickle.loads(pickle.dumps(packed))
    with ThreadPoolExecutor(8) as pool:
        images = list(pool.map(again.read, list(range(9)) * 20))
    for i, image in enumerate(images):
        assert image.shape == (10, 12, channels)
        np.testing.assert_array_equal(image, packed.read(i % 9))


def damage(path, at, length=1):
    content = bytearray(path.read_bytes())
    for place in range(at, at + length):
        content[place] ^= 255
    path.write_bytes(content)


def found_by_verify(out):
    said = []
    assert not verify(str(out), say=said.append)
    assert "is damaged: pack the images again" in said[-1]
    return said[:-1]


def test_a_damaged_record_is_unreadable_and_named(dataset, tmp_path):
    out = tmp_path / "out"
    packed = open_dataset("packed", pack(dataset, out))
    assert verify(str(out), say=silent)
    damage(out / SHARD, (out / SHARD).read_bytes().index(packed.train.encoded(7)) + 50)
    packed = open_dataset("packed", str(out))
    with pytest.raises(UnreadableImage, match=f"record 7 of {SHARD}") as caught:
        packed.train.read(7)
    assert caught.value.name == "class 2/1.png"
    for index in (*range(7), 8):
        packed.train.read(index)
    assert found_by_verify(out) == [f"{SHARD}: record 7 ('class 2/1.png') is damaged."]


@pytest.mark.parametrize(
    ("when", "kept"),
    [
        ("before", 0),
        ("before", 1000),
        ("before", 70_000),
        ("after", 0),
        ("after", 1000),
    ],
)
def test_a_shard_cut_short(dataset, tmp_path, when, kept):
    out = tmp_path / "out"
    packed = open_dataset("packed", pack(dataset, out))
    if when == "after":
        packed.train.read(0)
    size = (out / SHARD).stat().st_size
    assert kept < size
    os.truncate(out / SHARD, kept)
    with pytest.raises(UnreadableImage, match=f"of {SHARD} is damaged"):
        for index in range(9):
            packed.test.read(index)
    said = found_by_verify(out)
    assert f"instead of {size:,}" in said[0] and "record" in said[-1]


def test_a_shard_in_the_place_of_another(dataset, tmp_path, small_shards):
    """Whole by its own checksums, but not what was packed there."""
    out = tmp_path / "out"
    pack(dataset, out)
    (out / "images-00001.array_record").replace(out / SHARD)
    (out / "images-00001.array_record").write_bytes((out / SHARD).read_bytes())
    packed = open_dataset("packed", str(out))
    with pytest.raises(UnreadableImage, match=f"record 2 of {SHARD} is damaged"):
        packed.train.read(2)
    packed.train.read(4)
    assert len(found_by_verify(out)) == 4


def test_damage_beside_the_records(dataset, tmp_path):
    pack(dataset, tmp_path / "out")
    path = tmp_path / "out" / SHARD
    content = path.read_bytes()
    damage(path, content.rindex(b"\0" * 1000) + 500)
    (said,) = found_by_verify(tmp_path / "out")
    assert said == f"{SHARD} is not as it was written, but all its records are whole."


def test_a_missing_shard(dataset, tmp_path, small_shards):
    out = pack(dataset, tmp_path / "out")
    (tmp_path / "out" / "images-00002.array_record").unlink()
    message = refuse(open_dataset, "packed", out)
    assert "1 of 5 shards are missing, the first images-00002" in message
    assert found_by_verify(out) == ["images-00002.array_record is missing."]


def test_bad_roots(dataset, root, tmp_path):
    assert "needs data.root" in refuse(open_dataset, "packed")
    assert "holds no manifest.json" in refuse(open_dataset, "packed", str(root))
    nowhere = str(tmp_path / "nowhere")
    assert "holds no manifest.json" in refuse(open_dataset, "packed", nowhere)
    assert "holds no manifest.json" in refuse(verify, nowhere)
    out = pack(dataset, tmp_path / "out")
    assert "channels is 2" in refuse(open_dataset, "packed", out, channels=2)
    path = tmp_path / "out" / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b'"version":1', b'"version":2'))
    assert "packed as version 2" in refuse(open_dataset, "packed", out)


def test_a_damaged_manifest(dataset, tmp_path):
    out = pack(dataset, tmp_path / "out")
    path = tmp_path / "out" / "manifest.json"
    whole = json.loads(path.read_bytes())

    def refused(manifest):
        path.write_text(json.dumps(manifest))
        return refuse(open_dataset, "packed", out)

    for name in set(whole) - {"request", "source", "version"}:
        without = {key: value for key, value in whole.items() if key != name}
        assert "manifest" in refused(without) and name in refused(without)
        for other in ("no", [], {}, 5, None, [None], [{}]):
            path.write_text(json.dumps(whole | {name: other}))
            with suppress(InputError):
                open_dataset("packed", out)
    for name in ("crc32", "bytes", "shards"):
        refused(whole | {name: whole[name][1:]})
        refused(whole | {name: [-1, 1 << 70]})
    for name in whole["train"]:
        refused(whole | {"train": whole["train"] | {name: 5}})
    refused(whole | {"train": whole["train"] | {"labels": [0] * 9}})
    refused([whole])
    path.write_bytes(b"\xff" + json.dumps(whole).encode())
    assert "manifest" in refuse(open_dataset, "packed", out)
    path.write_text(json.dumps(whole)[:-90])
    assert "manifest" in refuse(verify, out)


def test_a_closed_set_stays_one(root, tmp_path):
    table = (root / "labels.csv").read_text().replace(",c4,", ",c0,")
    (root / "labels.csv").write_text(table)
    closed = open_dataset("folder", str(root), closed_set=True)
    out = pack(closed, tmp_path / "out")
    assert "was packed as a closed set" in refuse(open_dataset, "packed", out)
    packed = open_dataset("packed", out, closed_set=True)
    assert "c0" in packed.train.class_names and "c0" in packed.test.class_names


def test_names_that_are_not_unicode(tmp_path):
    images = [np.full((2, 2, 3), i, np.uint8) for i in range(2)]
    drawn = two_classes(images, [None, None])
    names = ("\udcff.png", "a\n\u2028.png")
    sides = (
        Split(split.labels, split.class_names, names, split.reader)
        for split in (drawn.train, drawn.test)
    )
    packed = open_dataset("packed", pack(Dataset("x", *sides), tmp_path / "out"))
    assert packed.test.names == names


def test_what_is_packed(root, dataset, tmp_path):
    out = tmp_path / "out"
    assert not records.is_packed(None) and not records.is_packed(str(root))
    (root / "manifest.json").write_text("{}")
    assert not records.is_packed(root) and not records.is_packed(out)
    with pytest.raises(KeyboardInterrupt):
        pack(dataset, out, progress=lambda *_: exec("raise KeyboardInterrupt"))
    assert records.is_packed(out)
    pack(dataset, out)
    assert records.is_packed(str(out)) and records.is_packed("gs://bucket/out")
    assert records.is_packed(f"file://{out}")
    packed = open_dataset("packed", f"file://{out}")
    assert packed.test.encoded(0) == dataset.test.encoded(0)


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """A directory in memory, addressed as a bucket is; and an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    import fsspec

    memory = fsspec.filesystem("memory")
    yield memory, "memory://bucket/photos"
    memory.rm("/bucket", recursive=True)


def test_a_bucket(dataset, tmp_path, small_shards, bucket):
    memory, url = bucket

    def interrupt(done, _):
        if done == 11:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(dataset, url, progress=interrupt)
    assert "not packed to the end" in refuse(open_dataset, "packed", url)
    said = []
    pack(dataset, url, say=said.append)
    assert "Resuming after the 8 images" in said[0]
    pack(dataset, tmp_path / "out")
    there = {
        path.rpartition("/")[2]: memory.cat(path) for path in memory.ls(url, False)
    }
    assert there == files(tmp_path / "out")

    packed = open_dataset("packed", url)
    assert not (tmp_path / "cache").exists()
    assert packed.train.encoded(0) == dataset.train.encoded(0)
    assert len(list((tmp_path / "cache").rglob("*.array_record"))) == 1
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(packed.test.encoded, list(range(9)) * 4))
    assert found[:9] == [dataset.test.encoded(i) for i in range(9)]
    assert verify(url, say=silent)
    cached = sorted((tmp_path / "cache").rglob("*.*"))
    assert len(cached) == 4
    cached[0].write_bytes(b"half of it")
    assert open_dataset("packed", url).train.encoded(0) == dataset.train.encoded(0)
    assert "something else" in refuse(pack, dataset, "memory://bucket")


def test_a_bucket_whose_shard_was_cut(dataset, bucket):
    memory, url = bucket
    packed = open_dataset("packed", pack(dataset, url))
    path = f"{url}/{SHARD}"
    content = memory.cat(path)
    memory.pipe(path, content[:1000])
    assert f"has 1,000 bytes, not {len(content):,}" in refuse(packed.train.read, 0)
    assert "1,000 bytes instead" in found_by_verify(url)[0]
    memory.rm(path)
    assert "shards are missing" in refuse(open_dataset, "packed", url)
    assert "cannot be used" in refuse(packed.test.read, 0)


def test_addresses_that_cannot_be_opened(dataset, monkeypatch):
    assert "cannot be opened" in refuse(pack, dataset, "nonsense://bucket/photos")
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    assert "metricjax[remote]" in refuse(open_dataset, "packed", "gs://bucket/photos")
    monkeypatch.setitem(sys.modules, "fsspec", None)
    assert "metricjax[remote]" in refuse(pack, dataset, "memory://bucket/photos")

"""Batches: in order, none lost, equal bytes whatever the threads, hosts or restarts."""

import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metricjax.data import open_dataset, pipeline
from metricjax.data.datasets import Split, UnreadableImage
from metricjax.data.formats.packing import pack
from metricjax.data.pipeline import SkipLog
from metricjax.data.samplers.class_balanced import PKSampler
from metricjax.data.samplers.random_images import ImageSampler
from metricjax.data.transforms import TransformConfig, build
from metricjax.errors import InputError

CONFIG = TransformConfig("affine", image_size=16, channels=1)


class Reader:
    """Image i from its number; counts its calls; some images are broken."""

    def __init__(self, broken=()):
        self.broken, self.calls, self.lock = set(broken), 0, threading.Lock()

    def __call__(self, index):
        with self.lock:
            self.calls += 1
        if index in self.broken:
            raise UnreadableImage(f"{index}.png", "it is cut short")
        rng = np.random.default_rng(index)
        return rng.integers(0, 256, (20, 24, 1), dtype=np.uint8)


def toy_split(broken=(), classes=12, images=5):
    labels = np.repeat(np.arange(classes), images)
    names = [f"{i}.png" for i in range(len(labels))]
    class_names = [f"class {c}" for c in range(classes)]
    return Split(labels, class_names, names, Reader(broken))


def train(split, start=0, stop=12, config=CONFIG, batch_size=16, **options):
    sampler = PKSampler(split.labels, batch_size, 4, seed=1)
    options = dict(seed=7, start_step=start, num_steps=stop, threads=0) | options
    with pipeline.train_batches(split, sampler, build(config), **options) as batches:
        return list(batches)


def assert_equal_batches(left, right):
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            assert a[name].dtype == b[name].dtype
            np.testing.assert_array_equal(a[name], b[name])


def test_batches_hold_what_the_sampler_says():
    split = toy_split()
    sampler = PKSampler(split.labels, 16, 4, seed=1)
    batches = train(split)
    assert len(batches) == 12
    for step, batch in enumerate(batches):
        np.testing.assert_array_equal(batch["indices"], sampler[step])
        np.testing.assert_array_equal(batch["labels"], split.labels[sampler[step]])
        assert batch["images"].shape == (16, 16, 16, 1)
        assert batch["images"].dtype == np.uint8
        assert batch["labels"].dtype == np.int32
        assert batch["indices"].dtype == np.int64


def test_without_augmentation_the_images_are_the_prepared_ones():
    split, config = toy_split(), TransformConfig("none", 16, 1)
    for batch in train(split, config=config):
        for index, image in zip(batch["indices"], batch["images"], strict=True):
            expected = build(config).prepare_train(split.read(index))
            np.testing.assert_array_equal(image, expected)


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("cache_bytes", [0, 4000, 1 << 20])
def test_threads_cache_and_restart_change_no_byte(threads, cache_bytes):
    whole = train(toy_split())
    options = dict(threads=threads, cache_bytes=cache_bytes)
    assert_equal_batches(train(toy_split(), **options), whole)
    assert_equal_batches(train(toy_split(), start=7, **options), whole[7:])


@pytest.mark.parametrize("hosts", [2, 4, 8])
def test_hosts_together_make_the_batch_of_one(hosts):
    whole = train(toy_split(), stop=3)
    shares = [
        train(toy_split(), stop=3, process_index=host, process_count=hosts)
        for host in range(hosts)
    ]
    for step, batch in enumerate(whole):
        for name, value in batch.items():
            joined = np.concatenate([share[step][name] for share in shares])
            np.testing.assert_array_equal(joined, value)


def test_the_seed_changes_the_augmentation_only():
    first, other = train(toy_split(), stop=1), train(toy_split(), stop=1, seed=8)
    np.testing.assert_array_equal(first[0]["indices"], other[0]["indices"])
    assert (first[0]["images"] != other[0]["images"]).any()


def test_the_cache_reads_each_image_once_and_keeps_to_its_limit():
    split = toy_split()
    train(split, stop=60)
    assert split.reader.calls == 60
    split = toy_split()
    train(split, stop=60, cache_bytes=10 * 256)  # Ten prepared images of 16 x 16.
    assert split.reader.calls == 10 + (60 - 10) * 16


@pytest.mark.parametrize("threads", [0, 3])
def test_broken_images_are_replaced_by_the_next_of_their_class(threads):
    broken = {0, 4, 5, 6, 57}
    skipped = SkipLog()
    split = toy_split(broken)
    sampler = PKSampler(split.labels, 16, 4, seed=1)
    batches = train(split, stop=40, threads=threads, skipped=skipped)
    expected = {0: 1, 4: 1, 5: 7, 6: 7, 57: 58}
    for step, batch in enumerate(batches):
        wanted = [expected.get(i, i) for i in sampler[step].tolist()]
        assert batch["indices"].tolist() == wanted
        np.testing.assert_array_equal(batch["labels"], split.labels[sampler[step]])
    assert {name for name, _ in skipped.items()} == {f"{i}.png" for i in broken}
    assert len(skipped) == 5


def test_a_class_of_broken_images_is_told_in_a_sentence():
    split = toy_split(broken=range(10, 15))
    with pytest.raises(InputError, match="None of the 5 images of class 'class 2'"):
        train(split, stop=10, threads=2)


@pytest.mark.parametrize("threads", [0, 3])
@pytest.mark.parametrize("hosts", [1, 2])
def test_test_batches_cover_the_split_once(threads, hosts):
    split = toy_split(broken={3, 59})
    seen, valid = [], []
    for host in range(hosts):
        with pipeline.test_batches(
            split,
            build(CONFIG),
            16,
            threads=threads,
            process_index=host,
            process_count=hosts,
        ) as batches:
            for batch in batches:
                assert batch["images"].shape == (16 // hosts, 16, 16, 1)
                real = batch["indices"] >= 0
                seen.extend(batch["indices"][real].tolist())
                valid.extend(batch["indices"][batch["valid"]].tolist())
                np.testing.assert_array_equal(
                    batch["labels"][real], split.labels[batch["indices"][real]]
                )
                assert (batch["labels"][~real] == -1).all()
                assert not batch["valid"][~real].any()
                assert not batch["images"][~batch["valid"]].any()
                for i in np.flatnonzero(batch["valid"]):
                    image = split.read(batch["indices"][i])
                    expected = build(CONFIG).prepare_test(image)
                    np.testing.assert_array_equal(batch["images"][i], expected)
        names = [name for name, _ in batches.skipped.items()]
    assert sorted(seen) == list(range(60))
    assert sorted(valid) == [i for i in range(60) if i not in (3, 59)]
    if hosts == 1:
        assert names == ["3.png", "59.png"]


def test_closing_early_stops_the_threads():
    before = threading.active_count()
    batches = pipeline.train_batches(
        toy_split(),
        PKSampler(toy_split().labels, 16, 4, seed=1),
        build(CONFIG),
        seed=0,
        start_step=0,
        num_steps=10**9,
        threads=3,
    )
    next(batches)
    batches.close()
    batches.close()
    deadline = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before


def test_large_jpegs_are_read_small_where_that_is_enough(tmp_path):
    """By whatever leads to the file; and what comes of them is nearly the same."""
    rng = np.random.default_rng(0)
    for number in range(8):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        path = tmp_path / "photos" / f"class {number // 2}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse.resize((320, 240), Image.Resampling.BICUBIC).save(path, quality=95)
    split = open_dataset("folder", str(tmp_path / "photos")).train
    transform = build(TransformConfig("resize_crop", 32))
    assert 64 < transform.enough < 120
    pack(open_dataset("folder", str(tmp_path / "photos")), str(tmp_path / "packed"))
    packed = open_dataset("packed", str(tmp_path / "packed")).train
    for one in (split, split.subset([2, 3]), packed):
        assert one.read(0).shape == (240, 320, 3)
        assert transform.enough <= one.read(0, transform.enough).shape[0] <= 120
    whole = [transform.prepare_test(split.read(index)) for index in range(4)]
    with pipeline.test_batches(split, transform, 4, threads=0) as batches:
        (batch,) = batches
    apart = np.abs(batch["images"].astype(float) - np.stack(whole))
    assert 0 < apart.max() < 12 and apart.mean() < 2


def test_hosts_must_divide_the_batch():
    with pytest.raises(InputError, match="15 or 18"):
        train(toy_split(), process_count=3)


def test_skip_log_names_each_image_once():
    log = SkipLog()
    for name, reason in (("b", "cut"), ("a", "empty"), ("b", "other")):
        log.add(name, reason)
    assert log.items() == (("a", "empty"), ("b", "cut")) and len(log) == 2


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_a_fault_in_a_thread_ends_the_run(threads):
    split = toy_split()

    def reader(index):
        if index == 31:
            raise RuntimeError("a fault of ours")
        return toy_split().reader(index)

    with pytest.raises(RuntimeError, match="a fault of ours"):
        train(replace(split, reader=reader), stop=40, threads=threads)


MEMORY = """
import re
from pathlib import Path
from test_pipeline import CONFIG, PKSampler, build, pipeline, toy_split

def resident():
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmRSS:\\s+(\\d+) kB", status).group(1)) / 1024

split = toy_split()
batches = pipeline.train_batches(
    split, PKSampler(split.labels, 8, 2, seed=1), build(CONFIG),
    seed=0, start_step=0, num_steps=10_000, threads=2, cache_bytes=2000,
)
with batches:
    for step, batch in enumerate(batches):
        if step == 1000:
            early = resident()
assert step == 9999, step
print(resident() - early)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_memory_is_flat_over_ten_thousand_batches():
    here = Path(__file__).parent
    result = subprocess.run(
        [sys.executable, "-c", MEMORY], cwd=here, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert float(result.stdout) < 8  # MiB, where the batches were 160


@pytest.mark.parametrize("threads", [0, 3])
@pytest.mark.parametrize("hosts", [1, 2])
def test_nothing_is_lost_or_repeated_across_a_stop(threads, hosts):
    """An epoch shows each image once, though the run stopped twice on the way."""
    split, transform = toy_split(), build(TransformConfig("none", 16, 1))
    sampler = ImageSampler(len(split), 6, seed=1)
    assert len(split) == 10 * 6 and sampler.steps_per_epoch == 10
    shown = []
    for start, stop in ((0, 3), (3, 7), (7, 20)):
        for host in range(hosts):
            with pipeline.train_batches(
                split, sampler, transform, seed=7, start_step=start, num_steps=20,
                threads=threads, process_index=host, process_count=hosts,
            ) as batches:  # fmt: skip
                for step, batch in zip(range(start, stop), batches, strict=False):
                    for index, image in zip(
                        batch["indices"], batch["images"], strict=True
                    ):
                        expected = transform.prepare_train(split.read(index))
                        np.testing.assert_array_equal(image, expected)
                        shown.append((step // 10, int(index)))
    assert sorted(shown) == [(epoch, i) for epoch in (0, 1) for i in range(60)]

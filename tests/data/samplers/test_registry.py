"""Every sampler: what its batches hold, and that a batch is a function of the step."""

from concurrent.futures import ThreadPoolExecutor

import jax.numpy as jnp
import numpy as np
import pytest

from metricjax import losses
from metricjax.data import pipeline
from metricjax.data.datasets import Split
from metricjax.data.samplers import registry
from metricjax.data.samplers.random_images import ImageSampler, PairSampler
from metricjax.data.transforms import TransformConfig
from metricjax.data.transforms import build as build_transform
from metricjax.errors import InputError


def split_of(sizes, categories=None):
    """Classes of these sizes, their images in no order."""
    labels = np.random.default_rng(4).permutation(np.repeat(range(len(sizes)), sizes))
    return Split(
        labels,
        [f"class {c}" for c in range(len(sizes))],
        [f"{i}.png" for i in range(len(labels))],
        lambda index: np.full((8, 8, 1), index, np.uint8),
        None if categories is None else np.asarray(categories)[labels],
        ("a", "b", "c"),
    )


SPLIT = split_of(
    [5, 4, 6, 2, 4, 7, 9, 4, 5, 1, 6, 4], [0, 0, 0, 0, 1, 1, 1, 1] + [2] * 4
)


def build(name, seed=0, split=SPLIT, batch_size=16):
    return registry.build(
        name, split, batch_size,
        instances_per_class=4, categories_per_batch=2, seed=seed,
    )  # fmt: skip


@pytest.mark.parametrize("name", registry.SAMPLERS)
def test_a_batch_is_a_function_of_seed_and_step(name):
    sampler = build(name)
    batches = [sampler[step] for step in range(25)]
    assert sampler.batch_size == 16 and sampler.steps_per_epoch >= 3
    for batch in batches:
        assert batch.shape == (16,) and batch.dtype == np.int64
        assert batch.min() >= 0 and batch.max() < len(SPLIT)
    again = build(name)
    for step in np.random.default_rng(0).permutation(25):
        np.testing.assert_array_equal(again[step], batches[step])
    other = build(name, seed=1)
    assert any((other[step] != batches[step]).any() for step in range(5))
    assert len({batch.tobytes() for batch in batches}) > 20
    np.testing.assert_array_equal(sampler[10**12], build(name)[10**12])
    with pytest.raises(IndexError):
        sampler[-1]


@pytest.mark.parametrize("name", registry.SAMPLERS)
def test_any_thread_may_ask_for_any_step(name):
    expected = [build(name)[step] for step in range(60)]
    sampler = build(name)
    steps = np.random.default_rng(1).integers(0, 60, 600).tolist()
    with ThreadPoolExecutor(8) as pool:
        for step, batch in zip(
            steps, pool.map(sampler.__getitem__, steps), strict=True
        ):
            np.testing.assert_array_equal(batch, expected[step])


@pytest.mark.parametrize("name", registry.SAMPLERS)
def test_hosts_get_whole_groups_of_one_global_batch(name):
    """Both hosts' rows together are the batch of one, and no group is cut."""
    config = TransformConfig("none", image_size=8, channels=1)

    def shown(host, hosts):
        options = dict(seed=0, start_step=2, num_steps=4, threads=0)
        with pipeline.train_batches(
            SPLIT, build(name), build_transform(config),
            process_index=host, process_count=hosts, **options,
        ) as batches:  # fmt: skip
            return [batch["indices"] for batch in batches]

    whole, shares = shown(0, 1), [shown(host, 2) for host in range(2)]
    for step in range(2):
        parts = [share[step] for share in shares]
        np.testing.assert_array_equal(np.concatenate(parts), whole[step])
        left, right = (SPLIT.labels[part] for part in parts)
        if name in registry.OF_CLASSES:
            assert not set(left.tolist()) & set(right.tolist())


@pytest.mark.parametrize("batch_size", [4, 16, 36])
def test_pairs_are_what_they_say(batch_size):
    sampler = build("pairs", batch_size=batch_size)
    lone = np.flatnonzero(SPLIT.labels == 9)[0]
    counts = np.zeros(len(SPLIT), int)
    for step in range(100):
        first, second = sampler[step].reshape(-1, 2).T
        same = SPLIT.labels[first] == SPLIT.labels[second]
        assert same[: batch_size // 4].all() and not same[batch_size // 4 :].any()
        assert (first != second).all()
        assert len(set(first.tolist())) == batch_size // 2
        counts[first] += 1
        dealt = np.delete(counts, lone)
        assert np.ptp(dealt) <= 1
        assert lone not in first and lone not in second
    assert "1 class of fewer than 2 images" in sampler.notes[0]


def test_partners_are_equally_likely():
    """Within five standard deviations of their shares, over a hundred or so cells."""
    split = split_of([2, 3, 5])
    sampler, steps = PairSampler(split.labels, 8, seed=0), 4000
    met = np.zeros((2, 10, 10))
    for step in range(steps):
        pairs = sampler[step].reshape(2, 2, 2)
        for which in range(2):
            np.add.at(met[which], tuple(pairs[which].T), 1)
    same = split.labels[:, None] == split.labels
    for found, able in ((met[0], same & ~np.eye(10, dtype=bool)), (met[1], ~same)):
        assert (found[~able] == 0).all()
        share = able / able.sum(axis=1, keepdims=True)
        drawn = found.sum(axis=1, keepdims=True)
        # As first of a pair an image comes equally often on either side.
        assert np.abs(drawn / steps - 0.2).max() < 5 * np.sqrt(0.2 * 0.8 / steps)
        deviation = np.sqrt(drawn * share * (1 - share))
        assert (np.abs(found - drawn * share) <= 5 * deviation).all()


def test_contrastive_loss_sees_a_quarter_of_each_kind():
    """Of embeddings all alike a positive pair costs 0 and a negative the margin."""
    labels = jnp.asarray(SPLIT.labels[build("pairs")[3]])
    alike = jnp.ones((16, 3)) / np.sqrt(3)
    value = losses.contrastive(alike, labels, margin=0.8, among="adjacent")
    np.testing.assert_allclose(value, 0.4, rtol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 7, 19, 40, 57])
def test_images_come_once_an_epoch(batch_size):
    sampler = ImageSampler(57, batch_size, seed=0)
    assert sampler.steps_per_epoch == -(-57 // batch_size)
    counts = np.zeros(57, int)
    for step in range(3 * sampler.steps_per_epoch):
        batch = sampler[step]
        assert len(set(batch.tolist())) == batch_size
        counts[batch] += 1
        assert np.ptp(counts) <= 1
    if 57 % batch_size == 0:
        assert (counts == 3).all()


@pytest.mark.parametrize(
    ("name", "contents"),
    [
        ("classes", "4 classes x 4"),
        ("distinct", "4 classes x 4"),
        ("categories", "4 classes x 4, 2 of each of 2 categories"),
        ("pairs", "4 pairs of one class + 4 of two"),
        ("images", "16 images of any class"),
    ],
)
def test_what_a_batch_holds_is_said(name, contents):
    assert build(name).contents == contents


@pytest.mark.parametrize(
    ("name", "split", "batch_size", "words"),
    [
        ("pair", SPLIT, 16, "no sampler 'pair'.*classes, distinct, categories, pairs"),
        ("categories", split_of([4] * 8), 16, "has none: .*labels.csv"),
        ("images", SPLIT, 58, "A batch of 58 cannot be drawn from 57 images"),
        ("images", SPLIT, 0, "A batch of 0"),
        ("pairs", SPLIT, 18, "batch of 18 .* 16 or 20"),
        ("pairs", SPLIT, 0, "batch of 0 .* is 4"),
        ("pairs", split_of([4, 1, 1]), 4, "at least two classes .* 4 of 1 such"),
        ("pairs", split_of([3, 2]), 12, "needs 6 images, .* there are 5 of 2 such"),
        ("pairs", split_of([1, 1]), 4, "there are 0 of 0 such"),
    ],
)
def test_refused_in_a_sentence(name, split, batch_size, words):
    with pytest.raises(InputError, match=words):
        build(name, split=split, batch_size=batch_size)

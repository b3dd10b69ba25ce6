"""Hashes of what pictures look like: as defined, and all near pairs found."""

import itertools

import numpy as np
import pytest
from PIL import Image

from metricjax.data.checks import perceptual_hash


def scene(seed, side=perceptual_hash.SIDE):
    """A smooth random picture, uint8 [side, side]."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((side, side)))


def drawing(seed):
    """A thin random line on white, as handwriting is."""
    rng = np.random.default_rng(seed)
    image = np.full((perceptual_hash.SIDE, perceptual_hash.SIDE), 255, np.uint8)
    path = 16 + np.cumsum(rng.integers(-1, 2, (60, 2)), axis=0)
    image[tuple(np.clip(path, 4, 27).T)] = 0
    return image


def test_the_hash_is_that_of_the_definition():
    image = scene(0)
    place = np.arange(32)
    spectrum = np.zeros((32, 32))
    for u, v in itertools.product(range(32), repeat=2):
        wave = np.outer(
            np.cos(np.pi * u * (2 * place + 1) / 64),
            np.cos(np.pi * v * (2 * place + 1) / 64),
        )
        scale = (2 if u else 1) * (2 if v else 1) / 1024
        spectrum[u, v] = np.sqrt(scale) * (wave * image).sum()
    order = sorted(
        itertools.product(range(32), repeat=2), key=lambda f: (f[0] ** 2 + f[1] ** 2, f)
    )
    lowest = np.rint([spectrum[f] for f in order[1:65]])
    bits = lowest > np.median(lowest)
    expected = sum(int(bit) << k for k, bit in enumerate(bits))
    assert int(perceptual_hash.hashes(image[None])[0]) == expected


def test_a_hash_does_not_depend_on_the_others_nor_on_brightness():
    images = np.stack([scene(seed) for seed in range(50)])
    together = perceptual_hash.hashes(images)
    alone = np.concatenate([perceptual_hash.hashes(image[None]) for image in images])
    np.testing.assert_array_equal(together, alone)
    darker = perceptual_hash.hashes((images // 2).astype(np.uint8))
    assert np.bitwise_count(together ^ darker).max() <= 4


@pytest.mark.parametrize("kind", [scene, drawing])
def test_different_pictures_are_told_apart(kind):
    images = np.stack([kind(seed) for seed in range(300)])
    hashes = perceptual_hash.hashes(images)
    apart = np.bitwise_count(hashes[:, None] ^ hashes)[np.triu_indices(300, 1)]
    assert 28 < apart.mean() < 33 and np.mean(apart <= 5) < 5e-3
    pairs, _ = perceptual_hash.near(hashes, 5)
    assert (perceptual_hash.correlation(images, pairs) < 0.97).all()


@pytest.mark.parametrize("distance", [0, 1, 5, 12])
def test_all_near_pairs_are_found_once(distance):
    rng = np.random.default_rng(distance)
    base = rng.integers(0, 1 << 63, 60, dtype=np.uint64)
    flips = [
        sum(1 << int(b) for b in rng.choice(64, rng.choice([0, 0, 1, 5, 9, 14]), False))
        for _ in range(240)
    ]
    values = np.repeat(base, 4) ^ np.array(flips, np.uint64)
    pairs, left_out = perceptual_hash.near(values, distance)
    apart = np.bitwise_count(values[:, None] ^ values)
    expected = [
        (i, j) for i, j in zip(*np.nonzero(apart <= distance), strict=True) if i < j
    ]
    assert [tuple(pair) for pair in pairs.tolist()] == expected and len(expected) > 0
    assert left_out == 0


@pytest.mark.parametrize("count", [0, 1])
def test_nothing_to_compare(count):
    pairs, left_out = perceptual_hash.near(np.zeros(count, np.uint64), 5)
    assert pairs.shape == (0, 2) and left_out == 0


def test_many_equal_hashes_are_bounded_and_what_is_left_out_counted():
    pairs, left_out = perceptual_hash.near(np.zeros(3000, np.uint64), 2, most=10_000)
    assert 10_000 <= len(pairs) < 13_000
    assert (pairs[:, 0] < pairs[:, 1]).all()
    assert len(np.unique(pairs, axis=0)) == len(pairs)
    assert left_out == 3 * (3000 * 2999 // 2) - len(pairs)


def test_correlation():
    images = np.stack([scene(0), scene(0) // 2, 255 - scene(0), scene(1), 0 * scene(0)])
    pairs = np.array([[0, 0], [0, 1], [0, 2], [0, 3], [0, 4], [4, 4]])
    alike = perceptual_hash.correlation(images, pairs)
    np.testing.assert_allclose(alike[:3], [1, 1, -1], atol=1e-3)
    expected = np.corrcoef(images[0].ravel(), images[3].ravel())[0, 1]
    np.testing.assert_allclose(alike[3], expected, atol=1e-5)
    assert alike[4] == alike[5] == 0
    assert perceptual_hash.correlation(images, np.empty((0, 2), np.int64)).shape == (0,)


def test_only_pictures_of_one_shade_are_blank():
    dot = np.full((32, 32), 255, np.uint8)
    dot[3, 4] = 0
    noise = np.random.default_rng(0).integers(254, 256, (32, 32), dtype=np.uint8)
    images = np.stack([scene(0), drawing(0), 0 * dot, noise, dot])
    assert perceptual_hash.is_blank(images).tolist() == [
        False,
        False,
        True,
        True,
        False,
    ]

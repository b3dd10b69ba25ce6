"""Coarse products: their bound, and the same neighbours as without them, to the bit."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metricjax.evaluation import screening, similarity
from metricjax.evaluation.neighbors import PlacedGallery
from metricjax.evaluation.ranked import Ranked

WIDTH, COUNT = 24, 1511


def unit(rows):
    rows = np.asarray(rows, np.float64)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def normal(count, width=WIDTH, seed=0):
    return np.random.default_rng(seed).normal(size=(count, width))


def near_ties():
    """Rows in swarms so narrow that bfloat16 cannot order their members."""
    rows = normal(40)[np.arange(COUNT) % 40]
    return unit(rows + 3e-4 * normal(COUNT, seed=1))


def duplicates():
    return unit(normal(COUNT // 3 + 1)[np.arange(COUNT) % (COUNT // 3 + 1)])


def rounded_down():
    """Every number a little less than halfway to the next bfloat16, or as much more."""
    exact = jnp.asarray(unit(np.abs(normal(COUNT)) + 1)).astype(jnp.bfloat16)
    up = np.where(np.arange(COUNT) % 2, 1, -1)[:, None] * (2.0**-9 - 2.0**-15)
    return unit(np.asarray(exact, np.float64) * (1 + up))


def nearly_equal():
    """What a collapsed network makes: all rows in a swarm, many of them the same."""
    return unit(np.ones(WIDTH) + 1e-7 * np.sign(normal(COUNT)).round())


GALLERIES = {
    "normal": lambda: unit(normal(COUNT)),
    "off centre": lambda: unit(normal(COUNT) * 0.02 + 1),
    "near ties": near_ties,
    "duplicates": duplicates,
    "rounded down": rounded_down,
    "nearly equal": nearly_equal,
}


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    monkeypatch.setattr(screening, "MOST_GROUPS", 512)
    monkeypatch.setattr(screening, "LEAST_GROUPS", 512)


def searched(rows, *, k=11, queries=700, mesh=None, block=256, order=None):
    """All rows among themselves: `Ranked` of the first queries, by row."""
    order = np.arange(len(rows)) if order is None else order
    labels = (np.arange(len(rows)) % 7).astype(np.int32)
    own = np.argsort(order)[:queries].astype(np.int32)
    index = PlacedGallery(rows[order], labels[order], mesh)
    kept, seen = None, np.zeros(queries, int)
    for some, found in index.search(rows[:queries], labels[:queries], own, k, block):
        kept = kept or Ranked(
            *(np.empty((queries, *part.shape[1:]), part.dtype) for part in found)
        )
        seen[some] += 1
        for whole, part in zip(kept, found, strict=True):
            whole[some] = part
    assert (seen == 1).all()
    return kept, index


@pytest.fixture(scope="module")
def compared():
    """`Ranked` without screening."""
    cache = {}

    def of(name, k=11):
        if (name, k) not in cache:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(screening, "worthwhile", lambda *_: False)
                cache[name, k], index = searched(GALLERIES[name](), k=k)
            assert "screen" not in vars(index)
        return cache[name, k]

    return of


def assert_same(found, expected):
    for name in Ranked._fields:
        got, wanted = getattr(found, name), getattr(expected, name)
        assert got.dtype == wanted.dtype
        np.testing.assert_array_equal(got, wanted, err_msg=name)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("name", GALLERIES)
def test_finds_what_comparing_all_finds(name, dtype, compared, monkeypatch):
    monkeypatch.setattr(screening, "dtype", lambda: jnp.dtype(dtype))
    kept, index = searched(GALLERIES[name]())
    assert index.screen is not None
    assert_same(kept, compared(name))


def test_what_is_compared_is_little_where_it_can_be():
    """Else the tests above would be of the exact search alone."""
    for name, some in (("normal", 1.0), ("off centre", 1.0), ("nearly equal", 0.0)):
        rows = similarity.on_grid(GALLERIES[name]())
        screen = screening.Screen(rows, jnp.dtype("bfloat16"), placed)
        coarse = fetched(screen.launch(rows[:256], 11, None))
        found = screen.compare(rows[:256], np.arange(256, dtype=np.int32), 11, coarse)
        assert np.mean(found.counts > 0) == some
        if some:
            assert found.counts.mean() < 60 and found.counts.min() >= 11


def placed(array, *, replicated):
    return jnp.asarray(array)


def fetched(coarse):
    return screening.Coarse(*map(np.asarray, coarse))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("name", GALLERIES)
def test_coarse_similarities_are_within_the_bound(name, dtype):
    rows = similarity.on_grid(GALLERIES[name]())
    screen = screening.Screen(rows, jnp.dtype(dtype), placed)
    coarse = fetched(screen.launch(rows[:256], 11, None))
    slots = -(-COUNT // 512)
    place = coarse.best.view(np.int32) & (4 - 1)
    exact, mean = rows.astype(np.float64), np.asarray(screen._mean, np.float64)
    of_query = exact[:256] @ mean
    true = np.einsum("qd,qcd->qc", exact[:256], exact[place * 512 + coarse.groups])
    up = 1.01 * (coarse.lengths * screen._length + screen._largest_bias) + 1e-6
    off = np.abs(coarse.best - up[:, None] - true + of_query[:, None])
    bound = screen._bound(coarse, slots)[:, None]
    assert (off <= bound).all()
    assert bound.max() < 0.02
    if name == "rounded down" and dtype == "bfloat16":
        assert off.max() > 0.05 * bound.max()


def test_neither_order_nor_devices_nor_blocks_matter(compared):
    rows, expected = near_ties(), compared("near ties")
    order = np.random.default_rng(2).permutation(COUNT)
    kept, _ = searched(rows, order=order, block=100)
    np.testing.assert_array_equal(kept.similarities, expected.similarities)
    np.testing.assert_array_equal(kept.boundary, expected.boundary)
    np.testing.assert_array_equal(kept.boundary_relevant, expected.boundary_relevant)
    auto = (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh((8,), ("data",), axis_types=auto)
    kept, _ = searched(rows, mesh=mesh, block=64)
    assert_same(kept, expected)


@pytest.mark.parametrize("width", [3, 24, 515])
def test_similarities_are_exact_sums_rounded_once(width):
    """The same by pairs, by products of matrices, and in rational arithmetic."""
    rows = similarity.on_grid(unit(normal(40, width)))
    np.testing.assert_array_less(np.abs(rows - unit(normal(40, width))), 2.0**-26)
    counts = np.array([3, 0, 40, 1])
    others = np.concatenate([[5, 5, 0], np.arange(40), [7]])
    pairs = similarity.of_pairs(rows[:4], rows, counts, others)
    for value, query, other in zip(
        pairs, np.repeat(range(4), counts), others, strict=True
    ):
        products = rows[query].astype(np.float64) * rows[other].astype(np.float64)
        assert value == np.float32(math.fsum(products))
        backwards = sum(products[::-1].tolist())
        assert value == np.float32(backwards)
    whole = (rows.astype(np.float64) @ rows.astype(np.float64).T).astype(np.float32)
    np.testing.assert_array_equal(pairs[3:43], whole[2])


def test_accelerators_compare_by_float32_products():
    """Their program, run here: the same neighbours where none are that near."""
    rows = unit(normal(COUNT))
    labels = np.zeros(COUNT, np.int32)
    own = np.full(64, -1, np.int32)
    index = PlacedGallery(rows, labels, None)
    ((_, exact),) = index._compared(rows[:64], labels[:64], own, 5, 64)
    index.exact_sums = False
    ((some, single),) = index.search(rows[:64], labels[:64], own, 5, 64)
    assert some == slice(0, 64)
    np.testing.assert_array_equal(single.indices, exact.indices)
    np.testing.assert_allclose(single.similarities, exact.similarities, atol=3e-7)

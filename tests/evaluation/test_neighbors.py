"""Exact neighbours: order, ties, own rows, devices and bit-equal duplicates."""

import jax
import numpy as np
import pytest

from metricjax.errors import InputError
from metricjax.evaluation import nearest
from metricjax.evaluation.neighbors import PlacedGallery


def unit_normal(count, width, seed=0):
    rows = np.random.default_rng(seed).normal(size=(count, width))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("k", [1, 7, 101])
@pytest.mark.parametrize("own", [False, True])
def test_equals_a_full_sort(k, own):
    gallery = unit_normal(103, 24)
    queries = gallery[:37]
    own_index = np.arange(37) if own else None
    similarities, indices = nearest(queries, gallery, k, own_index=own_index)
    exact = queries.astype(np.float64) @ gallery.T.astype(np.float64)
    if own:
        exact[np.arange(37), np.arange(37)] = -np.inf
    order = np.argsort(-exact, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(indices, order)
    np.testing.assert_allclose(
        similarities, np.take_along_axis(exact, order, 1), atol=1e-6
    )


def test_ties_come_by_lowest_row_across_tiles():
    one_hot = np.eye(4, dtype=np.float32)[np.arange(5000) % 4]
    signs = np.where(np.arange(5000) % 3, 1, -1).astype(np.float32)
    gallery = one_hot * signs[:, None]
    similarities, indices = nearest(gallery[1:2], gallery, 3000)
    exact = gallery @ gallery[1]
    np.testing.assert_array_equal(indices[0], np.argsort(-exact, kind="stable")[:3000])
    np.testing.assert_array_equal(similarities[0], exact[indices[0]])


@pytest.mark.parametrize(
    "width", [17, 128, *(pytest.param(w, marks=pytest.mark.slow) for w in (2, 3, 515))]
)
def test_duplicates_have_bit_equal_similarities(width):
    """Wherever they stand in the gallery, in any block, on any device."""
    rng = np.random.default_rng(width)
    base = unit_normal(50, width)
    places = rng.permutation(np.arange(2111) % 50)
    gallery = base[places]
    queries = unit_normal(67, width, seed=1)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    seen = []
    for options in ({}, {"block_size": 1}, {"mesh": mesh}):
        similarities, indices = nearest(queries, gallery, 300, **options)
        for row, found in zip(similarities, places[indices], strict=True):
            distinct = set(zip(found.tolist(), row.tolist(), strict=True))
            assert len(distinct) == len(set(found.tolist()))
        seen.append((similarities, indices))
    for similarities, indices in seen[1:]:
        np.testing.assert_array_equal(similarities, seen[0][0])
        np.testing.assert_array_equal(indices, seen[0][1])


def test_boundary_counts_reach_over_the_whole_gallery():
    gallery = np.eye(3, dtype=np.float32)[np.repeat([0, 1, 2], [2, 4000, 7])]
    labels = (np.arange(4009) % 5).astype(np.int32)
    order = np.random.default_rng(0).permutation(4009)
    index = PlacedGallery(gallery[order], labels[order], None)
    queries = np.array([[0.8, 0.6, 0], [0, 0.6, 0.8], [0, 0, 1]], np.float32)
    own = np.array([-1, np.flatnonzero(order == 4002)[0], -1], np.int32)
    ((rows, kept),) = index.search(queries, np.full(3, 2, np.int32), own, 6, 64)
    assert rows == slice(0, 3)
    twos = (labels[2:4002] == 2).sum()
    np.testing.assert_array_equal(kept.boundary, [4000, 6, 7])
    assert kept.boundary_relevant[0] == twos
    assert kept.boundary_relevant[1] == (labels[4003:] == 2).sum()
    assert kept.boundary_relevant[2] == (labels[4002:] == 2).sum()


def test_memory_stays_within_blocks():
    """The compiled program holds no queries x gallery array."""
    from metricjax.evaluation import neighbors, tile_search

    count, width = 40_000, 8
    tiles = (
        jax.ShapeDtypeStruct((20, neighbors.TILE, width), np.float32),
        jax.ShapeDtypeStruct((20, neighbors.TILE), np.int32),
        jax.ShapeDtypeStruct((20, neighbors.TILE), np.int32),
    )
    for depth in (10, 20_000):
        block = neighbors._block_rows(count, 1, depth, 1024)
        queries = (
            jax.ShapeDtypeStruct((block, width), np.float32),
            jax.ShapeDtypeStruct((block,), np.int32),
            jax.ShapeDtypeStruct((block,), np.int32),
        )
        compiled = tile_search.search_block.lower(
            *queries, *tiles, k=depth, mesh=None
        ).compile()
        used = compiled.memory_analysis().temp_size_in_bytes
        assert used < 16 * 4 * neighbors.ELEMENTS_PER_BLOCK


def test_bad_input_is_told_in_a_sentence():
    rows = unit_normal(9, 4)
    with pytest.raises(InputError, match="k is 9, .* between 1 and 8"):
        nearest(rows, rows, 9, own_index=np.arange(9))
    with pytest.raises(InputError, match="k is 0"):
        nearest(rows, rows, 0)
    with pytest.raises(InputError, match="queries row 0 has length 3"):
        nearest(rows * 3, rows, 1)
    with pytest.raises(InputError, match="gallery has 5 numbers a row"):
        nearest(rows, unit_normal(9, 5), 1)
    with pytest.raises(InputError, match="own_index is float"):
        nearest(rows, rows, 1, own_index=np.zeros(9))

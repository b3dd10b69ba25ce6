"""Embeddings laid out in a plane: by their variance, by their neighbours."""

import importlib.util

import numpy as np
from jaxtyping import Float, Int

from metricjax.errors import InputError

# The curve 1 / (1 + a d^(2 b)) by which UMAP turns distance in the plane into how
# likely two points are to be neighbours, for its min_dist of 0.1.
_A, _B = 1.577, 0.895
_PUSHES = 5
_FURTHEST = 4.0


def pca(
    rows: Float[np.ndarray, "n d"],
) -> tuple[Float[np.ndarray, "n 2"], Float[np.ndarray, " 2"]]:
    """The two directions of largest variance.

    Returns:
      (places [n, 2], share of the variance along each); a direction that is lacking is
      0.
    """
    centred = rows - rows.mean(axis=0, dtype=np.float64)
    values, directions = np.linalg.eigh(centred.T @ centred)
    directions = directions[:, ::-1][:, :2]
    # A direction is as good as its opposite: the largest part is made positive.
    largest = np.abs(directions).argmax(axis=0)
    directions = directions * np.sign(directions[largest, np.arange(len(largest))])
    places = np.zeros((len(rows), 2))
    places[:, : directions.shape[1]] = centred @ directions
    shares = np.zeros(2)
    shares[: directions.shape[1]] = np.maximum(values[::-1][:2], 0)
    return places, shares / max(np.maximum(values, 0).sum(), 1e-12)


def need_tsne() -> None:
    """Raises `InputError` where scikit-learn is missing."""
    if importlib.util.find_spec("sklearn") is None:
        raise InputError(
            "A t-SNE needs scikit-learn: pip install 'metricjax[cluster]', or leave "
            "out --tsne."
        )


def tsne(rows: Float[np.ndarray, "n d"], seed: int) -> Float[np.ndarray, "n 2"]:
    """t-SNE of unit rows, at least 4; needs scikit-learn."""
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(rows) - 1) / 3)
    made = TSNE(perplexity=perplexity, init="pca", random_state=seed)
    return made.fit_transform(rows)


def neighbor_graph(
    neighbors: Int[np.ndarray, "n k"],
    similarities: Float[np.ndarray, "n k"],
    start: Float[np.ndarray, "n 2"],
    seed: int,
    epochs: int = 200,
) -> Float[np.ndarray, "n 2"]:
    """Points drawn to their neighbours and pushed away from others.

    The layout of UMAP (McInnes, Healy and Melville, 2018) on neighbours that are known
    already: neighbour j of i counts `exp(-(d_ij - d_i1) / s_i)`, d the Euclidean
    distance and s_i such that the counts of i add up to log2 k, and either way as
    `w + w' - w w'`. All edges of an epoch move at once, so that it is plain arrays.

    Args:
      neighbors: the nearest of each point, -1 where there is none.
      similarities: their cosine similarities.
      start: first places, such as those of `pca`.
      seed: of the points that push.
      epochs: rounds.
    """
    rng = np.random.default_rng(seed)
    one, other, weights = _edges(neighbors, similarities)
    span = np.abs(start).max()
    places = start * (10 / span) if span > 0 else start.copy()
    places = (places + rng.normal(0, 1e-2, places.shape)).astype(np.float32)
    for epoch in range(epochs):
        rate = 1 - epoch / epochs
        taken = rng.random(len(weights), np.float32) < weights
        i, j = one[taken], other[taken]
        apart = places[i] - places[j]
        squares = np.einsum("ed,ed->e", apart, apart)
        powers = np.maximum(squares, 1e-12) ** (_B - 1)
        pull = (-2 * _A * _B) * powers / (1 + _A * powers * squares)
        moves = _clipped(pull[:, None] * apart)
        moved = _summed(i, moves, len(places)) - _summed(j, moves, len(places))
        for _ in range(_PUSHES):
            k = rng.integers(0, len(places), len(i))
            apart = places[i] - places[k]
            squares = np.einsum("ed,ed->e", apart, apart)
            push = (2 * _B) / ((0.001 + squares) * (1 + _A * squares**_B))
            moved += _summed(i, _clipped(push[:, None] * apart), len(places))
        places += rate * moved
    return places


def _clipped(moves):
    return np.clip(moves, -_FURTHEST, _FURTHEST)


def _summed(index, moves, count) -> np.ndarray:
    sums = [np.bincount(index, column, minlength=count) for column in moves.T]
    return np.stack(sums, axis=1).astype(np.float32)


def _edges(neighbors, similarities):
    """(i, j, weight) of every pair of which one is a neighbour of the other."""
    distances = np.sqrt(np.maximum(2 - 2 * similarities.astype(np.float64), 0))
    beyond = np.where(neighbors >= 0, distances - distances[:, :1], np.inf)
    low, high = np.full((2, len(neighbors), 1), [[[1e-6]], [[4.0]]])
    wanted = np.log2(max(neighbors.shape[1], 2))
    for _ in range(24):
        middle = np.sqrt(low * high)
        more = np.exp(-beyond / middle).sum(axis=1, keepdims=True) > wanted
        low, high = np.where(more, low, middle), np.where(more, middle, high)
    weights = np.exp(-beyond / high)
    rows, columns = np.nonzero(neighbors >= 0)
    i, j, weight = rows, neighbors[rows, columns], weights[rows, columns]
    keys = np.minimum(i, j) * len(neighbors) + np.maximum(i, j)
    pairs, which = np.unique(keys, return_inverse=True)
    missing = np.ones(len(pairs))  # prod (1 - w): w + w' - w w' is what it lacks to 1.
    np.multiply.at(missing, which, 1 - weight)
    return pairs // len(neighbors), pairs % len(neighbors), 1 - missing

"""Pairs of images and of classes: how alike they are, what is taken for what."""

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.cluster import hierarchy as trees
from scipy.spatial.distance import squareform

from metricjax.inference.embedder import Embedded
from metricjax.reports.explorer import Confusions, Heat, Histogram

# Images whose similarities to the whole gallery are counted; bins over -1..1, narrow
# since embeddings may be crowded; bins that are drawn.
_COUNTED, _FINE_BINS, _BINS = 2000, 200_000, 80
# Pairs of classes that are listed, examples of each; classes of the heat map.
_PAIRS, _EXAMPLES, _HEATED = 2000, 4, 60
# Images whose similarities to the gallery are held at a time.
_BLOCK = 256


def confusions(
    labels: Int[np.ndarray, " n"],
    queries: Int[np.ndarray, " q"],
    nearest: Int[np.ndarray, " n"],
) -> Confusions:
    """Pairs of classes, those first that are taken for each other most often.

    Args:
      labels: classes of the images.
      queries: images that asked.
      nearest: the nearest neighbour of each image.
    """
    wrong = queries[(labels[queries] != labels[nearest[queries]])]
    asked, answered = labels[wrong], labels[nearest[wrong]]
    pairs = np.sort(np.stack([asked, answered], axis=1), axis=1)
    pairs, which = np.unique(pairs, axis=0, return_inverse=True)
    which = which.reshape(-1)
    sides = (asked != pairs[which, 0]).astype(int) if len(pairs) else asked
    counts = np.zeros((len(pairs), 2), np.int64)
    np.add.at(counts, (which, sides), 1)
    order = np.argsort(-counts.sum(axis=1), kind="stable")[:_PAIRS]
    by_pair = np.argsort(which, kind="stable")
    starts = np.searchsorted(which[by_pair], order)
    examples = np.full((len(order), _EXAMPLES), -1)
    for row, (pair, start) in enumerate(zip(order, starts, strict=True)):
        some = wrong[by_pair[start : start + min(counts[pair].sum(), _EXAMPLES)]]
        examples[row, : len(some)] = some
    return Confusions(pairs[order], counts[order], examples, len(pairs), len(wrong))


def pair_histogram(
    embedded: Embedded,
    labels: Int[np.ndarray, " n"],
    gallery: Bool[np.ndarray, " n"],
    seed: int,
) -> Histogram:
    """Pairs of images by their cosine similarity: of one class, and of two.

    Each of some images with every image of the gallery; all images where they are few.
    """
    asking, found = np.flatnonzero(embedded.valid), np.flatnonzero(gallery)
    some = np.random.default_rng(seed).permutation(asking)[:_COUNTED]
    counts = np.zeros((2, _FINE_BINS), np.int64)
    pictured = embedded.embeddings[found]
    for start in range(0, len(some), _BLOCK):
        rows = some[start : start + _BLOCK]
        products = embedded.embeddings[rows] @ pictured.T
        bins = np.clip((products + 1) * (_FINE_BINS / 2), 0, _FINE_BINS - 1)
        # Those of one class are counted behind the others, the last is of no use.
        same = labels[found] == labels[rows, None]
        bins = bins.astype(np.int32) + _FINE_BINS * same
        bins[found == rows[:, None]] = 2 * _FINE_BINS
        counted = np.bincount(bins.ravel(), minlength=2 * _FINE_BINS + 1)
        counts += counted[:-1].reshape(2, _FINE_BINS)
    return _coarser(*counts, len(some), len(asking))


def _coarser(negative, positive, counted: int, images: int) -> Histogram:
    """The used part of a fine histogram over -1..1 in as many bins as are drawn."""
    used = np.flatnonzero(positive + negative)
    first, last = (used[0], used[-1] + 1) if len(used) else (0, _FINE_BINS)
    width = -(-(last - first) // _BINS)
    count = -(-(last - first) // width)
    starts = first + width * np.arange(count + 1)
    middles = (np.arange(_FINE_BINS) + 0.5) * 2 / _FINE_BINS - 1
    pairs = positive.sum(), negative.sum()
    # A negative pair in the bin of a positive one is below it half of the time.
    below = np.cumsum(negative) - negative / 2
    return Histogram(
        edges=np.minimum(starts, _FINE_BINS) * 2 / _FINE_BINS - 1,
        positive=np.add.reduceat(positive[:last], starts[:-1]),
        negative=np.add.reduceat(negative[:last], starts[:-1]),
        means=tuple(
            float((side * middles).sum() / max(side.sum(), 1))
            for side in (positive, negative)
        ),
        separation=float((positive * below).sum() / np.prod(pairs))
        if all(pairs)
        else 0,
        counted=counted,
        images=images,
    )


def heat(embedded: Embedded, labels: Int[np.ndarray, " n"], found: Confusions) -> Heat:
    """Mean similarity between the classes that are confused most, alike ones together.

    The mean over all pairs of images is the product of the classes' mean embeddings;
    within a class the pairs of an image with itself are taken off.
    """
    count = int(labels.max()) + 1
    often = np.zeros(count, np.int64)
    np.add.at(often, found.pairs, found.counts.sum(axis=1)[:, None])
    sizes = np.bincount(labels[embedded.valid], minlength=count)
    chosen = np.lexsort((-sizes, -often))
    chosen = np.sort(chosen[sizes[chosen] > 0][:_HEATED])
    rows = [embedded.embeddings[embedded.valid & (labels == c)] for c in chosen]
    sums = np.stack([row.sum(axis=0, dtype=np.float64) for row in rows])
    sizes = sizes[chosen]
    means = sums @ sums.T / np.outer(sizes, sizes)
    squares = np.array([np.square(row, dtype=np.float64).sum() for row in rows])
    own = np.square(sums).sum(axis=1) - squares
    pairs = sizes * (sizes - 1)
    within = np.where(pairs > 0, own / np.maximum(pairs, 1), np.nan)
    order = _alike_together(means)
    np.fill_diagonal(means, within)
    return Heat(chosen[order], means[np.ix_(order, order)])


def _alike_together(means: Float[np.ndarray, "c c"]) -> np.ndarray:
    """An order of the classes in which alike ones stand side by side."""
    if len(means) < 3:
        return np.arange(len(means))
    distances = np.maximum(means.max() - means, 0)
    np.fill_diagonal(distances, 0)
    condensed = squareform((distances + distances.T) / 2, checks=False)
    return trees.leaves_list(trees.linkage(condensed, "average", optimal_ordering=True))

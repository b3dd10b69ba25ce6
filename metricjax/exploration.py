"""A split's embeddings seen from every image: what the explorer shows.

Neighbours of every image, where the first right one stands, which classes are taken
for each other, how alike pairs are, and maps. Arrays only; `reports.explorer` makes a
page of them.
"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.cluster import hierarchy as trees
from scipy.spatial.distance import squareform

from metricjax import layouts
from metricjax.data.datasets import Split
from metricjax.embedding import Embedded
from metricjax.evaluation import neighbors
from metricjax.reports.explorer import (
    Confusions,
    Explored,
    Heat,
    Histogram,
    Map,
)

NEIGHBORS = 10
METRICS = ("r_precision", "map@r")
MOST_IMAGES = 60_000
"""Of a larger split whole classes are drawn until there are about as many images."""

# Images whose similarities to the whole gallery are counted; bins over -1..1, narrow
# since embeddings may be crowded; bins that are drawn.
_COUNTED, _FINE_BINS, _BINS = 2000, 200_000, 80
# Pairs of classes that are listed, examples of each; classes of the heat map.
_PAIRS, _EXAMPLES, _HEATED = 2000, 4, 60
# Images whose similarities to the gallery are held at a time.
_BLOCK = 256


def explore(
    embedded: Embedded,
    split: Split,
    per_query: Mapping[str, np.ndarray],
    *,
    seed: int = 0,
    tsne: bool = False,
) -> Explored:
    """All that the explorer shows of a split but its pictures.

    Args:
      embedded: the images' embeddings.
      split: the images.
      per_query: `query` [q], rows of the split, and metrics [q] by name, as
        `evaluation.retrieval` gives them with `per_query=True`; without recall@1 the
        order of the neighbours decides.
      seed: of what is sampled: the pairs that are counted, and classes where there are
        more than `MOST_IMAGES` images.
      tsne: whether to make a t-SNE as well, which needs scikit-learn.
    """
    shown = sample(split.labels, MOST_IMAGES, seed)
    if len(shown) < len(split):
        place = np.full(len(split), -1)
        place[shown] = np.arange(len(shown))
        kept = place[per_query["query"]] >= 0
        per_query = {name: values[kept] for name, values in per_query.items()}
        per_query |= {"query": place[per_query["query"]]}
        embedded = Embedded(embedded.embeddings[shown], embedded.valid[shown])
        split = split.subset(shown)
    labels = split.labels
    gallery = split.is_gallery & embedded.valid
    similarities, nearest = walks(embedded, gallery)
    rank, right, right_similarity = first_right(embedded, labels, gallery, nearest)
    queries = np.asarray(per_query["query"])
    found = confusions(labels, queries, nearest[:, 0])
    right_at_once = per_query.get(
        "recall@1", labels[nearest[queries, 0]] == labels[queries]
    )
    return Explored(
        numbers=shown,
        labels=labels,
        class_names=split.class_names,
        names=split.names,
        categories=split.categories,
        category_names=split.category_names,
        valid=embedded.valid,
        is_gallery=gallery,
        queries=queries,
        metrics={name: np.asarray(per_query[name]) for name in METRICS}
        | {"recall@1": np.asarray(right_at_once, np.float64)},
        neighbors=nearest,
        similarities=similarities,
        rank=rank,
        right=right,
        right_similarity=right_similarity,
        confusions=found,
        histogram=pair_histogram(embedded, labels, gallery, seed),
        heat=heat(embedded, labels, found),
        maps=_maps(embedded, nearest, similarities, seed, tsne),
    )


def sample(labels: Int[np.ndarray, " n"], most: int, seed: int) -> np.ndarray:
    """Indices of whole classes of about `most` images at most, in order; all if few."""
    if len(labels) <= most:
        return np.arange(len(labels))
    sizes = np.bincount(labels)
    drawn = np.random.default_rng(seed).permutation(len(sizes))
    taken = drawn[np.cumsum(sizes[drawn]) <= most]
    taken = taken if len(taken) > 1 else drawn[:2]
    return np.flatnonzero(np.isin(labels, taken))


def walks(
    embedded: Embedded, gallery: Bool[np.ndarray, " n"], count: int = NEIGHBORS
) -> tuple[Float[np.ndarray, "n k"], Int[np.ndarray, "n k"]]:
    """The nearest gallery images of every image, itself apart.

    Returns:
      (similarities, indices); index -1 and similarity 0 for images without embedding.
    """
    asking, found = np.flatnonzero(embedded.valid), np.flatnonzero(gallery)
    position = np.full(len(gallery), -1)
    position[found] = np.arange(len(found))
    count = min(count, len(found) - bool(gallery[asking].any()))
    similarities = np.zeros((len(gallery), max(count, 1)), np.float32)
    indices = np.full((len(gallery), max(count, 1)), -1)
    if count:
        rows = embedded.embeddings
        similarities[asking], nearest = neighbors.nearest(
            rows[asking], rows[found], count, own_index=position[asking]
        )
        indices[asking] = found[nearest]
    return similarities, indices


def first_right(
    embedded: Embedded,
    labels: Int[np.ndarray, " n"],
    gallery: Bool[np.ndarray, " n"],
    nearest: Int[np.ndarray, "n k"],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where in its ranking the first right neighbour of each image stands.

    Args:
      embedded: the images' embeddings.
      labels: their classes.
      gallery: which may be found.
      nearest: the k nearest of each, see `walks`.

    Returns:
      (rank [n] from 1, image [n], similarity [n]); rank 0 and image -1 where there is
      no other image of the class.
    """
    right, similarity = _nearest_of_own_class(embedded, labels, gallery)
    correct = (labels[nearest] == labels[:, None]) & (nearest >= 0)
    among = correct.any(axis=1)
    first = correct.argmax(axis=1)
    rank = np.where(among, first + 1, 0)
    # Of equal ones that which stands first in the list.
    right = np.where(among, nearest[np.arange(len(nearest)), first], right)
    later, found = np.flatnonzero(~among & (right >= 0)), np.flatnonzero(gallery)
    pictured = embedded.embeddings[found]
    for start in range(0, len(later), _BLOCK):
        rows = later[start : start + _BLOCK]
        nearer = embedded.embeddings[rows] @ pictured.T > similarity[rows, None]
        nearer &= found != rows[:, None]
        rank[rows] = np.maximum(nearer.sum(axis=1), nearest.shape[1]) + 1
    return rank, right, similarity


def _nearest_of_own_class(embedded, labels, gallery):
    right = np.full(len(labels), -1)
    similarity = np.zeros(len(labels), np.float32)
    order = np.argsort(labels, kind="stable")
    ends = np.cumsum(np.bincount(labels))
    for members in np.split(order, ends[:-1]):
        members = members[embedded.valid[members]]
        found = members[gallery[members]]
        if not len(found):
            continue
        pictured = embedded.embeddings[found]
        for start in range(0, len(members), _BLOCK):
            rows = members[start : start + _BLOCK]
            products = embedded.embeddings[rows] @ pictured.T
            products[found == rows[:, None]] = -np.inf
            best = products.argmax(axis=1)
            value = products[np.arange(len(rows)), best]
            other = np.isfinite(value)
            right[rows[other]] = found[best[other]]
            similarity[rows[other]] = value[other]
    return right, similarity


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


def _maps(embedded, nearest, similarities, seed, tsne) -> tuple[Map, ...]:
    """Maps of the readable images."""
    readable = np.flatnonzero(embedded.valid)
    place = np.full(len(embedded.valid), -1)
    place[readable] = np.arange(len(readable))
    rows = embedded.embeddings[readable]

    def placed(title, text, points):
        everywhere = np.full((len(embedded.valid), 2), np.nan)
        everywhere[readable] = points
        return Map(title, text, everywhere)

    plane, shares = layouts.pca(rows)
    near = np.where(nearest >= 0, place[nearest], -1)[readable]
    drawn = layouts.neighbor_graph(near, similarities[readable], plane, seed)
    found = [
        placed(
            "Neighbours",
            "Every image is drawn to its nearest neighbours and pushed away from all "
            "others, as UMAP does: what lies together is alike, but the distance "
            "between groups says little.",
            drawn,
        ),
        placed(
            "PCA",
            "The plane in which the embeddings vary most. It holds "
            f"{100 * shares.sum():.0f}% of their variance.",
            plane,
        ),
    ]
    if tsne and len(rows) > 3:
        text = "What lies together is alike, the distance between groups says little."
        found.append(placed("t-SNE", text, layouts.tsne(rows, seed)))
    return tuple(found)

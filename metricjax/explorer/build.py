"""A split's embeddings seen from every image: what the explorer shows.

Neighbours of every image, where the first right one stands, and maps;
`class_similarity` has what is known of pairs. Arrays only; `reports.explorer` makes a
page of them.
"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Float, Int

from metricjax.data.datasets import Split
from metricjax.evaluation import neighbors
from metricjax.explorer import class_similarity, projections
from metricjax.inference.embedder import Embedded
from metricjax.reports.explorer import Explored, Map

NEIGHBORS = 10
METRICS = ("r_precision", "map@r")
MOST_IMAGES = 65_000
"""Of a larger split (SOP has 60,502 images) about as many are drawn, whole classes."""

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
    found = class_similarity.confusions(labels, queries, nearest[:, 0])
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
        histogram=class_similarity.pair_histogram(embedded, labels, gallery, seed),
        heat=class_similarity.heat(embedded, labels, found),
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

    plane, shares = projections.pca(rows)
    near = np.where(nearest >= 0, place[nearest], -1)[readable]
    drawn = projections.neighbor_graph(near, similarities[readable], plane, seed)
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
        found.append(placed("t-SNE", text, projections.tsne(rows, seed)))
    return tuple(found)

"""A small split with embeddings, for tests of what the explorer shows."""

import numpy as np

from metricjax.data.datasets import Split, UnreadableImage
from metricjax.inference.embedder import Embedded

HOSTILE = "</script><script>document.title = 'mine'</script>\"'&\u2028<b>é"


def picture(index: int) -> np.ndarray:
    """A grey square that tells by its shade which image it is."""
    return np.full((24, 30, 3), 40 + 3 * index, np.uint8)


def split(classes=6, images=5, *, unreadable=(), **changes) -> Split:
    """Classes of some images; the first class and image have hostile names."""

    def read(index):
        if index in unreadable:
            raise UnreadableImage(str(index), "it is torn")
        return picture(index)

    names = [f"folder/image {index}.png" for index in range(classes * images)]
    settings = {
        "labels": np.repeat(np.arange(classes), images),
        "class_names": (HOSTILE, *(f"class {c}" for c in range(1, classes))),
        "names": (HOSTILE, *names[1:]),
        "reader": read,
    }
    return Split(**(settings | changes))


def embedded(split: Split, *, spread=0.9, seed=0, unreadable=()) -> Embedded:
    """Unit rows around a direction of each class, so that some queries are wrong."""
    rng = np.random.default_rng(seed)
    middles = rng.normal(size=(split.num_classes, 8))
    rows = middles[split.labels] + spread * rng.normal(size=(len(split), 8))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    valid = np.ones(len(split), bool)
    valid[list(unreadable)] = False
    return Embedded(rows.astype(np.float32), valid)


def per_query(split: Split, embedded: Embedded) -> dict[str, np.ndarray]:
    """What `evaluation.retrieval` says of each query, with numbers to tell apart."""
    queries = np.flatnonzero(split.is_query & embedded.valid)
    share = queries / len(split)
    return {
        "query": queries,
        "recall@1": (queries % 2).astype(float),
        "r_precision": share,
        "map@r": share / 2,
    }


def matrix(embedded, gallery):
    """Similarities to gallery images other than the own one; -inf to the rest."""
    rows = embedded.embeddings.astype(np.float64)
    products = rows @ rows.T
    products[:, ~gallery] = -np.inf
    np.fill_diagonal(products, -np.inf)
    return products


def roles(split, kind):
    """Which images may be found: all; all but some; none of the queries."""
    gallery = np.ones(len(split), bool)
    if kind == "some":
        gallery[::4] = False
    if kind == "apart":
        gallery[: len(split) // 2] = False
    return gallery

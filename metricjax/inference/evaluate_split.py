"""Evaluate a split's embeddings: retrieval by role, clustering, raw-pixel baseline."""

import numpy as np
from jax.sharding import Mesh

from metricjax.config.schema import EvaluationConfig
from metricjax.data import pipeline, transforms
from metricjax.data.datasets import Split
from metricjax.evaluation import clustering, neighbors, retrieval
from metricjax.inference.embedder import Embedded
from metricjax.reports.page import QueryNeighbors

# Side of the images whose pixels are compared, at most.
_PIXEL_SIDE = 32


def evaluate(
    embedded: Embedded,
    split: Split,
    config: EvaluationConfig,
    bootstrap: int,
    devices: Mesh | None = None,
    *,
    by_class: bool = False,
    per_query: bool = False,
) -> dict:
    """`evaluation.retrieval` of a split's queries in its gallery.

    Args:
      bootstrap: resamples of the intervals, 0 for none.
      devices: mesh whose devices share the queries; then call it on all hosts. None:
        each host evaluates everything.
      by_class: also return averages over classes.
      per_query: also return `per_query`, whose `query` are indices in the split.
    """
    queries, gallery, own_index = _roles(embedded, split)
    sides = {} if own_index is None else {
        "gallery": embedded.embeddings[gallery],
        "gallery_labels": split.labels[gallery],
        "own_index": own_index,
    }  # fmt: skip
    results = retrieval(
        embedded.embeddings[queries],
        split.labels[queries],
        recall_at=config.recall_at,
        bootstrap=bootstrap,
        mesh=_several(devices),
        per_class=by_class,
        per_query=per_query,
        **sides,
    )
    results.pop("per_class", None)  # Can be computed from the per-query values.
    if per_query:
        results["per_query"]["query"] = queries[results["per_query"]["query"]]
    return results


def cluster(
    embedded: Embedded,
    split: Split,
    config: EvaluationConfig,
    seed: int,
    devices: Mesh | None = None,
) -> dict:
    """`evaluation.clustering` of all images of a split, as results.json holds it.

    Returns:
      `nmi`, `ami`, `f1`, and the rest under `clustering`; nothing if the config asks
      for none.
    """
    if not config.clustering_restarts:
        return {}
    results = clustering(
        embedded.embeddings[embedded.valid],
        split.labels[embedded.valid],
        seed=seed,
        restarts=config.clustering_restarts,
        mesh=_several(devices),
    )
    scores = {name: results.pop(name) for name in ("nmi", "ami", "f1")}
    return {**scores, "clustering": results}


def _several(devices: Mesh | None) -> Mesh | None:
    """The mesh, or None if it has one device."""
    return devices if devices is not None and devices.size > 1 else None


def evaluate_learners(
    embedded: Embedded, split: Split, config: EvaluationConfig, learners: int
) -> dict[str, list[float] | float]:
    """Recall of each learner of an ensemble alone, and how similar the learners are.

    The embedding is the concatenation of theirs, all of the same norm.

    Returns:
      `recall@1` of each learner, and `self_cosine`, the mean cosine between two
      learners' embeddings of one image: near 1 if they have learnt the same.
    """
    rows = embedded.embeddings
    each = rows.reshape(len(rows), learners, -1) * np.sqrt(learners)
    alone = [
        evaluate(Embedded(each[:, one], embedded.valid), split, config, bootstrap=0)
        for one in range(learners)
    ]
    sums = each[embedded.valid].sum(axis=1, dtype=np.float64)
    pairs = learners * (learners - 1)
    alike = (np.square(sums).sum(axis=1) - learners) / max(pairs, 1)
    return {
        "recall@1": [one["recall@1"] for one in alone],
        "self_cosine": float(np.mean(alike)),
    }


def pixel_floor(
    split: Split, transform: transforms.Transform, skipped: pipeline.SkipLog
) -> float:
    """Recall@1 of cosine similarity between raw pixels: the baseline of training.

    Images are preprocessed as for testing, shrunk to 32 x 32 if larger, minus their
    background (the median of the border), so that dark on light
    and light on dark count alike.
    """
    rows, valid = [], []
    side = min(transform.config.image_size, _PIXEL_SIDE)
    with pipeline.test_batches(split, transform, 256, skipped=skipped) as batches:
        for batch in batches:
            small = [transforms.resize(image, side) for image in batch["images"]]
            ground = [transforms.border_colour(image) for image in small]
            pixels = np.stack(small).astype(np.float32)
            pixels -= np.array(ground, np.float32).reshape(len(small), 1, 1, -1)
            rows.append(pixels.reshape(len(small), -1))
            valid.append(batch["valid"])
    pixels = np.concatenate(rows)[: len(split)]
    # An image of one colour has no direction: give all such the same one.
    pixels[~pixels.any(axis=1)] = 1.0
    pixels /= np.linalg.norm(pixels, axis=1, keepdims=True)
    embedded = Embedded(pixels, np.concatenate(valid)[: len(split)])
    config = EvaluationConfig(recall_at=(1,))
    return evaluate(embedded, split, config, bootstrap=0)["recall@1"]


def sample_queries(
    embedded: Embedded, split: Split, seed: int, count: int = 12
) -> np.ndarray:
    """Sample queries to show, of different classes as far as possible."""
    queries, _, _ = _roles(embedded, split)
    shuffled = np.random.default_rng(seed).permutation(queries)
    _, first = np.unique(split.labels[shuffled], return_index=True)
    return shuffled[np.sort(first)][:count]


def some_classes(wanted: np.ndarray, split: Split, seed: int, most: int) -> np.ndarray:
    """Sample wanted images by whole classes, `most` at most.

    Args:
      wanted: bool [n], which images may be taken.
      split: n images.
      seed: of the order in which classes are taken.
      most: images.

    Returns:
      Their indices, ascending; all that are wanted where they are no more than `most`.
    """
    shuffled = np.random.default_rng(seed).permutation(split.num_classes)
    sizes = np.bincount(split.labels[wanted], minlength=split.num_classes)
    taken = shuffled[np.cumsum(sizes[shuffled]) <= most]
    taken = shuffled[:1] if not len(taken) else taken
    return np.flatnonzero(wanted & np.isin(split.labels, taken))[:most]


def query_neighbors(
    embedded: Embedded, split: Split, queries: np.ndarray, count: int = 10
) -> QueryNeighbors:
    """The nearest neighbours of some queries, as the report shows them."""
    _, gallery, _ = _roles(embedded, split)
    position = np.full(len(split), -1)
    position[gallery] = np.arange(len(gallery))
    own_index = position[queries]
    available = len(gallery) - int((own_index >= 0).any())
    similarities, indices = neighbors.nearest(
        embedded.embeddings[queries],
        embedded.embeddings[gallery],
        min(count, available),
        own_index=own_index,
    )
    indices = gallery[np.asarray(indices)]
    return QueryNeighbors(
        queries=queries,
        neighbors=indices,
        similarities=np.asarray(similarities),
        correct=split.labels[indices] == split.labels[queries][:, None],
    )


def _roles(embedded: Embedded, split: Split):
    """Indices of queries and gallery, and the position of each query in the gallery.

    The third is None if queries and gallery are the same images.
    """
    queries = np.flatnonzero(split.is_query & embedded.valid)
    gallery = np.flatnonzero(split.is_gallery & embedded.valid)
    if np.array_equal(queries, gallery):
        return queries, gallery, None
    position = np.full(len(split), -1)
    position[gallery] = np.arange(len(gallery))
    return queries, gallery, position[queries]

"""How well clusters of the embeddings agree with their classes: NMI, AMI, pair F1."""

from typing import NamedTuple

import numpy as np
from scipy.special import gammaln, xlogy

from metricjax.errors import InputError, suggestion
from metricjax.evaluation.k_means import k_means
from metricjax.evaluation.labels import checked_labels
from metricjax.evaluation.rows import is_integer, unit_rows

MEANS = {
    "arithmetic": lambda a, b: (a + b) / 2,
    "geometric": lambda a, b: np.sqrt(a * b),
}
"""Of the two entropies, by which mutual information is normalised."""


def clustering(
    embeddings,
    labels,
    *,
    seed: int = 0,
    restarts: int = 1,
    iterations: int = 100,
    normalization: str = "arithmetic",
    mesh=None,
) -> dict:
    """Agreement of k-means with the classes, k being their number.

    k-means is `k_means.k_means`: Euclidean, from k-means++. Such numbers depend on its
    first guesses and on k, which is why they stand second to those of retrieval; seed
    and restarts are part of the result.

    Args:
        embeddings: [n, d] floats, rows of unit length within 1e-3. numpy or JAX.
        labels: [n] integers.
        seed: of the first guesses.
        restarts: first guesses, of which the best by the sum of squares counts, >= 1.
        iterations: of k-means, at most, >= 1.
        normalization: "arithmetic" or "geometric", see `agreement`.
        mesh: `jax.sharding.Mesh` over whose devices the rows are spread, or None.

    Returns:
        `nmi`, `ami` and `f1` of `agreement`; how they came about: `clusters` (k),
        `images` (n), `seed`, `restarts`, `normalization`; and of the best k-means
        `inertia`, `iterations`, `converged`.

    Raises:
        InputError: rows that are not finite or not of unit length, shapes or settings
            that do not fit.
    """
    rows = unit_rows(embeddings, "embeddings")
    labels = checked_labels(labels, "labels", len(rows))
    for name, value in (("restarts", restarts), ("iterations", iterations)):
        if not is_integer(value) or value < 1:
            raise InputError(f"{name} is {value}: give a whole number, 1 or more.")
    _check_normalization(normalization)
    count = len(np.unique(labels))
    found = k_means(
        rows, count, seed=seed, restarts=restarts, iterations=iterations, mesh=mesh
    )
    return {
        **agreement(labels, found.assigned, normalization=normalization),
        "clusters": count,
        "images": len(rows),
        "seed": seed,
        "restarts": restarts,
        "normalization": normalization,
        "inertia": found.inertia,
        "iterations": found.iterations,
        "converged": bool(found.converged),
    }


def agreement(labels, clusters, *, normalization: str = "arithmetic") -> dict:
    """How well two partitions of n images agree.

    With I their mutual information, H their entropies, M the arithmetic or the
    geometric mean, and E[I] the mutual information expected of partitions with the same
    sizes by chance,

        nmi  I / M(H(labels), H(clusters))
        ami  (I - E[I]) / (M(H(labels), H(clusters)) - E[I])
        f1   2 P R / (P + R)  over pairs of images: P of the pairs in one cluster are of
             one class, R of the pairs of one class are in one cluster.

    Pairs are counted in whole numbers, from the counts of (class, cluster) that occur.

    Args:
        labels: [n] integers, the classes.
        clusters: [n] integers.
        normalization: "arithmetic" (2 I / (H + H), as in most code of the field) or
            "geometric".

    Returns:
        `nmi`, `ami`, `f1`. Two partitions that are one group each agree wholly.

    Raises:
        InputError: lengths that differ, or another normalization.

    Source:
        F1: Oh Song et al., Deep Metric Learning via Lifted Structured Feature Embedding
        (CVPR 2016). AMI: Vinh, Epps and Bailey, Information Theoretic Measures for
        Clusterings Comparison (2010).
    """
    _check_normalization(normalization)
    labels = checked_labels(labels, "labels", np.size(labels))
    table = _Table.of(labels, checked_labels(clusters, "clusters", len(labels)))
    together = _pairs(table.both)
    paired = _pairs(table.classes) + _pairs(table.clusters)
    f1 = 2 * together / paired if paired else 1.0
    if len(table.classes) == len(table.clusters) == 1:
        return {"nmi": 1.0, "ami": 1.0, "f1": f1}
    entropies = _entropy(table.classes), _entropy(table.clusters)
    mean = MEANS[normalization](*entropies)
    shared = max(sum(entropies) - _entropy(table.both), 0.0)
    chance = _chance(table.classes, table.clusters)
    return {
        "nmi": float(shared / mean) if mean else 0.0,
        "ami": float((shared - chance) / (mean - chance)) if mean > chance else 0.0,
        "f1": f1,
    }


class _Table(NamedTuple):
    """Numbers of images: of each class, each cluster, and of each two that meet."""

    classes: np.ndarray
    clusters: np.ndarray
    both: np.ndarray

    @classmethod
    def of(cls, labels: np.ndarray, clusters: np.ndarray) -> "_Table":
        _, label = np.unique(labels, return_inverse=True)
        _, cluster = np.unique(clusters, return_inverse=True)
        meeting = label.astype(np.int64) * (cluster.max() + 1) + cluster
        both = np.unique(meeting, return_counts=True)[1]
        return cls(np.bincount(label), np.bincount(cluster), both)


def _pairs(counts: np.ndarray) -> int:
    """Unordered pairs within the groups."""
    counts = counts.astype(np.int64)
    return int(np.sum(counts * (counts - 1) // 2))


def _entropy(counts: np.ndarray) -> float:
    """In nats, of groups of so many members."""
    shares = counts / counts.sum()
    return float(-np.sum(xlogy(shares, shares)))


def _chance(classes: np.ndarray, clusters: np.ndarray) -> float:
    """E[I] of partitions of these sizes: a class and a cluster meet hypergeometrically.

    Groups of one size have the same share in it, so that sizes count and not groups.
    """
    total = int(classes.sum())
    sizes, times = np.unique(classes, return_counts=True)
    others, other_times = np.unique(clusters, return_counts=True)
    log_factorial = gammaln(np.arange(total + 1) + 1.0)
    chance = 0.0
    for a, many in zip(sizes.tolist(), times.tolist(), strict=True):
        for b, often in zip(others.tolist(), other_times.tolist(), strict=True):
            met = np.arange(max(1, a + b - total), min(a, b) + 1)
            log_probability = (
                log_factorial[[a, b, total - a, total - b]].sum()
                - log_factorial[total]
                - log_factorial[met]
                - log_factorial[a - met]
                - log_factorial[b - met]
                - log_factorial[total - a - b + met]
            )
            shares = met / total * np.log(total * met / (a * b))
            chance += many * often * float(np.exp(log_probability) @ shares)
    return chance


def _check_normalization(normalization: str) -> None:
    if normalization not in MEANS:
        raise InputError(
            f"normalization is {normalization!r}"
            f"{suggestion(str(normalization), list(MEANS))}: choose "
            f"{' or '.join(MEANS)}."
        )

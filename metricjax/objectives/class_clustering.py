"""Groups of classes for hierarchical proxies (HPL), level by level.

Groups come from k-means of the fine proxies, repeated every few epochs under stable
numbers, or from the categories of a data set. Runs on the host between steps and
returns the parents that `losses.hierarchical_proxy` takes.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float
from scipy.optimize import linear_sum_assignment

from metricjax.errors import InputError
from metricjax.evaluation.k_means import k_means
from metricjax.losses._kernels import numerics


class Clusters(NamedTuple):
    """One level above the classes.

    Attributes:
      parent: int32 [c], class -> cluster in 0..k-1; no cluster is empty.
      centroids: float32 [k, d], initial values of the coarse proxies; of unit length
        unless raw proxies were clustered.
    """

    parent: np.ndarray
    centroids: np.ndarray


def cluster(
    proxies: ArrayLike,
    counts: Sequence[int],
    *,
    seed: int,
    previous: Sequence[ArrayLike] | None = None,
    normalize: bool = True,
    restarts: int = 1,
) -> tuple[Clusters, ...]:
    """Cluster the classes by k-means of their proxies, then the clusters, and so on.

    The same proxies, settings and seed give the same clusters. An empty cluster gets
    the row that is farthest from the centroid of its own cluster.

    Args:
      proxies: the fine proxies [c, d], one per class.
      counts: clusters per level, from the finest grouping up; each between 1 and the
        number of rows it groups: the classes, then the clusters of the level below.
      seed: of the k-means initialisation.
      previous: current centroids or learnt coarse proxies of each level [k, d]. New
        clusters take the numbers of the most similar old ones, see `match`, so that
        learnt proxies and their optimizer state stay meaningful.
      normalize: cluster proxies of unit length; otherwise as they are. The paper does
        not say which.
      restarts: initialisations of k-means, of which the best result is kept.

    Returns:
      `Clusters` per level; every `parent` maps the classes themselves.

    Raises:
      InputError: a count out of range, non-finite proxies, or `previous` of another
        shape than the result.
    """
    rows = _check_proxies(proxies, counts, previous, restarts)
    parent, levels = np.arange(len(rows)), []
    for number, count in enumerate(counts):
        if not 1 <= count <= len(rows):
            raise InputError(
                f"level {number + 1} cannot have {count} clusters: it groups "
                f"{len(rows)}, so choose 1 to {len(rows)}."
            )
        rows = _unit(rows) if normalize else rows
        level_seed = np.random.SeedSequence([seed, number]).generate_state(1)[0]
        assigned = _k_means(rows, count, int(level_seed), restarts, normalize)
        means = _means(rows, assigned, count)
        means = _unit(means) if normalize else means
        if previous is not None:
            order = match(means, previous[number], normalize=normalize)
            assigned = order[assigned]
            means[order] = means.copy()
        # The next level clusters these means; parents are composed down to classes.
        parent, rows = assigned[parent], means
        levels.append(Clusters(parent.astype(np.int32), means.astype(np.float32)))
    return tuple(levels)


def match(
    centroids: ArrayLike, previous: ArrayLike, *, normalize: bool = True
) -> np.ndarray:
    """Match new clusters one to one with old ones.

    Maximises the sum of inner products, which minimises the sum of squared distances
    (the Hungarian algorithm).

    Args:
      centroids: of the new clusters [k, d].
      previous: centroids or learnt proxies of the old clusters [k, d].
      normalize: compare unit vectors.

    Returns:
      int [k]: the number of the old cluster for each new one, all different.

    Raises:
      InputError: the shapes differ.
    """
    new, old = np.asarray(centroids, np.float64), np.asarray(previous, np.float64)
    if new.shape != old.shape or new.ndim != 2:
        raise InputError(
            f"new and previous clusters must be of the same shape [k, d], but they are "
            f"{list(new.shape)} and {list(old.shape)}."
        )
    if normalize:
        new, old = _unit(new), _unit(old)
    return linear_sum_assignment(new @ old.T, maximize=True)[1]


def from_categories(labels: ArrayLike, categories: ArrayLike) -> np.ndarray:
    """Class parents from the categories of a data set.

    Args:
      labels: class of each image [n]; every class of 0..c-1 occurs.
      categories: category of each image [n], any integers.

    Returns:
      int32 [c]: class -> category in 0..k-1, numbered by ascending value.

    Raises:
      InputError: lengths or types do not match, a class has no images or images of
        several categories.
    """
    labels, categories = np.asarray(labels), np.asarray(categories)
    if labels.ndim != 1 or labels.shape != categories.shape or not len(labels):
        raise InputError(
            f"labels [n] and categories [n] of the same images are needed, but their "
            f"shapes are {list(labels.shape)} and {list(categories.shape)}."
        )
    for name, array in (("labels", labels), ("categories", categories)):
        if not np.issubdtype(array.dtype, np.integer):
            raise InputError(f"{name} must be integers, but they are {array.dtype}.")
    classes, first = np.unique(labels, return_index=True)
    if classes[0] < 0:
        raise InputError(f"labels must be 0 or more, but there is a {classes[0]}.")
    if classes[-1] != len(classes) - 1:
        missing = np.flatnonzero(classes != np.arange(len(classes)))[0]
        raise InputError(
            f"labels must be 0 to {classes[-1]} without gaps, but class {missing} has "
            "no image."
        )
    of_class = categories[first]
    differs = np.flatnonzero(categories != of_class[labels])
    if differs.size:
        image = differs[0]
        raise InputError(
            f"a class belongs to one category, but class {labels[image]} has images of "
            f"{of_class[labels[image]]} and {categories[image]}."
        )
    return np.unique(of_class, return_inverse=True)[1].astype(np.int32)


def centroids(
    proxies: Float[Array, "c d"],
    parent: ArrayLike,
    count: int | None = None,
    *,
    normalize: bool = True,
) -> Float[Array, "k d"]:
    """Mean of the proxies of each group: coarse proxies without parameters.

    Computed in every step, it passes the coarse level's gradient on to the fine
    proxies; wrap it in `jax.lax.stop_gradient` to prevent that.

    Args:
      proxies: the fine proxies [c, d].
      parent: class -> group [c].
      count: number of groups k; None: max(parent) + 1, which must not be traced.
      normalize: unit vectors, and their mean scaled to unit length; otherwise the plain
        mean.

    Returns:
      float32 [k, d]; zeros for a group without members.

    Raises:
      InputError: not one parent per proxy, or a traced `parent` without `count`.
    """
    if proxies.ndim != 2 or np.shape(parent) != proxies.shape[:1]:
        raise InputError(
            f"proxies [c, d] and a parent for each [c] are needed, but their shapes "
            f"are {list(proxies.shape)} and {list(np.shape(parent))}."
        )
    if count is None:
        if isinstance(parent, jax.core.Tracer):
            raise InputError("count is needed where the parents are traced.")
        count = int(np.max(parent)) + 1
    proxies = proxies.astype(jnp.float32)
    members = numerics.unit(proxies) if normalize else proxies
    sums = jax.ops.segment_sum(members, jnp.asarray(parent), count)
    sizes = jax.ops.segment_sum(jnp.ones(len(proxies)), jnp.asarray(parent), count)
    means = sums / jnp.maximum(sizes, 1.0)[:, None]
    return numerics.unit(means) if normalize else means


def _check_proxies(proxies, counts, previous, restarts) -> np.ndarray:
    """Check the arguments of `cluster`; the proxies as float64 [c, d]."""
    rows = np.asarray(proxies, np.float64)
    if rows.ndim != 2 or not rows.size:
        raise InputError(
            f"proxies must be of shape [c, d], but their shape is {list(rows.shape)}."
        )
    if restarts < 1:
        raise InputError(f"restarts must be 1 or more, but it is {restarts}.")
    if not np.isfinite(rows).all():
        raise InputError(
            "the proxies cannot be clustered: some of their numbers are not finite."
        )
    if previous is not None and len(previous) != len(counts):
        raise InputError(
            f"previous has {len(previous)} levels, but there are {len(counts)} counts."
        )
    return rows


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.sqrt(np.sum(rows**2, axis=1, keepdims=True) + 1e-12)


def _means(rows, assigned, count) -> np.ndarray:
    """Mean of the rows of each cluster [k, d]; 0 for an empty one."""
    sums = np.zeros((count, rows.shape[1]))
    np.add.at(sums, assigned, rows)
    return sums / np.maximum(np.bincount(assigned, minlength=count), 1)[:, None]


def _k_means(rows, count, seed, restarts, unit) -> np.ndarray:
    """Cluster of each row: int64 [c]; none of 0..count-1 is empty."""
    clusters = k_means(
        rows.astype(np.float32), count, seed=seed, restarts=restarts, unit=unit
    )
    # With fewer distinct rows than clusters, k-means leaves some of them empty.
    return _fill_empty(rows, clusters.assigned, count)


def _fill_empty(rows, assigned, count) -> np.ndarray:
    """Move the row farthest from its centroid into each empty cluster."""
    assigned = assigned.copy()
    for empty in np.flatnonzero(np.bincount(assigned, minlength=count) == 0):
        sizes = np.bincount(assigned, minlength=count)
        means = _means(rows, assigned, count)
        offsets = np.sum((rows - means[assigned]) ** 2, axis=1)
        offsets[sizes[assigned] < 2] = -1.0  # Never empties another cluster.
        assigned[np.argmax(offsets)] = empty
    return assigned

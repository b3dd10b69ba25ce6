"""The hierarchy under hierarchical proxies: which classes form a group, level by level.

Runs on the host, between steps: groups are found by k-means of the fine proxies, every
few epochs anew and under the same numbers as before, or are given by the categories of
a dataset. What comes out are the parents of the levels of `losses.hierarchical_proxy`.
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
      centroids: float32 [k, d], of unit length unless raw proxies were clustered: what
        coarse proxies start from.
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
    """Groups classes by k-means of their proxies, and the groups again, level by level.

    The same proxies, settings and seed give the same clusters. A cluster that would be
    empty takes the member farthest from the centroid of its own cluster.

    Args:
      proxies: the fine proxies [c, d], one for each class.
      counts: clusters of each level, from the finest grouping up; each between 1 and
        what it groups: the classes, then the clusters of the level before.
      seed: of the first guesses.
      previous: the centroids or the learnt coarse proxies of each level so far [k, d].
        The new clusters are numbered so that each has the number of the most similar
        old one (the assignment whose inner products add up to the most), so that the
        proxies learnt under these numbers, and their optimiser's averages, go on.
      normalize: cluster the proxies made unit; otherwise as they are. The paper does
        not say which.
      restarts: k-means runs from this many first guesses and keeps the best.

    Returns:
      `Clusters` of each level; every `parent` is of the classes themselves.

    Raises:
      InputError: a count out of its range, proxies that are not finite, or `previous`
        with other shapes than what is made.
    """
    rows = _proxies(proxies)
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
        middles = _means(rows, assigned, count)
        middles = _unit(middles) if normalize else middles
        if previous is not None:
            order = match(middles, previous[number], normalize=normalize)
            assigned = order[assigned]
            middles[order] = middles.copy()
        parent, rows = assigned[parent], middles
        levels.append(Clusters(parent.astype(np.int32), middles.astype(np.float32)))
    return tuple(levels)


def match(
    centroids: ArrayLike, previous: ArrayLike, *, normalize: bool = True
) -> np.ndarray:
    """Old numbers for new clusters.

    Args:
      centroids: of the new clusters [k, d].
      previous: centroids or learnt proxies of the old ones [k, d].
      normalize: compare them made unit.

    Returns:
      [k]: the number of the old cluster that each new one continues, all different,
      chosen so that the inner products add up to the most (equally: the squared
      distances to the least).

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
    """The parents that a dataset's categories give.

    Args:
      labels: class of each image [n], with every class of 0..c-1 among them.
      categories: category of each image [n], any integers.

    Returns:
      int32 [c]: class -> category in 0..k-1, numbered in the order of their values.

    Raises:
      InputError: lengths or types that do not fit, a class without images, or one whose
        images are of several categories.
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
    """Mean of the proxies of each group: coarse proxies that need no learning.

    Made anew in every step, it hands the coarse level's gradient to the fine proxies;
    `jax.lax.stop_gradient` around it keeps that from them.

    Args:
      proxies: the fine proxies [c, d].
      parent: class -> group [c].
      count: of groups, k; by default what `parent` names, whose values must then be
        known (not traced).
      normalize: the unit mean of the proxies made unit; otherwise the plain mean.

    Returns:
      float32 [k, d]; zeros for a group without members.

    Raises:
      InputError: another number of parents than of proxies, or a traced `parent`
        without `count`.
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


def _proxies(proxies) -> np.ndarray:
    rows = np.asarray(proxies, np.float64)
    if rows.ndim != 2 or not rows.size:
        raise InputError(
            f"proxies must be of shape [c, d], but their shape is {list(rows.shape)}."
        )
    return rows


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.sqrt(np.sum(rows**2, axis=1, keepdims=True) + 1e-12)


def _means(rows, assigned, count) -> np.ndarray:
    """Mean of the members of each cluster; 0 where it has none."""
    sums = np.zeros((count, rows.shape[1]))
    np.add.at(sums, assigned, rows)
    return sums / np.maximum(np.bincount(assigned, minlength=count), 1)[:, None]


def _k_means(rows, count, seed, restarts, unit) -> np.ndarray:
    """Cluster of each row [c]; all of 0..count-1 have members."""
    found = k_means(
        rows.astype(np.float32), count, seed=seed, restarts=restarts, unit=unit
    )
    # Fewer distinct rows than clusters leave some of them empty.
    return _without_empty(rows, found.assigned, count)


def _without_empty(rows, assigned, count) -> np.ndarray:
    """Give each empty cluster the farthest member of one that has several."""
    assigned = assigned.copy()
    for empty in np.flatnonzero(np.bincount(assigned, minlength=count) == 0):
        sizes = np.bincount(assigned, minlength=count)
        means = _means(rows, assigned, count)
        offsets = np.sum((rows - means[assigned]) ** 2, axis=1)
        offsets[sizes[assigned] < 2] = -1.0
        assigned[np.argmax(offsets)] = empty
    return assigned

"""Hierarchical proxies (HPL): a proxy loss on the classes and on groups of them."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from metricjax.errors import InputError
from metricjax.losses._kernels.inputs import check_labelled
from metricjax.losses._kernels.tiling import Tiling
from metricjax.losses.proxies import check_labels, proxy_anchor


class Level(NamedTuple):
    """One level of the hierarchy.

    Attributes:
      proxies: [c_l, d].
      parent: class -> its proxy at this level [c], in 0..c_l-1; None where every class
        has its own, as on the finest level.
    """

    proxies: Float[Array, "k d"]
    parent: Int[Array, " c"] | None = None


def hierarchical_proxy(
    embeddings: Float[Array, "b d"],
    labels: Int[Array, " b"],
    levels: Sequence[Level],
    *,
    level_weights: Sequence[float] = (1.0, 0.1),
    loss: Callable[..., Float[Array, ""]] = proxy_anchor,
    tiling: Tiling = Tiling(),
) -> Float[Array, ""]:
    """A weighted sum of one proxy loss over the levels of a hierarchy of the classes.

    `sum_l w_l loss(x, parent_l(y), proxies_l)`; each level averages as its loss does,
    over the proxies and the groups of that level.

    Args:
      embeddings: [b, d], expected to be of unit length.
      labels: classes [b] in 0..c-1.
      levels: the finest first, one for each weight; `objectives.class_clustering`
        finds the parents. Coarse proxies are either parameters of their own, which then
        take all of their level's gradient, or its `centroids` of the fine ones, through
        which it reaches those.
      level_weights: w_l, at least 0. A level whose weight is the number 0 is left out,
        as during the epochs before the first clusters.
      loss: of one level, `(embeddings, labels, proxies, *, tiling) -> scalar`:
        `proxy_anchor`, `proxy_nca`, or one of them with other settings through
        `functools.partial`.
      tiling: memory and precision, see `losses.Tiling`.

    Returns:
      A float32 scalar.

    Raises:
      InputError: numbers of levels and weights that differ, a negative weight, levels
        with parents for different numbers of classes, a label or parent out of range,
        or what the loss of a level raises.

    Source: Yang et al., "Hierarchical Proxy-based Loss for Deep Metric Learning" (arXiv
    2103.13538), equation 3; weights 1 and 0.1.
    """
    if len(levels) != len(level_weights):
        raise InputError(
            f"there are {len(levels)} levels but {len(level_weights)} level_weights: "
            "give one for each."
        )
    fixed = [weight for weight in level_weights if isinstance(weight, int | float)]
    if any(weight < 0 for weight in fixed):
        raise InputError(
            f"level_weights must be 0 or more, but one of them is {min(fixed)}."
        )
    check_labelled("embeddings", embeddings, labels)
    classes = {_number_of_classes(level) for level in levels}
    if len(classes) > 1:
        raise InputError(
            f"all levels must be over the same classes, but they are over "
            f"{' and '.join(map(str, sorted(classes)))} of them."
        )
    total = jnp.float32(0.0)
    for weight, level in zip(level_weights, levels, strict=True):
        at_level = _labels_at(level, labels)
        if isinstance(weight, int | float) and weight == 0:
            continue
        total += weight * loss(embeddings, at_level, level.proxies, tiling=tiling)
    return total


def _number_of_classes(level: Level) -> int:
    return len(level.proxies if level.parent is None else level.parent)


def _labels_at(level: Level, labels: Int[Array, " b"]) -> Int[Array, " b"]:
    """The proxy of each image at this level; -1 for a label out of range."""
    count = _number_of_classes(level)
    check_labels(labels, count, "classes")
    if level.parent is None:
        return labels
    if level.parent.ndim != 1 or not jnp.issubdtype(level.parent.dtype, jnp.integer):
        raise InputError(
            f"the parents of a level must be integers of shape [c], but they are "
            f"{level.parent.dtype} of shape {list(level.parent.shape)}."
        )
    check_labels(level.parent, len(level.proxies), "proxies at their level")
    labels = jnp.asarray(labels, jnp.int32)
    known = (labels >= 0) & (labels < count)
    parent = jnp.asarray(level.parent, jnp.int32)
    return jnp.where(known, parent[jnp.where(known, labels, 0)], -1)

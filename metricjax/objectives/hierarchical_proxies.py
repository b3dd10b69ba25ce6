"""Hierarchical proxies (HPL) in a run: settings, parameters, state and regrouping.

Fine proxies, and coarse ones if learnt, are parameters. The class -> coarse proxy map
is state beside them, recomputed on the host between steps as a function of the
parameters and (seed, step), so that a resumed run gets the same groups.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from metricjax.errors import InputError
from metricjax.losses import (
    Level,
    Tiling,
    hierarchical_proxy,
    proxy_anchor,
    proxy_nca,
)
from metricjax.objectives import class_clustering

CHOICES = {
    "base": ("proxy_anchor", "proxy_nca"),
    "hierarchy": ("kmeans", "category"),
    "coarse": ("learnt", "centroid"),
}


@dataclass(frozen=True, eq=False)
class Classes:
    """What losses need to know about the training classes.

    Attributes:
      count: c; labels are 0..c-1.
      categories: int [c], class -> its coarser group in 0..k-1, or None.
    """

    count: int
    categories: np.ndarray | None = None


@dataclass(frozen=True)
class HierarchicalProxy:
    """Settings of the loss in a run.

    Attributes:
      base: the loss of each level, "proxy_anchor" or "proxy_nca".
      level_weights: one for each level, the classes' own first.
      hierarchy: "kmeans" of the fine proxies, or "category": one level, of the groups
        that the data set gives.
      clusters: for "kmeans": groups per level above the classes, in decreasing order.
      coarse: proxies above the classes are "learnt", starting at the centroids of their
        members, or the "centroid" of their members at every step.
      centroid_gradient: let the gradient of a "centroid" level reach the fine proxies.
      warmup: steps with the finest level alone, before the first grouping.
      every: steps between regroupings by "kmeans"; 0: group once.
      spherical: cluster fine proxies of unit length.
      margin, scale: of "proxy_anchor".
      temperature, include_positive: of "proxy_nca".
    """

    base: str = "proxy_anchor"
    level_weights: tuple[float, ...] = (1.0, 0.1)
    hierarchy: str = "kmeans"
    clusters: tuple[int, ...] = (10,)
    coarse: str = "learnt"
    centroid_gradient: bool = False
    warmup: int = 100
    every: int = 0
    spherical: bool = True
    margin: float = 0.1
    scale: float = 32.0
    temperature: float = 1 / 9
    include_positive: bool = True

    def __post_init__(self):
        for name in ("warmup", "every"):
            if getattr(self, name) < 0:
                self._reject(name, "it must be 0 or more")
        if not self.level_weights or min(self.level_weights) <= 0:
            self._reject("level_weights", "each must be above 0")
        if self.hierarchy == "category":
            if len(self.level_weights) != 2:
                self._reject("level_weights", "categories make two levels")
            if self.every:
                self._reject("every", "categories stay what they are, so set it to 0")
            return
        if not self.clusters or min(self.clusters) < 2:
            self._reject("clusters", "each level needs 2 or more")
        if len(self.level_weights) != 1 + len(self.clusters):
            self._reject(
                "level_weights",
                f"with clusters={self.clusters} it must name "
                f"{1 + len(self.clusters)} weights, the classes' own first",
            )

    def _reject(self, name: str, why: str):
        raise InputError(
            f"hierarchical_proxy.{name} is {getattr(self, name)!r}: {why}."
        )

    @property
    def loss(self):
        """The loss function of one level."""
        if self.base == "proxy_anchor":
            return partial(proxy_anchor, margin=self.margin, scale=self.scale)
        return partial(
            proxy_nca,
            temperature=self.temperature,
            include_positive=self.include_positive,
        )

    def counts(self, classes: Classes) -> tuple[int, ...]:
        """Number of proxies per level above the classes.

        Raises:
          InputError: the settings do not fit the classes.
        """
        if self.hierarchy == "category":
            return (self._categories(classes),)
        for below, count in zip(
            (classes.count, *self.clusters), self.clusters, strict=False
        ):
            if count >= below:
                self._reject("clusters", f"{below} cannot make {count} groups")
        return self.clusters

    def _categories(self, classes: Classes) -> int:
        if classes.categories is None:
            self._reject("hierarchy", "the data set has no categories, choose 'kmeans'")
        count = int(np.max(classes.categories)) + 1
        if not 2 <= count < classes.count:
            self._reject(
                "hierarchy",
                f"the {classes.count} classes are of {count} categories, but it takes "
                "at least 2, and fewer than classes",
            )
        return count

    def due(self, step: int) -> bool:
        """Whether the classes are (re)grouped before step `step`, counted from 0."""
        since = step - self.warmup
        return since == 0 or (since > 0 and self.every > 0 and since % self.every == 0)


def init_proxies(config: HierarchicalProxy, fine: Array, counts) -> dict[str, Array]:
    """The parameters: `fine` [c, d]; `coarse1`, ... [k, d] if they are learnt."""
    learnt = counts if config.coarse == "learnt" else ()
    return {"fine": fine} | {
        f"coarse{level}": jnp.zeros((count, fine.shape[1]))
        for level, count in enumerate(learnt, 1)
    }


def init_state(classes: int, counts: tuple[int, ...]) -> dict[str, Array]:
    """The state that is not trained.

    Returns:
      `active`, whether there are groups yet; per level above the classes `parent1`
      int32 [c], class -> group, and `size1` int32 [k], number of classes per group.
    """
    state = {"active": jnp.bool_(False)}
    for level, count in enumerate(counts, 1):
        state[f"parent{level}"] = jnp.zeros(classes, jnp.int32)
        state[f"size{level}"] = jnp.zeros(count, jnp.int32)
    return state


def value(
    config: HierarchicalProxy,
    embeddings: Float[Array, "b d"],
    labels: Int[Array, " b"],
    proxies: Mapping[str, Array],
    state: Mapping[str, Array],
    tiling: Tiling,
) -> Float[Array, ""]:
    """The loss of a batch; before the first grouping, that of the finest level."""
    levels = [Level(proxies["fine"])]
    for level in range(1, len(config.level_weights)):
        parent, count = state[f"parent{level}"], len(state[f"size{level}"])
        coarse = proxies.get(f"coarse{level}")
        if coarse is None:
            fine = proxies["fine"]
            if not config.centroid_gradient:
                fine = jax.lax.stop_gradient(fine)
            coarse = class_clustering.centroids(fine, parent, count)
        levels.append(Level(coarse, parent))
    active = state["active"].astype(jnp.float32)
    own, *above = config.level_weights
    weights = (own, *(weight * active for weight in above))
    return hierarchical_proxy(
        embeddings, labels, levels, level_weights=weights, loss=config.loss,
        tiling=tiling,
    )  # fmt: skip


def check_finite(fine: np.ndarray, done: int) -> None:
    """Raise `InputError` if the fine proxies after `done` steps cannot be grouped."""
    if not np.isfinite(fine).all():
        raise InputError(
            f"the proxies of hierarchical_proxy are not finite after step {done}, so "
            "that they cannot be grouped: lower optimizer.learning_rate or "
            "optimizer.group_rates.proxies."
        )


def regroup(
    config: HierarchicalProxy,
    proxies: Mapping[str, np.ndarray],
    state: Mapping[str, np.ndarray],
    categories: np.ndarray | None,
    seed: int,
    step: int,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Group the classes, on the host.

    Learnt coarse proxies start at the centroids. Later groups take the numbers of the
    most similar current ones, so the proxies and their optimizer state are kept.

    Returns:
      The coarse proxies and the state, as in `init_proxies` and `init_state`.
    """
    fine, active = proxies["fine"], bool(state["active"])
    learnt = [proxies[f"coarse{level}"] for level in range(1, len(proxies))]
    if config.hierarchy == "category":
        centroids = np.asarray(
            class_clustering.centroids(jnp.asarray(fine), categories)
        )
        groups = (
            class_clustering.Clusters(np.asarray(categories, np.int32), centroids),
        )
    else:
        groups = class_clustering.cluster(
            fine,
            config.clusters,
            seed=int(np.random.SeedSequence([seed, step]).generate_state(1)[0]),
            previous=learnt if active and learnt else None,
            normalize=config.spherical,
        )
    if learnt and not active:
        learnt = [group.centroids for group in groups]
    coarse = {f"coarse{level}": rows for level, rows in enumerate(learnt, 1)}
    state = {"active": np.bool_(True)}
    for level, group in enumerate(groups, 1):
        sizes = np.bincount(group.parent, minlength=len(group.centroids))
        state[f"parent{level}"] = group.parent
        state[f"size{level}"] = sizes.astype(np.int32)
    return coarse, state

"""The objective of a run: a weighted sum of losses, with their parameters and state.

Some losses have parameters of their own (proxies), some have state that is not trained
(groups of classes, a memory of past batches). Both live in the train state: `Losses`
initialises them, `objective` and `remember` use them. Losses are listed in `registry`.
"""

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from metricjax.errors import InputError
from metricjax.losses import Tiling
from metricjax.losses._kernels import anchors
from metricjax.losses._kernels.numerics import masked_max, masked_mean, masked_min
from metricjax.models.output import Output
from metricjax.objectives import cross_batch_memory as memories
from metricjax.objectives.cross_batch_memory import MemoryConfig
from metricjax.objectives.hierarchical_proxies import Classes, HierarchicalProxy
from metricjax.objectives.registry import LOSSES, Inputs, Loss, views


@dataclass(frozen=True)
class Term:
    """One loss of the sum: its weight (0 leaves it out) and its settings."""

    weight: float = 1.0
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ObjectiveConfig:
    """Settings of the objective.

    Attributes:
      terms: name of a loss in `LOSSES` -> its weight and settings.
      block_size: anchors per block of the pair losses on each device, see
        `losses.Tiling`; None: all at once.
      matmul_dtype: of the Gram matrix, "float32" or "bfloat16".
      memory: past batches as references of the pair losses, see `MemoryConfig`.
    """

    terms: Mapping[str, Term]
    block_size: int | None = None
    matmul_dtype: str = "float32"
    memory: MemoryConfig = MemoryConfig()

    def __post_init__(self):
        unknown = sorted(set(self.terms) - set(LOSSES))
        if unknown:
            raise InputError(
                f"objective.terms names {unknown[0]!r}, but the losses are "
                f"{', '.join(sorted(LOSSES))}."
            )
        if not any(term.weight for term in self.terms.values()):
            raise InputError(
                "objective.terms leaves nothing to minimise: give at least one loss a "
                "weight other than 0."
            )
        if self.matmul_dtype not in ("float32", "bfloat16"):
            raise InputError(
                f"objective.matmul_dtype is {self.matmul_dtype!r}: choose float32 or "
                "bfloat16."
            )
        if self.block_size is not None and self.block_size < 1:
            raise InputError(
                f"objective.block_size is {self.block_size}: it must be 1 or more."
            )
        for _, loss, _, options in self.losses():
            if loss.check:
                loss.check(**options)
        if self.memory.size and not self.remembered:
            able = ", ".join(name for name, loss in LOSSES.items() if loss.against)
            raise InputError(
                f"objective.memory.size is {self.memory.size}, but no loss of "
                f"objective.terms looks into the memory: set it to 0, or add one of "
                f"{able}."
            )

    def losses(self) -> Iterator[tuple[str, Loss, float, dict[str, Any]]]:
        """(name, loss, weight, all its settings) of each loss with a weight."""
        for name, term in self.terms.items():
            if term.weight:
                loss = LOSSES[name]
                yield name, loss, term.weight, {**loss.options, **term.options}

    def tiling(self, mesh: Mesh | None = None) -> Tiling:
        """How pair losses process their rows on these devices.

        Without blocks the compiler partitions the rows; with blocks each device loops
        over its own rows.
        """
        dtype = jnp.dtype(self.matmul_dtype)
        several = mesh is not None and mesh.size > 1
        if self.block_size is None or not several:
            return Tiling(self.block_size, dtype=dtype)
        return Tiling(self.block_size, mesh, dtype)

    @property
    def classifies(self) -> bool:
        """Whether the model needs a classifier."""
        return bool(self.terms.get("softmax", Term(0.0)).weight)

    @property
    def remembered(self) -> tuple[str, ...]:
        """The views that the memory keeps, see `registry.views`."""
        if not self.memory.size:
            return ()
        kept = {loss.compares for _, loss, _, _ in self.losses() if loss.against}
        return tuple(sorted(kept))

    @property
    def hierarchy(self) -> HierarchicalProxy | None:
        """The settings of hierarchical proxies, or None without that loss."""
        for name, _, _, options in self.losses():
            if name == "hierarchical_proxy":
                return HierarchicalProxy(**options)
        return None


@dataclass(frozen=True, eq=False)
class Losses:
    """Initialises parameters and state of a run's losses.

    Attributes:
      config: the settings.
      classes: the training classes.
      output: the shapes of the model's output for a training batch.
    """

    config: ObjectiveConfig
    classes: Classes
    output: Output

    def init_proxies(self, key: Array) -> dict[str, dict[str, Array]]:
        """The parameters of the losses, by loss and name; {} if none has any.

        Each loss draws the same values from `key` whichever others there are.
        """
        width = self.output.embedding.shape[-1]
        return {
            name: loss.proxies(
                jax.random.fold_in(key, zlib.crc32(name.encode())),
                self.classes,
                width,
                **options,
            )
            for name, loss, _, options in self.config.losses()
            if loss.proxies
        }

    def init_state(self) -> dict[str, Any]:
        """Their state that is not trained: by loss and name, and the `memory`."""
        state = {
            name: loss.state(self.classes, **options)
            for name, loss, _, options in self.config.losses()
            if loss.state
        }
        if self.config.remembered:
            rows = jax.eval_shape(partial(_rows, self.config), self.output)
            state["memory"] = memories.empty(self.config.memory.size, rows)
        return state

    def check(self) -> None:
        """Raise the `InputError` that a step would raise, by tracing it only."""

        def value(output, labels, key):
            return objective(
                self.config,
                output,
                labels,
                proxies=self.init_proxies(key),
                state=self.init_state(),
            )

        labels = jax.ShapeDtypeStruct(self.output.embedding.shape[:1], jnp.int32)
        jax.eval_shape(value, self.output, labels, jax.random.key(0))


def objective(
    config: ObjectiveConfig,
    output: Output,
    labels: Int[Array, " b"],
    *,
    proxies: Mapping[str, Mapping[str, Array]] | None = None,
    state: Mapping[str, Any] | None = None,
    step: Int[Array, ""] | int = 0,
    mesh: Mesh | None = None,
) -> tuple[Float[Array, ""], dict[str, tuple[Array, Array]]]:
    """The weighted sum, and the metrics of a step as (sum, count).

    Args:
      config: the settings.
      output: the model's output for the whole global batch.
      labels: classes [b].
      proxies: the parameters of the losses, see `Losses.init_proxies`.
      state: their state, see `Losses.init_state`.
      step: number of steps done before.
      mesh: the devices of the run.

    Returns:
      The scalar to minimise; metrics by name, each a pair whose quotient is the value:
      every loss of the sum, unweighted, with a memory also `NAME_memory`,
      `positive_distance` and `negative_distance` (means over the anchors of their mean
      distance) and `active` (see `pair_statistics`).
    """
    proxies, state = proxies or {}, state or {}
    tiling = config.tiling(mesh)
    total, metrics = jnp.float32(0.0), {}
    one = jnp.float32(1.0)
    for name, loss, weight, options in config.losses():
        inputs = Inputs(
            output, labels, proxies.get(name, {}), state.get(name, {}), tiling
        )
        value = loss.value(inputs, **options)
        total += weight * value
        metrics[name] = (value, one)
        if loss.against and config.memory.size:
            counts = jnp.float32(step >= config.memory.start_step)
            value = counts * loss.against(inputs, state["memory"], **options)
            total += weight * config.memory.weight * value
            metrics[f"{name}_memory"] = (value, counts)
    margin = config.terms.get("triplet", Term()).options.get("margin", 0.1)
    statistics = pair_statistics(output.embedding, labels, margin, tiling)
    metrics |= {name: (value, one) for name, value in statistics.items()}
    return total, {"loss": (total, one), **metrics}


def remember(
    config: ObjectiveConfig,
    output: Output,
    labels: Int[Array, " b"],
    state: Mapping[str, Any],
) -> dict[str, Any]:
    """The state after a step, with its batch in the memory."""
    if not config.remembered:
        return dict(state)
    memory = memories.remember(state["memory"], _rows(config, output), labels)
    return {**state, "memory": memory}


def gradient_norms(
    gradients: Mapping[str, Mapping[str, Array]], state: Mapping[str, Any]
) -> dict[str, tuple[Array, Array]]:
    """Gradient norms of the losses' parameters as (norm, count), for metrics.

    Named `gradient_norm_LOSS_NAME`; coarse proxies count once there are groups.
    """
    norms = {}
    for loss, arrays in gradients.items():
        for name, gradient in arrays.items():
            active = state.get(loss, {}).get("active", True) if "coarse" in name else 1
            counts = jnp.float32(active)
            norm = jnp.sqrt(jnp.sum(jnp.square(gradient)))
            norms[f"gradient_norm_{loss}_{name}"] = (norm * counts, counts)
    return norms


def check_gradients(metrics: Mapping[str, tuple[Array, Array]]) -> None:
    """Raise `InputError` if a parameter of a loss gets no gradient.

    Args:
      metrics: of a step, on the host.
    """
    of_losses = tuple(f"gradient_norm_{loss}_" for loss in LOSSES)
    for name, (norm, counts) in metrics.items():
        if name.startswith(of_losses) and counts and norm == 0:
            raise InputError(
                f"{name.removeprefix('gradient_norm_')} gets no gradient, so that "
                "these proxies would never learn: leave the loss out, or fix it."
            )


def pair_statistics(
    embeddings: Float[Array, "b d"],
    labels: Int[Array, " b"],
    margin: float,
    tiling: Tiling = Tiling(),
) -> dict[str, Float[Array, ""]]:
    """Statistics of the pairs of a batch, to look at when a loss does not move.

    One pass over the rows of pairs, without gradients.

    Returns:
      `positive_distance`, `negative_distance`: mean over the anchors of the mean
      Euclidean distance to their positives and negatives; `active`: share of anchors
      whose hardest negative is not at least `margin` farther than the hardest positive.
    """

    def row(distances, positives, negatives):
        gap = masked_max(distances, positives) - masked_min(distances, negatives)
        some = positives.any(), negatives.any()
        return {
            "positive_distance": (masked_mean(distances, positives), some[0]),
            "negative_distance": (masked_mean(distances, negatives), some[1]),
            "active": (jnp.float32(gap + margin > 0), some[0] & some[1]),
        }

    rows = anchors.values(row, jax.lax.stop_gradient(embeddings), labels, tiling=tiling)
    return {name: masked_mean(*values) for name, values in rows.items()}


def _rows(config: ObjectiveConfig, output: Output) -> dict[str, Array]:
    """The views of a batch that the memory stores."""
    return {which: views(output, which) for which in config.remembered}

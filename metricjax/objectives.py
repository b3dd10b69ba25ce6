"""The objective of a run: a weighted sum of losses on what the model returns."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from metricjax import losses
from metricjax.errors import InputError
from metricjax.losses import pairwise
from metricjax.losses.numerics import masked_max, masked_mean, masked_min
from metricjax.models.output import Output


@dataclass(frozen=True)
class Term:
    """One loss of the sum: its factor (0 leaves it out) and its own settings."""

    weight: float = 1.0
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ObjectiveConfig:
    """What is minimised.

    Attributes:
      terms: name of a loss in `LOSSES` -> its weight and settings.
      block_size: anchors per block of the pair losses, see `pairwise.Tiling`; None:
        all at once.
      matmul_dtype: of the Gram matrix, "float32" or "bfloat16".
    """

    terms: Mapping[str, Term]
    block_size: int | None = None
    matmul_dtype: str = "float32"

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

    @property
    def tiling(self) -> pairwise.Tiling:
        return pairwise.Tiling(self.block_size, dtype=jnp.dtype(self.matmul_dtype))

    @property
    def classifies(self) -> bool:
        """Whether the model needs a classifier."""
        return bool(self.terms.get("softmax", Term(0.0)).weight)


def _triplet(output, labels, tiling, **options):
    """On the embedding, or on each learner where the model trains learners apart."""
    if output.learners is None:
        return losses.triplet(output.embedding, labels, tiling=tiling, **options)
    learners = jnp.moveaxis(output.learners, 1, 0)
    return sum(
        losses.triplet(learner, labels, tiling=tiling, **options)
        for learner in learners
    )


def _softmax(output, labels, tiling, **options):
    if output.logits is None:
        raise InputError(
            "The softmax loss needs logits, but the model gave none: build it with "
            "num_classes and apply it with train=True."
        )
    return losses.softmax_cross_entropy(output.logits, labels, **options)


# Name in the config -> (function of the model's output, default settings).
LOSSES = {
    "triplet": (_triplet, {"margin": 0.1, "squared": False, "soft": False}),
    "softmax": (_softmax, {"temperature": 1.0, "label_smoothing": 0.0}),
}


def objective(
    config: ObjectiveConfig, output: Output, labels: Int[Array, " b"]
) -> tuple[Float[Array, ""], dict[str, tuple[Array, Array]]]:
    """The weighted sum, and the metrics of a step as (sum, count).

    Args:
      config: the settings.
      output: what the model made of the whole global batch.
      labels: classes [b].

    Returns:
      The scalar to minimise; metrics by name, each a pair whose quotient is the value:
      every loss of the sum, unweighted, `positive_distance` and `negative_distance`
      (means over the anchors of their mean distance) and `active` (see
      `pair_statistics`).
    """
    total, metrics = jnp.float32(0.0), {}
    one = jnp.float32(1.0)
    for name, term in config.terms.items():
        if not term.weight:
            continue
        function, defaults = LOSSES[name]
        value = function(output, labels, config.tiling, **{**defaults, **term.options})
        total += term.weight * value
        metrics[name] = (value, one)
    margin = config.terms.get("triplet", Term()).options.get("margin", 0.1)
    statistics = pair_statistics(output.embedding, labels, margin, config.tiling)
    metrics |= {name: (value, one) for name, value in statistics.items()}
    return total, {"loss": (total, one), **metrics}


def pair_statistics(
    embeddings: Float[Array, "b d"],
    labels: Int[Array, " b"],
    margin: float,
    tiling: pairwise.Tiling = pairwise.Tiling(),
) -> dict[str, Float[Array, ""]]:
    """How a batch stands: what to look at when a loss does not move.

    Returns:
      `positive_distance`, `negative_distance`: mean over the anchors of the mean
      Euclidean distance to their positives and negatives; `active`: share of anchors
      whose hardest negative is not at least `margin` farther than the hardest positive.
    """
    embeddings = jax.lax.stop_gradient(embeddings)

    def to_positives(distances, positives, negatives):
        return masked_mean(distances, positives), positives.any()

    def to_negatives(distances, positives, negatives):
        return masked_mean(distances, negatives), negatives.any()

    def active(distances, positives, negatives):
        gap = masked_max(distances, positives) - masked_min(distances, negatives)
        valid = positives.any() & negatives.any()
        return (gap + margin > 0).astype(jnp.float32), valid

    rows = {
        "positive_distance": to_positives,
        "negative_distance": to_negatives,
        "active": active,
    }
    return {
        name: pairwise.mean_over_anchors(row, embeddings, labels, tiling=tiling)
        for name, row in rows.items()
    }

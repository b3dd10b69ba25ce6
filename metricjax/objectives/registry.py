"""The losses by their name in a config: settings, inputs, parameters and state.

Come here to add a loss to `LOSSES`; its mathematics belongs in `metricjax.losses`.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Float, Int

from metricjax import losses
from metricjax.errors import InputError
from metricjax.losses import embedding_expansion
from metricjax.models.output import Output
from metricjax.objectives import hierarchical_proxies
from metricjax.objectives.cross_batch_memory import Memory
from metricjax.objectives.hierarchical_proxies import HierarchicalProxy


class Inputs(NamedTuple):
    """The inputs of a loss in a step.

    Attributes:
      output: the model's output for the whole global batch.
      labels: classes [b].
      proxies: the parameters of the loss, by name.
      state: its state that is not trained, by name.
      tiling: how pair losses process their rows.
    """

    output: Output
    labels: Int[Array, " b"]
    proxies: Mapping[str, Array]
    state: Mapping[str, Array]
    tiling: losses.Tiling


@dataclasses.dataclass(frozen=True)
class Loss:
    """A loss that a config can name.

    Attributes:
      value: `(Inputs, **options) -> scalar`.
      options: its settings and their defaults.
      choices: the allowed values of settings that are strings.
      compares: for losses between images, the embeddings that they compare: "unit" or
        "unnormalized", see `views`.
      against: `(Inputs, Memory, **options) -> scalar`, the loss against a memory, if it
        can use one.
      instances: images of a class in a batch must be a multiple of this.
      proxies: `(key, Classes, d, **options) -> arrays by name`, its own parameters; d
        is the embedding dimension.
      state: `(Classes, **options) -> arrays by name`, its state that is not trained.
      check: `(**options)` raises `InputError` if they contradict each other.
    """

    value: Callable[..., Float[Array, ""]]
    options: Mapping[str, Any]
    choices: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    compares: str | None = None
    against: Callable[..., Float[Array, ""]] | None = None
    instances: int = 1
    proxies: Callable[..., dict[str, Array]] | None = None
    state: Callable[..., dict[str, Array]] | None = None
    check: Callable[..., Any] | None = None


def views(output: Output, which: str) -> Float[Array, "b m k"]:
    """The embeddings that pair losses compare: m = 1, or the model's m learners.

    Args:
      output: a model's output for a batch.
      which: "unit" for vectors of unit length, "unnormalized" for those before
        normalisation.
    """
    if which == "unit":
        learners = output.learners
        return output.embedding[:, None] if learners is None else learners
    if output.unnormalized is None:
        raise InputError(
            "A loss on un-normalised embeddings needs a model that gives them, but "
            "this one does not."
        )
    count = 1 if output.learners is None else output.learners.shape[1]
    return output.unnormalized.reshape(len(output.unnormalized), count, -1)


def _pairs(loss, options, which="unit", memory=True, **described) -> Loss:
    """A pair loss on the embedding, or summed over the learners of an ensemble."""

    def value(inputs: Inputs, **settings):
        each = views(inputs.output, which).swapaxes(0, 1)
        return sum(
            loss(view, inputs.labels, tiling=inputs.tiling, **settings) for view in each
        )

    def against(inputs: Inputs, memory: Memory, **settings):
        each = views(inputs.output, which).swapaxes(0, 1)
        past = memory.rows[which].swapaxes(0, 1)
        return sum(
            loss(
                view, inputs.labels, references=rows, reference_labels=memory.labels,
                reference_mask=memory.mask, tiling=inputs.tiling, **settings,
            )
            for view, rows in zip(each, past, strict=True)
        )  # fmt: skip

    return Loss(
        value, options, compares=which, against=against if memory else None, **described
    )


def _expanded(loss, options, which="unit") -> Loss:
    """A pair loss of embedding expansion, on pairs of rows (2t, 2t + 1) of a batch."""
    options = {"points": 2, "normalize": True, **options}
    return _pairs(loss, options, which, memory=False, instances=2)


def _softmax(inputs: Inputs, **options):
    if inputs.output.logits is None:
        raise InputError(
            "The softmax loss needs logits, but the model gave none: build it with "
            "num_classes and apply it with train=True."
        )
    return losses.softmax_cross_entropy(inputs.output.logits, inputs.labels, **options)


def _divergence(inputs: Inputs, **options):
    if inputs.output.learners is None:
        raise InputError(
            "The divergence loss pushes learners apart, but this model has none: leave "
            "the loss out, or choose a model with learners."
        )
    return losses.divergence(inputs.output.learners, **options)


def _to_proxies(loss):
    def value(inputs: Inputs, **options):
        return loss(
            inputs.output.embedding,
            inputs.labels,
            inputs.proxies["proxies"],
            tiling=inputs.tiling,
            **options,
        )

    return value


def _draw(base: str, key: Array, shape: tuple[int, int]) -> Float[Array, "c d"]:
    """Initial proxies as in the authors' code.

    Proxy-Anchor: Kaiming normal by fan-out, which for [c, d] is c; Proxy-NCA: a normal
    of standard deviation 1/8.
    """
    scale = math.sqrt(2.0 / shape[0]) if base == "proxy_anchor" else 1 / 8
    return scale * jax.random.normal(key, shape)


def _proxies_of(base: str):
    def proxies(key, classes, width, **_):
        return {"proxies": _draw(base, key, (classes.count, width))}

    return proxies


def _hierarchical(inputs: Inputs, **options):
    return hierarchical_proxies.value(
        HierarchicalProxy(**options),
        inputs.output.embedding,
        inputs.labels,
        inputs.proxies,
        inputs.state,
        inputs.tiling,
    )


def _hierarchical_proxies(key, classes, width, **options):
    config = HierarchicalProxy(**options)
    fine = _draw(config.base, key, (classes.count, width))
    return hierarchical_proxies.init_proxies(config, fine, config.counts(classes))


def _hierarchical_state(classes, **options):
    counts = HierarchicalProxy(**options).counts(classes)
    return hierarchical_proxies.init_state(classes.count, counts)


LOSSES: dict[str, Loss] = {
    "contrastive": _pairs(
        losses.contrastive,
        {"margin": 1.0, "squared": True, "reduction": "mean", "among": "all"},
        choices={"reduction": ("mean", "nonzero"), "among": ("all", "adjacent")},
    ),
    "triplet": _pairs(
        losses.triplet,
        {"margin": 0.1, "mining": "hard", "squared": False, "soft": False},
        choices={"mining": ("hard", "all", "semihard")},
    ),
    "n_pair": _pairs(losses.n_pair, {"l2_weight": 0.0}, "unnormalized"),
    "lifted_structure": _pairs(losses.lifted_structure, {"margin": 1.0}),
    "multi_similarity": _pairs(
        losses.multi_similarity,
        {"alpha": 2.0, "beta": 50.0, "base": 0.5, "epsilon": 0.1},
    ),
    "proxy_nca": Loss(
        _to_proxies(losses.proxy_nca),
        {"temperature": 1 / 9, "include_positive": True, "margin": 0.0},
        proxies=_proxies_of("proxy_nca"),
    ),
    "proxy_anchor": Loss(
        _to_proxies(losses.proxy_anchor),
        {"margin": 0.1, "scale": 32.0},
        proxies=_proxies_of("proxy_anchor"),
    ),
    "hierarchical_proxy": Loss(
        _hierarchical,
        {f.name: f.default for f in dataclasses.fields(HierarchicalProxy)},
        choices=hierarchical_proxies.CHOICES,
        proxies=_hierarchical_proxies,
        state=_hierarchical_state,
        check=HierarchicalProxy,
    ),
    "ee_triplet": _expanded(embedding_expansion.triplet, {"margin": 0.1}),
    "ee_hphn_triplet": _expanded(
        embedding_expansion.hphn_triplet, {"margin": 1e-5, "soft": False}
    ),
    "ee_n_pair": _expanded(
        embedding_expansion.n_pair,
        {"l2_weight": 0.0, "normalize": False},
        which="unnormalized",
    ),
    "ee_lifted_structure": _expanded(
        embedding_expansion.lifted_structure, {"margin": 1.0}
    ),
    "ee_multi_similarity": _expanded(
        embedding_expansion.multi_similarity,
        {"alpha": 2.0, "beta": 50.0, "base": 0.5},
    ),
    "divergence": Loss(
        _divergence,
        {"margin": 1.0, "reduction": "sum_pairs"},
        choices={"reduction": ("sum_pairs", "mean_pairs")},
    ),
    "softmax": Loss(_softmax, {"temperature": 1.0, "label_smoothing": 0.0}),
}

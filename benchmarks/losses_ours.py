"""The losses of metricjax, through their public calls, under `jax.jit`."""

import jax
import jax.numpy as jnp
import numpy as np
from losses_cases import TEMPERATURE

from metricjax import losses
from metricjax.losses import Tiling


def hierarchical_proxy(e, labels, proxies, coarse, *, parent, tiling):
    levels = losses.Level(proxies), losses.Level(coarse, parent)
    return losses.hierarchical_proxy(e, labels, levels, tiling=tiling)


def divergence(learners, labels, *, tiling):
    return losses.divergence(learners)


def softmax_cross_entropy(e, labels, weights, *, tiling):
    """The classifier's kernel is [d, c], as Flax keeps it."""
    logits = jnp.matmul(e, weights, precision=jax.lax.Precision.HIGHEST)
    return losses.softmax_cross_entropy(logits, labels, temperature=TEMPERATURE)


# case's loss -> (name in metricjax.losses, or function, and options)
LOSSES = {
    "contrastive": ("contrastive", {}),
    "contrastive_nonzero": ("contrastive", {"reduction": "nonzero"}),
    "triplet_hard": ("triplet", {"mining": "hard", "margin": 0.1}),
    "triplet_soft": ("triplet", {"mining": "hard", "soft": True}),
    "triplet_all": ("triplet", {"mining": "all", "margin": 0.1}),
    "triplet_semihard": ("triplet", {"mining": "semihard", "margin": 0.1}),
    "n_pair": ("n_pair", {}),
    "lifted_structure": ("lifted_structure", {}),
    "multi_similarity": ("multi_similarity", {}),
    "proxy_nca": ("proxy_nca", {}),
    "proxy_anchor": ("proxy_anchor", {}),
    "hierarchical_proxy": (hierarchical_proxy, {}),
    "divergence": (divergence, {}),
    "softmax_cross_entropy": (softmax_cross_entropy, {}),
    "expansion_triplet": ("triplet", {"margin": 0.5}),
    "expansion_hphn_triplet": ("hphn_triplet", {"margin": 0.1}),
    "expansion_n_pair": ("n_pair", {"normalize": True}),
    "expansion_lifted_structure": ("lifted_structure", {}),
    "expansion_multi_similarity": ("multi_similarity", {}),
    "expansion_synthesize": ("synthesize", {}),
}


def find(case):
    """The function `(e, labels, *leaves, tiling=...)` of a case and its options."""
    name, options = LOSSES[case.loss]
    if callable(name):
        return name, options
    if case.points is None:
        return getattr(losses, name), options
    from metricjax.losses import embedding_expansion

    return getattr(embedding_expansion, name), {**options, "points": case.points}


class Task:
    """Value and gradient of one case.

    Args:
      case: of `losses_cases.CASES`.
      inputs: of `losses_cases.inputs`.
      way: "float32" or "bfloat16", of the Gram matrix's operands.
      block_size: see `Tiling`.
    """

    def __init__(self, case, inputs, way="float32", block_size=None):
        self._transposed = case.loss == "softmax_cross_entropy"
        leaves = list(inputs.leaves)
        if self._transposed:
            leaves[1] = np.ascontiguousarray(leaves[1].T)
        self._leaves = jax.block_until_ready([jnp.asarray(leaf) for leaf in leaves])
        self._labels = jnp.asarray(inputs.labels)
        function, options = find(case)
        if inputs.parent is not None:
            options = {**options, "parent": jnp.asarray(inputs.parent, jnp.int32)}

        if case.loss == "expansion_synthesize":
            self._step = jax.jit(
                lambda leaves, y: (function(*leaves, y, **options), ())
            )
            return
        options = {**options, "tiling": Tiling(block_size, dtype=jnp.dtype(way))}

        def loss(leaves, labels):
            return function(leaves[0], labels, *leaves[1:], **options)

        self._step = jax.jit(jax.value_and_grad(loss))

    def step(self):
        self._results = jax.block_until_ready(self._step(self._leaves, self._labels))

    def result(self):
        value, gradients = self._results
        arrays = {"value": np.asarray(value)}
        for index, gradient in enumerate(gradients):
            gradient = gradient.T if self._transposed and index else gradient
            arrays[f"gradient{index}"] = np.asarray(gradient)
        return arrays

    def device_peak(self):
        device = jax.devices()[0]
        if device.platform == "cpu":
            return None
        return device.memory_stats()["peak_bytes_in_use"]


def build(spec):
    from losses_cases import CASES, inputs

    if (jax.default_backend() == "cpu") != (spec["device"] == "cpu"):
        raise RuntimeError(f"JAX runs on {jax.default_backend()}")
    case = CASES[spec["case"]]
    drawn = inputs(case, spec["batch"])
    return Task(case, drawn, spec["way"], spec["block_size"])


if __name__ == "__main__":
    import harness

    harness.serve(build)

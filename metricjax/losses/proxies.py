"""Losses against proxies, one learnt vector for each class: Proxy-NCA, Proxy-Anchor."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from metricjax.errors import InputError
from metricjax.losses._kernels import anchors, numerics
from metricjax.losses._kernels.inputs import check_labelled
from metricjax.losses._kernels.measures import dot_products
from metricjax.losses._kernels.tiling import Tiling


def proxy_nca(
    embeddings: Float[Array, "b d"],
    labels: Int[Array, " b"],
    proxies: Float[Array, "c d"],
    *,
    temperature: float = 1 / 9,
    include_positive: bool = True,
    margin: float = 0.0,
    tiling: Tiling = Tiling(),
) -> Float[Array, ""]:
    """Proxy-NCA: every image against the proxies of all classes.

    `mean_i -log [ exp(-d(x_i, p_{y_i}) / T) / sum_z exp(-d(x_i, p_z) / T) ]` with d the
    squared Euclidean distance to the proxy made unit, T the temperature, and z over all
    classes (Proxy-NCA++) or, without `include_positive`, over the others than y_i (the
    first form, which can fall below 0).

    With a margin the own similarity counts for `margin` less, in numerator and
    denominator: with T = 2 / s the softmax over `s cos` of CosFace.

    As `d = |x_i|^2 + 1 - 2 x_i . p_z`, whose first two terms are the same for all z and
    leave the quotient, the products are all that is computed.

    Args:
      embeddings: [b, d], expected to be of unit length.
      labels: classes [b] in 0..c-1.
      proxies: [c, d], of any length: made unit here.
      temperature: T, above 0. 1/9 is what a scale of 3 on both sides means.
      include_positive: whether the own proxy is in the denominator.
      margin: in units of the similarity, at least 0.
      tiling: memory and precision, see `losses.Tiling`; blocks are of images.

    Returns:
      A float32 scalar: the mean over the images. A label out of range, where it is only
      known while the program runs, takes its image out of the mean.

    Raises:
      InputError: a temperature that is not above 0, a negative margin, a label out of
        range, a single proxy without `include_positive`, or shapes and types that do
        not fit.

    Source: Movshovitz-Attias et al., "No Fuss Distance Metric Learning using Proxies"
    (arXiv 1703.07464), without `include_positive`; Teh et al., "ProxyNCA++" (arXiv
    2004.01113), with it; Wang et al., "CosFace" (arXiv 1801.09414), the margin.
    """
    if temperature <= 0:
        raise InputError(f"temperature must be above 0, but it is {temperature}.")
    if margin < 0:
        raise InputError(f"margin must be 0 or more, but it is {margin}.")
    labels, proxies = _checked(embeddings, labels, proxies)
    if not include_positive and len(proxies) < 2:
        raise InputError(
            "Proxy-NCA without the own proxy in the denominator needs at least 2 "
            "proxies, but there is 1: set include_positive or give more."
        )

    def anchor(similarities, own, others):
        if margin:
            similarities -= margin * own
        scores = similarities * (2.0 / temperature)
        compared = own | others if include_positive else others
        score = jnp.sum(jnp.where(own, scores, 0.0))
        return numerics.masked_logsumexp(scores, compared) - score, own.any()

    return anchors.mean(
        anchor, embeddings, labels, references=proxies,
        reference_labels=jnp.arange(len(proxies)), measure=dot_products,
        tiling=tiling,
    )  # fmt: skip


def proxy_anchor(
    embeddings: Float[Array, "b d"],
    labels: Int[Array, " b"],
    proxies: Float[Array, "c d"],
    *,
    margin: float = 0.1,
    scale: float = 32.0,
    tiling: Tiling = Tiling(),
) -> Float[Array, ""]:
    """Proxy-Anchor: every proxy against the images of the batch.

    `1/|P+| sum_{p in P+} log(1 + sum_{x in X_p} exp(-scale (s(x, p) - margin)))
    + 1/c sum_p log(1 + sum_{x not in X_p} exp(scale (s(x, p) + margin)))` with s the
    product of an embedding with a proxy made unit, X_p the images of p's class, and P+
    the proxies that have images in the batch.

    Args:
      embeddings: [b, d], expected to be of unit length.
      labels: classes [b] in 0..c-1.
      proxies: [c, d], of any length: made unit here.
      margin: delta, in units of the similarity, at least 0.
      scale: alpha, above 0.
      tiling: memory and precision, see `losses.Tiling`; blocks are of proxies.

    Returns:
      A float32 scalar. An image whose label is out of range, where that is only known
      while the program runs, is a negative of every proxy.

    Raises:
      InputError: a negative margin, a scale that is not above 0, a label out of range,
        or shapes and types that do not fit.

    Source: Kim et al., "Proxy Anchor Loss for Deep Metric Learning" (arXiv 2003.13911),
    equation 4.
    """
    if margin < 0:
        raise InputError(f"margin must be 0 or more, but it is {margin}.")
    if scale <= 0:
        raise InputError(f"scale must be above 0, but it is {scale}.")
    labels, proxies = _checked(embeddings, labels, proxies)
    count = len(proxies)
    present = jnp.zeros(count).at[_in_range(labels, count)].set(1.0, mode="drop")
    shares = present / jnp.maximum(jnp.sum(present), 1.0)

    def anchor(similarities, positives, negatives, share):
        to_own = -scale * (similarities - margin)
        to_others = scale * (similarities + margin)
        pull = numerics.log1p_sum_exp(to_own, positives)
        push = numerics.log1p_sum_exp(to_others, negatives)
        return share * pull + push / count, True

    return anchors.total(
        anchor, proxies, jnp.arange(count), references=embeddings,
        reference_labels=labels, sides=shares, measure=dot_products,
        tiling=tiling,
    )  # fmt: skip


def check_labels(labels: Array, count: int, what: str) -> None:
    """Raise `InputError` unless every label is in 0..count-1.

    Values are only looked at where there are some: not while a program is traced, nor
    where other hosts hold a part of them.
    """
    if isinstance(labels, jax.core.Tracer):
        return
    if isinstance(labels, jax.Array) and not labels.is_fully_addressable:
        return
    values = np.asarray(labels)
    outside = values[(values < 0) | (values >= count)]
    if outside.size:
        raise InputError(
            f"labels must be in 0..{count - 1}, as there are {count} {what}, but there "
            f"is a {outside[0]}."
        )


def _checked(embeddings, labels, proxies):
    """The labels as int32 and the proxies made unit, after the entry checks."""
    check_labelled("embeddings", embeddings, labels)
    if proxies.ndim != 2 or not jnp.issubdtype(proxies.dtype, jnp.floating):
        raise InputError(
            f"proxies must be floating point of shape [c, d], but they are "
            f"{proxies.dtype} of shape {list(proxies.shape)}."
        )
    if not len(proxies):
        raise InputError("There must be at least one proxy, but there is none.")
    if embeddings.shape[1] != proxies.shape[1]:
        raise InputError(
            f"embeddings and proxies must be equally long, but they have "
            f"{embeddings.shape[1]} and {proxies.shape[1]} numbers each."
        )
    check_labels(labels, len(proxies), "proxies")
    proxies = numerics.unit(proxies.astype(jnp.float32))
    return jnp.asarray(labels, jnp.int32), proxies


def _in_range(labels, count):
    """Labels below 0 would count from the end: send them past it, to be dropped."""
    return jnp.where(labels < 0, count, labels)

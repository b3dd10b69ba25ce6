"""Sums over all triplets of a block of anchors, without ever making the triplets.

For every positive of an anchor the hinge is summed over its negatives. Anchors have few
positives as a rule, so these are taken one by one, each a pass over the block; where an
anchor has more than `_MANY`, one sort of each row gives the sums of all at once. Both
are exact, and both give the gradient with the value.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

# From here on two sorts of a row cost less than a pass for every positive.
_MANY = 96


def active(
    margin: float,
    distances: Float[Array, "k n"],
    positives: Bool[Array, "k n"],
    negatives: Bool[Array, "k n"],
) -> tuple[Float[Array, " k"], Float[Array, " k"]]:
    """Over the triplets with `d+ - d- + margin > 0`: the sum of that, and how many."""
    return _sums(margin, False, distances, positives, negatives)


def semihard(
    margin: float,
    distances: Float[Array, "k n"],
    positives: Bool[Array, "k n"],
    negatives: Bool[Array, "k n"],
) -> tuple[Float[Array, " k"], Float[Array, " k"]]:
    """Over the triplets with `0 < d- - d+ <= margin`: the same sum and number."""
    return _sums(margin, True, distances, positives, negatives)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _sums(margin, semi, distances, positives, negatives):
    value, count, _ = _with_slopes(margin, semi, distances, positives, negatives)
    return value, count


def _sums_forward(margin, semi, distances, positives, negatives):
    value, count, slopes = _with_slopes(margin, semi, distances, positives, negatives)
    return (value, count), slopes


def _sums_backward(margin, semi, slopes, cotangents):
    return cotangents[0][:, None] * slopes, None, None


_sums.defvjp(_sums_forward, _sums_backward)


def _with_slopes(margin, semi, distances, positives, negatives):
    """Value [k], number of triplets [k] and derivative by the distances [k, n]."""
    many = jnp.max(jnp.sum(positives, axis=1)) > _MANY
    each = partial(_one_by_one, margin, semi)
    return lax.cond(
        many, partial(_sorted, margin, semi), each, distances, positives, negatives
    )


def _one_by_one(margin, semi, distances, positives, negatives):
    count = distances.shape[1]
    columns = jnp.arange(count, dtype=jnp.int32)[None, :]

    def after(index):
        """Column of each row's next positive; `count` where there is none."""
        later = positives & (columns > index)
        return jnp.min(jnp.where(later, columns, count), axis=1, keepdims=True)

    def add(state):
        index, value, number, slopes = state
        here = jnp.minimum(index, count - 1)
        positive = jnp.take_along_axis(distances, here, axis=1)
        gap = positive + margin - distances
        counts = negatives & (index < count)
        # Written so that NaN counts, and shows.
        if semi:
            counts &= ~(gap < 0) & ~(distances <= positive)
        else:
            counts &= ~(gap <= 0)
        triplets = jnp.sum(counts, axis=1, dtype=jnp.float32)
        slopes += jnp.where(columns == index, triplets[:, None], 0.0)
        slopes -= counts
        value += jnp.sum(jnp.where(counts, gap, 0.0), axis=1)
        return after(index), value, number + triplets, slopes

    zero = jnp.zeros(len(distances), jnp.float32)
    start = after(jnp.full((len(distances), 1), -1)), zero, zero, 0.0 * distances
    _, value, number, slopes = lax.while_loop(
        lambda state: jnp.any(state[0] < count), add, start
    )
    return value, number, slopes


def _sorted(margin, semi, distances, positives, negatives):
    """One sort of positives (moved by the margin) and negatives of each row."""
    # Differences alone matter, and sums of small numbers lose less.
    centred = distances - jnp.mean(distances, axis=1, keepdims=True)
    value, number, slopes = _nearer(margin, semi, centred, positives, negatives)
    if semi:
        less = _nearer(0.0, True, centred, positives, negatives, margin)
        value, number, slopes = value - less[0], number - less[1], slopes - less[2]
    return value, number, slopes


def _nearer(shift, ties, distances, positives, negatives, extra=0.0):
    """The sums over the triplets with `d- < d+ + shift`, or `<=` with `ties`.

    The hinge is `d+ + shift + extra - d-`.
    """
    keys = jnp.where(positives, distances + shift, jnp.inf)
    keys = jnp.where(negatives, distances, keys)
    # Of equal keys the negative comes first where it counts as nearer.
    order = jnp.where(negatives, 1 - ties, jnp.where(positives, int(ties), 2))
    columns = jnp.broadcast_to(
        jnp.arange(distances.shape[1], dtype=jnp.int32), distances.shape
    )
    keys, order, columns = lax.sort((keys, order, columns), dimension=1, num_keys=2)
    negative, positive = order == 1 - ties, order == int(ties)
    before = jnp.cumsum(negative, axis=1).astype(jnp.float32)
    total = jnp.cumsum(jnp.where(negative, keys, 0.0), axis=1)
    hinges = jnp.where(positive, before * (keys + extra) - total, 0.0)
    seen = jnp.cumsum(positive, axis=1)
    farther = (seen[:, -1:] - seen).astype(jnp.float32)
    slopes = jnp.where(positive, before, jnp.where(negative, -farther, 0.0))
    _, slopes = lax.sort((columns, slopes), dimension=1, num_keys=1)
    number = jnp.sum(jnp.where(positive, before, 0.0), axis=1)
    return jnp.sum(hinges, axis=1), number, slopes

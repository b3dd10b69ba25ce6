"""Triplet losses: the hardest pair of each anchor, all triplets, or semi-hard ones."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from metricjax.errors import InputError
from metricjax.losses._kernels import anchors as pairwise
from metricjax.losses._kernels import pairs, triplets
from metricjax.losses._kernels.mining import hardest
from metricjax.losses._kernels.positives import positives_of
from metricjax.losses._kernels.tiles import Statistic

MININGS = ("hard", "all", "semihard")
# Up to this many positives of an anchor are taken one by one in tiles,
_FEW = 16
# this many in one pass over a tile.
_TOGETHER = 4


def triplet(
    embeddings: Float[Array, "b d"],
    labels: Int[Array, " b"],
    *,
    margin: float = 0.1,
    mining: str = "hard",
    squared: bool = False,
    soft: bool = False,
    references: Float[Array, "n d"] | None = None,
    reference_labels: Int[Array, " n"] | None = None,
    reference_mask: Bool[Array, " n"] | None = None,
    tiling: pairwise.Tiling = pairwise.Tiling(),
) -> Float[Array, ""]:
    """Triplet loss over the triplets (i, j, k) with `y_j = y_i != y_k`, `j != i`.

    "hard": `mean_i relu(max_j d_ij - min_k d_ik + margin)` over the anchors i that have
    both a positive and a negative. The two are looked for in the Gram matrix, and their
    distances then taken from the differences: exact, and without a second matrix
    product for the gradient.
    "all": mean of `d_ij - d_ik + margin` over the triplets where that is above 0.
    "semihard": its mean over the triplets with `0 < d_ik - d_ij <= margin`.

    Args:
      embeddings: anchors [b, d], of unit length unless another scale is meant.
      labels: their classes [b].
      margin: in units of the distance, at least 0; unit vectors are at most 2 apart.
      mining: "hard", "all" or "semihard". The last two go through the positives of each
        anchor one by one, O(b n K) for K positives, or sort where there are many.
      squared: compare squared distances instead of distances.
      soft: `log(1 + exp(d+ - d-))` instead of the hinge; only with "hard", and the
        margin is not used.
      references: positives and negatives are sought here [n, d] instead of in the
        batch, and no reference is left out as the anchor itself.
      reference_labels: classes of the references [n].
      reference_mask: False where a reference does not count [n].
      tiling: memory, devices and precision, see `pairwise.Tiling`.

    Returns:
      A float32 scalar; 0 where there is no such triplet.

    Raises:
      InputError: a negative margin, an unknown mining, `soft` with another mining than
        "hard", or shapes and types that do not fit.

    Source: "hard" is the ranking loss of Jun et al., "Combination of Multiple Global
    Descriptors for Image Retrieval" (arXiv 1903.10663), on the joined descriptor; the
    margin 0.1 is what a reimplementation takes as the paper's, not the paper's word.
    "semihard" are the negatives of Schroff et al., "FaceNet" (arXiv 1503.03832).
    """
    if margin < 0:
        raise InputError(f"margin must be 0 or more, but it is {margin}.")
    if mining not in MININGS:
        raise InputError(f"mining is {mining!r}: choose one of {', '.join(MININGS)}.")
    if soft and mining != "hard":
        raise InputError(f"soft goes with mining 'hard' only, but it is {mining!r}.")
    options = {
        "references": references,
        "reference_labels": reference_labels,
        "reference_mask": reference_mask,
        "measure": pairwise.squared_distances if squared else pairwise.distances,
        "tiling": tiling,
    }
    if mining != "hard":
        semi = mining == "semihard"
        rows = triplets.semihard if semi else triplets.active
        in_rows = partial(
            pairwise.mean_over_anchors, partial(rows, margin), batched=True, **options
        )
        if not pairs.in_tiles(embeddings, references, reference_mask, tiling):
            return in_rows(embeddings, labels)
        pairwise.check_labelled("embeddings", embeddings, labels)
        of_each = positives_of(jnp.asarray(labels), _FEW)
        tiled = partial(_in_tiles, margin, semi, squared, tiling, of_each)
        return lax.switch(
            (of_each.largest > _TOGETHER).astype(int) + (of_each.largest > _FEW),
            [partial(tiled, True), partial(tiled, False), in_rows],
            embeddings.astype(jnp.float32),
            labels,
        )
    positive, negative, valid = hardest(embeddings, labels, **options)
    anchors = embeddings.astype(jnp.float32)
    others = anchors if references is None else references.astype(jnp.float32)
    far = pairwise.paired_distances(anchors, others[positive], squared=squared)
    near = pairwise.paired_distances(anchors, others[negative], squared=squared)
    value = jax.nn.softplus(far - near) if soft else jax.nn.relu(far - near + margin)
    return jnp.sum(jnp.where(valid, value, 0.0)) / jnp.maximum(jnp.sum(valid), 1)


def _in_tiles(margin, semi, squared, tiling, of_each, at_once, embeddings, labels):
    """Mean over the triplets of `triplets`, each anchor with few positives.

    The distance to each positive is known before the tiles are made, so that a tile is
    asked how many of its negatives make a triplet with it. `at_once`: positives are so
    few that one pass over a tile takes them all.
    """
    options = {
        "measure": pairwise.squared_distances if squared else pairwise.distances,
        "tiling": tiling,
    }
    fixed = lax.stop_gradient(embeddings)

    def measured(turn, near):
        index, valid = of_each.index[:, turn], of_each.valid[:, turn]
        one = pairwise.paired_distances(fixed, fixed[index], squared=squared)
        return near.at[:, turn].set(jnp.where(valid, one, -jnp.inf))

    # Distance to every positive, minus infinity where there is none.
    near = jnp.full(of_each.index.shape, -jnp.inf)
    near = lax.fori_loop(0, of_each.largest, measured, near)

    def for_all(tile, add, start):
        """`add(turn, start)` in as many turns as the most positives take."""
        if at_once:
            return add(0, start)
        most = jnp.max(jnp.sum(tile.sides[0] != -jnp.inf, axis=-1))
        return lax.fori_loop(0, -(-most // _TOGETHER), add, start)

    def of_turn(array, turn):
        """Some columns of a side, each as wide as a tile's."""
        first = turn * _TOGETHER
        some = lax.dynamic_slice_in_dim(array, first, _TOGETHER, -1)
        return [some[..., column] for column in range(_TOGETHER)]

    def hinges(tile, turn):
        """Of every negative with some positives, and whether they count."""
        for positive in of_turn(tile.sides[0], turn):
            gap = positive + margin - tile.measures
            counts = tile.negatives & (positive != -jnp.inf)
            # Written so that NaN counts, and shows.
            if semi:
                yield gap, counts & ~(gap < 0) & ~(tile.measures <= positive)
            else:
                yield gap, counts & ~(gap <= 0)

    def of_tile(tile, axis):
        def add(turn, sums):
            value, numbers = sums
            total, some = 0.0, []
            for gap, counts in hinges(tile, turn):
                total += jnp.where(counts, gap, 0.0)
                some.append(jnp.sum(counts, axis=axis, dtype=jnp.float32))
            place = (0, turn * _TOGETHER)
            numbers = lax.dynamic_update_slice(numbers, jnp.stack(some, 1), place)
            return value + jnp.sum(total, axis=axis), numbers

        count = tile.measures.shape[1 - axis]
        return for_all(tile, add, (jnp.zeros(count), jnp.zeros((count, _FEW))))

    statistic = Statistic(
        of_tile, (0.0, jnp.zeros(_FEW)), partial(jax.tree.map, jnp.add)
    )
    value, numbers = pairs.statistics(
        statistic, embeddings, labels, sides=(near,), **options
    )

    def slope(tile):
        """Triplets that the pair is the positive of, less those as the negative."""
        _, partners, numbers = tile.sides

        def add(turn, total):
            own = zip(of_turn(partners, turn), of_turn(numbers, turn), strict=True)
            for partner, number in own:
                here = tile.positives & (tile.numbers == partner)
                total += jnp.where(here, number, 0.0)
            return total - sum(counts * 1.0 for _, counts in hinges(tile, turn))

        return for_all(tile, add, jnp.zeros(tile.measures.shape))

    def pair(tile):
        fixed = tile._replace(measures=lax.stop_gradient(tile.measures))
        return slope(fixed) * tile.measures

    surrogate = pairs.sum_over_pairs(
        pair, embeddings, labels, sides=(near, of_each.index + 1, numbers), **options
    )
    count = jnp.maximum(jnp.sum(numbers), 1.0)
    return pairs.with_gradient_of(jnp.sum(value), surrogate) / count

"""Networks that make the synthetic negatives of DAML and of HDML.

They stand here for the comparison of costs alone (`expansion_cost.py`); metricjax has
neither method. Widths are those of HDML's published program (features of 1,024,
embeddings of 512, a generator of 512 - 512 - 1,024); DAML's three layers of 512 are an
assumption.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from metricjax import losses
from metricjax.losses import embedding_expansion

FEATURES, DIM, CLASSES = 1024, 512, 98
MARGIN = 0.1
# Of each loss with and without expansion: settings, and those without.
LOSSES = {
    "triplet": ({"margin": MARGIN}, {"mining": "all"}),
    "hphn_triplet": ({"margin": MARGIN}, {"mining": "hard"}),
    "n_pair": ({}, {}),
    "lifted_structure": ({}, {}),
    "multi_similarity": ({}, {}),
}


class Embedding(nn.Module):
    """Features to embeddings, normalised by the batch's statistics before."""

    @nn.compact
    def __call__(self, features):
        normalize = nn.BatchNorm(use_running_average=False, name="norm")
        return nn.Dense(DIM, name="linear")(normalize(features))


class Hdml(nn.Module):
    """Back from embeddings to features (Zheng et al., CVPR 2019)."""

    @nn.compact
    def __call__(self, embeddings):
        hidden = nn.BatchNorm(use_running_average=False)(nn.Dense(512)(embeddings))
        return nn.Dense(FEATURES)(nn.relu(hidden))


class Daml(nn.Module):
    """Anchor, positive and negative to a harder negative (Duan et al., CVPR 2018)."""

    @nn.compact
    def __call__(self, anchors, positives, negatives):
        hidden = jnp.concatenate([anchors, positives, negatives], axis=1)
        for width in (512, 512):
            hidden = nn.relu(nn.Dense(width)(hidden))
        return nn.Dense(DIM)(hidden)


def unit(rows):
    return rows * jax.lax.rsqrt(jnp.sum(jnp.square(rows), 1, keepdims=True) + 1e-12)


def apart(left, right):
    return jnp.sqrt(jnp.sum(jnp.square(left - right), axis=1) + 1e-12)


def triplets(rows):
    """Anchor and positive of every pair, and an image of the next pair."""
    anchors, positives = rows[::2], rows[1::2]
    return anchors, positives, jnp.roll(anchors, 1, axis=0)


def triplet_loss(anchors, positives, negatives):
    far, near = apart(anchors, negatives), apart(anchors, positives)
    return jnp.mean(nn.relu(near - far + MARGIN))


def n_pair_loss(anchors, positives, negatives):
    """With a negative of its own for every anchor and every other pair [p, p, d]."""
    own = jnp.sum(anchors * positives, axis=1)
    logits = jnp.einsum("id,ijd->ij", anchors, negatives)
    logits = jnp.where(jnp.eye(len(own), dtype=bool), own[:, None], logits)
    return jnp.mean(jax.nn.logsumexp(logits, axis=1) - own)


def pulled(anchors, positives, negatives):
    """HDML's harder negatives: farther ones moved towards the anchor."""
    near, far = apart(anchors, positives), apart(anchors, negatives)
    hardness = 0.5  # exp(-alpha / average loss), which moves during training
    share = jnp.where(near < far, (near + (far - near) * hardness) / far, 1.0)
    return anchors + share[:, None] * (negatives - anchors)


class Head:
    """What stands behind a backbone: embeddings, loss, generator, optimisers.

    Args:
      loss: of `LOSSES`.
      method: "plain" or "expansion"; of "triplet" and "n_pair" also "hdml"; of
        "triplet" also "daml".
      points: of expansion.
    """

    def __init__(self, loss, method, points=2):
        self._loss, self._method, self._points = loss, method, points
        self._embedding = Embedding()
        self._generator = {"hdml": Hdml(), "daml": Daml()}.get(method)
        self._classifier = nn.Dense(CLASSES)
        self._optimizer = optax.adam(1e-4)

    def init(self, features):
        keys = jax.random.split(jax.random.key(0), 3)
        params = {"embedding": self._embedding.init(keys[0], features)["params"]}
        embeddings = jnp.zeros((2, DIM))
        if self._method == "hdml":
            made = self._generator.init(keys[1], embeddings)
            params["generator"] = made["params"]
            params["classifier"] = self._classifier.init(keys[2], features)["params"]
        if self._method == "daml":
            made = self._generator.init(keys[1], *[embeddings] * 3)
            params["generator"] = made["params"]
        return params, self._optimizer.init(params)

    def step(self, state, features, labels):
        """(state after it, losses, the gradient that the backbone gets)."""
        params, moments = state
        differentiate = jax.value_and_grad(self._total, argnums=(0, 1))
        value, (slopes, to_backbone) = differentiate(params, features, labels)
        updates, moments = self._optimizer.update(slopes, moments, params)
        return (optax.apply_updates(params, updates), moments), value, to_backbone

    def _embed(self, params, features):
        variables = {"params": params["embedding"]}
        return self._embedding.apply(variables, features, mutable=["batch_stats"])[0]

    def _generate(self, params, *inputs):
        variables = {"params": params["generator"]}
        return self._generator.apply(variables, *inputs, mutable=["batch_stats"])[0]

    def _total(self, params, features, labels):
        rows = self._embed(params, features)
        if self._method == "plain":
            return self._plain(rows, labels)
        if self._method == "expansion":
            options = {"points": self._points, "normalize": True}
            expanded = getattr(embedding_expansion, self._loss)
            rows = rows if self._loss == "n_pair" else unit(rows)
            return expanded(rows, labels, **options, **LOSSES[self._loss][0])
        if self._method == "daml":
            return self._plain(rows, labels) + self._daml(params, rows)
        return self._plain(rows, labels) + self._hdml(params, rows, features, labels)

    def _plain(self, rows, labels):
        loss = getattr(losses, self._loss.removeprefix("hphn_"))
        shared, own = LOSSES[self._loss]
        rows = rows if self._loss == "n_pair" else unit(rows)
        return loss(rows, labels, **shared, **own)

    def _daml(self, params, rows):
        anchors, positives, negatives = triplets(rows)
        frozen = jax.lax.stop_gradient
        inputs = [frozen(one) for one in (anchors, positives, negatives)]
        made = self._generate(params, *inputs)
        hard = jnp.mean(apart(made, inputs[0]))  # near the anchor,
        like = jnp.mean(apart(made, inputs[2]))  # and like the negative,
        fooled = -triplet_loss(*map(unit, (*inputs[:2], made)))  # against the metric
        metric = triplet_loss(*map(unit, (anchors, positives, frozen(made))))
        return metric + hard + like + fooled

    def _hdml(self, params, rows, features, labels):
        moved, classes = self._moved(rows, labels)
        frozen = jax.lax.stop_gradient
        generator = self._restoring(
            params, frozen(rows), frozen(moved), frozen(features), labels, classes
        )
        # The metric learns from what the generator makes, the generator not from it.
        fixed = {**params, "generator": frozen(params["generator"])}
        again = self._embed(params, self._generate(fixed, moved))
        if self._loss == "triplet":
            return generator + triplet_loss(*map(unit, jnp.split(again, 3)))
        pairs = len(rows) // 2
        negatives = again[pairs:].reshape(pairs, pairs, DIM)
        return generator + n_pair_loss(again[:pairs], rows[1::2], negatives)

    def _moved(self, rows, labels):
        """Embeddings to make features of, the negatives moved, and their classes."""
        anchors, positives, negatives = triplets(rows)
        if self._loss == "triplet":
            hard = pulled(anchors, positives, negatives)
            classes = labels[::2], labels[1::2], jnp.roll(labels[::2], 1)
            return jnp.concatenate([anchors, positives, hard]), jnp.concatenate(classes)
        pairs = len(anchors)  # every anchor with every pair
        anchor, positive = (jnp.repeat(x, pairs, axis=0) for x in (anchors, positives))
        hard = pulled(anchor, positive, jnp.tile(positives, (pairs, 1)))
        classes = labels[::2], jnp.tile(labels[1::2], pairs)
        return jnp.concatenate([anchors, hard]), jnp.concatenate(classes)

    def _restoring(self, params, rows, moved, features, labels, classes):
        """The generator restores features, and keeps the classes of what is moved."""
        made = self._generate(params, jnp.concatenate([rows, moved]))
        restored, synthetic = made[: len(rows)], made[len(rows) :]
        square = jnp.mean(jnp.sum(jnp.square(restored - features), axis=1))
        entropies = optax.softmax_cross_entropy_with_integer_labels
        learnt = {"params": params["classifier"]}
        own = entropies(self._classifier.apply(learnt, features), labels)
        fixed = jax.lax.stop_gradient(learnt)
        kept = entropies(self._classifier.apply(fixed, synthetic), classes)
        return square + jnp.mean(own) + jnp.mean(kept)

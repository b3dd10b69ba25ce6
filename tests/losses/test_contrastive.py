"""Contrastive loss over the pairs that a sampler put side by side."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metricjax import losses
from metricjax.errors import InputError

LABELS = np.array([3, 3, 7, 3, 2, 2, 9, 8, 1, 1])


def _rows(seed=0):
    rows = np.random.default_rng(seed).normal(size=(10, 6))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _slow(rows, margin, squared, reduction):
    together, apart = [], []
    for i in range(0, len(rows), 2):
        distance = np.linalg.norm(rows[i] - rows[i + 1]) ** (2 if squared else 1)
        if LABELS[i] == LABELS[i + 1]:
            together.append(distance)
        else:
            apart.append(max(margin - distance, 0.0))
    if reduction == "mean":
        return np.mean(together + apart)
    parts = ([v for v in part if v > 0] for part in (together, apart))
    return sum(np.mean(part) if part else 0.0 for part in parts)


@pytest.mark.parametrize("squared", [True, False])
@pytest.mark.parametrize("reduction", ["mean", "nonzero"])
@pytest.mark.parametrize("margin", [0.5, 2.5])
def test_adjacent_pairs_equal_the_reference(squared, reduction, margin):
    rows = _rows()

    def loss(rows):
        return losses.contrastive(
            jnp.asarray(rows, jnp.float32), LABELS, margin=margin, squared=squared,
            reduction=reduction, among="adjacent",
        )  # fmt: skip

    np.testing.assert_allclose(
        jax.jit(loss)(rows), _slow(rows, margin, squared, reduction), rtol=1e-5
    )
    slopes = jax.grad(loss)(jnp.asarray(rows, jnp.float32))
    for row, column in ((0, 0), (3, 2), (7, 5)):
        step = np.zeros_like(rows)
        step[row, column] = 1e-6
        numeric = (
            _slow(rows + step, margin, squared, reduction)
            - _slow(rows - step, margin, squared, reduction)
        ) / 2e-6
        np.testing.assert_allclose(slopes[row, column], numeric, rtol=1e-3, atol=1e-5)


def test_all_and_adjacent_pairs_of_two_rows_are_the_same():
    for labels in ([0, 0], [0, 1]):
        rows = jnp.asarray(_rows()[:2], jnp.float32)
        whole, one = (
            losses.contrastive(rows, jnp.asarray(labels), margin=3.0, among=among)
            for among in ("all", "adjacent")
        )
        np.testing.assert_allclose(one, whole, rtol=1e-5)
        assert one > 0


def test_pairs_that_cannot_be():
    rows, labels = jnp.asarray(_rows(), jnp.float32), jnp.asarray(LABELS)
    with pytest.raises(InputError, match="even batch, but it has 9"):
        losses.contrastive(rows[:9], labels[:9], among="adjacent")
    with pytest.raises(InputError, match="rows of the batch alone"):
        losses.contrastive(
            rows, labels, among="adjacent", references=rows, reference_labels=labels
        )
    with pytest.raises(InputError, match="among is 'some'"):
        losses.contrastive(rows, labels, among="some")

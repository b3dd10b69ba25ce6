"""Counting parameters and multiply-adds."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from metricjax.models import cost, layers


def _shape(*sizes):
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


def test_matrix_products():
    assert cost.multiply_adds(jnp.matmul, _shape(3, 5), _shape(5, 7)) == 3 * 5 * 7
    batched = cost.multiply_adds(
        lambda a, b: jnp.einsum("bij,bjk->bik", a, b), _shape(4, 2, 3), _shape(4, 3, 6)
    )
    assert batched == 4 * 2 * 3 * 6


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 10 * 8 * 3 * 3 * 6 * 12),
        ({"strides": 2}, 5 * 4 * 3 * 3 * 6 * 12),
        ({"groups": 3}, 10 * 8 * 3 * 3 * 2 * 12),
        ({"kernel_size": 1}, 10 * 8 * 6 * 12),
    ],
)
def test_convolutions(options, expected):
    conv = layers.Conv(12, **options)
    assert cost.forward_multiply_adds(_Called(conv), (10, 8, 6)) == expected


class _Called(nn.Module):
    layer: nn.Module

    @nn.compact
    def __call__(self, images, train=False):
        return self.layer(images)


def test_control_flow_and_nested_programs():
    square, once = _shape(4, 4), 4 * 4 * 4

    def repeated(x):
        return jax.lax.scan(lambda c, _: (c @ c, None), x, None, length=5)[0]

    def chosen(x):
        return jax.lax.cond(x[0, 0] > 0, lambda x: x @ x @ x, lambda x: x @ x, x)

    assert cost.multiply_adds(repeated, square) == 5 * once
    assert cost.multiply_adds(chosen, square) == 2 * once
    assert cost.multiply_adds(jax.jit(lambda x: x @ x), square) == once
    assert cost.multiply_adds(jax.checkpoint(lambda x: x @ x), square) == once
    assert cost.multiply_adds(jnp.tanh, square) == 0
    with pytest.raises(NotImplementedError, match="while"):
        cost.multiply_adds(
            lambda x: jax.lax.while_loop(lambda x: x[0, 0] > 0, lambda x: x @ x, x),
            square,
        )


def test_count_parameters_leaves_statistics_out():
    norm = layers.BatchNorm()
    variables = jax.eval_shape(
        lambda x: norm.init(jax.random.key(0), x, True), _shape(2, 7)
    )
    assert cost.count_parameters(variables) == 14
    assert cost.count_parameters(variables["batch_stats"]) == 14
    assert cost.count_parameters({"params": {}}) == 0

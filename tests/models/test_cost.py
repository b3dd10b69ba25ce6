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


def test_what_platforms_do_in_their_own_way_counts_as_all_others_do_it():
    """A first convolution is blocks of pixels on CUDA, with a larger kernel."""
    first = _Called(layers.Conv(12, 7, strides=2))
    assert cost.forward_multiply_adds(first, (10, 8, 3)) == 5 * 4 * 7 * 7 * 3 * 12


@pytest.mark.parametrize("strides", [1, 2])
@pytest.mark.parametrize("by", ["kernel", "images"])
@pytest.mark.parametrize("channels", [3, 6])
def test_gradients_of_convolutions_cost_what_the_convolution_does(
    strides, by, channels
):
    """The zeros that a stride puts between its cotangents are no work, nor is the
    other gradient, whatever the platforms make of a few channels."""
    conv, images = layers.Conv(12, strides=strides), _shape(2, 10, 8, channels)
    variables = jax.eval_shape(conv.init, jax.random.key(0), images)
    forward = cost.multiply_adds(conv.apply, variables, images)
    assert forward == 2 * 10 * 8 * 3 * 3 * channels * 12 // strides**2

    def pull_back(variables, images, cotangents):
        return jax.vjp(conv.apply, variables, images)[1](cotangents)[by == "images"]

    cotangents = jax.eval_shape(conv.apply, variables, images)
    assert cost.multiply_adds(pull_back, variables, images, cotangents) == forward


def test_what_no_result_needs_does_not_count():
    def one_of_two(x):
        unused = x @ x @ x
        return jnp.tanh(x @ x), unused.shape

    def inside(x):
        return jax.lax.scan(lambda c, _: (c @ c, (c @ c).sum()), x, None, length=3)[0]

    square, once = _shape(4, 4), 4 * 4 * 4
    assert cost.multiply_adds(lambda x: one_of_two(x)[0], square) == once
    assert cost.multiply_adds(inside, square) == 3 * 2 * once


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

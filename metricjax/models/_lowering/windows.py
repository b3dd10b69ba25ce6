"""Maxima and means over windows of a map.

On TPU they are the native reductions. On CPU XLA's loops over windows take as long as
the convolutions around; there a window is reduced as maxima or sums of shifted maps,
first along the rows, then along the columns. The native gradient of a maximum scatters,
on GPU too; there and on CPU it is gathered, each pixel from the windows that it may be
the maximum of.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


def max_pool(
    features: Float[Array, "b h w c"],
    window: int,
    stride: int,
    padding: int = 0,
    ceil_mode: bool = False,
) -> Float[Array, "b p q c"]:
    """The largest value in every window.

    Where several positions of a window hold the maximum, the first of them has its
    gradient, or they share it where the windows tile the map. Differentiable once, in
    reverse mode.

    Args:
      features: [b, h, w, c].
      window: side of the window in pixels.
      stride: step between windows in pixels.
      padding: pixels of minus infinity on every side, at most `window // 2`.
      ceil_mode: rows and columns that are left over at the end get a last, shorter
        window, as in Caffe and in PyTorch's `ceil_mode`; otherwise they are dropped.

    Returns:
      [b, p, q, c] with `p = (h + 2 padding - window) // stride + 1`, rounded up instead
      of down with `ceil_mode`; `q` likewise.
    """
    batch, height, width, channels = features.shape
    sides = tuple(
        (padding, padding + _left_over(side, window, stride, padding, ceil_mode))
        for side in (height, width)
    )
    if window != stride or any(before or after for before, after in sides):
        return _max_pool(features, window, stride, sides)
    rows, columns = height // window, width // window
    tiled = features[:, : rows * window, : columns * window]
    tiled = tiled.reshape(batch, rows, window, columns, window, channels)
    return jnp.max(tiled, axis=(2, 4))


def average_pool(
    features: Float[Array, "b h w c"], window: int, padding: int = 0
) -> Float[Array, "b p q c"]:
    """The mean of every window at stride 1; zeros of the padding count.

    Differentiable once, in reverse mode.

    Args:
      features: [b, h, w, c].
      window: side of the window in pixels.
      padding: pixels of zeros on every side.
    """
    return _mean_pool(features, window, 1, ((padding, padding), (padding, padding)))


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _max_pool(features, window, stride, sides):
    static = window, stride, sides
    return lax.platform_dependent(
        features,
        cpu=lambda one: _shifted(jnp.maximum, -jnp.inf, one, *static),
        default=lambda one: _native_maximum(one, *static),
    )


def _max_pool_backward(window, stride, sides, features, cotangent):
    static = window, stride, sides

    def gathered(features):
        return _gradient_of_maximum(features, cotangent, *static)

    def native(features):
        pull = jax.vjp(lambda one: _native_maximum(one, *static), features)[1]
        return pull(cotangent)[0]

    gradient = lax.platform_dependent(
        features, cpu=gathered, cuda=gathered, default=native
    )
    return (gradient,)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _mean_pool(features, window, stride, sides):
    return _mean(lambda forward: forward, features, window, stride, sides)


def _mean_pool_backward(window, stride, sides, features, cotangent):
    def pulled(forward):
        return lambda one: jax.vjp(forward, one)[1](cotangent)

    return _mean(pulled, features, window, stride, sides)


def _keeping_features(function):
    """A forward pass for `defvjp`."""
    return lambda features, *static: (function(features, *static), features)


_max_pool.defvjp(_keeping_features(_max_pool), _max_pool_backward)
_mean_pool.defvjp(_keeping_features(_mean_pool), _mean_pool_backward)


def _mean(make, features, window, stride, sides):
    """`make(forward)(features)` of what the platform averages with."""
    return lax.platform_dependent(
        features,
        cpu=make(
            lambda one: _shifted(jnp.add, 0, one, window, stride, sides) / window**2
        ),
        default=make(
            lambda one: nn.avg_pool(one, (window, window), (stride, stride), sides)
        ),
    )


def _native_maximum(features, window, stride, sides):
    return nn.max_pool(features, (window, window), (stride, stride), sides)


def _shifted(reduce, fill, features, window, stride, sides):
    """All windows reduced as shifted maps, along the rows, then along the columns."""
    for axis, (before, after) in enumerate(sides, 1):
        edges = [(0, 0, 0)] * 4
        edges[axis] = (before, after, 0)
        padded = lax.pad(features, jnp.asarray(fill, features.dtype), edges)
        # Of the first pixels of all windows; 0 where there is no window.
        reach = max(0, (padded.shape[axis] - window) // stride * stride + 1)
        shifted = [
            lax.slice_in_dim(padded, start, start + reach, stride, axis)
            for start in range(window if reach else 1)
        ]
        features = shifted[0]
        for one in shifted[1:]:
            features = reduce(features, one)
    return features


def _first_maxima(features, window, stride, sides, size):
    """Where in its window each maximum stands first: row * window + column."""
    edges = [(0, 0, 0), *((*side, 0) for side in sides), (0, 0, 0)]
    padded = lax.pad(features, jnp.asarray(-jnp.inf, features.dtype), edges)
    reach = [(count - 1) * stride + 1 for count in size]
    best, where = None, jnp.zeros((), jnp.uint8 if window < 16 else jnp.int32)
    for place in range(window**2):
        row, column = divmod(place, window)
        one = padded[
            :, row : row + reach[0] : stride, column : column + reach[1] : stride
        ]
        larger = one > best if place else jnp.zeros(one.shape, bool)
        where = jnp.where(larger, where.dtype.type(place), where)
        best = jnp.maximum(best, one) if place else one
    return where


def _gradient_of_maximum(features, cotangent, window, stride, sides):
    """To each pixel what the windows send whose first maximum it is."""
    batch, height, width, channels = features.shape
    size = cotangent.shape[1:3]
    if 0 in size:
        return jnp.zeros_like(features)
    where = _first_maxima(features, window, stride, sides, size)
    # Else the comparisons would be made anew for each of the sums below.
    where = lax.optimization_barrier(where)
    # Pixel stride * p + i has the windows p - k as their row stride * k + i.
    turns = -(-window // stride)
    edges = [(0, 0)] + [(turns - 1, turns - 1)] * 2 + [(0, 0)]
    where, slopes = jnp.pad(where, edges), jnp.pad(cotangent, edges)
    rows, columns = (count + turns - 1 for count in size)

    def of_window(row, column):
        top, left = (turns - 1 - place // stride for place in (row, column))
        part = slice(None), slice(top, top + rows), slice(left, left + columns)
        chosen = where[part] == row * window + column
        return jnp.where(chosen, slopes[part], 0).astype(jnp.float32)

    def of_pixels(i, j):
        parts = [
            of_window(row, column)
            for row in range(i, window, stride)
            for column in range(j, window, stride)
        ]
        return sum(parts) if parts else jnp.zeros((batch, rows, columns, channels))

    lines = [
        jnp.stack([of_pixels(i, j) for j in range(stride)], axis=3)
        for i in range(stride)
    ]
    gradient = jnp.stack(lines, axis=2).astype(features.dtype)
    gradient = gradient.reshape(batch, rows * stride, columns * stride, channels)
    crop = [
        (-side[0], length + side[0] - found, 0)
        for side, length, found in zip(
            sides, (height, width), gradient.shape[1:3], strict=True
        )
    ]
    zero = jnp.zeros((), gradient.dtype)
    return lax.pad(gradient, zero, [(0, 0, 0), *crop, (0, 0, 0)])


def _left_over(side, window, stride, padding, ceil_mode) -> int:
    """Pixels to be added behind the padding so that the last window is whole."""
    beyond = (side + 2 * padding - window) % stride
    if not ceil_mode or not beyond:
        return 0
    start = side + 2 * padding - window + stride - beyond
    # A window that would begin in the padding behind the image is none.
    return stride - beyond if start < side + padding else 0

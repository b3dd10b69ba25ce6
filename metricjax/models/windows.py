"""Maxima and means over windows of a map.

On TPU and GPU they are the native reductions. On CPU XLA's loops over windows, and
above all its gradient of a maximum, take as long as the convolutions around; there a
window is reduced as maxima or sums of shifted maps, first along the rows, then along
the columns.
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

    Where several positions of a window hold the maximum, they share its gradient on CPU
    and wherever the windows tile the map; otherwise one of them has it. Differentiable
    once, in reverse mode.

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


def _with_gradient_by_platform(native, shifted):
    """A function of (features, *static) as each platform does it best, both ways."""

    @partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
    def function(features, *static):
        return _chosen(features, static, lambda forward: forward)

    def forward(features, *static):
        return function(features, *static), features

    def backward(*arguments):
        *static, features, cotangent = arguments
        return _chosen(
            features,
            static,
            lambda forward: lambda one: jax.vjp(forward, one)[1](cotangent),
        )

    def _chosen(features, static, make):
        cpu = make(lambda one: shifted(one, *static))
        default = make(lambda one: native(one, *static))
        return lax.platform_dependent(features, cpu=cpu, default=default)

    function.defvjp(forward, backward)
    return function


def _native_maximum(features, window, stride, sides):
    return nn.max_pool(features, (window, window), (stride, stride), sides)


def _native_mean(features, window, stride, sides):
    return nn.avg_pool(features, (window, window), (stride, stride), sides)


def _reduced(reduce, fill, features, window, stride, sides):
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


def _shifted_maximum(features, window, stride, sides):
    return _reduced(jnp.maximum, -jnp.inf, features, window, stride, sides)


def _shifted_mean(features, window, stride, sides):
    total = _reduced(jnp.add, 0, features, window, stride, sides)
    return total / window**2


_max_pool = _with_gradient_by_platform(_native_maximum, _shifted_maximum)
_mean_pool = _with_gradient_by_platform(_native_mean, _shifted_mean)


def _left_over(side, window, stride, padding, ceil_mode) -> int:
    """Pixels to be added behind the padding so that the last window is whole."""
    beyond = (side + 2 * padding - window) % stride
    if not ceil_mode or not beyond:
        return 0
    start = side + 2 * padding - window + stride - beyond
    # A window that would begin in the padding behind the image is none.
    return stride - beyond if start < side + padding else 0

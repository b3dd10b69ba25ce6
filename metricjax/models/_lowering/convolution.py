"""How a convolution is carried out on each platform; what it computes never changes.

On TPU and GPU a convolution is the native one, forward and backward; on NVIDIA's GPUs
a network's first one, of stride 2 on few channels, is that of its blocks of 2x2 pixels
as channels, as it is slow where channels are no multiple of 8. On CPU a 1x1 kernel
becomes a matrix product, of which XLA makes more than of the same convolution, above
all for the gradient of the kernel; and so does, with its patches gathered, one on a map
of a few pixels, where XLA's own runs at a hundredth. The choice is made when a program
is compiled, from its platform and the static shapes.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

# Maps of up to this many pixels are convolved by patches on CPU, whatever the kernel.
_SMALL_MAP = 4
# Up to this many channels, blocks of pixels become channels on NVIDIA's GPUs; channels
# of blocks are filled up to a multiple of the second number.
_FEW_CHANNELS, _ALIGNED = 4, 8


def convolve(
    images: Float[Array, "b h w c"],
    kernel: Float[Array, "k k i o"],
    *,
    strides: int,
    padding: int,
    groups: int = 1,
) -> Float[Array, "b p q o"]:
    """Two-dimensional cross-correlation, `padding` zeros on every side.

    `y[b, p, q, o] = sum_{u, v, i} x[b, p s + u - padding, q s + v - padding, i]
    k[u, v, i, o]`, with `i` over the input channels of the group that holds `o`.
    Differentiable once, in reverse mode.
    """
    if groups > 1:
        return _native(images, kernel, strides, padding, groups)
    return _convolve(images, kernel, strides, padding)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolve(images, kernel, strides, padding):
    return _by_platform(images, kernel, strides, padding, lambda forward: forward)


def _convolve_forward(images, kernel, strides, padding):
    return _convolve(images, kernel, strides, padding), (images, kernel)


def _convolve_backward(strides, padding, residuals, cotangent):
    images, kernel = residuals
    return _by_platform(
        images,
        kernel,
        strides,
        padding,
        lambda forward: lambda *inputs: jax.vjp(forward, *inputs)[1](cotangent),
    )


_convolve.defvjp(_convolve_forward, _convolve_backward)


def _by_platform(images, kernel, strides, padding, make):
    """`make(forward)(images, kernel)` of what the platform convolves with."""
    native = make(partial(_native, strides=strides, padding=padding))
    rows, columns = _size(images, kernel, strides, padding)
    if strides == 2 and kernel.shape[0] > 2 and images.shape[-1] <= _FEW_CHANNELS:
        blocks = make(partial(_of_blocks, padding=padding))
        return lax.platform_dependent(images, kernel, cuda=blocks, default=native)
    if kernel.shape[0] > 1 and rows * columns > _SMALL_MAP:
        return native(images, kernel)
    product = make(partial(_product_with_patches, strides=strides, padding=padding))
    return lax.platform_dependent(images, kernel, cpu=product, default=native)


def _native(images, kernel, strides, padding, groups=1):
    return lax.conv_general_dilated(
        images,
        kernel,
        window_strides=(strides, strides),
        padding=((padding, padding), (padding, padding)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def _of_blocks(images, kernel, padding):
    """With stride 2: blocks of 2x2 pixels as channels, the kernel's likewise."""
    batch, height, width, channels = images.shape
    side = kernel.shape[0] + kernel.shape[0] % 2  # a row and a column of zeros more
    size = _size(images, kernel, 2, padding)
    rows, columns = (count - 1 + side // 2 for count in size)
    after = (2 * rows - padding - height, 2 * columns - padding - width)
    edges = [(0, 0, 0), *((padding, one, 0) for one in after), (0, 0, 0)]
    padded = lax.pad(images, jnp.zeros((), images.dtype), edges)
    blocks = padded.reshape(batch, rows, 2, columns, 2, channels)
    blocks = blocks.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows, columns, -1)
    zeros = [(0, side - kernel.shape[0])] * 2 + [(0, 0)] * 2
    parts = jnp.pad(kernel, zeros).reshape(side // 2, 2, side // 2, 2, channels, -1)
    parts = parts.transpose(0, 2, 1, 3, 4, 5)
    parts = parts.reshape(side // 2, side // 2, 4 * channels, -1)
    fill = [(0, -4 * channels % _ALIGNED)]
    blocks = jnp.pad(blocks, [(0, 0)] * 3 + fill)
    parts = jnp.pad(parts, [(0, 0)] * 2 + fill + [(0, 0)])
    return _native(blocks, parts, strides=1, padding=0)


def _size(images, kernel, strides, padding) -> tuple[int, int]:
    """Rows and columns of the result."""
    return tuple(
        (side + 2 * padding - kernel.shape[0]) // strides + 1
        for side in images.shape[1:3]
    )


def _patches(images, kernel, strides, padding):
    """For each kernel position the pixels that it multiplies: k k of [b, p, q, c]."""
    batch, _, _, channels = images.shape
    side = kernel.shape[0]
    rows, columns = _size(images, kernel, strides, padding)
    padded = jnp.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    return [
        lax.slice(
            padded,
            (0, top, left, 0),
            (
                batch,
                top + (rows - 1) * strides + 1,
                left + (columns - 1) * strides + 1,
                channels,
            ),
            (1, strides, strides, 1),
        )
        for top in range(side)
        for left in range(side)
    ]


def _product_with_patches(images, kernel, strides, padding):
    outputs = kernel.shape[-1]
    patches = _patches(images, kernel, strides, padding)
    gathered = jnp.concatenate(patches, axis=-1)
    product = gathered.reshape(-1, gathered.shape[-1]) @ kernel.reshape(-1, outputs)
    return product.reshape(*gathered.shape[:3], outputs)

"""How a convolution is carried out on each platform; what it computes never changes.

On TPU and GPU a convolution is the native one, forward and backward. On CPU XLA's own
weight gradient runs at a fraction of its matrix product, convolutions with few input
channels do, and those on maps of a few pixels run at a hundredth. There 1x1, thin and
strided kernels and small maps become a product with the gathered patches, and the
weight gradient of the others one product per kernel position. The choice is made when a
program is compiled, from its platform and the static shapes.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

# Patches of up to this many numbers are gathered on CPU; longer ones cost more memory
# traffic than the product saves.
_SHORT_PATCH = 64
# Maps of up to this many pixels are convolved by patches on CPU, whatever the kernel.
_SMALL_MAP = 4


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
    native = partial(_native, strides=strides, padding=padding)
    short = kernel.size // kernel.shape[-1] <= _SHORT_PATCH
    small = _is_small(images, kernel, strides, padding)
    if not (short or small or strides > 1 or kernel.shape[0] == 1):
        return native(images, kernel)
    by_patches = partial(_product_with_patches, strides=strides, padding=padding)
    return lax.platform_dependent(images, kernel, cpu=by_patches, default=native)


def _convolve_forward(images, kernel, strides, padding):
    return _convolve(images, kernel, strides, padding), (images, kernel)


def _convolve_backward(strides, padding, residuals, cotangent):
    images, kernel = residuals

    def native(images, kernel, cotangent):
        forward = partial(_native, strides=strides, padding=padding)
        return jax.vjp(forward, images, kernel)[1](cotangent)

    def on_cpu(images, kernel, cotangent):
        pointwise = kernel.shape[0] == 1 and strides == 1
        if pointwise or _is_small(images, kernel, strides, padding):
            forward = partial(_product_with_patches, strides=strides, padding=padding)
            return jax.vjp(forward, images, kernel)[1](cotangent)
        to_images, _ = native(images, kernel, cotangent)
        to_kernel = _kernel_gradient(images, kernel, cotangent, strides, padding)
        return to_images, to_kernel

    return lax.platform_dependent(images, kernel, cotangent, cpu=on_cpu, default=native)


_convolve.defvjp(_convolve_forward, _convolve_backward)


def _native(images, kernel, strides, padding, groups=1):
    return lax.conv_general_dilated(
        images,
        kernel,
        window_strides=(strides, strides),
        padding=((padding, padding), (padding, padding)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def _size(images, kernel, strides, padding) -> tuple[int, int]:
    """Rows and columns of the result."""
    return tuple(
        (side + 2 * padding - kernel.shape[0]) // strides + 1
        for side in images.shape[1:3]
    )


def _is_small(images, kernel, strides, padding) -> bool:
    rows, columns = _size(images, kernel, strides, padding)
    return rows * columns <= _SMALL_MAP


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


def _kernel_gradient(images, kernel, cotangent, strides, padding):
    """One product over all pixels for each position of the kernel."""
    outputs = kernel.shape[-1]
    flat = cotangent.reshape(-1, outputs)
    patches = _patches(images, kernel, strides, padding)
    if kernel.size // outputs <= _SHORT_PATCH:
        patches = [jnp.concatenate(patches, axis=-1)]
    products = [patch.reshape(-1, patch.shape[-1]).T @ flat for patch in patches]
    return jnp.concatenate(products).reshape(kernel.shape)

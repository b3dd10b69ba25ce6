"""Rows or kernel: which implementation of a loss runs on which platform.

TPUs and GPUs run the readable form of a loss, one function over whole rows: their
matrix units are fastest on large products. A CPU is fastest on what fits its caches, so
that some losses have a kernel for it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from metricjax.losses._kernels.tiling import Tiling

Form = Literal["rows", "kernel"]
_forced: ContextVar[Form | None] = ContextVar("form of the losses", default=None)


@dataclass(frozen=True)
class Kernel:
    """An implementation for CPUs of a loss within one batch.

    Attributes:
      function: `(embeddings [b, d], labels [b], *, tiling) -> loss`; the embeddings are
        float32, both are checked.
      at_once: whether it is faster than rows without blocks, too.
    """

    function: Callable[..., Float[Array, ""]]
    at_once: bool = False

    def covers(self, labels: Array, own: bool, tiling: Tiling) -> bool:
        """Whether it computes this: a batch against itself, unmasked, on one device."""
        fits = self.at_once or tiling.in_blocks(len(labels))
        return own and fits and tiling.mesh is None


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def choose(
    rows: Callable[..., Float[Array, ""]],
    kernel: Callable[..., Float[Array, ""]],
    embeddings: Float[Array, "b d"],
    labels: Int[Array, " b"],
) -> Float[Array, ""]:
    """`kernel(embeddings, labels)` where the program runs on a CPU, else `rows(...)`.

    Value and gradient are computed within the choice: differentiated from outside, each
    of the two would have to return what the other keeps for its backward pass.
    """
    return _on_platform(rows, kernel, embeddings, labels)


@choose.defjvp
def _choose_jvp(rows, kernel, primals, tangents):
    """Along a tangent, and linear in it, so that it serves forward and reverse."""
    both = (jax.value_and_grad(form) for form in (rows, kernel))
    value, slopes = _on_platform(*both, *primals)
    # Products of elements, not `vdot`, which a TPU would round to bfloat16.
    return value, jnp.sum(slopes * tangents[0])


def _on_platform(rows, kernel, embeddings, labels):
    forced = _forced.get()
    if forced is None and isinstance(embeddings, jax.core.Tracer):
        # Decided when the program is lowered, so that a program that is compiled for a
        # TPU on a machine without one gets the rows.
        return jax.lax.platform_dependent(
            embeddings, labels, cpu=kernel, default=rows
        )  # fmt: skip
    if forced is None:  # not under jit, where each call would compile a choice anew
        on_cpu = next(iter(embeddings.devices())).platform == "cpu"
        forced = "kernel" if on_cpu else "rows"
    return (kernel if forced == "kernel" else rows)(embeddings, labels)


@contextmanager
def forced(form: Form | None) -> Iterator[None]:
    """Trace losses in one form on any platform: so that tests can compare the two."""
    token = _forced.set(form)
    try:
        yield
    finally:
        _forced.reset(token)

"""What a model costs: parameters and multiply-adds, counted without running it."""

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.extend import core


def count_parameters(variables) -> int:
    """The number of trained numbers: the "params" collection, without statistics.

    Args:
      variables: what a module's `init`, or `jax.eval_shape` of it, returns; or any tree
        of arrays that has no "params" entry, then counted whole.
    """
    if isinstance(variables, dict) and "params" in variables:
        variables = variables["params"]
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables))


def multiply_adds(function: Callable, *arguments) -> int:
    """Multiply-adds of every convolution and matrix product in one call.

    The function is traced, never run. A convolution counts `output elements x kernel
    height x kernel width x input channels / groups` (so zeros of the padding count, as
    is usual, but not those between inputs that are spread out), a matrix product
    `output elements x contracted length`; a loop's body counts as often as it runs, a
    conditional as its dearest branch, and what each platform does in its own way as the
    way of all the others. What no result needs does not count, nor do
    additions, normalisation and activations. One multiply-add is two FLOPs.

    Args:
      function: any traceable function.
      *arguments: arrays or `jax.ShapeDtypeStruct`s.

    Raises:
      NotImplementedError: products inside a `while` loop, whose length is unknown, or
        inside a kernel or a per-device function.
    """
    return _count(jax.make_jaxpr(function)(*arguments).jaxpr)


def forward_multiply_adds(module: nn.Module, image_shape: tuple[int, int, int]) -> int:
    """Multiply-adds of embedding one image at inference.

    Args:
      module: called as `module(images, train=False)`.
      image_shape: (height, width, channels).
    """
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    variables = jax.eval_shape(module.init, jax.random.key(0), images)
    return multiply_adds(module.apply, variables, images)


def _count(jaxpr: core.Jaxpr, results=None) -> int:
    """Of the equations that some results need, by default all the results."""
    needed = _variables(jaxpr.outvars if results is None else results)
    total = 0
    for equation in reversed(jaxpr.eqns):
        if equation.effects or needed.intersection(equation.outvars):
            total += _count_equation(equation, needed)
            needed |= _variables(equation.invars)
    return total


def _variables(atoms) -> set[core.Var]:
    return {atom for atom in atoms if isinstance(atom, core.Var)}


def _count_equation(equation, needed) -> int:
    name = equation.primitive.name
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval
        outputs = kernel.shape[equation.params["dimension_numbers"].rhs_spec[0]]
        # A stride's gradient spreads its inputs out; the zeros between are no work.
        spread = math.prod(equation.params["lhs_dilation"])
        return equation.outvars[0].aval.size * (kernel.size // outputs) // spread
    if name == "dot_general":
        contracted = equation.params["dimension_numbers"][0][0]
        left = equation.invars[0].aval.shape
        length = math.prod(left[axis] for axis in contracted)
        return equation.outvars[0].aval.size * length
    if name == "cond" and equation.params.get("branches_platforms"):
        default = equation.params["branches"][-1].jaxpr
        pairs = zip(equation.outvars, default.outvars, strict=True)
        return _count(default, [own for outer, own in pairs if outer in needed])
    inner = [_count(jaxpr) for jaxpr in _inner(equation.params.values())]
    if name == "cond":
        return max(inner)
    if name in ("while", "pallas_call", "shard_map") and any(inner):
        raise NotImplementedError(
            f"The multiply-adds inside a {name} cannot be counted by tracing."
        )
    return sum(inner) * (equation.params["length"] if name == "scan" else 1)


def _inner(values):
    """The programs held by an equation's parameters."""
    for value in values:
        if isinstance(value, core.ClosedJaxpr):
            yield value.jaxpr
        elif isinstance(value, core.Jaxpr):
            yield value
        elif isinstance(value, tuple | list):
            yield from _inner(value)

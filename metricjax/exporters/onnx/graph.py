"""The walk over a jaxpr, and the ONNX nodes and constants that it writes.

What each operation becomes is a table that is handed in, see `operations`. Whatever
depends on no input is evaluated here and becomes a constant.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jax import export

from metricjax.errors import InputError

# Calls are walked into; their jaxpr is this parameter.
_CALLS = {
    "jit": "jaxpr",
    "closed_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
}


@dataclass(frozen=True, eq=False)
class Value:
    """An array of the program: a constant, or a tensor of the graph.

    Attributes:
      shape: of the array; a multiple of the batch size is a symbol.
      dtype: of the array.
      constant: an array that broadcasts to `shape`, where it is known.
      name: otherwise, of a tensor that broadcasts to `shape`.
      actual: the shape of that array or tensor; 1 where it is yet to be broadcast.
    """

    shape: tuple[Any, ...]
    dtype: np.dtype
    constant: np.ndarray | None = None
    name: str = ""
    actual: tuple[Any, ...] = ()


class Graph:
    """The nodes and constants written so far.

    Args:
      batch: the symbol of the batch size.
      operations: by the name of a JAX primitive, what writes it:
        `(graph, params, output, *values) -> Value`, or a tuple of values.
    """

    def __init__(self, batch: Any, operations: Mapping[str, Callable]):
        self.batch = batch
        self._operations = operations
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        self._count = 0
        self._sizes: dict[tuple, str] = {}

    def walk(self, jaxpr: Any, consts: Sequence, values: Sequence[Value]):
        """Writes a jaxpr given its inputs; returns its outputs."""
        known = {}

        def read(atom):
            if hasattr(atom, "val"):
                return constant(atom.val)
            return known[atom]

        known |= zip(jaxpr.constvars, map(constant, consts), strict=True)
        known |= zip(jaxpr.invars, values, strict=True)
        for equation in jaxpr.eqns:
            results = self._write(equation, [read(atom) for atom in equation.invars])
            known |= zip(equation.outvars, results, strict=True)
        return [read(atom) for atom in jaxpr.outvars]

    def _write(self, equation: Any, values: list[Value]) -> list[Value]:
        name, params = equation.primitive.name, equation.params
        if name in _CALLS:
            inner = params[_CALLS[name]]
            return self.walk(inner.jaxpr, inner.consts, values)
        if name == "platform_index":
            # What every platform but the named ones does: the native operations.
            return [constant(np.int32(params["platforms"].index(None)))]
        if name == "cond" and values[0].constant is not None:
            branch = params["branches"][int(values[0].constant)]
            return self.walk(branch.jaxpr, branch.consts, values[1:])
        outputs = [atom.aval for atom in equation.outvars]
        if all(value.constant is not None for value in values):
            folded = _folded(equation, values, outputs)
            if folded is not None:
                return folded
        operation = self._operations.get(name)
        if operation is None:
            raise InputError(
                f"The model has the operation {name}, which cannot be written as ONNX "
                "yet: export it with --format stablehlo."
            )
        found = operation(self, params, outputs[0], *values)
        return list(found) if isinstance(found, tuple) else [found]

    def node(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Adds a node of one output; returns the output's name."""
        (name,) = self.nodes_of(kind, 1, *inputs, **attributes)
        return name

    def nodes_of(self, kind: str, count: int, *inputs: str, **attributes) -> list[str]:
        """Adds a node of `count` outputs."""
        import onnx

        names = [self._new(kind.lower()) for _ in range(count)]
        self.nodes.append(onnx.helper.make_node(kind, inputs, names, **attributes))
        return names

    def array(self, array: Any, dtype: Any = None) -> str:
        """Adds a constant; returns its name."""
        import onnx

        name = self._new("constant")
        array = np.ascontiguousarray(np.asarray(array, dtype))
        self.initializers.append(onnx.numpy_helper.from_array(array, name))
        return name

    def ints(self, *numbers: int) -> str:
        """Adds a constant of whole numbers, as axes and shapes are given."""
        return self.array(np.array(numbers, np.int64).reshape(-1))

    def tensor(self, value: Value) -> str:
        """The name of what broadcasts to a value."""
        return value.name or self.array(value.constant)

    def full(self, value: Value) -> str:
        """The name of a tensor that has the value's whole shape."""
        name = self.tensor(value)
        if tuple(value.actual) == tuple(value.shape):
            return name
        return self.node("Expand", name, self._size(value.shape))

    def made(self, name: str, output: Any, actual: Sequence | None = None) -> Value:
        """The value of an output that a tensor holds, wholly unless `actual` is given.

        `output` is its `jax` type.
        """
        shape = tuple(output.shape)
        actual = shape if actual is None else tuple(actual)
        return Value(shape, output.dtype, name=name, actual=actual)

    def reshaped(self, name: str, shape: Sequence[Any]) -> str:
        """A tensor in another shape, in which one side at most may be a symbol."""
        sides = [-1 if export.is_symbolic_dim(side) else int(side) for side in shape]
        return self.node("Reshape", name, self.ints(*sides))

    def transposed(self, name: str, order: Sequence[int]) -> str:
        order = [int(axis) for axis in order]
        if order == list(range(len(order))):
            return name
        return self.node("Transpose", name, perm=order)

    def _size(self, shape: Sequence[Any]) -> str:
        """A tensor that holds a shape, batch included."""
        key = tuple(
            (0, side // self.batch) if export.is_symbolic_dim(side) else int(side)
            for side in shape
        )
        if key not in self._sizes:
            batch = self.node("Shape", "images", start=0, end=1)
            parts = [
                self.ints(side)
                if isinstance(side, int)
                else self.node("Mul", batch, self.ints(side[1]))
                for side in key
            ]
            self._sizes[key] = self.node("Concat", *parts, axis=0)
        return self._sizes[key]

    def _new(self, kind: str) -> str:
        self._count += 1
        return f"{kind}_{self._count}"


def constant(array: Any) -> Value:
    """A known array."""
    array = np.asarray(array)
    return Value(array.shape, array.dtype, constant=array, actual=array.shape)


def _folded(equation, values, outputs) -> list[Value] | None:
    """The results of known values, worked out; None where their shapes are symbols."""
    sides = [side for one in (*values, *outputs) for side in one.shape]
    sides += [equation.params.get("dim")]  # of what asks for the size of the batch
    if any(export.is_symbolic_dim(side) for side in sides):
        return None
    whole = [np.broadcast_to(value.constant, value.shape) for value in values]
    results = equation.primitive.bind(*whole, **equation.params)
    several = equation.primitive.multiple_results
    return [constant(result) for result in (results if several else [results])]

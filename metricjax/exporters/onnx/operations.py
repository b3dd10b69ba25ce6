"""What each operation of JAX becomes in ONNX.

`OPERATIONS[name](graph, params, output, *values)` writes the nodes of one operation and
returns its value.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from metricjax.errors import InputError
from metricjax.exporters.onnx import products
from metricjax.exporters.onnx.graph import Graph, Value

_ELEMENTWISE = {
    "abs": "Abs",
    "add": "Add",
    "and": "And",
    "div": "Div",
    "eq": "Equal",
    "erf": "Erf",
    "exp": "Exp",
    "floor": "Floor",
    "ge": "GreaterOrEqual",
    "gt": "Greater",
    "le": "LessOrEqual",
    "log": "Log",
    "logistic": "Sigmoid",
    "lt": "Less",
    "max": "Max",
    "min": "Min",
    "mul": "Mul",
    "neg": "Neg",
    "not": "Not",
    "or": "Or",
    "pow": "Pow",
    "sign": "Sign",
    "sqrt": "Sqrt",
    "sub": "Sub",
    "tanh": "Tanh",
}
_REDUCTIONS = {
    "reduce_max": "ReduceMax",
    "reduce_min": "ReduceMin",
    "reduce_sum": "ReduceSum",
}


def _actual(output: Any, values: tuple[Value, ...]) -> tuple:
    """The shape of what comes of values that are yet to be broadcast."""
    sides = [value.actual or (1,) * len(output.shape) for value in values]
    return tuple(
        next((side for side in along if side != 1), 1)
        for along in zip(*sides, strict=True)
    )


def _elementwise(write: Callable[..., str]):
    """An operation on broadcast values: `write(graph, *names) -> name`."""

    def operation(graph, params, output, *values):
        names = [graph.tensor(value) for value in values]
        return graph.made(write(graph, *names), output, _actual(output, values))

    return operation


def _maximum(graph: Graph, params, output, *values: Value) -> Value:
    """Runtimes join a ReLU with the convolution before it."""
    first, second = values
    zero = second.constant is not None and not np.any(second.constant)
    if zero and np.size(second.constant) == 1 and np.issubdtype(output.dtype, float):
        return graph.made(graph.node("Relu", first.name), output, first.actual)
    name = graph.node("Max", *map(graph.tensor, values))
    return graph.made(name, output, _actual(output, values))


def _power(graph: Graph, params, output, value: Value) -> Value:
    exponent = graph.array(params["y"], value.dtype)
    name = graph.node("Pow", graph.tensor(value), exponent)
    return graph.made(name, output, value.actual)


def _select(graph: Graph, params, output, which: Value, *cases: Value) -> Value:
    if which.dtype != bool or len(cases) != 2:
        raise InputError(
            "The model chooses among more than two arrays, which cannot be written as "
            "ONNX yet: export it with --format stablehlo."
        )
    false, true = cases
    name = graph.node("Where", *map(graph.tensor, (which, true, false)))
    return graph.made(name, output, _actual(output, (which, *cases)))


def _cast(graph: Graph, params, output, value: Value) -> Value:
    import onnx

    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(params["new_dtype"]))
    name = graph.node("Cast", graph.tensor(value), to=kind)
    return graph.made(name, output, value.actual)


def _same(graph: Graph, params, output, value: Value) -> Value:
    return value


def _broadcast(graph: Graph, params, output, value: Value) -> Value:
    """Only new axes are made; what takes the value broadcasts it, or asks for all."""
    shape = [1] * len(output.shape)
    for axis, side in zip(params["broadcast_dimensions"], value.actual, strict=True):
        shape[axis] = side
    if value.constant is not None:
        array = value.constant.reshape(shape)
        return Value(tuple(output.shape), output.dtype, array, actual=tuple(shape))
    if len(shape) == len(value.actual):
        return graph.made(value.name, output, shape)
    return graph.made(graph.reshaped(value.name, shape), output, shape)


def _reshape(graph: Graph, params, output, value: Value) -> Value:
    name = graph.full(value)
    if params["dimensions"] is not None:  # an order of the axes to take first
        name = graph.transposed(name, params["dimensions"])
    return graph.made(graph.reshaped(name, output.shape), output)


def _squeeze(graph: Graph, params, output, value: Value) -> Value:
    return graph.made(graph.reshaped(graph.full(value), output.shape), output)


def _transpose(graph: Graph, params, output, value: Value) -> Value:
    order = params["permutation"]
    name = graph.transposed(graph.tensor(value), order)
    return graph.made(name, output, [value.actual[axis] for axis in order])


def _slice(graph: Graph, params, output, value: Value) -> Value:
    strides = params["strides"] or (1,) * len(value.shape)
    starts = params["start_indices"]
    return graph.made(
        _sliced(
            graph, graph.full(value), value, starts, params["limit_indices"], strides
        ),
        output,
    )


def _sliced(graph: Graph, name: str, value: Value, starts, limits, strides) -> str:
    """Along the axes of which something is left out."""
    cuts = [
        (int(start), int(limit), axis, int(stride))
        for axis, (start, limit, stride, side) in enumerate(
            zip(starts, limits, strides, value.shape, strict=True)
        )
        if not (start == 0 and stride == 1 and limit == side)
    ]
    if not cuts:
        return name
    return graph.node("Slice", name, *(graph.ints(*part) for part in zip(*cuts)))  # noqa: B905


def _reverse(graph: Graph, params, output, value: Value) -> Value:
    axes = params["dimensions"]
    count = len(axes)
    bounds = [graph.ints(*[bound] * count) for bound in (-1, np.iinfo(np.int64).min)]
    steps = graph.ints(*[-1] * count)
    name = graph.node("Slice", graph.full(value), *bounds, graph.ints(*axes), steps)
    return graph.made(name, output)


def _gather(graph: Graph, params, output, value: Value, indices: Value) -> Value:
    """At places that are known: a slice, and rows of it along one axis."""
    numbers, sizes = params["dimension_numbers"], params["slice_sizes"]
    starts, axis, rows = _places(numbers, indices.constant)
    lows, highs = [0] * len(sizes), list(sizes)
    if rows is not None:
        highs[axis] = value.shape[axis]
    for along, start in starts.items():
        lows[along] = min(max(start, 0), value.shape[along] - sizes[along])
        highs[along] = lows[along] + sizes[along]
    ones = (1,) * len(sizes)
    name = _sliced(graph, graph.full(value), value, lows, highs, ones)
    if rows is None:
        if numbers.collapsed_slice_dims:
            name = graph.reshaped(name, output.shape)
        return graph.made(name, output)
    rows = graph.array(np.clip(rows, 0, value.shape[axis] - 1), np.int64)
    name = graph.node("Gather", name, rows, axis=int(axis))
    (place,) = set(range(len(output.shape))) - set(numbers.offset_dims)
    order = [one for one in range(len(output.shape)) if one != axis]
    order.insert(place, axis)
    return graph.made(graph.transposed(name, order), output)


def _places(numbers: Any, indices: np.ndarray | None):
    """Starts of a slice by axis, and an axis with the rows to take along it, if any.

    Raises:
      InputError: the places are not known, or differ along several axes.
    """
    axes, collapsed = numbers.start_index_map, numbers.collapsed_slice_dims
    if indices is not None and not numbers.operand_batching_dims:
        if indices.ndim == 1:
            return dict(zip(axes, indices.tolist(), strict=True)), None, None
        if indices.ndim == 2 and len(collapsed) == 1 and collapsed[0] in axes:
            column = axes.index(collapsed[0])
            others = np.delete(indices, column, axis=1)
            if (others == others[:1]).all():
                starts = dict(zip(axes, indices[0].tolist(), strict=True))
                del starts[collapsed[0]]
                return starts, collapsed[0], indices[:, column]
    raise InputError(
        "The model looks rows up by index, which cannot be written as ONNX yet: "
        "export it with --format stablehlo."
    )


def _pad(graph: Graph, params, output, value: Value, fill: Value) -> Value:
    sides = params["padding_config"]
    if any(between for _, _, between in sides) or any(
        min(before, after) < 0 for before, after, _ in sides
    ):
        raise InputError(
            "The model pads between pixels, which cannot be written as ONNX yet: "
            "export it with --format stablehlo."
        )
    name = graph.full(value)
    if any(before or after for before, after, _ in sides):
        widths = [side[0] for side in sides] + [side[1] for side in sides]
        name = graph.node("Pad", name, graph.ints(*widths), graph.tensor(fill))
    return graph.made(name, output)


def _concatenate(graph: Graph, params, output, *values: Value) -> Value:
    names = map(graph.full, values)
    return graph.made(graph.node("Concat", *names, axis=params["dimension"]), output)


def _stack(graph: Graph, params, output, *values: Value) -> Value:
    axis = params["axis"]
    new = graph.ints(axis)
    names = [graph.node("Unsqueeze", graph.full(value), new) for value in values]
    return graph.made(graph.node("Concat", *names, axis=axis), output)


def _split(graph: Graph, params, output, value: Value) -> tuple[Value, ...]:
    axis, sizes = params["axis"], params["sizes"]
    names = graph.nodes_of(
        "Split", len(sizes), graph.full(value), graph.ints(*sizes), axis=axis
    )
    found = []
    for name, size in zip(names, sizes, strict=True):
        shape = tuple(
            int(size) if place == axis else side
            for place, side in enumerate(value.shape)
        )
        found.append(Value(shape, value.dtype, name=name, actual=shape))
    return tuple(found)


def _reduce(kind: str, graph: Graph, params, output, value: Value) -> Value:
    axes = graph.ints(*params["axes"])
    return graph.made(graph.node(kind, graph.full(value), axes, keepdims=0), output)


OPERATIONS: dict[str, Callable[..., Any]] = {
    **{
        name: _elementwise(lambda graph, *names, kind=kind: graph.node(kind, *names))
        for name, kind in _ELEMENTWISE.items()
    },
    "erfc": _elementwise(
        lambda g, x: g.node("Sub", g.array(1, np.float32), g.node("Erf", x))
    ),
    "is_finite": _elementwise(
        lambda g, x: g.node("Not", g.node("Or", g.node("IsInf", x), g.node("IsNaN", x)))
    ),
    "ne": _elementwise(lambda g, x, y: g.node("Not", g.node("Equal", x, y))),
    "rsqrt": _elementwise(lambda g, x: g.node("Reciprocal", g.node("Sqrt", x))),
    "square": _elementwise(lambda g, x: g.node("Mul", x, x)),
    "max": _maximum,
    "integer_pow": _power,
    "select_n": _select,
    "convert_element_type": _cast,
    "copy": _same,
    "stop_gradient": _same,
    "broadcast_in_dim": _broadcast,
    "reshape": _reshape,
    "squeeze": _squeeze,
    "expand_dims": _squeeze,
    "transpose": _transpose,
    "slice": _slice,
    "rev": _reverse,
    "gather": _gather,
    "pad": _pad,
    "concatenate": _concatenate,
    "stack": _stack,
    "split": _split,
    **{name: partial(_reduce, kind) for name, kind in _REDUCTIONS.items()},
    "dot_general": products.dot,
    "conv_general_dilated": products.convolve,
    "reduce_window_max": partial(products.pool, "MaxPool"),
    "reduce_window_sum": partial(products.pool, "AveragePool"),
}

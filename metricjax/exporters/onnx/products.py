"""Products of matrices, convolutions and poolings in ONNX.

Maps are [b, h, w, c] in JAX and [b, c, h, w] in ONNX: a convolution or pooling is
written between two transpositions, which runtimes move and cancel.
"""

import numpy as np

from metricjax.errors import InputError
from metricjax.exporters.onnx.graph import Graph, Value


def dot(graph: Graph, params, output, left: Value, right: Value) -> Value:
    """A product of matrices, one for each place along the batch axes."""
    (left_sums, right_sums), (left_batch, right_batch) = params["dimension_numbers"]
    left_free = _others(left, left_sums, left_batch)
    right_free = _others(right, right_sums, right_batch)
    together = len(left_batch) and len(left_free) != 1
    if len(left_sums) != 1 or len(right_free) != 1 or together:
        return _einsum(graph, params, output, left, right)
    first = graph.transposed(graph.full(left), [*left_batch, *left_free, *left_sums])
    second = graph.transposed(
        graph.full(right), [*right_batch, *right_sums, *right_free]
    )
    return graph.made(graph.node("MatMul", first, second), output)


def _einsum(graph: Graph, params, output, left: Value, right: Value) -> Value:
    (left_sums, right_sums), (left_batch, right_batch) = params["dimension_numbers"]
    letters = iter("abcdefghijklmnopqrstuvwxyz")
    of_left, of_right = {}, {}
    for ours, theirs in ((left_batch, right_batch), (left_sums, right_sums)):
        for one, other in zip(ours, theirs, strict=True):
            of_left[one] = of_right[other] = next(letters)
    result = [of_left[axis] for axis in left_batch]
    for value, found, sums, batch in (
        (left, of_left, left_sums, left_batch),
        (right, of_right, right_sums, right_batch),
    ):
        for axis in _others(value, sums, batch):
            found[axis] = next(letters)
            result.append(found[axis])
    terms = [
        "".join(found[axis] for axis in range(len(value.shape)))
        for value, found in ((left, of_left), (right, of_right))
    ]
    equation = f"{terms[0]},{terms[1]}->{''.join(result)}"
    names = graph.full(left), graph.full(right)
    return graph.made(graph.node("Einsum", *names, equation=equation), output)


def _others(value: Value, *axes) -> list[int]:
    taken = {axis for some in axes for axis in some}
    return [axis for axis in range(len(value.shape)) if axis not in taken]


def convolve(graph: Graph, params, output, images: Value, kernel: Value) -> Value:
    layout = params["dimension_numbers"]
    if params["batch_group_count"] != 1 or any(d != 1 for d in params["lhs_dilation"]):
        raise InputError(
            "The model has a transposed convolution, which cannot be written as ONNX "
            "yet: export it with --format stablehlo."
        )
    if kernel.constant is not None:
        weights = graph.array(np.transpose(kernel.constant, layout.rhs_spec))
    else:
        weights = graph.transposed(graph.full(kernel), layout.rhs_spec)
    before, after = zip(*params["padding"], strict=True)
    name = graph.node(
        "Conv",
        graph.transposed(graph.full(images), layout.lhs_spec),
        weights,
        strides=_whole(params["window_strides"]),
        pads=_whole((*before, *after)),
        dilations=_whole(params["rhs_dilation"]),
        group=int(params["feature_group_count"]),
    )
    return graph.made(graph.transposed(name, np.argsort(layout.out_spec)), output)


def pool(kind: str, graph: Graph, params, output, value: Value, *_: Value) -> Value:
    """A maximum or sum over windows along two axes."""
    sides, strides = params["window_dimensions"], params["window_strides"]
    padding = params["padding"]
    windowed = [
        axis
        for axis, (side, stride, pads) in enumerate(
            zip(sides, strides, padding, strict=True)
        )
        if (side, stride, *pads) != (1, 1, 0, 0)
    ]
    dilated = any(
        d != 1 for d in (*params["base_dilation"], *params["window_dilation"])
    )
    if len(windowed) > 2 or dilated:
        raise InputError(
            "The model reduces windows along other axes than height and width, which "
            "cannot be written as ONNX yet: export it with --format stablehlo."
        )
    rest = [axis for axis in range(len(sides)) if axis not in windowed]
    while len(windowed) < 2:
        windowed.append(rest.pop())
    order = [*rest, *windowed]
    name = graph.transposed(graph.full(value), order)
    # All that is not windowed are pictures of one channel, or channels of pictures.
    flat = len(rest) != 2
    if flat:
        name = graph.reshaped(
            name, [graph.batch, 1, *(value.shape[a] for a in windowed)]
        )
    window = _whole(sides[axis] for axis in windowed)
    before, after = zip(*(padding[axis] for axis in windowed), strict=True)
    options = {
        "kernel_shape": window,
        "strides": _whole(strides[axis] for axis in windowed),
        "pads": _whole((*before, *after)),
    }
    if kind == "AveragePool":
        options["count_include_pad"] = 1
    name = graph.node(kind, name, **options)
    if kind == "AveragePool":
        name = graph.node("Mul", name, graph.array(np.prod(window), np.float32))
    if flat:
        name = graph.reshaped(name, [output.shape[axis] for axis in order])
    return graph.made(graph.transposed(name, np.argsort(order)), output)


def _whole(numbers) -> list[int]:
    return [int(number) for number in numbers]

"""From a JAX function to a checked ONNX model."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax import export
from jaxtyping import Array

from metricjax.errors import InputError
from metricjax.exporters.onnx.graph import Graph, Value
from metricjax.exporters.onnx.operations import OPERATIONS

OPSET = 18
# Protocol buffers hold no more.
_MOST_BYTES = 2**31 - 1


def convert(function: Callable[[Array], Array], shape: Sequence[int]) -> Any:
    """The ONNX model of a function from images to embeddings.

    Args:
      function: of uint8 [b, h, w, c] images, returns float32 [b, d]; what it closes
        over becomes constants.
      shape: [h, w, c].

    Returns:
      An `onnx.ModelProto` with the input "images" [b, h, w, c] and the output
      "embeddings" [b, d], b any number; checked by ONNX.

    Raises:
      InputError: onnx is not installed, the function has an operation that is not
        known here, or the model is larger than ONNX files can be.
    """
    onnx = _onnx()
    (batch,) = export.symbolic_shape("b")
    images = jax.ShapeDtypeStruct((batch, *shape), np.uint8)
    closed = jax.make_jaxpr(function)(images)
    graph = Graph(batch, OPERATIONS)
    given = Value(images.shape, images.dtype, name="images", actual=images.shape)
    (result,) = graph.walk(closed.jaxpr, closed.consts, [given])
    graph.nodes.append(
        onnx.helper.make_node("Identity", [graph.full(result)], ["embeddings"])
    )
    kinds = onnx.TensorProto
    ends = [("images", kinds.UINT8, given), ("embeddings", kinds.FLOAT, result)]
    described = [
        onnx.helper.make_tensor_value_info(name, kind, ["batch", *value.shape[1:]])
        for name, kind, value in ends
    ]
    sizes = sum(tensor.ByteSize() for tensor in graph.initializers)
    if sizes > _MOST_BYTES:
        raise InputError(
            f"The model has {sizes / 2**30:.1f} GiB of parameters, more than the 2 GiB "
            "of an ONNX file: export it with --format stablehlo."
        )
    model = onnx.helper.make_model(
        onnx.helper.make_graph(
            graph.nodes, "embedding", described[:1], described[1:], graph.initializers
        ),
        producer_name="metricjax",
        ir_version=10,
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def _onnx():
    try:
        import onnx
        import onnx.checker
    except ImportError as error:
        raise InputError(
            "--format onnx needs onnx, which is not installed: pip install "
            "'metricjax[onnx]'."
        ) from error
    return onnx

"""From a JAX function to an ONNX model, operation by operation."""

"""A trained network as files for other programs: StableHLO, ONNX, a model card."""

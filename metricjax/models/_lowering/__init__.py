"""What is computed differently on CPU, where XLA's own lowering is slow.

The results are the same everywhere; TPU and GPU run the native operations. Each file is
paid for by a row of `benchmarks/results/train_step.md`.
"""

"""A worker of the benchmarks: the matrix products of a step, alone."""

import time

import harness
import numpy as np

BUDGET = 0.4  # seconds


def build(spec):
    """The three products of value and gradient, in one of three libraries.

    [b, d] x [d, n], [b, n] x [n, d] and [n, b] x [b, d], float32.
    """
    b, n, d = spec["rows"], spec["columns"], spec["dim"]
    generator = np.random.default_rng(0)
    x, p = (generator.standard_normal((k, d), dtype=np.float32) for k in (b, n))
    g = np.full((b, n), 1e-3, np.float32)
    operands = [(x, p.T), (g, p), (g.T, x)]
    if spec["library"] == "numpy":
        return Products([_numpy(*pair) for pair in operands])
    if spec["library"] == "torch":
        return Products([_torch(*pair, spec["device"]) for pair in operands])
    return Products([_jax(*pair) for pair in operands])


class Products:
    """The fastest time of each product."""

    def __init__(self, products):
        self._products = products

    def step(self):
        times = []
        began = time.perf_counter()
        while len(times) < 4 or time.perf_counter() - began < BUDGET:
            times.append([_seconds(product) for product in self._products])
        self._best = np.min(times[1:], axis=0)

    def result(self):
        return {"seconds": self._best}

    def device_peak(self):
        return None


def _seconds(function):
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def _numpy(left, right):
    out = np.empty((left.shape[0], right.shape[1]), np.float32)
    return lambda: np.matmul(left, right, out=out)


def _torch(left, right, device):
    import torch

    left, right = (torch.from_numpy(array).to(device) for array in (left, right))
    out = torch.empty((left.shape[0], right.shape[1]), device=device)

    def product():
        torch.mm(left, right, out=out)
        if device == "cuda":
            torch.cuda.synchronize()

    return product


def _jax(left, right):
    import jax
    import jax.numpy as jnp

    left, right = jnp.asarray(left), jnp.asarray(right)
    multiply = jax.jit(lambda x, y: jnp.matmul(x, y, precision="highest"))
    return lambda: multiply(left, right).block_until_ready()


if __name__ == "__main__":
    harness.serve(build)

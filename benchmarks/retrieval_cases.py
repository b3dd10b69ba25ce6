"""The embeddings of the retrieval benchmark, and metrics from ranked neighbours."""

from typing import NamedTuple

import numpy as np

RECALL_AT = (1, 2, 4, 8)
METRICS = (*(f"recall@{k}" for k in RECALL_AT), "r_precision", "map@r")


class Case(NamedTuple):
    """So many images of so many classes, each of `smallest` to `largest` images.

    `noise` is the length of an embedding's deviation from its class's centre, in
    lengths of the centre, chosen for a Recall@1 as trained networks reach it.
    """

    images: int
    classes: int
    smallest: int
    largest: int
    noise: float
    dim: int = 512


CASES = {
    "sop": Case(60_502, 11_316, 2, 12, 1.05),
    "cars": Case(8_131, 98, 68, 97, 1.8),
    "quick": Case(3_001, 500, 2, 12, 1.4, 64),
}


def embeddings(case):
    """Unit rows [n, d] float32 in the order of their classes, and labels [n] int64.

    The numbers of an embedding vary by the power law 1 / sqrt(i), i = 1 .. d: as in
    trained embeddings some directions carry most of it.
    """
    rng = np.random.default_rng(0)
    sizes = _sizes(case, rng)
    labels = np.repeat(np.arange(case.classes), sizes)
    scale = np.arange(1, case.dim + 1, dtype=np.float32) ** -0.5
    centres = rng.standard_normal((case.classes, case.dim), dtype=np.float32)
    rows = rng.standard_normal((case.images, case.dim), dtype=np.float32)
    rows *= np.float32(case.noise)
    rows += centres[labels]
    rows *= scale
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows, labels


def _sizes(case, rng):
    """Images of each class, their sum as the case has it."""
    sizes = rng.integers(case.smallest, case.largest + 1, case.classes)
    while sizes.sum() != case.images:
        step = np.sign(case.images - sizes.sum())
        may = np.flatnonzero(
            (sizes + step >= case.smallest) & (sizes + step <= case.largest)
        )
        count = min(len(may), abs(case.images - sizes.sum()))
        sizes[rng.choice(may, count, replace=False)] += step
    return sizes


def metrics(relevant, counts):
    """Mean of each of `METRICS`.

    Args:
      relevant: [q, k] bool, whether the neighbours are of the query's class, the
        nearest first; k is at least the largest of `counts` and of `RECALL_AT`.
      counts: [q] images of the query's class, itself apart.
    """
    found = {f"recall@{k}": relevant[:, :k].any(1).mean() for k in RECALL_AT}
    places = np.arange(1, relevant.shape[1] + 1)
    inside = relevant & (places <= counts[:, None])
    precision = np.cumsum(relevant, axis=1) / places
    found["r_precision"] = (inside.sum(1) / counts).mean()
    found["map@r"] = ((precision * inside).sum(1) / counts).mean()
    return found


def others(labels):
    """[n] how many other images of its class there are for each."""
    return np.bincount(labels)[labels] - 1


class Task:
    """Work for `harness.serve`: metrics of a case, from embeddings in memory."""

    def __init__(self, spec, measure):
        self._inputs = embeddings(CASES[spec["case"]])
        self._measure = measure

    def step(self):
        self._found = self._measure(*self._inputs)

    def result(self):
        return {name: np.float64(self._found[name]) for name in METRICS}

    def device_peak(self):
        return None

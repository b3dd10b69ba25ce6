"""Do labels of any kind cost more than P x K ones? Ours, value and gradient.

    python benchmarks/labels.py [--sizes 512,2048,8192] [--out FILE.md]

Each loss runs on batches of 4 images of each class, sorted by class; the same shuffled;
and on classes drawn image by image, so that their sizes differ. They take turns within
one process, so that a disturbance hits all alike. Six minutes on two cores.
"""

import argparse
import statistics
import time
from pathlib import Path

import harness
import jax
import jax.numpy as jnp
import numpy as np
from losses_cases import Case, block_size

from metricjax import losses
from metricjax.losses import Tiling

PER_CLASS, DIM, TURNS = 4, 512, 7
LOSSES = {
    "contrastive": (losses.contrastive, {}),
    "contrastive, non-zero": (losses.contrastive, {"reduction": "nonzero"}),
    "triplet, hard": (losses.triplet, {}),
    "triplet, all": (losses.triplet, {"mining": "all"}),
    "triplet, semihard": (losses.triplet, {"mining": "semihard"}),
    "n_pair": (losses.n_pair, {}),
    "lifted_structure": (losses.lifted_structure, {}),
    "multi_similarity": (losses.multi_similarity, {}),
}


def kinds(batch, rng):
    """Labels [batch] of each kind."""
    ordered = np.repeat(np.arange(batch // PER_CLASS), PER_CLASS)
    return {
        "P x K": ordered,
        "shuffled": rng.permutation(ordered),
        "any": rng.integers(0, batch // PER_CLASS, batch),
    }


def embed(labels, rng):
    """Unit vectors [b, 512] about a centre for each class."""
    centres = rng.normal(size=(labels.max() + 1, DIM))
    rows = 0.5 * centres[labels] + rng.normal(size=(len(labels), DIM))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def measured(loss, options, batch):
    """Median milliseconds of each kind of labels, and their largest class."""
    rng = np.random.default_rng(0)
    tiling = Tiling(block_size(Case("", ""), batch))
    step = jax.jit(
        jax.value_and_grad(lambda e, y: loss(e, y, tiling=tiling, **options))
    )
    inputs = {
        kind: (
            jnp.asarray(embed(labels, rng), jnp.float32),
            jnp.asarray(labels, jnp.int32),
        )
        for kind, labels in kinds(batch, rng).items()
    }
    times = {kind: [] for kind in inputs}
    for turn in range(TURNS + 1):
        for kind, arrays in inputs.items():
            began = time.perf_counter()
            jax.block_until_ready(step(*arrays))
            if turn:
                times[kind].append(1e3 * (time.perf_counter() - began))
    return {kind: statistics.median(found) for kind, found in times.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="512,2048,8192")
    parser.add_argument("--out", default=Path(__file__).parent / "results/labels.md")
    options = parser.parse_args()
    about = harness.machine("python benchmarks/labels.py")
    lines = [
        "# Labels of any kind",
        "",
        "Value and gradient in milliseconds (median of 7 turns), 512 numbers, float32, "
        f"on {about['cpu']}, jax {about['jax']}. "
        "*P x K*: 4 images of each class, sorted; *shuffled*: the same in any order; "
        "*any*: each image of a class drawn at random, b / 4 of them.",
        "",
        "| loss | batch | P x K | shuffled | any | any / P x K |",
        "|---|---|---|---|---|---|",
    ]
    for size in map(int, options.sizes.split(",")):
        for name, (loss, settings) in LOSSES.items():
            found = measured(loss, settings, size)
            shown = " | ".join(f"{value:.3g}" for value in found.values())
            ratio = found["any"] / found["P x K"]
            lines.append(f"| {name} | {size} | {shown} | {ratio:.2f} |")
            print(lines[-1], flush=True)
    Path(options.out).write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()

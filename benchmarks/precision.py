"""How exact value and gradient are where embeddings have come close to each other.

    pip install -e '.[torch]'
    python benchmarks/precision.py [--batch 128] [--out FILE.md]

Unit vectors of 512 numbers at a distance of about `spread` from a common one, in
float32; 1 is no common one. Every loss that looks at distances, in metricjax,
pytorch-metric-learning and hand-vectorised PyTorch, against the latter in float64.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import harness
import losses_ours
import losses_pml
import losses_torch
import numpy as np
from losses_cases import CASES, distance, inputs

SPREADS = (1.0, 0.1, 0.03, 0.01, 0.003, 0.001)
LOSSES = (
    "contrastive", "contrastive_nonzero", "triplet_hard", "triplet_soft",
    "triplet_all", "triplet_semihard", "lifted_structure",
)  # fmt: skip
RIVALS = {
    "PML": losses_pml.Task,
    "torch": lambda case, drawn: losses_torch.Task(case, drawn, "eager"),
    "ours": losses_ours.Task,
}


def drawn(case, batch, spread):
    """Inputs of a case whose embeddings are so far from a common vector."""
    found = inputs(case, batch)
    vectors = found.leaves[0].astype(np.float64)
    if spread < 1.0:
        common = np.random.default_rng(1).normal(size=vectors.shape[1])
        vectors = common / np.linalg.norm(common) + spread * vectors
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return replace(found, leaves=[vectors.astype(np.float32)])


def result(task):
    task.step()
    return task.result()


def errors(name, batch, spread):
    """Rival -> largest error of value and gradient, relative to the largest entry."""
    case, found = CASES[name], drawn(CASES[name], batch, spread)
    exact = replace(found, leaves=[leaf.astype(np.float64) for leaf in found.leaves])
    wanted = result(losses_torch.Task(case, exact, "eager"))
    return {
        rival: distance(case, found.leaves, result(task(case, found)), wanted)
        for rival, task in RIVALS.items()
    }


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=128)
    place = harness.HERE / "results/precision.md"
    parser.add_argument("--out", type=Path, default=place)
    options = parser.parse_args()
    about = harness.machine(" ".join(["python", *sys.argv]))
    lines = [
        "# Losses of embeddings that lie close together",
        "",
        f"* {about['date']}, commit {about['commit']}: `{about['command']}`",
        f"* {about['cpu']}; Python {about['python']}, jax {about['jax']}, "
        f"torch {about['torch']}, pytorch-metric-learning "
        f"{about['pytorch-metric-learning']}",
        f"* {options.batch} unit vectors of 512 numbers, about `spread` from a common "
        "one (1: no common one). Largest error of value and gradient against float64, "
        "over the largest entry: pytorch-metric-learning / hand-vectorised PyTorch / "
        "**metricjax**, all float32.",
        "",
        "| loss | " + " | ".join(f"spread {spread:g}" for spread in SPREADS) + " |",
        "|---" * (len(SPREADS) + 1) + "|",
    ]
    for name in LOSSES:
        cells = []
        for spread in SPREADS:
            pml, torch, ours = errors(name, options.batch, spread).values()
            cells.append(f"{pml:.0e} / {torch:.0e} / **{ours:.0e}**")
        lines.append(" | ".join([f"| {name}", *cells]) + " |")
        print(lines[-1], flush=True)
    options.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()

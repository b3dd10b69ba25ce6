"""What synthetic negatives cost: by points, and against networks that make them.

    python benchmarks/expansion_cost.py [--sizes 128,512] [--out FILE.md]

The whole of what stands behind a backbone, as one compiled step: features of 1,024 to
embeddings of 512, the loss, its gradients by everything that is trained and by the
features, Adam. Plain, with embedding expansion, and with the generators of HDML and
DAML (`synthesizers.py`); then all five losses by the number of points. Every variant is
a process of its own, and they take turns.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import harness
import numpy as np
from synthesizers import LOSSES

VARIANTS = {
    "triplet": ("triplet", "plain", 0),
    "triplet + EE, 2 points": ("triplet", "expansion", 2),
    "triplet + EE, 8 points": ("triplet", "expansion", 8),
    "triplet + HDML": ("triplet", "hdml", 0),
    "triplet + DAML": ("triplet", "daml", 0),
    "N-pair": ("n_pair", "plain", 0),
    "N-pair + EE, 2 points": ("n_pair", "expansion", 2),
    "N-pair + EE, 8 points": ("n_pair", "expansion", 8),
    "N-pair + HDML": ("n_pair", "hdml", 0),
}
POINTS = (0, 1, 2, 4, 8)
NOTES = (
    "HDML's N-pair form makes a synthetic negative for every anchor and every other "
    "pair, through its generator and back through the embedding: 64 x 64 rows at 128 "
    "images, 256 x 256 at 512. DAML's layers are an assumption (three of 512), HDML's "
    "are those of its published program; both are written for this comparison and "
    "compiled as one program each, as ours are. A network before it adds the same time "
    "to each."
)


class Task:
    """The step of a variant."""

    def __init__(self, loss, method, points, batch):
        import jax
        import jax.numpy as jnp
        from synthesizers import CLASSES, FEATURES, Head

        from metricjax.runtime.mesh import keep_freed_memory
        from metricjax.runtime.program_costs import memory

        keep_freed_memory()
        head = Head(loss, method, points)
        rng = np.random.default_rng(0)
        features = jnp.asarray(rng.normal(size=(batch, FEATURES)), jnp.float32)
        labels = jnp.asarray(np.arange(batch) // 2 % CLASSES, jnp.int32)
        self._state = head.init(features)
        self._numbers = sum(leaf.size for leaf in jax.tree.leaves(self._state[0]))
        program = jax.jit(head.step, donate_argnums=0)
        program = program.lower(self._state, features, labels).compile()
        self._temporaries = memory(program).temporaries
        self._program, self._inputs = program, (features, labels)
        self._jax = jax

    def step(self):
        self._state, *found = self._program(self._state, *self._inputs)
        self._jax.block_until_ready(found)

    def result(self):
        return {"numbers": self._numbers, "temporaries": self._temporaries}

    def device_peak(self):
        return None


def table(sizes, rounds):
    found = harness.machine(" ".join(sys.argv))
    yield from (
        "# What synthetic negatives cost",
        "",
        f"`python benchmarks/expansion_cost.py`, {found['date']}, commit "
        f"{found['commit']}, {found['cpu']}; jax {found['jax']}. One step of what "
        "stands behind a backbone, see there. Trained numbers and temporaries are of "
        "that step.",
    )
    for batch in sizes:
        rows, kept = measured(VARIANTS, batch, rounds)
        yield from (
            "", f"## {batch} images, two of a class", "",
            "| | ms a step | times the plain loss | trained numbers, millions | "
            "temporaries, MiB |", "|---|---|---|---|---|",
        )  # fmt: skip
        for name, row in rows.items():
            plain = rows[name.split(" + ")[0]]["median_ms"]
            yield (
                f"| {name} | {row['median_ms']:.2f} | {row['median_ms'] / plain:.2f} | "
                f"{kept[name]['numbers'] / 1e6:.2f} | "
                f"{kept[name]['temporaries'] / 2**20:.1f} |"
            )
    yield from ("", NOTES)
    for batch in sizes:
        yield from (
            "", f"## By points: {batch} images, ms a step", "",
            f"| | plain | {' | '.join(f'{n} points' for n in POINTS)} |",
            "|---|" + "---|" * (1 + len(POINTS)),
        )  # fmt: skip
        for loss in LOSSES:
            variants = {"plain": (loss, "plain", 0)}
            variants |= {f"{n} points": (loss, "expansion", n) for n in POINTS}
            rows, _ = measured(variants, batch, rounds)
            times = (f"{row['median_ms']:.2f}" for row in rows.values())
            yield f"| {loss} | {' | '.join(times)} |"


def measured(variants, batch, rounds):
    """Times of variants in turns, and what each says of its step."""
    specs = {
        name: {"program": "expansion_cost.py", "about": about, "batch": batch,
               "compiles": True}
        for name, about in variants.items()
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        pace = harness.Pace(rounds=rounds, turn=0.5, warm_below=1.0)
        rows = harness.measure(specs, pace, saved=Path(scratch))
        return rows, {n: dict(np.load(f"{scratch}/{n}.npz")) for n in rows}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="128,512")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    lines = table([int(n) for n in options.sizes.split(",")], options.rounds)
    text = "\n".join(lines) + "\n"
    print(text)
    if options.out:
        options.out.write_text(text)


if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1].startswith("{"):
        harness.serve(lambda spec: Task(*spec["about"], spec["batch"]))
    else:
        main()

"""Search and embedding: exact against approximate, and what the network costs.

    python benchmarks/search.py [--sizes 10000,100000] [--out FILE.md]
    python benchmarks/search.py --embed RUN SOURCE [--out FILE.md]

The first asks galleries of random unit vectors about 1,000 centres for the 10 nearest:
`Index.nearest`, `evaluation.nearest` and usearch (needs the extra `approximate`), in
turns, and measures usearch's recall. Two minutes on two cores. The second compares
`python -m metricjax.embed` with reading and preparing the same images alone, in turns.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import harness
import numpy as np

from metricjax import evaluation
from metricjax.data import pipeline
from metricjax.inference import embed_to_file, gallery_index
from metricjax.inference.approximate_index import ApproximateIndex
from metricjax.inference.gallery_index import Index
from metricjax.inference.trained_model import TrainedModel
from metricjax.inference.vectors import Vectors

WIDTH, CENTRES, TOP, ROUNDS, TURNS = 512, 1000, 10, 3, 8


def machine():
    about = harness.machine("python benchmarks/search.py")
    return f"{about['cpu']}, jax {about['jax']}"


def gallery(count, rng):
    """An index of random images about centres, and 64 queries about the same."""
    centres = rng.standard_normal((CENTRES, WIDTH), dtype=np.float32)

    def draw(number):
        rows = centres[rng.integers(0, CENTRES, number)]
        rows = rows + rng.standard_normal(rows.shape, dtype=np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    rows, valid = draw(count), np.ones(count, bool)
    names = tuple(map(str, range(count)))
    made = Vectors(rows, valid, names, np.zeros(count, int), ("",), "")
    return Index(made.split, rows, valid), draw(64)


def asked(count, rng):
    """Lines of the table for a gallery of so many images."""
    found, queries = gallery(count, rng)
    began = time.perf_counter()
    graph = ApproximateIndex.open(found)
    building = time.perf_counter() - began
    recall = graph.recall(TOP)
    size = len(graph.graph.save()) / 2**20
    ways = {
        "exact (`Index.nearest`)": lambda q: found.nearest(q, TOP),
        "exact (`evaluation.nearest`)": lambda q: evaluation.nearest(
            q, found.embeddings, TOP
        ),
        "usearch (`--approximate`)": lambda q: graph.nearest(q, TOP),
    }
    times = {(way, n): [] for way in ways for n in (1, 64)}
    for _ in range(ROUNDS):
        for (way, n), taken in times.items():
            # One after the other: what ran before has its threads and caches still.
            for turn in range(TURNS + 1):
                some = queries[turn : turn + 1] if n == 1 else queries
                began = time.perf_counter()
                ways[way](some)
                if turn:
                    taken.append(1e3 * (time.perf_counter() - began) / n)
    medians = {key: statistics.median(taken) for key, taken in times.items()}
    for way in ways:
        is_exact = way.startswith("exact")
        yield [
            f"{count:,}",
            way,
            f"{medians[way, 1]:.3g}",
            f"{medians[way, 64]:.3g}",
            "1" if is_exact else f"{recall:.4f}",
            "" if is_exact else f"{building:.0f} s, {size:,.0f} MiB",
        ]


def search_table(sizes):
    rng = np.random.default_rng(0)
    head = ["gallery", "", "one query", "of 64", f"recall@{TOP}", "graph"]
    lines = [head, ["---"] * len(head)]
    for size in sizes:
        lines += asked(size, rng)
    text = (
        "Milliseconds a query, asked alone and as one of 64 (medians of "
        f"{ROUNDS * TURNS}); {WIDTH} numbers, top {TOP}, on {machine()}.\n\n"
    )
    return text + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def embed_table(run, source):
    """Images a second of embedding, and of its parts alone."""
    trained = TrainedModel.open(run)
    split = gallery_index.open_images(trained, source)

    def read_only():
        size = trained.embedder.batch_size
        with pipeline.test_batches(split, trained.transform, size) as batches:
            for _ in batches:
                pass

    def written():
        with tempfile.TemporaryDirectory() as directory:
            embed_to_file.write(trained, split, Path(directory) / "emb.npz")

    ways = {
        "read and prepared alone": read_only,
        "embedded, in memory": lambda: trained.embed(split),
        "embedded into a file (`metricjax.embed`)": written,
    }
    rates = {way: [] for way in ways}
    for turn in range(4):
        for way, work in ways.items():
            began = time.perf_counter()
            work()
            if turn:
                rates[way].append(len(split) / (time.perf_counter() - began))
    text = f"{len(split):,} images, medians of 3, on {machine()}.\n\n"
    lines = [["", "images/s"], ["---", "---"]]
    lines += [[way, f"{statistics.median(taken):,.0f}"] for way, taken in rates.items()]
    return text + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--sizes", default="10000,100000")
    parser.add_argument("--embed", nargs=2, metavar=("RUN", "SOURCE"))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.embed:
        text = embed_table(*options.embed)
    else:
        text = search_table([int(size) for size in options.sizes.split(",")])
    print(text)
    if options.out:
        options.out.write_text(text)


if __name__ == "__main__":
    main()

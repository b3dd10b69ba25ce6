"""Retrieval metrics against faiss, torch.topk and pytorch-metric-learning.

    python benchmarks/retrieval.py [--cases cars,sop] [--rounds 3] [--json FILE.json]
    python benchmarks/retrieval.py --quick
    python benchmarks/retrieval.py --table FILE.json

Recall@1, 2, 4, 8, R-precision and MAP@R of embeddings in memory, at the sizes of the
test sets of Stanford Online Products and Cars-196. Each way is a process of its own and
they take turns (see `harness.py`); what takes over 20 seconds and compiles nothing is
timed once. All must find the same metrics. Writes `results/retrieval.md`; `--quick`
is a small case that writes nothing.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import harness
import numpy as np
import retrieval_cases as cases

TORCH = "retrieval_torch.py"
# Name: its worker, what the table calls it.
WAYS = {
    "ours": ({"program": "retrieval_ours.py", "compiles": True}, "metricjax"),
    "faiss": (
        {"program": TORCH, "way": "faiss", "compiles": False},
        "faiss IndexFlatIP, numpy",
    ),
    "topk": (
        {"program": TORCH, "way": "topk", "compiles": False},
        "torch.topk in blocks, numpy",
    ),
    "pml": (
        {"program": TORCH, "way": "pml", "compiles": False},
        "pytorch-metric-learning AccuracyCalculator",
    ),
}
TITLES = {"sop": "Stanford Online Products", "cars": "Cars-196", "quick": "Quick"}
PRODUCTS = ("numpy", "torch", "jax")
SIDE = 2048
RESULTS = Path(__file__).parent / "results"


def measured(name, rounds):
    """A case's row: results by way, metrics by way and the rate of float32 products."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        found = harness.measure(
            {way: {**spec, "case": name} for way, (spec, _) in WAYS.items()},
            harness.Pace(rounds=rounds, turn=0.0, step_cap=600.0),
            saved=folder,
            environment={"JAX_PLATFORMS": "cpu"},
        )
        values = {}
        for way in found:
            if (folder / f"{way}.npz").exists():
                with np.load(folder / f"{way}.npz") as saved:
                    values[way] = {metric: float(saved[metric]) for metric in saved}
    return {
        "kind": "row",
        "case": name,
        "results": found,
        "metrics": values,
        "rate": product_rate(cases.CASES[name].dim),
    }


def product_rate(dim):
    """FLOP/s of float32 products [2048, d] x [d, 2048], of the fastest library."""
    specs = {
        library: {
            "program": "matmuls.py", "library": library, "rows": SIDE, "columns": SIDE,
            "dim": dim, "device": "cpu", "compiles": False,
        }
        for library in PRODUCTS
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        pace = harness.Pace(rounds=2, turn=0.0, warm_below=0.0)
        harness.measure(specs, pace, saved=Path(scratch))
        seconds = [
            np.load(file)["seconds"][0] for file in sorted(Path(scratch).glob("*.npz"))
        ]
    return 2 * SIDE**2 * dim / min(seconds)


def table(entries):
    """Markdown of a run."""
    about, rows = entries[0], entries[1:]
    packages = "torch", "pytorch-metric-learning", "faiss-cpu", "jax", "numpy"
    versions = ", ".join(f"{package} {about[package]}" for package in packages)
    yield "# Retrieval metrics"
    yield ""
    yield (
        f"{', '.join(cases.METRICS)} of unit embeddings of 512 numbers in memory, "
        f"every image against all others, on {about['cpu']}, {about['memory']}; "
        f"{versions}; commit {about['commit']}, `python {about['command']}`, load at "
        f"the start {about['load_at_start']}. Seconds: median (minimum) of interleaved "
        "rounds; the first call, compilation included, beside it. MiB: peak of the "
        "process, with its libraries and the embeddings. The floor: all products in "
        "float32 at the rate that the fastest of numpy, torch and jax reaches on "
        "square ones in this run."
    )
    for row in rows:
        yield from _case(row)


def _case(row):
    case, results, values = cases.CASES[row["case"]], row["results"], row["metrics"]
    floor = 2 * case.images**2 * case.dim / row["rate"]
    yield ""
    yield (
        f"## {TITLES[row['case']]}: {case.images:,} images, {case.classes:,} classes "
        f"of {case.smallest} to {case.largest}"
    )
    yield ""
    yield (
        f"Floor: {floor:.3g} s at {row['rate'] / 1e9:.0f} GFLOP/s. "
        + ", ".join(f"{name} {value:.4f}" for name, value in values["ours"].items())
        + "."
    )
    yield ""
    yield (
        "| | seconds | rounds | first call | of the floor | metricjax is faster | MiB "
        "| metrics differ at most |"
    )
    yield "|---|---|---|---|---|---|---|---|"
    for way, (_, label) in WAYS.items():
        result = results.get(way, {"error": "not run"})
        if "error" in result:
            yield f"| {label} | cannot: {result['error']} | | | | | | |"
            continue
        median, least = result["median_ms"] / 1e3, result["min_ms"] / 1e3
        ratio = result["median_ms"] / results["ours"]["median_ms"]
        apart = max(abs(values[way][m] - values["ours"][m]) for m in cases.METRICS)
        yield (
            f"| {label} | {median:.3g} ({least:.3g}) | {result['rounds'] or 'first'} | "
            f"{result['first_s']:.3g} | {median / floor:.2f} | {ratio:.2f} x | "
            f"{result['peak_mib']:,.0f} | {apart:.1g} |"
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", default="cars,sop")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--table", type=Path)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    if options.table:
        entries = [json.loads(line) for line in options.table.read_text().splitlines()]
    else:
        names = ["quick"] if options.quick else options.cases.split(",")
        command = " ".join(["benchmarks/retrieval.py", *sys.argv[1:]])
        entries = [{"kind": "run", **harness.machine(command)}]
        for name in names:
            entries.append(measured(name, options.rounds))
            if options.json:
                options.json.write_text("".join(json.dumps(e) + "\n" for e in entries))
    text = "\n".join(table(entries)) + "\n"
    print(text)
    if not options.quick:
        (RESULTS / "retrieval.md").write_text(text)


if __name__ == "__main__":
    main()

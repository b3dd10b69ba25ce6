"""Losses against pytorch-metric-learning and hand-vectorised PyTorch: time, memory.

    pip install -e '.[torch]'
    python benchmarks/losses.py --json FILE [--quick] [--losses a,b] [--sizes 128,512]
    python benchmarks/losses.py --json FILE --resume          # goes on after a stop
    python benchmarks/losses.py --expansion --json FILE       # embedding expansion
    python benchmarks/losses.py --large --json FILE           # a batch of 65,536
    python benchmarks/losses.py --check                       # agreement alone
    python benchmarks/losses.py --table FILE [FILE ...]       # writes results/

Value and gradient with respect to the embeddings, and proxies where there are some,
512 numbers each, 4 images of a class in no order. Every variant is a process of its
own; up to a batch of 2048 they take turns, above they run one after the other.
"""

import argparse
import importlib.util
import json
import shlex
import sys
import tempfile
import time
from pathlib import Path

import harness
import losses_report
import numpy as np
from harness import Pace
from losses_cases import (
    CASES,
    DIM,
    EXPANDED,
    LARGE,
    MAIN,
    VARIANTS,
    block_size,
    distance,
    inputs,
    variants,
)

CHECKED = 512  # largest batch at which the results are compared first
TOLERANCE = 1e-4
# Seconds of a row on two cores, for the first estimate.
EXPECTED = {128: 19, 512: 21, 2048: 28, 8192: 55, 65536: 500}


def main():
    options = _options()
    if options.table:
        sys.exit(losses_report.write(options.table, options.out))
    rows = _rows(options)
    if options.check:
        options.json = Path(tempfile.mkdtemp()) / "check.jsonl"
    done = _read(options)
    with options.json.open("a") as log:
        if not done:
            _write(log, _run(options))
        failures = _measure(options, rows, done, log)
    for failure in failures:
        print(f"WRONG: {failure}", file=sys.stderr)
    sys.exit(1 if failures else 0)


def _options():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="rows, one a line, as they come")
    parser.add_argument("--resume", action="store_true", help="skip rows in --json")
    parser.add_argument("--losses", type=_names, help="some of: " + ", ".join(CASES))
    parser.add_argument("--sizes", type=_numbers, help="batch sizes")
    parser.add_argument(
        "--variants", type=_names, help=f"some of {', '.join(VARIANTS)}"
    )
    parser.add_argument("--expansion", action="store_true", help="embedding expansion")
    parser.add_argument("--large", action="store_true", help="a batch of 65,536")
    parser.add_argument("--quick", action="store_true", help="batch 128, two rounds")
    parser.add_argument("--check", action="store_true", help="no timing, batch 128")
    parser.add_argument("--block", type=int, help="rows of a block of ours, 0: all")
    parser.add_argument("--device", choices=["cpu", "gpu"], default="cpu")
    parser.add_argument(
        "--memory", type=float, default=19.0, help="GiB a process may map"
    )
    parser.add_argument("--step-cap", type=float, help="seconds a step may take")
    parser.add_argument(
        "--table", type=Path, nargs="+", help="write the tables of these"
    )
    parser.add_argument("--out", type=Path, default=harness.HERE / "results")
    options = parser.parse_args()
    if not (options.json or options.table or options.check):
        parser.error("--json FILE is needed: the rows go there.")
    unknown = {*(options.losses or ())} - {*CASES}
    if unknown:
        parser.error(f"there is no loss {sorted(unknown)[0]!r}.")
    if {*(options.variants or ())} - {*VARIANTS}:
        parser.error(f"variants are {', '.join(VARIANTS)}.")
    if options.json and options.json.exists() and not options.resume:
        parser.error(f"{options.json} exists: add --resume to go on with it.")
    return options


def _names(text):
    return text.split(",")


def _numbers(text):
    return [int(number) for number in text.split(",")]


def _rows(options):
    """(case, batch) in the order of running, small batches first."""
    names, sizes = MAIN, [128, 512, 2048, 8192]
    if options.expansion:
        names, sizes = EXPANDED, [128, 512]
    if options.large:
        names, sizes = LARGE, [65536]
    if options.quick or options.check:
        sizes = [128]
    names = options.losses or names
    return [(CASES[name], batch) for batch in options.sizes or sizes for name in names]


def _run(options):
    command = shlex.join(["python", *sys.argv])
    return {"kind": "run", "device": options.device, **harness.machine(command)}


def _read(options):
    if not (options.json.exists() and options.resume):
        return []
    return [json.loads(line) for line in options.json.read_text().splitlines()]


def _write(log, entry):
    log.write(json.dumps(entry) + "\n")
    log.flush()


def _measure(options, rows, done, log):
    """Measure the rows that are not done; returns what disagrees."""
    known = {(row["case"], row["batch"]) for row in done if row["kind"] == "row"}
    products = {
        (row["rows"], row["columns"]) for row in done if row["kind"] == "products"
    }
    left = [row for row in rows if (row[0].name, row[1]) not in known]
    expected = [_expected(batch, options) for _, batch in left]
    print(f"{len(left)} rows, about {_clock(sum(expected))}", flush=True)
    failures, began = [], time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        for index, (case, batch) in enumerate(left):
            shape = case.products(min(batch, 8192))
            if shape and shape not in products and not options.check:
                products.add(shape)
                _write(log, _products(shape, options, Path(scratch)))
            results, agreement = _row(case, batch, options, Path(scratch))
            failures += _failures(case, batch, results, agreement)
            row = {"case": case.name, "batch": batch, "variants": results}
            _write(log, {"kind": "row", **row, "agreement": agreement})
            spent = time.monotonic() - began
            rate = spent / sum(expected[: index + 1])
            shown = losses_report.line(results)
            if options.check:
                shown = ", ".join(f"{k} {v:.0e}" for k, v in agreement.items())
            print(
                f"[{index + 1}/{len(left)}] {case.name} {batch}: {shown} | "
                f"{_clock(spent)} gone, "
                f"about {_clock(rate * sum(expected[index + 1 :]))} left",
                flush=True,
            )
    return failures


def _expected(batch, options):
    nearest = min(EXPECTED, key=lambda size: abs(size - batch))
    return EXPECTED[nearest] * (0.5 if options.quick or options.check else 1)


def _clock(seconds):
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def _row(case, batch, options, scratch):
    """Results of all variants, and how far each is from the first."""
    chosen = [v for v in variants(case) if v in (options.variants or VARIANTS)]
    specs = {name: _spec(name, case, batch, options) for name in chosen}
    compare = batch <= CHECKED
    for path in scratch.glob("*.npz"):
        path.unlink()
    results = harness.measure(
        specs, _pace(batch, options), saved=scratch if compare else None,
        environment=_environment(options, scratch),
    )  # fmt: skip
    return results, _agreement(case, batch, scratch) if compare else {}


def _spec(name, case, batch, options):
    module, way = VARIANTS[name]
    return {
        "program": f"{module}.py",
        "case": case.name,
        "batch": batch,
        "way": way,
        "device": _device(options, module),
        "block_size": block_size(case, batch, options.block, options.device),
        "memory_cap": _memory_cap(options),
        "compiles": module == "losses_ours" or "compile" in way,
        "once_above": 2.0 if name == "pml" else 20.0,
    }


def _device(options, module):
    if options.device == "cpu":
        return "cpu"
    return "gpu" if module == "losses_ours" else "cuda"


def _memory_cap(options):
    """Bytes of address space. CUDA maps far more than it uses."""
    if options.device != "cpu":
        return None
    return int(min(options.memory * harness.GIB, 0.85 * harness.total_memory()))


def _environment(options, scratch):
    """Of the workers: compilation in the worker itself, cold, and no hoarding."""
    return {
        "TORCHINDUCTOR_CACHE_DIR": str(scratch / "inductor"),
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "JAX_PLATFORMS": "cpu" if options.device == "cpu" else "cuda",
    }


def _pace(batch, options):
    cap = {"step_cap": options.step_cap or (300.0 if batch > 8192 else 75.0)}
    cap["begin_at_once"] = options.device == "gpu"
    if options.check:
        return Pace(rounds=0, **cap)
    if batch > 8192:
        return Pace(rounds=1, turn=0, least=1, together=False, **cap)
    if batch > 2048:
        return Pace(rounds=1, turn=3.0, least=2, together=False, **cap)
    if options.quick:
        return Pace(rounds=2, turn=0.05, **cap)
    if batch > 512:
        return Pace(rounds=4, turn=0.3, **cap)
    return Pace(rounds=6, turn=0.12, **cap)


def _products(shape, options, scratch):
    """The matrix products of a step alone: seconds of each, by library."""
    entry = {"kind": "products", "rows": shape[0], "columns": shape[1], "dim": DIM}
    libraries = ["jax"] + (["numpy"] if options.device == "cpu" else [])
    if importlib.util.find_spec("torch"):
        libraries.append("torch")
    for library in libraries:
        spec = {
            "program": "matmuls.py",
            "library": library,
            "rows": shape[0],
            "columns": shape[1],
            "dim": DIM,
            "device": _device(options, "losses_ours" if library == "jax" else ""),
            "compiles": False,
        }
        found = harness.measure(
            {library: spec}, Pace(rounds=0), saved=scratch,
            environment=_environment(options, scratch),
        )[library]  # fmt: skip
        if "error" in found:
            raise SystemExit(f"matrix products in {library}: {found['error']}")
        entry[library] = np.load(scratch / f"{library}.npz")["seconds"].tolist()
    return entry


# --- do they compute the same? --------------------------------------------------------


def _agreement(case, batch, folder):
    """Variant -> how far value and gradients are from those of torch eager."""
    files = {path.stem: np.load(path) for path in sorted(folder.glob("*.npz"))}
    files = {name: file for name, file in files.items() if name in VARIANTS}
    base = files.get("eager") or next(iter(files.values()), None)
    leaves = inputs(case, batch).leaves
    return {name: distance(case, leaves, file, base) for name, file in files.items()}


def _failures(case, batch, results, agreement):
    """Sentences about what is more than a lack of memory or time."""
    row = f"{case.name} at {batch}"
    for name, result in results.items():
        error = result.get("error")
        allowed = error == "memory" or str(error).startswith(">")
        if error and (name in ("ours", "bf16") or not allowed):
            yield f"{row}: {name} gives no result: {error}"
    for name, apart in agreement.items():
        if name != "bf16" and apart > TOLERANCE:
            yield f"{row}: {name} is {apart:.1e} away from torch"


if __name__ == "__main__":
    main()

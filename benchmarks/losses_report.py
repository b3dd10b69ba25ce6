"""Tables and a figure of what `losses.py` measured."""

import json
import statistics
from pathlib import Path

from losses_cases import CASES, TORCH

NAMES = {
    "pml": "PML",
    "eager": "torch eager",
    "compile": "torch.compile",
    "gram_eager": "torch Gram eager",
    "gram_compile": "torch Gram compile",
    "ours": "**ours**",
    "bf16": "ours, bf16",
}
NOTES = """
* Time: median of the rounds' medians (fastest step), milliseconds, value and gradient;
  the first call, which compiles, apart. PML steps above 2 s, and torch eager steps
  above 20 s, were run once. At batches above 2048 each variant ran by itself.
* Memory: high water mark of the whole process, imports included.
* Floor: the three matrix products of value and gradient alone, each at the best of
  numpy, torch and jax for its shape in the same run. Batch-hard (hard, soft) needs one
  of the three: choosing the pair needs the Gram matrix, the gradient does not. In
  blocks ours makes half of the Gram matrix, in tiles, and can be below the floor.
  Divergence has 8 x 8 products for each image and is bound by memory: no floor.
* `best torch / ours`: the faster of torch eager and torch.compile. Hand-vectorised
  PyTorch and ours are the same definition, and agree in value and gradient (float32,
  relative 1e-4 of the largest entry) in every row up to a batch of 512.
* pytorch-metric-learning (PML) is the same definition but for: the proxy losses and the
  softmax make embeddings unit inside, so that gradients agree but for the part along
  the embedding; its softmax makes the classifier's columns unit as well (these inputs
  are unit already); contrastive with the mean over all pairs is its loss without
  reducer, summed by hand; multi-similarity keeps the term of an anchor of which only
  one of the two sets is empty. It has neither divergence nor embedding expansion.
* "cannot: memory" means beyond the cap on the address space of the process.
* bf16 is `Tiling(dtype=bfloat16)`: operands of the Gram matrix alone.
"""
EXPANSION_NOTES = """
* Embedding expansion: a batch of 2N images is N pairs, each a class; points between the
  images of a pair: 2 or 8. "torch eager/compile" makes the points and compares all
  combinations (what the authors' code does); "torch Gram" chooses from the Gram matrix
  of the images, as ours does. N-pair is with unit points, without which they change
  nothing. torch takes distances from products of unit vectors, ours from the vectors.
* `synthesize` is not a loss: the points alone, forward, to be set beside the losses.
"""

TITLES = {
    "losses": "# Losses: value and gradient",
    "losses_large": "# Losses of a large batch: value and gradient",
    "expansion": "# Embedding expansion: value and gradient",
}


def line(results):
    """One row for the progress line."""
    return ", ".join(f"{name} {_time(result)}" for name, result in results.items())


def write(files, out):
    """Write tables and figure into the folder `out`; returns the exit status."""
    entries = [json.loads(text) for file in files for text in _lines(file)]
    runs = [entry for entry in entries if entry["kind"] == "run"]
    floors = _floors([entry for entry in entries if entry["kind"] == "products"])
    rows = [entry for entry in entries if entry["kind"] == "row"]
    if not rows:
        print("There are no rows to make a table of.")
        return 2
    out.mkdir(parents=True, exist_ok=True)
    kinds = {"losses": [], "losses_large": [], "expansion": []}
    for row in rows:
        kind = "losses_large" if row["batch"] > 8192 else "losses"
        if CASES[row["case"]].points is not None:
            kind = "expansion"
        kinds[kind].append(row)
    for kind, some in kinds.items():
        if some:
            notes = (EXPANSION_NOTES if kind == "expansion" else NOTES).strip()
            parts = [TITLES[kind], _machine(runs), "## In short"]
            losses = [row for row in some if "synthesize" not in row["case"]]
            parts += [_summary(losses or some, floors), *_tables(some, floors), notes]
            if kind == "losses":
                parts.insert(-1, "![best PyTorch over ours](losses.png)")
                _figure(some, out)
            (out / f"{kind}.md").write_text("\n\n".join(parts) + "\n")
            print(f"{out / kind}.md: {len(some)} rows")
    return 0


def _lines(file):
    return Path(file).read_text().splitlines()


def _machine(runs):
    lines = []
    for run in runs:
        gpu = f", {run['gpu']}" if run["gpu"] else ""
        lines += [
            f"* {run['date']}, commit {run['commit']}: `{run['command']}`",
            f"* {run['cpu']}{gpu}, {run['memory']}; transparent huge pages "
            f"{run['huge_pages']}; load at the start {run['load_at_start']}",
            f"* Python {run['python']}, jax {run['jax']}, torch {run['torch']}, "
            f"pytorch-metric-learning {run['pytorch-metric-learning']}, "
            f"numpy {run['numpy']}",
        ]
    return "\n".join(lines)


def _floors(products):
    """(rows, columns) -> milliseconds of the three products at the best rate."""
    found = {}
    for entry in products:
        times = [entry[name] for name in ("numpy", "torch", "jax") if name in entry]
        fastest = [min(seconds) for seconds in zip(*times, strict=True)]
        found[entry["rows"], entry["columns"]] = 1e3 * sum(fastest)
    return found


def _floor(row, floors):
    """Of a row; of a large batch, at the rate of a smaller one."""
    case = CASES[row["case"]]
    wanted = case.products(row["batch"])
    shape = case.products(min(row["batch"], 8192))
    if wanted is None or shape not in floors:
        return None
    return floors[shape] * wanted[0] * wanted[1] / (shape[0] * shape[1])


def _milliseconds(row, names):
    """Fastest median of some variants of a row, or None."""
    found = [
        row["variants"][name]["median_ms"]
        for name in names
        if "median_ms" in row["variants"].get(name, {})
    ]
    return min(found, default=None)


def _ratio(over, under):
    return None if over is None or under is None else over / under


def _rival(row):
    return "pml" if CASES[row["case"]].points is None else "eager"


def _rival_over_ours(rows):
    return f"{NAMES[_rival(rows[0])]} / ours"


def ratios(row, floors):
    """Rival / ours, best torch / ours, ours / floor; None where one is missing.

    The rival is PML; of embedding expansion, torch that makes all points.
    """
    ours = _milliseconds(row, ["ours"])
    return (
        _ratio(_milliseconds(row, [_rival(row)]), ours),
        _ratio(_milliseconds(row, TORCH), ours),
        _ratio(ours, _floor(row, floors)),
    )


def _time(result):
    if not result:
        return "-"
    if "error" in result:
        reason = result["error"]
        return reason if reason.startswith(">") else f"cannot: {reason}"
    return f"{_digits(result['median_ms'])} ({_digits(result['min_ms'])})"


def _digits(number):
    if number is None:
        return "-"
    return f"{number:.0f}" if number >= 100 else f"{number:.3g}"


def _size(result):
    """Peak of a process; on an accelerator, of the device's memory."""
    peak = result.get("device_peak_mib", result.get("peak_mib"))
    return "-" if peak is None else f"{peak / 1024:.2f}"


def _table(header, lines):
    rule = ["---"] * len(header)
    return "\n".join(
        "| " + " | ".join(cells) + " |" for cells in [header, rule, *lines]
    )


def _tables(rows, floors):
    """One table of times and one of memory and first calls for each batch size."""
    for batch in sorted({row["batch"] for row in rows}):
        some = [row for row in rows if row["batch"] == batch]
        names = [n for n in NAMES if any(n in row["variants"] for row in some)]
        times, costs = [], []
        for row in some:
            of = row["variants"]
            shown = [_time(of.get(name)) for name in names]
            numbers = [_floor(row, floors), *ratios(row, floors)]
            times.append([row["case"], *shown, *map(_digits, numbers)])
            memory = [_size(of.get(name, {})) for name in names]
            first = [_digits(of.get(name, {}).get("first_s")) for name in names]
            both = [f"{m} / {f}" for m, f in zip(memory, first, strict=True)]
            costs.append([row["case"], *both])
        last = ["floor", _rival_over_ours(some), "best torch / ours", "ours / floor"]
        heads = [NAMES[name] for name in names]
        yield f"### Batch {batch}: ms a step"
        yield _table(["loss", *heads, *last], times)
        yield f"Batch {batch}: peak memory in GiB / first call in s"
        yield _table(["loss", *heads], costs)


def _summary(rows, floors):
    lines = []
    for batch in sorted({row["batch"] for row in rows}):
        some = [row for row in rows if row["batch"] == batch]
        of = {row["case"]: ratios(row, floors) for row in some}
        cells = [str(batch), *(_median(r[k] for r in of.values()) for k in range(3))]
        torch = {name: r[1] for name, r in of.items() if r[1] is not None}
        floor = {name: r[2] for name, r in of.items() if r[2] is not None}
        cells.append(_extreme(min, torch))
        cells.append(_extreme(max, floor))
        peaks = [_peak(row) for row in some if "peak_mib" in row["variants"]["ours"]]
        cells.append(f"{max(peaks) / 1024:.2f} GiB" if peaks else "-")
        lines.append(cells)
    header = ["batch", f"{_rival_over_ours(rows)}, median"]
    header += ["best torch / ours, median"]
    header += ["ours / floor, median", "least ahead of torch", "farthest from floor"]
    return _table([*header, "most memory, ours"], lines)


def _peak(row):
    ours = row["variants"]["ours"]
    return ours.get("device_peak_mib", ours["peak_mib"])


def _median(numbers):
    numbers = [number for number in numbers if number is not None]
    if not numbers:
        return "-"
    return f"{_digits(statistics.median(numbers))} ({len(numbers)} rows)"


def _extreme(choose, by_name):
    if not by_name:
        return "-"
    name = choose(by_name, key=by_name.get)
    return f"{_digits(by_name[name])} ({name})"


def _figure(rows, out):
    """Best PyTorch over ours, a dot for each loss and batch."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import FuncFormatter, NullFormatter

    batches = sorted({row["batch"] for row in rows})
    names = [name for name in CASES if any(row["case"] == name for row in rows)]
    figure, axes = plt.subplots(figsize=(8, 0.34 * len(names) + 1.6))
    colors = plt.get_cmap("viridis")
    for index, batch in enumerate(batches):
        points = [
            (ratios(row, {})[1], names.index(row["case"]))
            for row in rows
            if row["batch"] == batch and ratios(row, {})[1] is not None
        ]
        if not points:
            continue
        place = 0.18 * (index - (len(batches) - 1) / 2)
        axes.scatter(
            [ratio for ratio, _ in points], [at + place for _, at in points],
            s=34, label=str(batch), marker="osD^vP"[index % 6],
            color=colors(0.9 * index / max(len(batches) - 1, 1)), zorder=3,
        )  # fmt: skip
    axes.axvline(1.0, color="0.3", linewidth=1)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
    low, high = axes.get_xlim()
    marks = [0.25, 0.5, 0.7, 1, 1.5, 2, 3, 5, 7, 10, 20, 50]
    axes.set_xticks([mark for mark in marks if low <= mark <= high])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.minorticks_off()
    axes.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
    axes.invert_yaxis()
    axes.grid(axis="both", color="0.9")
    axes.set_xlabel("time of the best PyTorch (eager or compiled) / time of ours")
    axes.set_title("Value and gradient: right of 1, ours is faster", fontsize=11)
    axes.legend(title="batch", loc="center left", bbox_to_anchor=(1.01, 0.5))
    for end in ("png", "svg"):
        figure.savefig(out / f"losses.{end}", dpi=150, bbox_inches="tight")
    plt.close(figure)

"""Whole training steps of ours against the same in PyTorch.

    python benchmarks/train_step.py [--cases resnet50_cgd,abe8] [--json FILE.jsonl]
    python benchmarks/train_step.py --table FILE.jsonl [FILE.jsonl ...]

Forward, loss, backward and SGD with momentum, on images that lie on the device. PyTorch
runs in channels_last, eager and under `torch.compile`, ours as XLA compiles it, in
float32 and, where asked, bfloat16 (`--bf16`: autocast there, `dtype=bfloat16` here).
On GPU the host is a step ahead of the device, as in training. Every variant is a
process of its own, and they take turns (see `harness.py`).
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import harness
import numpy as np
from train_step_cases import CASES

VARIANTS = {
    "eager": ("train_step_torch.py", "eager"),
    "compile": ("train_step_torch.py", "compile"),
    "ours": ("train_step_ours.py", "float32"),
    "eager_bf16": ("train_step_torch.py", "eager-bf16"),
    "compile_bf16": ("train_step_torch.py", "compile-bf16"),
    "ours_bf16": ("train_step_ours.py", "bfloat16"),
    "one_by_one": ("train_step_ours.py", "one by one"),
    "ynnpack": ("train_step_ours.py", "with YNNPACK"),
}


def measured(name, options):
    """Results of all variants of a case."""
    case = CASES[name]
    batch = options.batch or case.batch
    specs = {
        variant: {
            "program": program,
            "case": name,
            "batch": batch,
            "way": way,
            "device": "cpu" if options.device == "cpu" else "cuda",
            "compiles": True,
        }
        for variant, (program, way) in VARIANTS.items()
        if variant in options.variants
        and (options.bf16 or "bf16" not in variant)
        and (case.model.get("head") == "abe" or variant != "one_by_one")
    }
    with tempfile.TemporaryDirectory() as scratch:
        results = harness.measure(
            specs,
            harness.Pace(
                rounds=options.rounds,
                turn=1.0,
                step_cap=300.0,
                warm_below=30.0,
                begin_at_once=options.device == "gpu",
            ),
            saved=Path(scratch),
            environment={
                "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
                "JAX_PLATFORMS": "cpu" if options.device == "cpu" else "cuda",
            },
        )
        macs = [int(np.load(path)["macs"]) for path in Path(scratch).glob("ours*.npz")]
    return {
        "kind": "row", "case": name, "batch": batch, "variants": results,
        "gflop": 6e-9 * macs[0] if macs else None,
    }  # fmt: skip


def table(entries):
    """Markdown of the rows of a file."""
    about, *others = [e for e in entries if e["kind"] == "run"]
    lines = [
        "# Training steps",
        "",
        "Images per second (median step) and MiB at the peak of the "
        f"{'GPU' if about['gpu'] else 'whole process'}, on {about['cpu']}"
        f"{', ' + about['gpu'] if about['gpu'] else ''}, "
        f"{about['memory']}; torch {about['torch']}, jax {about['jax']}; commit "
        f"{about['commit']}, `python {about['command']}`. The GFLOP of a step are six "
        "times its forward multiply-adds.",
        "",
        "| model | batch | GFLOP | torch eager | torch.compile | ours | ours / best |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in (entry for entry in entries if entry["kind"] == "row"):
        for suffix in ("", "_bf16"):
            found = {
                name: row["variants"].get(name + suffix)
                for name in ("eager", "compile", "ours")
            }
            if not (found["ours"] and (found["eager"] or found["compile"])):
                continue
            rates = {
                name: 1e3 * row["batch"] / one["median_ms"]
                for name, one in found.items()
                if one and "error" not in one
            }
            shown = [
                f"{_digits(rates[name])} "
                f"({one.get('device_peak_mib', one['peak_mib']):.0f} MiB)"
                if name in rates
                else (one or {}).get("error", "")
                for name, one in found.items()
            ]
            best = max(
                (rates[n] for n in ("eager", "compile") if n in rates), default=0
            )
            ratio = f"{rates['ours'] / best:.2f}" if best and "ours" in rates else ""
            gflop = f"{row['gflop']:.0f}" if row["gflop"] else ""
            label = row["case"] + (", bfloat16" if suffix else "")
            cells = [label, str(row["batch"]), gflop, *shown, ratio]
            lines.append(f"| {' | '.join(cells)} |")
    lines += ["", *_asides(entries)]
    for run in others:
        lines += ["", f"Also: commit {run['commit']}, `python {run['command']}`."]
    return "\n".join(lines) + "\n"


def _asides(entries):
    """Sentences on ours done otherwise, by the medians of the same run."""
    for row in (entry for entry in entries if entry["kind"] == "row"):
        found = {
            name: result["median_ms"]
            for name, result in row["variants"].items()
            if "median_ms" in result
        }
        ours = found.get("ours", 0)
        if "one_by_one" in found:
            yield (
                f"* {row['case']}: its learners as one batch {ours:.0f} ms a step, one "
                f"after the other {found['one_by_one']:.0f} ms."
            )
        if "ynnpack" in found:
            yield (
                f"* {row['case']}: {ours:.0f} ms a step, compiled with YNNPACK "
                f"{found['ynnpack']:.0f} ms."
            )


def _digits(number):
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--variants", default=",".join(VARIANTS))
    parser.add_argument("--batch", type=int)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--table", type=Path, nargs="+")
    options = parser.parse_args()
    if options.table:
        texts = [file.read_text() for file in options.table]
        entries = [json.loads(line) for text in texts for line in text.splitlines()]
        out = Path(__file__).parent / "results" / "train_step.md"
        out.write_text(table(entries))
        print(out)
        return
    options.variants = options.variants.split(",")
    entries = [{"kind": "run", **harness.machine(" ".join(sys.argv))}]
    for name in options.cases.split(","):
        entries.append(measured(name, options))
        print(json.dumps(entries[-1]), flush=True)
        if options.json:
            text = "".join(json.dumps(entry) + "\n" for entry in entries)
            options.json.write_text(text)


if __name__ == "__main__":
    main()

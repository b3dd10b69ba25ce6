"""Batches on the device from JPEG files, packed records and memory, against DataLoader.

    python benchmarks/input_pipeline.py [--images 1024] [--json FILE.json]
    python benchmarks/input_pipeline.py --table FILE.json

Random-resized crops of 224 pixels and a flip, from JPEGs of 500 x 375. PyTorch's
DataLoader runs with as many worker processes as there are cores, ours with as many
threads, the codec alone likewise; each is a process of its own and they take turns (see
`harness.py`). Writes `results/input_pipeline.md`.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import harness
import input_cases
from train_step_cases import CASES

from metricjax import models
from metricjax.models import cost

CORES = os.cpu_count() or 1
# Name: program, its options, what the table calls it.
TORCH, CODEC, OURS = "input_torch.py", "input_codec.py", "input_ours.py"
CROP = "random_resized_crop"
VARIANTS = {
    "dataloader_pillow": (
        TORCH, {"way": "pillow"}, "DataLoader, Pillow, torchvision, float32",
    ),
    "dataloader_opencv": (TORCH, {"way": "opencv"}, "DataLoader, OpenCV, float32"),
    "dataloader_codec": (
        TORCH, {"way": "codec"}, "DataLoader, simplejpeg and OpenCV, uint8",
    ),
    "codec_decode": (CODEC, {"way": "decode"}, "simplejpeg alone, no crop, no batches"),
    "codec_crop": (CODEC, {"way": "crop"}, "simplejpeg and OpenCV alone, no batches"),
    "ours_pillow": (
        OURS, {"recipe": CROP, "resizer": "pillow", "cached": False},
        "metricjax, resized by Pillow",
    ),
    "ours": (
        OURS, {"recipe": CROP, "resizer": "opencv", "cached": False},
        "metricjax, resized by OpenCV",
    ),
    "ours_packed_pillow": (
        OURS, {"recipe": CROP, "resizer": "pillow", "cached": False, "packed": True},
        "metricjax, packed at 256, by Pillow",
    ),
    "ours_packed": (
        OURS, {"recipe": CROP, "resizer": "opencv", "cached": False, "packed": True},
        "metricjax, packed at 256, by OpenCV",
    ),
    "ours_memory": (
        OURS, {"recipe": CROP, "resizer": "opencv", "cached": True, "packed": True},
        "metricjax, decoded images in memory, by OpenCV",
    ),
    "ours_memory_crop": (
        OURS, {"recipe": "resize_crop", "resizer": "pillow", "cached": True},
        "metricjax, resized images in memory, crops of CGD's recipe",
    ),
}  # fmt: skip
# Peak of dense bfloat16 products, in TFLOP/s, as the makers publish it.
PEAKS = {"TPU v5e, 16 chips": 16 * 197, "H200": 989}


def measured(options):
    """variant -> what `harness.measure` says of it, and the mean size of a JPEG."""
    with tempfile.TemporaryDirectory() as scratch:
        folder, packed = Path(scratch) / "photographs", Path(scratch) / "packed"
        size = input_cases.write(folder, options.images)
        command = [sys.executable, "-m", "metricjax.prepare", folder, "--out", packed]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        specs = {}
        for name, (program, how, _) in VARIANTS.items():
            if name in options.variants:
                source = packed if how.get("packed") else folder
                specs[name] = how | {
                    "program": program,
                    "folder": str(source),
                    "workers": CORES,
                    "compiles": True,
                }
        return size, harness.measure(
            specs,
            harness.Pace(rounds=options.rounds, turn=2.0, warm_below=30.0),
            environment={"JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "1"},
        )


def table(run):
    """Markdown of a run."""
    about, results = run["machine"], run["results"]
    images = {name: run["images"] for name in results}
    for name in results:
        if name.startswith("ours"):  # half of the classes are for training
            images[name] = run["images"] // 2 // input_cases.BATCH * input_cases.BATCH
    lines = [
        "# Input pipeline",
        "",
        f"Images per second to batches of {input_cases.BATCH} (ours: on the device), "
        f"from JPEGs of 500 x 375 ({run['bytes'] / 1e3:.0f} KB), crops of 224 pixels, "
        f"on {about['cpu']}, {about['memory']}, {CORES} workers or threads; torch "
        f"{about['torch']}, jax {about['jax']}; commit {about['commit']}, "
        f"`python {about['command']}`. MiB: peak of the main process, without "
        "DataLoader's workers.",
        "",
        "| | images/s | per core | MiB | of DataLoader with Pillow |",
        "|---|---|---|---|---|",
    ]
    rates = {
        name: images[name] / result["median_ms"] * 1e3
        for name, result in results.items()
        if "error" not in result
    }
    base = rates.get("dataloader_pillow")
    for name, (_, _, label) in VARIANTS.items():
        if name in rates:
            ratio = f"{rates[name] / base:.2f}" if base else ""
            cells = [
                label, f"{rates[name]:,.0f}", f"{rates[name] / CORES:,.0f}",
                f"{results[name]['peak_mib']:,.0f}", ratio,
            ]  # fmt: skip
            lines.append(f"| {' | '.join(cells)} |")
        elif name in results:
            lines.append(f"| {label} | {results[name]['error']} | | | |")
    return "\n".join([*lines, "", *_cores(rates)]) + "\n"


def _cores(rates):
    """How many cores feed an accelerator that trains CGD on ResNet-50."""
    case = CASES["resnet50_cgd"]
    model = models.build(models.ModelConfig(**case.model), 100)
    flop = 6 * cost.forward_multiply_adds(model, case.shape)
    yield (
        f"A training step of CGD on ResNet-50 takes {flop / 1e9:.0f} GFLOP an image. "
        "Cores that feed it at a share of the published peak (no accelerator was at "
        "hand, the share is assumed; cores are assumed to add up):"
    )
    yield ""
    yield "| device | share of peak | images/s | cores, JPEG files | cores, packed |"
    yield "|---|---|---|---|---|"
    for device, peak in PEAKS.items():
        for share in (0.4, 1.0):
            needed = share * peak * 1e12 / flop
            cores = [
                f"{needed / (rates[name] / CORES):.0f}" if name in rates else ""
                for name in ("ours", "ours_packed")
            ]
            yield f"| {device} | {share:.0%} | {needed:,.0f} | {' | '.join(cores)} |"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--variants", default=",".join(VARIANTS))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--table", type=Path)
    options = parser.parse_args()
    if options.table:
        run = json.loads(options.table.read_text())
    else:
        options.variants = options.variants.split(",")
        size, results = measured(options)
        run = {
            "machine": harness.machine(" ".join(sys.argv)),
            "images": options.images,
            "bytes": size,
            "results": results,
        }
        if options.json:
            options.json.write_text(json.dumps(run) + "\n")
    print(table(run))
    if options.table:
        out = Path(__file__).parent / "results" / "input_pipeline.md"
        out.write_text(table(run))


if __name__ == "__main__":
    main()

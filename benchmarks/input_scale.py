"""Data sets of many images: how long they take to open, to deal and to check.

    python benchmarks/input_scale.py [--files 1000000] [--check DATA ...]
        [--run CONFIG[,--config.KEY=VALUE ...] ...] [--out FILE.md]

A data set of the shape of Stanford Online Products (120,053 images of one pixel,
22,634 classes) is written, packed and opened; each sampler deals a thousand batches of
it; ten thousand go through the pipeline. With `--files` a directory of so many files
and a labels.csv is opened. `--check` times `prepare --check` on real data, `--run`
reads from a run what share of its time it waited for images.
"""

import argparse
import io
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from functools import partial
from pathlib import Path

import harness
import numpy as np
from PIL import Image

from metricjax.data import open_dataset, pipeline, transforms
from metricjax.data.formats import packing
from metricjax.data.samplers import class_balanced, registry
from metricjax.diagnostics import dataset_check

KINDS = 12
SPLITS = {"train": (11_318, 59_551), "test": (11_316, 60_502)}
BATCH = 128
STEPS, SMALL_BATCH = 10_000, 16


def pixel():
    """The smallest PNG."""
    file = io.BytesIO()
    Image.new("RGB", (1, 1)).save(file, "PNG")
    return file.getvalue()


def write_products(path):
    """A zip as that of the benchmark: products of two images and more, two lists."""
    rng, content, first, number = np.random.default_rng(0), pixel(), 1, 0
    with zipfile.ZipFile(path, "w") as archive:
        for split, (classes, images) in SPLITS.items():
            extra = rng.integers(classes, size=images - 2 * classes)
            sizes = 2 + np.bincount(extra, minlength=classes)
            lines = ["image_id class_id super_class_id path"]
            for product, size in enumerate(sizes.tolist(), first):
                kind = product % KINDS
                for at in range(size):
                    number += 1
                    name = f"kind{kind}_final/{product}_{at}.JPG"
                    lines.append(f"{number} {product} {kind + 1} {name}")
                    archive.writestr(name, content)
            archive.writestr(f"Ebay_{split}.txt", "\n".join(lines))
            first += classes


def write_directory(root, count):
    """One directory of `count` images and a table of them, ten of a class."""
    root.mkdir()
    content = pixel()
    with (root / "labels.csv").open("w") as table:
        table.write("path,label\n")
        for number in range(count):
            (root / f"{number}.png").write_bytes(content)
            table.write(f"{number}.png,{number // 10}\n")


def seconds(call):
    """(how long by the clock, of processor time, result)."""
    began, used = time.perf_counter(), time.process_time()
    result = call()
    return time.perf_counter() - began, time.process_time() - used, result


def dealing(split):
    """(what a sampler deals, and `of_batches` of it)."""
    for name in registry.SAMPLERS:
        for instances in (2, 4) if name == "classes" else (2,):
            sampler = registry.build(
                name,
                split,
                BATCH,
                instances_per_class=instances,
                categories_per_batch=1,
                seed=0,
            )
            yield f"`{name}`: {sampler.contents}", *of_batches(sampler)


def of_batches(sampler):
    """A batch out of a thousand, by the clock (median) and of processor time (mean)."""
    deal = [seconds(partial(sampler.__getitem__, step)) for step in range(1000)]
    clock, used, _ = zip(*deal, strict=True)
    return f"{statistics.median(clock) * 1e3:.2f} ms", f"{sum(used):.2f} ms"


def resident():
    """MiB of this process in memory."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) / 1024


def growth(split):
    """MiB by which the process grows from batch 1,000 to batch 10,000."""
    batches = pipeline.train_batches(
        split,
        class_balanced.PKSampler(split.labels, SMALL_BATCH, 2, seed=0),
        transforms.build(transforms.TransformConfig("none", 8)),
        seed=0,
        start_step=0,
        num_steps=STEPS,
        cache_bytes=0,
    )
    with batches:
        for step, _ in enumerate(batches):
            if step == STEPS // 10:
                early = resident()
    return resident() - early


def check(dataset, scratch):
    """What `prepare --check` does with an opened data set."""
    dataset_check.run(dataset, Path(scratch) / "check.html", say=lambda sentence: None)


def waiting(arguments, scratch):
    """Share of a run's time in which it waited for images, and its images/s."""
    config, *overrides = arguments.split(",")
    workdir = Path(tempfile.mkdtemp(dir=scratch))
    command = [sys.executable, "-m", "metricjax.main", "--config", config]
    command += [*overrides, "--workdir", str(workdir)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    train = [line for line in map(json.loads, lines) if line["kind"] == "train"]
    rates = [line["images_per_second"] for line in train]
    return statistics.mean(line["data_wait"] for line in train), statistics.mean(rates)


def opened(what, name, root):
    """A row on opening a data set, and the data set."""
    took, used, dataset = seconds(partial(open_dataset, name, str(root)))
    return (what, f"{took:.2f} s", f"{used:.2f} s"), dataset


def rows(options, scratch):
    """(what, how much, of processor time) of everything that was asked for."""
    scratch = Path(scratch)
    write_products(scratch / "products.zip")
    images = "120,053 images of 22,634 classes"
    row, dataset = opened(f"open a .zip of {images}", "sop", scratch / "products.zip")
    yield row
    packing.pack(dataset, str(scratch / "packed"), say=lambda sentence: None)
    row, dataset = opened(f"open {images}, packed", "packed", scratch / "packed")
    yield row
    for what, *times in dealing(dataset.train):
        yield f"deal a batch of {BATCH}, {what}", *times
    what = f"memory from the 1,000th to the {STEPS:,}th batch of {SMALL_BATCH}"
    yield what, f"{growth(dataset.train):+.1f} MiB", ""
    if options.files:
        write_directory(scratch / "directory", options.files)
        what = f"open a directory of {options.files:,} files and its table"
        yield opened(what, "folder", scratch / "directory")[0]
    for root in options.check:
        _, dataset = opened("", "folder", root)
        took, used, _ = seconds(partial(check, dataset, scratch))
        what = f"check {len(dataset.train) + len(dataset.test):,} images"
        yield f"{what} of {Path(root).name}", f"{took:.1f} s", f"{used:.1f} s"
    for run in options.run:
        share, rate = waiting(run, scratch)
        yield f"waiting for images in `{run}`", f"{share:.1%}, {rate:,.0f} images/s", ""


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=0)
    parser.add_argument("--check", nargs="*", default=[])
    parser.add_argument("--run", nargs="*", default=[])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    about = harness.machine(" ".join(sys.argv))
    lines = [
        f"On {about['cpu']}, {about['memory']}; commit {about['commit']}, "
        f"`python {about['command']}`.",
        "",
        "| | by the clock | processor time |",
        "|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as scratch:
        for row in rows(options, scratch):
            lines.append(f"| {' | '.join(row)} |")
            print(lines[-1], flush=True)
    if options.out:
        options.out.write_text(
            "# Data sets of many images\n\n" + "\n".join(lines) + "\n"
        )


if __name__ == "__main__":
    main()

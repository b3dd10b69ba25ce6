"""`metricjax calibrate`: similarity thresholds from labelled images."""

import argparse
import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from metricjax.cli.parser import Parser, answer
from metricjax.cli.progress_bar import progress_bar
from metricjax.errors import InputError

USAGE = """\
metricjax calibrate: the similarity above which two images count as the same.

  metricjax calibrate RUN SOURCE [--rates 0.1,0.01] [--out FILE.json]

Embeds the images of SOURCE, compares every pair of them, and prints for each rate of
false matches (pairs of different classes that count as the same) the threshold and the
share of the pairs of one class that it finds, with intervals over classes; then what
the run's own thresholds reach on these images. Use classes that the network was not
trained on.

  RUN              the workdir of a finished run, here or in a bucket
  SOURCE           a directory, .zip or .tar with class folders, or a labels.csv; a
                     packed data set; a file that `metricjax embed` has written
  --rates LIST     of false matches (default: 0.1,0.01,0.001,0.0001); rates for which
                     there are too few pairs are named and left out
  --part PART      train or test: that half of a data set (default: all)
  --out FILE.json  write all of it there as well, with the points of the curve
  --help, --version
                   this text; the version

Examples:

  metricjax calibrate runs/quickstart photos.zip
  metricjax calibrate runs/quickstart photos.zip --rates 0.01,0.001 --out rates.json

Exit code: 0 done; 2 an input error, reported in one sentence; 130 stopped by Ctrl-C;
1 a bug in metricjax, with a traceback.
"""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return answer(arguments, USAGE, lambda given: _run(_parse(given)))


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser()
    parser.add_argument("run")
    parser.add_argument("source")
    parser.add_argument("--rates", default="0.1,0.01,0.001,0.0001")
    parser.add_argument("--part", default="all")
    parser.add_argument("--out")
    options = parser.parse_args(arguments)
    try:
        options.rates = [float(rate) for rate in options.rates.split(",")]
    except ValueError:
        options.rates = [math.nan]
    if not all(0 < rate < 1 for rate in options.rates):
        raise InputError(
            "--rates must list shares above 0 and below 1, such as 0.1,0.01."
        )
    if options.out and not Path(options.out).expanduser().parent.is_dir():
        raise InputError(
            f"--out {options.out}: name a file in a directory that exists."
        )
    return options


def _run(options: argparse.Namespace) -> int:
    import numpy as np

    from metricjax import evaluation
    from metricjax.inference import verify_split
    from metricjax.inference.gallery_index import Index
    from metricjax.inference.trained_model import TrainedModel
    from metricjax.runtime import compilation_cache
    from metricjax.storage.atomic import write_atomically

    compilation_cache.enable()
    trained = TrainedModel.open(options.run)
    with progress_bar("embedding") as progress:
        index = Index.open(
            trained, options.source, part=options.part, say=print, progress=progress
        )
    embeddings = index.embeddings[index.valid]
    labels = index.split.labels[index.valid]
    found = evaluation.calibrate(embeddings, labels, false_match_rates=options.rates)
    pairs = found["pairs"]
    print(
        f"{len(labels):,} images of {len(np.unique(labels)):,} classes: "
        f"{pairs['same']:,} pairs of one class, {pairs['different']:,} of different "
        f"ones\nequal error rate {100 * found['equal_error_rate']:.3g}%"
    )
    columns = ("false matches", "similarity at least", "same found", "95% interval")
    _print(columns, map(_calibrated, found["thresholds"]))
    for note in verify_split.too_few(found):
        print(note)
    theirs = [one["similarity"] for one in trained.results.get("thresholds") or ()]
    if theirs:
        reached = evaluation.reached(embeddings, labels, theirs)["reached"]
        print("The run's own thresholds, on these images:")
        columns = ("similarity at least", "false matches", "95% interval")
        _print((*columns, "same found", "95% interval"), map(_reached, reached))
        found["of_the_run"] = reached
    if options.out:
        out = Path(options.out).expanduser()
        content = {"run": trained.identity, "source": str(options.source), **found}
        try:
            write_atomically(out, json.dumps(content, indent=1) + "\n")
        except OSError as error:
            raise InputError(
                f"--out {out} cannot be written ({error.strerror}): name another file."
            ) from error
        print(out)
    return 0


def _calibrated(one: Mapping[str, Any]) -> tuple[str, ...]:
    rate = f"{100 * one['false_match_rate']:g}%"
    similarity = f"{one['similarity']:.4f}"
    return rate, similarity, *_rate(one, "true_match_rate", "interval")


def _reached(one: Mapping[str, Any]) -> tuple[str, ...]:
    false = _rate(one, "false_match_rate", "false_match_interval")
    true = _rate(one, "true_match_rate", "interval")
    return f"{one['similarity']:.4f}", *false, *true


def _rate(one: Mapping[str, Any], rate: str, interval: str) -> tuple[str, str]:
    low, high = one[interval]
    return f"{100 * one[rate]:.3g}%", f"{100 * low:.3g}% to {100 * high:.3g}%"


def _print(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Right-aligned columns; nothing where there are no rows."""
    lines = [columns, *rows]
    if len(lines) == 1:
        return
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = [cell.rjust(width) for cell, width in zip(line, widths, strict=True)]
        print("  ".join(cells))


if __name__ == "__main__":
    sys.exit(main())

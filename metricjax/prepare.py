"""`metricjax prepare`: pack a data set, verify a packed one, or check one."""

import argparse
import sys
from functools import partial
from pathlib import Path

from metricjax.cli.parser import Parser, answer
from metricjax.cli.progress_bar import progress_bar
from metricjax.errors import InputError

USAGE = """\
metricjax prepare: pack images into shards that training reads fast.

  metricjax prepare SOURCE --out DIR [--short-side 256]
  metricjax prepare --verify DIR
  metricjax check SOURCE [--out PAGE.html]

Packs the images of SOURCE into a few large files in DIR, which training reads much
faster than many small ones: open it with data.name=packed, data.root=DIR. If it is
stopped, the same command resumes.

  SOURCE             a directory, .zip or .tar of class folders or with a labels.csv,
                       or what --name says
  --name NAME        folder (default), cub, cars, sop, inshop, tfds:NAME or glyphs
  --out DIR          where to write: a directory, or an address such as gs://bucket/dir
                       (needs metricjax[remote])
  --short-side N     shrink larger images until their shorter side has N pixels and
                       write them as JPEG of quality 95; all others keep their bytes
                       (default: 256; 0: shrink none)
  --cropped          crop to the bounding boxes of cub and cars
  --closed-set       allow classes that are in both train and test
  --threads N        that decode images (default: 2 per processor, at most 32)
  --check            as `metricjax check`
  --verify           read everything in DIR again and compare it with its checksums
  --help, --version  this text; the version

Examples:

  metricjax prepare photos.zip --out packed
  metricjax prepare --name sop Stanford_Online_Products.zip --out gs://bucket/sop
  metricjax prepare --verify packed

Exit code: 0 done; 2 an input error, reported in one sentence, or damage found, or not
fit for training; 130 stopped by Ctrl-C; 1 a bug in metricjax, with a traceback.
"""
CHECK_USAGE = """\
metricjax check: is a data set fit for training?

  metricjax check SOURCE [--name NAME] [--out PAGE.html]

Looks at every image once and prints what is wrong: unreadable images, copies in train
and test, copies under two labels, classes too small. Writes a page with pictures.

  SOURCE             a directory, .zip or .tar of class folders or with a labels.csv,
                       or what --name says
  --name NAME        folder (default), cub, cars, sop, inshop, tfds:NAME or glyphs
  --out PAGE.html    the page (default: check.html)
  --cropped          crop to the bounding boxes of cub and cars
  --closed-set       allow classes that are in both train and test
  --threads N        that decode images (default: 2 per processor, at most 32)
  --help, --version  this text; the version

Examples:

  metricjax check photos.zip
  metricjax check --name cars car_ims.tgz --out cars.html

Exit code: 0 fit for training; 2 not fit, or an input error, reported in one sentence;
130 stopped by Ctrl-C; 1 a bug in metricjax, with a traceback.
"""


def main(arguments: list[str] | None = None, command: str = "prepare") -> int:
    """Run the command line; returns the exit code.

    Args:
      arguments: None: those of this process.
      command: "prepare", or "check" for what --check does.
    """
    usage, first = (CHECK_USAGE, ["--check"]) if command == "check" else (USAGE, [])
    return answer(
        arguments,
        usage,
        lambda given: _run(_parse([*first, *given])),
        stopped="stopped; run the same command again to resume.",
    )


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser()
    parser.add_argument("source", nargs="?")
    parser.add_argument("--name", default="folder")
    parser.add_argument("--out")
    parser.add_argument("--short-side", type=int, default=256)
    parser.add_argument("--threads", type=int)
    for flag in ("--cropped", "--closed-set", "--check", "--verify"):
        parser.add_argument(flag, action="store_true")
    options = parser.parse_args(arguments)
    if options.check and options.verify:
        raise InputError("--check and --verify are two commands: give one of them.")
    if not (options.check or options.verify or options.out):
        raise InputError("--out is missing: name the directory to write; see --help.")
    threads = 1 if options.threads is None else options.threads
    if options.short_side < 0 or threads < 1:
        raise InputError("--short-side must be 0 or more and --threads 1 or more.")
    if options.verify and not options.source:
        raise InputError("--verify needs the directory to read; see --help.")
    return options


def _run(options: argparse.Namespace) -> int:
    if options.verify:
        from metricjax.data.checks import packed_integrity

        with progress_bar("reading again") as progress:
            is_whole = packed_integrity.verify(
                options.source, say=partial(print, flush=True), progress=progress
            )
        return 0 if is_whole else 2
    from metricjax.data import open_dataset

    chosen = {"cropped": options.cropped, "closed_set": options.closed_set}
    chosen = {name: True for name, value in chosen.items() if value}
    dataset = open_dataset(options.name, options.source, **chosen)
    for note in dataset.notes:
        print(note)
    if options.check:
        from metricjax.diagnostics import dataset_check

        page = Path(options.out or "check.html")
        with progress_bar("looking at the images") as progress:
            return dataset_check.run(
                dataset, page, threads=options.threads, progress=progress
            )
    from metricjax.data.formats import packing

    with progress_bar("packing") as progress:
        packing.pack(
            dataset,
            options.out,
            short_side=options.short_side,
            source=options.source or "",
            cropped=options.cropped,
            threads=options.threads,
            say=partial(print, flush=True),
            progress=progress,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""`metricjax embed`: the embeddings of any images, in a file."""

import argparse
import sys
from pathlib import Path

from metricjax.cli.parser import Parser, answer
from metricjax.cli.progress_bar import progress_bar
from metricjax.errors import InputError

USAGE = """\
metricjax embed: images to embeddings, by a trained network.

  metricjax embed RUN [SOURCE] --out FILE.npz [--part test]
  metricjax embed RUN [SOURCE] --out FILE.parquet

Embeds every image of SOURCE in order. An image that cannot be decoded is named and
keeps its row, marked as not valid. If it is stopped, the same command resumes (partial
results are kept in FILE.unfinished) and ends with the same file.

  RUN                the workdir of a finished run, here or in a bucket
  SOURCE             a directory, .zip or .tar, with class folders, a labels.csv or
                       neither; a packed data set; a text list of paths, one a line; an
                       image; or what --name says (default: the images of the run)
  --out FILE         .npz: embeddings (float32 [n, d], of unit length, 0 where not
                       valid), valid, names, labels, class_names, model; numpy alone
                       reads it. .parquet (needs metricjax[parquet]): path, label,
                       category, valid, embedding; databases and data frames read it
  --name NAME        cub, cars, sop, inshop, tfds:NAME, glyphs, packed or folder
  --part PART        train or test: that half of a data set (default: all)
  --cropped          crop to the bounding boxes of cub and cars
  --threads N        that read images (default: 1 per processor, at most 16)
  --help, --version  this text; the version

All devices are used, and all hosts on which the command is started, as for training.

Examples:

  metricjax embed runs/quickstart photos.zip --out embeddings.npz
  metricjax embed gs://bucket/run --part test --out test.parquet

Exit code: 0 done; 2 an input error, reported in one sentence; 130 stopped by Ctrl-C;
1 a bug in metricjax, with a traceback.
"""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    stopped = "stopped; run the same command again to resume."
    return answer(arguments, USAGE, lambda given: _run(_parse(given)), stopped=stopped)


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser()
    parser.add_argument("run")
    parser.add_argument("source", nargs="?")
    parser.add_argument("--out")
    parser.add_argument("--name")
    parser.add_argument("--part", default="all")
    parser.add_argument("--cropped", action="store_true")
    parser.add_argument("--threads", type=int)
    options = parser.parse_args(arguments)
    if not options.out:
        raise InputError("--out is missing: name the file to write; see --help.")
    if options.threads is not None and options.threads < 1:
        raise InputError("--threads must be 1 or more.")
    return options


def _run(options: argparse.Namespace) -> int:
    from metricjax.inference import (
        embed_to_file,
        embedding_files,
        gallery_index,
        parquet,
    )
    from metricjax.inference.trained_model import TrainedModel
    from metricjax.runtime import compilation_cache, connection, watchdog

    out = Path(options.out).expanduser()
    if embedding_files.suffix_of(out) == ".parquet":
        parquet.need()
    if not out.parent.is_dir():
        raise InputError(f"--out {out}: there is no directory {out.parent}: make it.")
    compilation_cache.enable()
    connection.connect()
    trained = TrainedModel.open(options.run)
    with watchdog.watched(trained.config.host_timeout):
        split = gallery_index.open_images(
            trained,
            options.source,
            name=options.name,
            part=options.part,
            cropped=options.cropped,
            say=embed_to_file.say_once,
        )
        with progress_bar("embedding") as progress:
            embed_to_file.write(
                trained, split, out, threads=options.threads, progress=progress
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""`metricjax explore`: an HTML page to browse images by their neighbours."""

import argparse
import sys
from functools import partial
from pathlib import Path

from metricjax.cli.parser import Parser, answer
from metricjax.cli.progress_bar import progress_bar
from metricjax.errors import InputError, counted

USAGE = """\
metricjax explore: an HTML page to browse images as a trained network sees them.

  metricjax explore RUN [SOURCE] [--out explorer.html]

Writes one self-contained HTML file: click any image to see its neighbours and go on
from there; worst queries, confused classes, a table of classes, a map, and how similar
pairs are. A run writes the same page for its test images when it ends.

  RUN              the workdir of a finished run, here or in a bucket
  SOURCE           a directory, .zip or .tar, with class folders, a labels.csv or
                     neither; a packed data set; a text list of paths, one a line; a
                     file of `metricjax embed`; or what --name says (default: the test
                     images of the run)
  --out FILE       the page (default: explorer.html)
  --name NAME      cub, cars, sop, inshop, tfds:NAME, glyphs, packed or folder
  --part PART      train or test: that half of a data set (default: all of SOURCE)
  --cropped        crop to the bounding boxes of cub and cars
  --tsne           with a t-SNE map as well (needs metricjax[cluster]; slow from some
                     thousands of images on)
  --threads N      that read images (default: 1 per processor, at most 16)
  --help, --version
                   this text; the version

Embeddings are cached and reused, as those of `metricjax search` are. The address
explorer.html#image=123 opens the page at image 123 of SOURCE, counted from 0.

Examples:

  metricjax explore runs/quickstart
  metricjax explore runs/quickstart photos.zip --out photos.html

Exit code: 0 done; 2 an input error, reported in one sentence; 130 stopped by Ctrl-C;
1 a bug in metricjax, with a traceback.
"""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return answer(arguments, USAGE, lambda given: _run(_parse(given)))


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser()
    parser.add_argument("run")
    parser.add_argument("source", nargs="?")
    parser.add_argument("--out", default="explorer.html")
    parser.add_argument("--name")
    parser.add_argument("--part")
    parser.add_argument("--cropped", action="store_true")
    parser.add_argument("--tsne", action="store_true")
    parser.add_argument("--threads", type=int)
    options = parser.parse_args(arguments)
    if options.threads is not None and options.threads < 1:
        raise InputError("--threads must be 1 or more.")
    if options.source is None and options.name is None and options.part is None:
        options.part = "test"
    options.out = Path(options.out).expanduser()
    if options.out.is_dir() or not options.out.parent.is_dir():
        raise InputError(
            f"--out {options.out} cannot be written: name a file in a directory that "
            "exists."
        )
    return options


def _run(options: argparse.Namespace) -> int:
    from metricjax.explorer import explorer_page, projections
    from metricjax.inference.embedder import Embedded
    from metricjax.inference.gallery_index import Index
    from metricjax.inference.trained_model import TrainedModel
    from metricjax.runtime import compilation_cache

    if options.tsne:
        projections.need_tsne()
    compilation_cache.enable()
    trained = TrainedModel.open(options.run)
    say = partial(print, flush=True)
    with progress_bar("embedding") as progress:
        index = Index.open(
            trained,
            options.source,
            name=options.name,
            part=options.part,
            cropped=options.cropped,
            threads=options.threads,
            say=say,
            progress=progress,
        )
    embedded = Embedded(index.embeddings, index.valid)
    if index.valid.sum() < 2:
        raise InputError(
            f"{options.source or options.name} has {index.valid.sum()} images that can "
            "be read: two at least are needed."
        )
    data, split = trained.config.data, index.split
    if options.source or options.name:
        title = explorer_page.title_of(options.source, options.name or "folder")
    else:
        title = explorer_page.title_of(data.root, data.name)
    per_query, notes = explorer_page.per_query_metrics(embedded, split)
    with progress_bar("drawing") as progress:
        explorer_page.write(
            options.out,
            embedded,
            split,
            per_query,
            title=title,
            seed=trained.config.seed,
            notes=notes,
            threads=options.threads,
            tsne=options.tsne,
            progress=progress,
        )
    say(f"{counted(len(split), 'image')} in {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

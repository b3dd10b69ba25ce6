"""`python -m metricjax.explore`: a page to walk through images by their neighbours."""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from metricjax import exploration
from metricjax.arguments import Parser, answer
from metricjax.config.schema import EvaluationConfig
from metricjax.data.datasets import Split, UnreadableImage
from metricjax.errors import InputError
from metricjax.inference import evaluate_split
from metricjax.inference.embedder import Embedded
from metricjax.progress import progress_bar
from metricjax.reports import explorer, sprites
from metricjax.storage.atomic import write_atomically
from metricjax.wording import counted

USAGE = """\
metricjax: a page to walk through images, as a trained network sees them.

  python -m metricjax.explore RUN [SOURCE] [--out explorer.html]

Writes one HTML file that needs no network: click any image to see its neighbours, go on
from there; worst queries, classes taken for each other, a table of classes, a map, and
how alike pairs are. A run writes the same page of its test images when it ends.

  RUN              the workdir of a finished run, here or in a bucket
  SOURCE           a directory, .zip or .tar, with class folders, a labels.csv or
                   neither; a packed data set; a text list of paths, one a line; a file
                   of python -m metricjax.embed; or what --name says (default: the test
                   images of the run)
  --out FILE       the page (default: explorer.html)
  --name NAME      cub, cars, sop, inshop, tfds:NAME, glyphs, packed or folder
  --part PART      train or test: that half of a data set (default: all of SOURCE)
  --cropped        crop to the bounding boxes that cub and cars come with
  --tsne           with a t-SNE map as well (needs metricjax[cluster]; slow from some
                   thousands of images on)
  --threads N      that read images (default: 1 per processor, at most 16)
  --help           this text

Embeddings are kept and used again, as those of python -m metricjax.search are. The
address explorer.html#image=123 opens the page at image 123 of SOURCE, counted from 0.

Exit code: 0 done; 2 something to mend, told in one sentence; 130 stopped by Ctrl-C;
1 a fault of metricjax, with a traceback.
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
    from metricjax import layouts
    from metricjax.inference.gallery_index import Index
    from metricjax.inference.trained_model import Trained
    from metricjax.runtime import compilation_cache

    if options.tsne:
        layouts.need_tsne()
    compilation_cache.use()
    trained = Trained.open(options.run)
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
        title = title_of(options.source, options.name or "folder")
    else:
        title = title_of(data.root, data.name)
    per_query, notes = _judged(embedded, split)
    with progress_bar("drawing") as progress:
        write(
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


def title_of(root: str | None, name: str) -> str:
    """What to call images: by the place they are in, or by their data set."""
    return Path(root).stem if name in ("folder", "packed") and root else name


def _judged(embedded: Embedded, split: Split) -> tuple[dict, list[str]]:
    """What is known of each query, and a sentence where that is nothing."""
    own = split.is_query & split.is_gallery & embedded.valid
    found = np.bincount(
        split.labels[split.is_gallery & embedded.valid], minlength=split.num_classes
    )
    right = found[split.labels] - own
    if split.num_classes > 1 and (right > 0)[split.is_query & embedded.valid].any():
        config = EvaluationConfig(recall_at=(1,))
        judged = evaluate_split.judge(
            embedded, split, config, bootstrap=0, per_query=True
        )
        return judged["per_query"], []
    nothing = {name: np.zeros(0) for name in exploration.METRICS}
    note = (
        "All images are of one class"
        if split.num_classes == 1
        else "No image has another one of its class"
    )
    return (
        {"query": np.zeros(0, np.int64), **nothing},
        [f"{note}, so there is no right and wrong here: only who is alike."],
    )


def write(
    page: Path,
    embedded: Embedded,
    split: Split,
    per_query: Mapping[str, np.ndarray],
    *,
    title: str,
    seed: int = 0,
    report: str | None = None,
    notes: Sequence[str] = (),
    threads: int | None = None,
    tsne: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Write the explorer's page, whole or not at all.

    Args:
      page: the HTML file; one that exists is replaced.
      embedded: the images' embeddings.
      split: the images; they are read once more, for their thumbnails.
      per_query: what `evaluate_split.judge` found of each query.
      title: what the images are.
      seed, tsne: as of `exploration.explore`.
      progress: called with how many sheets of pictures are drawn, and of how many.
      report: address of the run's report, relative to the page.
      notes: sentences that the page begins with.
      threads: that read images; None: one per processor, at most 16.

    Raises:
      InputError: the disk is full.
    """
    explored = exploration.explore(embedded, split, per_query, seed=seed, tsne=tsne)
    count = len(explored.numbers)
    if count < len(split):
        notes = [
            *notes,
            f"The page holds {count:,} of {len(split):,} images: whole classes, drawn "
            "at random. Neighbours are found among them only, so wrong ones are fewer "
            "than among all; values of queries are those of all images.",
        ]
    side = sprites.side_for(count)
    sheets = []
    read = _reader(split, explored.numbers, side)
    for sheet in sprites.sheets(count, read, side, threads):
        sheets.append(sheet)
        progress(len(sheets), -(-count // sprites.TILES))
    text = explorer.render(
        explored,
        sheets,
        title=title,
        side=side,
        report=report,
        notes=notes,
    )
    write_atomically(page, text)


def _reader(split: Split, numbers: np.ndarray, side: int):
    """A function from the place on the page to the image, None if it is unreadable."""

    def read(place: int) -> np.ndarray | None:
        try:
            return split.read(int(numbers[place]), least=2 * side)
        except UnreadableImage:
            return None

    return read


if __name__ == "__main__":
    sys.exit(main())

"""`metricjax search`: the nearest gallery images of each query image."""

import argparse
import json
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metricjax.cli import gallery_flags
from metricjax.cli.parser import Parser, answer
from metricjax.cli.progress_bar import progress_bar
from metricjax.errors import InputError

if TYPE_CHECKING:
    from metricjax.data.datasets import Split
    from metricjax.inference.embedder import Embedded
    from metricjax.inference.gallery_index import Index
    from metricjax.inference.trained_model import TrainedModel

_WIDTH = 32  # letters of a class in a table

USAGE = """\
metricjax search: the images of a gallery that show the same thing as a query.

  metricjax search RUN --gallery SOURCE QUERY... [--top 10] [--html PAGE.html]

Prints the most similar images for each query, with their cosine similarity. The gallery
is embedded once and cached in the user's cache directory; later searches embed only
images that are new or have changed, or all of them if the model is another one.

  RUN                the workdir of a finished run, here or in a bucket
  --gallery SOURCE   a directory, .zip or .tar, with class folders, a labels.csv or
                       neither; a packed data set; a text list of paths; a file that
                       `metricjax embed` has written with the same run; or what --name
                       says (default: the test images of the run)
  QUERY              an image, or a directory of them
  --top N            neighbours of each query (default: 10)
  --category NAME    only among images of this category
  --html PAGE.html   write a page with pictures, too
  --images SOURCE    where the images of a file of embeddings are, for that page
  --json             print JSON: a list of queries with their neighbours
  --approximate      for galleries of millions of images: by usearch (needs
                       metricjax[approximate]); its recall is measured and printed
  --name NAME        cub, cars, sop, inshop, tfds:NAME, glyphs, packed or folder
  --part PART        train or test: that half of a data set (default: all)
  --cropped          crop to the bounding boxes of cub and cars
  --index DIR        where to keep the index instead of the cache directory
  --threads N        that read images (default: 1 per processor, at most 16)
  --help, --version  this text; the version

Examples:

  metricjax search runs/quickstart --gallery photos.zip new.jpg
  metricjax search runs/quickstart --gallery photos.zip queries/ --html found.html

Exit code: 0 done; 2 an input error, reported in one sentence; 130 stopped by Ctrl-C;
1 a bug in metricjax, with a traceback.
"""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    stopped = "stopped; the embeddings computed so far are saved."
    return answer(arguments, USAGE, lambda given: _run(_parse(given)), stopped=stopped)


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser()
    parser.add_argument("run")
    parser.add_argument("queries", nargs="*")
    parser.add_argument("--top", type=int, default=10)
    gallery_flags.add(parser)
    for option in ("category", "html"):
        parser.add_argument(f"--{option}")
    for flag in ("json", "approximate"):
        parser.add_argument(f"--{flag}", action="store_true")
    options = parser.parse_intermixed_args(arguments)
    if not options.queries:
        raise InputError("No query is named: give an image, or a directory of some.")
    if options.top < 1:
        raise InputError(f"--top is {options.top}: it must be 1 or more.")
    if options.approximate and options.category:
        raise InputError(
            "--approximate searches the whole gallery: leave out --category, or search "
            "exactly."
        )
    if options.html and not Path(options.html).expanduser().parent.is_dir():
        raise InputError(f"--html {options.html}: there is no such directory: make it.")
    gallery_flags.check(options)
    return options


def _run(options: argparse.Namespace) -> int:
    from metricjax.inference.trained_model import TrainedModel
    from metricjax.runtime import compilation_cache

    say = partial(print, file=sys.stderr, flush=True)
    compilation_cache.enable()
    trained = TrainedModel.open(options.run)
    gallery = gallery_flags.open_index(options, trained, say)
    names, images, embeddings = _queries(options, trained, say)
    similarities, rows = _nearest(options, gallery, embeddings, say)
    answers = [
        {"query": name, "neighbours": _neighbours(gallery, *found)}
        for name, *found in zip(names, similarities, rows, strict=True)
    ]
    if options.html:
        from metricjax.reports import search_page
        from metricjax.storage.atomic import write_atomically

        gallery_name = Path(options.gallery).name if options.gallery else options.name
        title = gallery_name or trained.config.data.name
        pictures = [
            [partial(gallery.split.read, row) for row in line if row >= 0]
            for line in rows
        ]
        text = search_page.render(answers, images, pictures, title=title)
        write_atomically(Path(options.html).expanduser(), text)
        say(f"page: {options.html}")
    if options.json:
        print(json.dumps(answers, indent=1))
    else:
        print("\n\n".join(map(_table, answers)))
    return 0


def _queries(
    options: argparse.Namespace, trained: "TrainedModel", say: Callable[[str], None]
):
    """(names, readers, embeddings [q, d]) of the queries that can be decoded."""
    import numpy as np

    from metricjax.inference import gallery_index, partial_embeddings

    names, images, rows = [], [], []
    for source in options.queries:
        split = gallery_index.open_images(trained, source, say=say)
        embedded = _embedded(trained, split, options.threads)
        unreadable = partial_embeddings.unreadable(split, embedded.valid)
        if unreadable:
            say(f"{unreadable}; they are not asked for.")
        for number in np.flatnonzero(embedded.valid):
            alone = Path(source).is_file() and len(split) == 1
            names.append(source if alone else str(Path(source, split.names[number])))
            images.append(partial(split.read, number))
        rows.append(embedded.embeddings[embedded.valid])
    return names, images, np.concatenate(rows)


def _embedded(
    trained: "TrainedModel", split: "Split", threads: int | None
) -> "Embedded":
    """Embed a split; a few images are not padded to a full batch."""
    import numpy as np

    from metricjax.data.datasets import UnreadableImage
    from metricjax.inference.embedder import Embedded

    if len(split) >= trained.embedder.batch_size:
        return trained.embed(split, threads=threads)
    images, valid = [], np.zeros(len(split), bool)
    for number in range(len(split)):
        with suppress(UnreadableImage):
            images.append(split.read(number, trained.transform.enough))
            valid[number] = True
    rows = np.zeros((len(split), trained.width), np.float32)
    if images:
        rows[valid] = trained.embed_images(images)
    return Embedded(rows, valid)


def _nearest(
    options: argparse.Namespace,
    gallery: "Index",
    embeddings,
    say: Callable[[str], None],
):
    """(similarities, rows) of the neighbours of each query."""
    if not options.approximate:
        among = gallery.of_category(options.category) if options.category else None
        return gallery.nearest(embeddings, options.top, among=among)
    from metricjax.inference.approximate_index import ApproximateIndex

    with progress_bar("graph") as progress:
        graph = ApproximateIndex.open(
            gallery, threads=options.threads, say=say, progress=progress
        )
    say(
        f"approximate: {graph.recall(options.top):.3f} of the exact {options.top} "
        "nearest are found (recall, of up to 200 images of the gallery as queries)."
    )
    return graph.nearest(embeddings, options.top)


def _neighbours(gallery: "Index", similarities, rows) -> list[dict[str, Any]]:
    split, found = gallery.split, []
    for rank, (similarity, row) in enumerate(zip(similarities, rows, strict=True), 1):
        if row < 0:
            break
        category = None
        if split.categories is not None:
            category = split.category_names[split.categories[row]]
        found.append(
            {
                "rank": rank,
                "similarity": round(float(similarity), 6),
                "path": split.names[row],
                "class": split.class_names[split.labels[row]],
                "category": category,
            }
        )
    return found


def _table(answer: dict[str, Any]) -> str:
    """A query and its neighbours, a line each."""
    neighbours = answer["neighbours"]
    classes = [_shortened(neighbour["class"]) for neighbour in neighbours]
    width = max(map(len, classes), default=0)
    lines = [_plain(answer["query"])]
    for neighbour, name in zip(neighbours, classes, strict=True):
        name = f"{name:{width}}  " if width else ""
        start = f"{neighbour['rank']:4}  {neighbour['similarity']:7.4f}  "
        lines.append(f"{start}{name}{_plain(neighbour['path'])}")
    return "\n".join(lines if neighbours else [*lines, "      none"])


def _shortened(text: str) -> str:
    text = _plain(text)
    return text if len(text) <= _WIDTH else f"{text[: _WIDTH - 1]}…"


def _plain(text: str) -> str:
    """A name on one line of a terminal, whatever a file is called."""
    return "".join(letter if letter.isprintable() else "�" for letter in text)


if __name__ == "__main__":
    sys.exit(main())

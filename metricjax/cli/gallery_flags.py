"""The gallery options of `search` and `serve`, and opening the index they name."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from metricjax.cli.progress_bar import progress_bar
from metricjax.errors import InputError

if TYPE_CHECKING:
    from metricjax.inference.gallery_index import Index
    from metricjax.inference.trained_model import TrainedModel


def add(parser: argparse.ArgumentParser) -> None:
    """Add the options for the gallery: its source, reading and caching."""
    for option in ("gallery", "images", "name", "part", "index"):
        parser.add_argument(f"--{option}")
    parser.add_argument("--cropped", action="store_true")
    parser.add_argument("--threads", type=int)


def check(options: argparse.Namespace) -> None:
    """Raise `InputError` for invalid options; default to the test images."""
    if options.threads is not None and options.threads < 1:
        raise InputError("--threads must be 1 or more.")
    if options.gallery is None and options.name is None and options.part is None:
        options.part = "test"


def open_index(
    options: argparse.Namespace, trained: "TrainedModel", say: Callable[[str], None]
) -> "Index":
    """Open the gallery's index, embedding new images with a progress bar."""
    from metricjax.inference.gallery_index import Index, open_images

    with progress_bar("embedding") as progress:
        index = Index.open(
            trained,
            options.gallery,
            name=options.name,
            part=options.part,
            cropped=options.cropped,
            directory=options.index and Path(options.index).expanduser(),
            threads=options.threads,
            say=say,
            progress=progress,
        )
    if options.images:
        index = index.with_images(open_images(trained, options.images, say=say))
    return index

"""`python -m metricjax.explore`: a page to walk through images, by a trained network."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from metricjax import exploration
from metricjax.data import decoding
from metricjax.data.datasets import Split, UnreadableImage
from metricjax.embedding import Embedded
from metricjax.reports import explorer, sprites
from metricjax.workdir import write_atomically


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
    tsne: int = 0,
) -> None:
    """Write the explorer's page, whole or not at all.

    Args:
      page: the HTML file; one that exists is replaced.
      embedded: the images' embeddings.
      split: the images; they are read once more, for their thumbnails.
      per_query: what `judging.judge` found of each query.
      title: what the images are.
      seed, tsne: as of `exploration.explore`.
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
    text = explorer.render(
        explored,
        sprites.sheets(count, _reader(split, explored.numbers, side), side, threads),
        title=title,
        side=side,
        report=report,
        notes=notes,
    )
    write_atomically(page, text)


def _reader(split: Split, numbers: np.ndarray, side: int):
    """A function from the place on the page to the image, None if it is unreadable."""

    def read(place: int) -> np.ndarray | None:
        number = int(numbers[place])
        try:
            content = split.encoded(number)
            if content is None:
                return split.read(number)
            return decoding.decode(content, 3, least=2 * side)
        except (UnreadableImage, ValueError):
            return None

    return read

"""The explorer page of a split, put together and written."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from metricjax.config.schema import EvaluationConfig
from metricjax.data.datasets import Split, UnreadableImage
from metricjax.explorer import build
from metricjax.inference import evaluate_split
from metricjax.inference.embedder import Embedded
from metricjax.reports import explorer, sprites
from metricjax.storage.atomic import write_atomically


def title_of(root: str | None, name: str) -> str:
    """What to call images: by the place they are in, or by their data set."""
    return Path(root).stem if name in ("folder", "packed") and root else name


def per_query_metrics(embedded: Embedded, split: Split) -> tuple[dict, list[str]]:
    """What is known of each query, and a sentence where that is nothing."""
    own = split.is_query & split.is_gallery & embedded.valid
    found = np.bincount(
        split.labels[split.is_gallery & embedded.valid], minlength=split.num_classes
    )
    right = found[split.labels] - own
    if split.num_classes > 1 and (right > 0)[split.is_query & embedded.valid].any():
        config = EvaluationConfig(recall_at=(1,))
        evaluated = evaluate_split.evaluate(
            embedded, split, config, bootstrap=0, per_query=True
        )
        return evaluated["per_query"], []
    nothing = {name: np.zeros(0) for name in build.METRICS}
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
    path: Path,
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
      path: the HTML file; one that exists is replaced.
      embedded: the images' embeddings.
      split: the images; they are read once more, for their thumbnails.
      per_query: what `evaluate_split.evaluate` found of each query.
      title: what the images are.
      seed, tsne: as of `build.explore`.
      progress: called with how many sheets of pictures are drawn, and of how many.
      report: address of the run's report, relative to the page.
      notes: sentences that the page begins with.
      threads: that read images; None: one per processor, at most 16.

    Raises:
      InputError: the disk is full.
    """
    explored = build.explore(embedded, split, per_query, seed=seed, tsne=tsne)
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
    write_atomically(path, text)


def _reader(split: Split, numbers: np.ndarray, side: int):
    """A function from the place on the page to the image, None if it is unreadable."""

    def read(place: int) -> np.ndarray | None:
        try:
            return split.read(int(numbers[place]), least=2 * side)
        except UnreadableImage:
            return None

    return read

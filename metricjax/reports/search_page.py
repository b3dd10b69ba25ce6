"""The page of a search: one HTML file that needs no network and runs no script."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from metricjax.data.datasets import UnreadableImage
from metricjax.reports import page, thumbnails

MAX_QUERIES = 200


def render(
    answers: Sequence[Mapping[str, Any]],
    queries: Sequence[Callable[[], np.ndarray]],
    neighbours: Sequence[Sequence[Callable[[], np.ndarray]]],
    *,
    title: str,
) -> str:
    """The page as a string, of the first `MAX_QUERIES` queries.

    Args:
      answers: of each query its name as `query` and its `neighbours`, each with
        `similarity`, `path` and `class`.
      queries: reads the picture of a query, uint8 [h, w, c].
      neighbours: reads the picture of each neighbour; what raises `UnreadableImage` is
        shown without.
      title: what was searched.
    """
    shown = zip(answers[:MAX_QUERIES], queries, neighbours, strict=False)
    rows = [
        {
            "name": answer["query"],
            "image": _picture(query),
            "neighbours": [
                {**neighbour, "image": _picture(read)}
                for neighbour, read in zip(answer["neighbours"], near, strict=True)
            ],
        }
        for answer, query, near in shown
    ]
    text = page.template("search_page.html").render(
        title=title, rows=rows, left_out=len(answers) - len(rows)
    )
    # Without what a file name may hold that is not Unicode.
    return text.encode("utf-8", "replace").decode("utf-8")


def _picture(read: Callable[[], np.ndarray]) -> thumbnails.Thumbnail | None:
    try:
        return thumbnails.thumbnail(read())
    except UnreadableImage:
        return None

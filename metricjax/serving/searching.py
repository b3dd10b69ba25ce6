"""Questions and answers of the search server, and how a batch is answered."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, UInt8

from metricjax.serving.catalog import Catalog, Filter
from metricjax.serving.refusals import Refused


@dataclasses.dataclass(frozen=True, eq=False)
class Question:
    """A search for the neighbours of a picture, or of an image of the gallery.

    Attributes:
      top: number of neighbours, at least 1.
      among: which images may be returned.
      picture: preprocessed, uint8 [s, s, c].
      image: its index in the gallery; excluded from its own neighbours.
    """

    top: int
    among: Filter
    picture: UInt8[np.ndarray, "s s c"] | None = None
    image: int | None = None


@dataclasses.dataclass(frozen=True)
class Answer:
    """Neighbours, most similar first.

    Attributes:
      images: indices in the gallery.
      similarities: their cosine similarities.
    """

    images: tuple[int, ...]
    similarities: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Searcher:
    """Answers questions. Not thread-safe.

    Attributes:
      catalog: the gallery to search.
      embed: maps preprocessed pictures, one batch, to float32 [n, d].
    """

    catalog: Catalog
    embed: Callable[[Sequence[np.ndarray]], Float[np.ndarray, "n d"]]

    def __call__(self, questions: Sequence[Question]) -> list[Answer | Refused]:
        """An answer to each; a refusal if the embedding is not a unit vector."""
        queries = self._embeddings(questions)
        sound = np.abs(np.linalg.norm(queries, axis=1) - 1.0) < 1e-3  # False of NaN
        answers: list[Answer | Refused] = [_unsound() for _ in questions]
        for among in dict.fromkeys(question.among for question in questions):
            rows = [
                row
                for row, question in enumerate(questions)
                if question.among == among and sound[row]
            ]
            self._answer(answers, questions, queries, rows, among)
        return answers

    def _embeddings(self, questions: Sequence[Question]) -> np.ndarray:
        stored = self.catalog.index.embeddings
        embeddings = np.empty((len(questions), stored.shape[1]), np.float32)
        pictures = []
        for row, question in enumerate(questions):
            if question.picture is None:
                embeddings[row] = stored[question.image]
            else:
                pictures.append(row)
        if pictures:
            embeddings[pictures] = self.embed(
                [questions[row].picture for row in pictures]
            )
        return embeddings

    def _answer(self, answers, questions, queries, rows, among) -> None:
        """Answer the questions `rows`, which share one filter, by one search."""
        mask = self.catalog.mask(among)
        # One more, for gallery images, which find themselves first.
        deepest = max((questions[row].top for row in rows), default=0) + 1
        deepest = min(deepest, int(mask.sum()))
        if not rows or not deepest:
            for row in rows:
                answers[row] = Answer((), ())
            return
        similarities, images = self.catalog.index.nearest(
            queries[rows], deepest, among=mask
        )
        for place, row in enumerate(rows):
            others = images[place] != questions[row].image
            chosen = np.flatnonzero(others)[: questions[row].top]
            answers[row] = Answer(
                tuple(images[place][chosen].tolist()),
                tuple(similarities[place][chosen].tolist()),
            )


def _unsound() -> Refused:
    return Refused(
        422,
        "The network gives this picture no direction (its embedding is not one): "
        "send another one.",
    )


def warm(searcher: Searcher, shape: tuple[int, int, int], size: int) -> None:
    """Compile every program that batches of up to `size` questions run."""
    picture = np.zeros(shape, np.uint8)
    count = 1
    while True:
        count = min(count, size)
        searcher([Question(1, Filter(), picture=picture)] * count)
        if count == size:
            return
        count *= 2

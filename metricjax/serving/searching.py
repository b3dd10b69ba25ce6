"""Questions as they wait for the device, and how some are answered together."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, UInt8

from metricjax.serving.catalog import Catalog, Filter
from metricjax.serving.refusals import Refused


@dataclasses.dataclass(frozen=True, eq=False)
class Question:
    """What to find the neighbours of: a picture, or an image of the gallery.

    Attributes:
      top: how many, at least 1.
      among: which may be found.
      picture: prepared, uint8 [s, s, c].
      image: its number; it is not found itself.
    """

    top: int
    among: Filter
    picture: UInt8[np.ndarray, "s s c"] | None = None
    image: int | None = None


@dataclasses.dataclass(frozen=True)
class Answer:
    """Neighbours, most similar first.

    Attributes:
      images: their numbers.
      similarities: cosine, as many.
    """

    images: tuple[int, ...]
    similarities: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Searcher:
    """Answers questions; not to be called from two threads at once.

    Attributes:
      catalog: what is searched.
      embed: prepared pictures, as many as a batch has, to float32 [n, d].
    """

    catalog: Catalog
    embed: Callable[[Sequence[np.ndarray]], Float[np.ndarray, "n d"]]

    def __call__(self, questions: Sequence[Question]) -> list[Answer | Refused]:
        """An answer to each; a refusal where its embedding is no direction."""
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
        found = np.empty((len(questions), stored.shape[1]), np.float32)
        pictures = []
        for row, question in enumerate(questions):
            if question.picture is None:
                found[row] = stored[question.image]
            else:
                pictures.append(row)
        if pictures:
            found[pictures] = self.embed([questions[row].picture for row in pictures])
        return found

    def _answer(self, answers, questions, queries, rows, among) -> None:
        """Fill in the answers of some rows, which may all find the same."""
        mask = self.catalog.mask(among)
        # One more, for those that find themselves.
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
            kept = np.flatnonzero(others)[: questions[row].top]
            answers[row] = Answer(
                tuple(images[place][kept].tolist()),
                tuple(similarities[place][kept].tolist()),
            )


def _unsound() -> Refused:
    return Refused(
        422,
        "The network gives this picture no direction (its embedding is not one): "
        "send another one.",
    )


def warm(searcher: Searcher, shape: tuple[int, int, int], size: int) -> None:
    """Have every program compiled that batches of up to `size` questions run."""
    picture = np.zeros(shape, np.uint8)
    count = 1
    while True:
        count = min(count, size)
        searcher([Question(1, Filter(), picture=picture)] * count)
        if count == size:
            return
        count *= 2

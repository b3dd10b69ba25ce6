"""A request that is not answered, and why."""


class Refused(Exception):
    """What the client is told instead of an answer.

    Attributes:
      status: of HTTP.
      sentence: what was found and what to do.
      headers: to send along.
    """

    def __init__(
        self, status: int, sentence: str, headers: dict[str, str] | None = None
    ):
        super().__init__(sentence)
        self.status = status
        self.sentence = sentence
        self.headers = headers or {}


def busy(sentence: str) -> Refused:
    """More than can be taken in now; the client may come again in a second."""
    return Refused(503, f"{sentence}; try again in a second.", {"Retry-After": "1"})

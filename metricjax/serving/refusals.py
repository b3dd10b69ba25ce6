"""The exception for requests that are refused, and its common case."""


class Refused(Exception):
    """The error response to a request.

    Attributes:
      status: HTTP status.
      sentence: what is wrong and what to do.
      headers: extra response headers.
    """

    def __init__(
        self, status: int, sentence: str, headers: dict[str, str] | None = None
    ):
        super().__init__(sentence)
        self.status = status
        self.sentence = sentence
        self.headers = headers or {}


def busy(sentence: str) -> Refused:
    """503, overloaded: the client may retry in a second."""
    return Refused(503, f"{sentence}; try again in a second.", {"Retry-After": "1"})

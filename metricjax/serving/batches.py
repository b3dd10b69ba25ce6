"""Requests that wait for the device are answered together, by one thread."""

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

from metricjax.serving.refusals import busy


class RequestBatcher:
    """A queue before one thread that answers as many questions at a time as it can.

    While the thread answers, what comes in waits, and is answered together next. A
    question that finds the thread idle is answered at once, unless others are known to
    be on their way (`coming`): then it waits for them, a few milliseconds at most. So
    nobody who is alone waits for company.

    Args:
      answer: takes 1 to `size` questions and returns an answer to each; called by one
        thread only. What it raises, each of the questions gets.
      size: questions at a time, at most.
      room: questions that wait or come at once, at most.
      patience: seconds to wait for those that come.
    """

    def __init__(
        self,
        answer: Callable[[Sequence[Any]], Sequence[Any]],
        *,
        size: int = 32,
        room: int = 64,
        patience: float = 0.005,
    ):
        self.size = size
        self.room = room
        self.sizes: Counter[int] = Counter()  # Batches answered, by size.
        self._answer = answer
        self._patience = patience
        self._waiting: deque[tuple[Any, Future]] = deque()
        self._coming = 0
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="device", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Questions that wait or come."""
        return len(self._waiting) + self._coming

    @contextmanager
    def coming(self) -> Iterator[None]:
        """Around what is done before a question can be asked, such as decoding it.

        Raises:
          Refused: too many wait already.
        """
        with self._changed:
            if self.waiting >= self.room:
                raise busy(f"{self.room} pictures are waiting already")
            self._coming += 1
        try:
            yield
        finally:
            with self._changed:
                self._coming -= 1
                self._changed.notify_all()

    def ask(self, question: Any) -> Future:
        """The answer, when it is there; a cancelled one is not worked out."""
        future: Future = Future()
        with self._changed:
            if self._closed:
                raise busy("The server is ending")
            self._waiting.append((question, future))
            self._changed.notify_all()
        return future

    def close(self) -> None:
        """Answer what waits, then end."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def _run(self) -> None:
        while batch := self._next():
            wanted = [one for one in batch if one[1].set_running_or_notify_cancel()]
            if not wanted:
                continue
            self.sizes[len(wanted)] += 1
            try:
                answers = self._answer([question for question, _ in wanted])
                for (_, future), answer in zip(wanted, answers, strict=True):
                    future.set_result(answer)
            except Exception as error:  # To whom it concerns: all who asked.
                for _, future in wanted:
                    if not future.done():
                        future.set_exception(error)

    def _next(self) -> list[tuple[Any, Future]]:
        """The next questions; none when all are answered and no more may come."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            until = time.monotonic() + self._patience
            while self._coming and len(self._waiting) < self.size and not self._closed:
                left = until - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(left)
            count = min(self.size, len(self._waiting))
            return [self._waiting.popleft() for _ in range(count)]

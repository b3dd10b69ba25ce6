"""Dynamic batching: requests that wait for the device are answered together."""

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

from metricjax.serving.refusals import busy


class RequestBatcher:
    """A queue in front of one thread that answers questions in batches.

    Questions that arrive while the thread is busy form the next batch. A question that
    finds the thread idle is answered at once, unless others are announced (`coming`):
    then it waits for them, a few milliseconds at most. So a single client never waits.

    Args:
      answer: takes 1 to `size` questions and returns an answer to each; called by one
        thread only. An exception goes to every question of the batch.
      size: maximum batch size.
      room: maximum number of waiting and announced questions.
      patience: seconds to wait for announced questions.
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
        """The number of waiting and announced questions."""
        return len(self._waiting) + self._coming

    @contextmanager
    def coming(self) -> Iterator[None]:
        """Announce a question while it is prepared, such as decoded.

        Raises:
          Refused: the queue is full.
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
        """A future of the answer; a question cancelled in time is not computed."""
        future: Future = Future()
        with self._changed:
            if self._closed:
                raise busy("The server is ending")
            self._waiting.append((question, future))
            self._changed.notify_all()
        return future

    def close(self) -> None:
        """Answer the waiting questions, then stop the thread."""
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
            except Exception as error:  # Every client of the batch gets it.
                for _, future in wanted:
                    if not future.done():
                        future.set_exception(error)

    def _next(self) -> list[tuple[Any, Future]]:
        """The next batch; empty once the queue is closed and drained."""
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

"""Questions are answered together where they wait, and never held up alone."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from metricjax.serving.batches import RequestBatcher
from metricjax.serving.refusals import Refused


class Slow:
    """Doubles numbers, as soon as it may; keeps what it was asked."""

    def __init__(self):
        self.may = threading.Event()
        self.began = threading.Event()
        self.asked = []

    def __call__(self, questions):
        self.asked.append(list(questions))
        self.began.set()
        assert self.may.wait(20)
        return [2 * question for question in questions]


@pytest.fixture
def slow():
    return Slow()


def make(answer, **options):
    return RequestBatcher(answer, **options)


def test_what_waits_is_answered_together(slow):
    batches = make(slow, size=4)
    first = batches.ask(0)
    assert slow.began.wait(20)
    rest = [batches.ask(number) for number in range(1, 8)]
    slow.may.set()
    assert [future.result(20) for future in (first, *rest)] == list(range(0, 16, 2))
    assert slow.asked == [[0], [1, 2, 3, 4], [5, 6, 7]]
    assert dict(batches.sizes) == {1: 1, 4: 1, 3: 1}
    batches.close()


def test_it_waits_for_those_that_come(slow):
    slow.may.set()
    batches = make(slow, patience=20.0)
    with batches.coming():
        first = batches.ask(1)
        second = batches.ask(2)
    assert (first.result(20), second.result(20)) == (2, 4)
    assert slow.asked == [[1, 2]]
    batches.close()


def test_it_waits_for_them_no_longer_than_it_is_told(slow):
    slow.may.set()
    batches = make(slow, patience=0.001)
    with batches.coming():
        assert batches.ask(1).result(20) == 2
    batches.close()


def test_nobody_waits_alone(slow):
    slow.may.set()
    batches = make(slow, patience=1000.0)
    assert batches.ask(1).result(20) == 2
    batches.close()


def test_too_many_are_refused(slow):
    batches = make(slow, room=3)
    batches.ask(0)
    assert slow.began.wait(20)
    waiting = [batches.ask(1), batches.ask(2)]
    with batches.coming():
        assert batches.waiting == 3
        with pytest.raises(Refused, match="3 pictures are waiting") as refused:
            with batches.coming():
                pytest.fail("one too many came in")
    assert refused.value.status == 503 and refused.value.headers["Retry-After"] == "1"
    with batches.coming():
        pass
    slow.may.set()
    assert [future.result(20) for future in waiting] == [2, 4]
    batches.close()


def test_who_has_gone_is_not_answered(slow):
    batches = make(slow)
    batches.ask(0)
    assert slow.began.wait(20)
    gone, here = batches.ask(1), batches.ask(2)
    assert gone.cancel()
    slow.may.set()
    assert here.result(20) == 4
    assert slow.asked == [[0], [2]]
    batches.close()


def test_a_failure_is_told_to_all_who_asked_and_to_nobody_else():
    def answer(questions):
        if 1 in questions:
            raise RuntimeError("the device is gone")
        return questions

    batches = make(answer)
    with batches.coming():
        both = [batches.ask(1), batches.ask(2)]
    for future in both:
        with pytest.raises(RuntimeError, match="the device is gone"):
            future.result(20)
    assert batches.ask(3).result(20) == 3
    batches.close()


def test_what_waits_at_the_end_is_still_answered(slow):
    batches = make(slow, size=1)
    asked = [batches.ask(number) for number in range(3)]
    slow.may.set()
    batches.close()
    assert [future.result(0) for future in asked] == [0, 2, 4]
    with pytest.raises(Refused, match="ending"):
        batches.ask(3)


def test_from_many_threads():
    batches = make(lambda numbers: [number * number for number in numbers], size=5)

    def ask(number):
        with batches.coming():
            time.sleep(0.0005)
            return batches.ask(number).result(20)

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(ask, range(200))) == [n * n for n in range(200)]
    assert sum(size * count for size, count in batches.sizes.items()) == 200
    assert batches.waiting == 0 and max(batches.sizes) <= 5
    batches.close()

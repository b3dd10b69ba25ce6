"""Watch the hosts of a run and end them all together, with one sentence.

What a host must tell the others goes through the key-value store of `jax.distributed`,
which lives on host 0. No device has a part in it, so that it gets through where a
collective hangs because a host is gone.
"""

import json
import math
import socket
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import jax

from metricjax.errors import InputError
from metricjax.runtime import _jax_internals
from metricjax.runtime.connection import end_process

_SIGNS, _LEFT, _FINISHED = "metricjax/signs/", "metricjax/left/", "metricjax/finished/"
_RULING = "metricjax/ruling/"
_GO_ON = "run the same command again to go on from the last checkpoint."
_state = _jax_internals.state


@contextmanager
def watched(limit: float) -> Iterator[None]:
    """Run what is inside on every host to its end, or end every host with a sentence.

    Where there is one host, nothing is added. Where there are several, no error leaves
    this: the process ends, with the code that `python -m metricjax.main` gives it.

    Args:
      limit: for how long a host may give no sign of life, in seconds.
    """
    if _state.client is None or _state.num_processes == 1:
        yield
        return
    watch = Watch(_state.client, _state.process_id, _state.num_processes, limit)
    watch.start()
    try:
        yield
    except InputError as error:
        watch.stop(f"metricjax: {error}", str(error), 2)
    except BaseException as error:
        if _of_the_connection(error):
            watch.wait_for_ruling()
        last = traceback.format_exception_only(error)[-1].strip().splitlines()[0]
        watch.stop(traceback.format_exc().rstrip(), f"{last} (see what it printed)", 1)
    watch.finish()


def _of_the_connection(error: BaseException | None) -> bool:
    """Whether an error may come of what another host did."""
    while error is not None:
        if isinstance(error, jax.errors.JaxRuntimeError):
            return True
        error = error.__cause__ or error.__context__
    return False


class Watch:
    """Signs of life of all hosts, and the ruling that ends them all.

    Two threads on every host: one says "alive" in the store and reads what is there,
    and may hang with it; the other judges. The first ruling in the store is that of
    all.

    Args:
      client: the store.
      index, count: which host this is, of how many.
      limit: for how long a host may give no sign of life, in seconds.
      end: `end(text, code)` ends the process.
    """

    def __init__(self, client, index: int, count: int, limit: float, end=end_process):
        self._client, self._index, self._count = client, index, count
        self._limit, self._end_process = limit, end
        self._interval = min(5.0, limit / 10)
        self._names = {index: socket.gethostname()}
        self._signs: dict[int, str] = {}
        # Since each host's last sign, and since the store last answered: in seconds
        # during which this process ran; one that was halted itself blames nobody.
        self._quiet = dict.fromkeys(range(count), 0.0)
        self._unheard = 0.0
        self._ruling: dict[str, Any] | None = None
        self._ending, self._closed = threading.Lock(), threading.Event()

    def start(self) -> None:
        """Give signs of life from now on, and expect them."""
        _jax_internals.on_broken_connection.append(self._broken)
        for work in (self._talk, self._watch):
            threading.Thread(target=work, daemon=True).start()

    def stop(self, text: str, reason: str, code: int) -> None:
        """End this host for a reason of its own, and the others with it.

        Args:
          text: what to print here.
          reason: what the others print of it, a sentence.
          code: of the exit, here and there.
        """
        self._decide(f"{self._host(self._index)} stopped: {reason}", code)
        self._leave(text, code)

    def wait_for_ruling(self) -> None:
        """Let the watch find out who made a collective fail.

        Nothing can be saved any more; a quarter of the time is enough to know whom to
        name. Returns if all hosts are alive.
        """
        self._limit = max(self._limit / 4, 3 * self._interval)
        time.sleep(self._limit + 3 * self._interval)

    def finish(self) -> None:
        """Wait for all others to be done, however long it takes them."""
        self._client.key_value_set(f"{_FINISHED}{self._index}", "", True)
        while len(self._client.key_value_dir_get(_FINISHED)) < self._count:
            time.sleep(min(0.2, self._interval))
        self._closed.set()
        # What is left is to hang up; if a host is faster, it is no matter.
        _jax_internals.on_broken_connection.append(lambda: self._end_process("", 0))

    def _talk(self) -> None:
        beat = 0
        while not self._closed.is_set():
            beat += 1
            sign = json.dumps([beat, self._names[self._index]])
            with suppress(jax.errors.JaxRuntimeError):
                self._client.key_value_set(f"{_SIGNS}{self._index}", sign, True)
                signs = self._client.key_value_dir_get(_SIGNS)
                ruling = self._client.key_value_dir_get(_RULING)
                self._hear(signs, ruling)
            self._closed.wait(self._interval)

    def _hear(self, signs, ruling) -> None:
        """Take in what the store has."""
        self._unheard = 0.0
        for key, sign in signs:
            host = int(key.rpartition("/")[2])
            if self._signs.get(host) != sign:
                self._signs[host], self._quiet[host] = sign, 0.0
                self._names[host] = json.loads(sign)[1]
        for _, text in ruling:
            self._ruling = json.loads(text)

    def _watch(self) -> None:
        before = time.monotonic()
        while not self._closed.wait(self._interval / 4):
            now = time.monotonic()
            self._pass(min(now - before, self._interval))
            before = now

    def _pass(self, seconds: float) -> None:
        """So much time has gone by: is there a ruling, or reason for one?"""
        self._unheard += seconds
        for host in self._quiet:
            self._quiet[host] += seconds
        silent = [h for h, quiet in self._quiet.items() if quiet >= self._limit]
        if self._ruling:
            self._leave(f"metricjax: {self._ruling['text']}", self._ruling["code"])
        elif self._unheard >= self._limit:
            self._leave(f"metricjax: {self._lost(0)}", 1)
        elif silent and self._unheard < 2 * self._interval:
            self._decide(self._lost(silent[0]), 1)
            self._leave(f"metricjax: {self._ruling['text']}", self._ruling["code"])

    def _lost(self, host: int) -> str:
        return (
            f"{self._host(host)} has given no sign of life for {self._limit:.0f} s; "
            f"{_GO_ON}"
        )

    def _host(self, host: int) -> str:
        return f"host {host} ({self._names.get(host, 'never heard of')})"

    def _broken(self) -> None:
        """Host 0 has hung up: its process is gone, and the store with it."""
        self._unheard = math.inf
        self._leave(
            f"metricjax: {self._host(0)} can no longer be reached: it has ended or has "
            f"lost its connection; {_GO_ON}",
            1,
        )

    def _decide(self, text: str, code: int) -> None:
        """Put a ruling into the store, unless there is one; then that one holds."""
        self._ruling = {"text": text, "code": code}
        with suppress(jax.errors.JaxRuntimeError):
            self._client.key_value_set(f"{_RULING}first", json.dumps(self._ruling))
            return
        with suppress(jax.errors.JaxRuntimeError):
            for _, first in self._client.key_value_dir_get(_RULING):
                self._ruling = json.loads(first)

    def _leave(self, text: str, code: int) -> None:
        """End this process; host 0, which holds the store, after all others."""
        if not self._ending.acquire(blocking=False):
            threading.Event().wait()  # another thread is at it
        if self._unheard < 2 * self._interval:
            self._wait_for_the_others()
        self._end_process(text, code)

    def _wait_for_the_others(self) -> None:
        until = time.monotonic() + self._limit
        with suppress(jax.errors.JaxRuntimeError):
            self._client.key_value_set(f"{_LEFT}{self._index}", "", True)
            while self._index == 0 and time.monotonic() < until:
                left = {key for key, _ in self._client.key_value_dir_get(_LEFT)}
                for host, quiet in self._quiet.items():
                    if quiet >= self._limit:
                        left.add(f"{_LEFT}{host}")
                if len(left) == self._count:
                    return
                time.sleep(self._interval / 4)

"""Detect lost hosts and end all hosts of a run together, with a one-line message.

When a host dies, the collectives of the others hang or fail without saying why. Each
host therefore sends heartbeats to the key-value store of `jax.distributed`, which lives
on host 0. Devices take no part in it, so messages get through while a collective hangs.

Come here for what happens to the other hosts when one fails, stops or finishes.
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

# Directories of the store, with one key a host below each, except for the shutdown.
_HEARTBEATS = "metricjax/heartbeats/"
_LEAVING = "metricjax/leaving/"
_FINISHED = "metricjax/finished/"
_SHUTDOWN = "metricjax/shutdown/"
_RESUME = "run the same command again to resume from the last checkpoint."
_state = _jax_internals.state


@contextmanager
def watched(limit: float) -> Iterator[None]:
    """Run the block on every host to its end, or end every host with a message.

    Does nothing in a single-host run. In a run of several hosts no exception leaves
    the block: the process ends, with the exit code that `python -m metricjax.main`
    gives to the exception.

    Args:
      limit: how long a host may send no heartbeat before it counts as lost, in seconds.
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
        if _may_come_from_another_host(error):
            watch.wait_for_shutdown()
        last = traceback.format_exception_only(error)[-1].strip().splitlines()[0]
        watch.stop(traceback.format_exc().rstrip(), f"{last} (see what it printed)", 1)
    watch.finish()


def _may_come_from_another_host(error: BaseException | None) -> bool:
    """Whether an error has a failed computation, such as a collective, as a cause."""
    while error is not None:
        if isinstance(error, jax.errors.JaxRuntimeError):
            return True
        error = error.__cause__ or error.__context__
    return False


class Watch:
    """Heartbeats of all hosts, and the shutdown that ends them together.

    Every host runs two threads. One exchanges heartbeats with the store and blocks
    whenever the store does. The other checks how long ago each host was heard of and
    ends the process if need be; it calls the store only if that has just answered.

    The first shutdown written to the store is the only one, so all hosts print the same
    reason even if several fail at a time.

    The threads share attributes without a lock. At worst the reset of one silence is
    lost, and the next heartbeat resets it again.

    Args:
      client: the key-value store.
      index: the number of this host.
      count: the number of hosts.
      limit: how long a host may send no heartbeat before it counts as lost, in seconds.
      end: `end(text, code)` ends the process.
    """

    def __init__(self, client, index: int, count: int, limit: float, end=end_process):
        self._client, self._index, self._count = client, index, count
        self._limit, self._end_process = limit, end
        self._interval = min(5.0, limit / 10)
        self._names = {index: socket.gethostname()}
        self._heartbeats: dict[int, str] = {}
        # Seconds since each host's last heartbeat, and since the store last answered.
        # They count time in which this process ran: after SIGSTOP and SIGCONT, or a
        # suspended VM, the clock has jumped, and the other hosts are not to blame.
        self._silence = dict.fromkeys(range(count), 0.0)
        self._store_silence = 0.0
        self._shutdown: dict[str, Any] | None = None
        self._exiting, self._closed = threading.Lock(), threading.Event()

    def start(self) -> None:
        """Start sending heartbeats and expecting them of the other hosts."""
        _jax_internals.on_broken_connection.append(self._on_broken_connection)
        for loop in (self._exchange_heartbeats, self._watch):
            # Daemons: a thread that blocks in the store must not keep the process.
            threading.Thread(target=loop, daemon=True).start()

    def stop(self, text: str, reason: str, code: int) -> None:
        """End this host because of an error of its own, and the others with it.

        Args:
          text: what this host prints.
          reason: the sentence that the other hosts print after the name of this one.
          code: exit code of all hosts.
        """
        self._request_shutdown(f"{self._host(self._index)} stopped: {reason}", code)
        self._exit(text, code)

    def wait_for_shutdown(self) -> None:
        """Wait until the watch has found which host made a collective fail.

        That host is what the user has to know, not the error of the collective. A
        quarter of the usual limit will do: the run is over in any case, and only a name
        is missing. Returns if all hosts are alive; then the error is this host's own.
        """
        self._limit = max(self._limit / 4, 3 * self._interval)
        time.sleep(self._limit + 3 * self._interval)

    def finish(self) -> None:
        """Wait without a limit until all hosts have finished."""
        self._client.key_value_set(f"{_FINISHED}{self._index}", "", True)
        while len(self._client.key_value_dir_get(_FINISHED)) < self._count:
            time.sleep(min(0.2, self._interval))
        self._closed.set()
        # From here on host 0 may disconnect first, which is no failure.
        _jax_internals.on_broken_connection.append(lambda: self._end_process("", 0))

    def _exchange_heartbeats(self) -> None:
        """First thread: send a heartbeat and read those of all hosts, in turn."""
        beat = 0
        while not self._closed.is_set():
            # Any change counts as a sign of life, so that no clocks are compared.
            beat += 1
            heartbeat = json.dumps([beat, self._names[self._index]])
            # An error means no answer, which the other thread counts.
            with suppress(jax.errors.JaxRuntimeError):
                self._client.key_value_set(
                    f"{_HEARTBEATS}{self._index}", heartbeat, True
                )
                heartbeats = self._client.key_value_dir_get(_HEARTBEATS)
                shutdowns = self._client.key_value_dir_get(_SHUTDOWN)
                self._update(heartbeats, shutdowns)
            self._closed.wait(self._interval)

    def _update(self, heartbeats, shutdowns) -> None:
        """Record what the store holds."""
        self._store_silence = 0.0
        for key, heartbeat in heartbeats:
            host = int(key.rpartition("/")[2])
            if self._heartbeats.get(host) != heartbeat:
                self._heartbeats[host], self._silence[host] = heartbeat, 0.0
                self._names[host] = json.loads(heartbeat)[1]
        for _, text in shutdowns:
            self._shutdown = json.loads(text)

    def _watch(self) -> None:
        """Second thread: check the hosts, four times an interval."""
        before = time.monotonic()
        while not self._closed.wait(self._interval / 4):
            now = time.monotonic()
            # At most one interval a turn, however long this process was suspended.
            self._check_hosts(min(now - before, self._interval))
            before = now

    def _check_hosts(self, seconds: float) -> None:
        """End the process if there is a shutdown or a host is lost.

        Args:
          seconds: time since the last check.
        """
        self._store_silence += seconds
        for host in self._silence:
            self._silence[host] += seconds
        lost = [h for h, silence in self._silence.items() if silence >= self._limit]
        if self._shutdown:
            self._exit_for_shutdown()
        elif self._store_silence >= self._limit:
            # The store is part of host 0, so host 0 is lost.
            self._exit(f"metricjax: {self._no_heartbeat(0)}", 1)
        elif lost and self._store_silence < 2 * self._interval:
            # Believe in a lost host only while the store answers: otherwise no
            # heartbeat gets through, and it would be the wrong host that is named.
            self._request_shutdown(self._no_heartbeat(lost[0]), 1)
            self._exit_for_shutdown()

    def _exit_for_shutdown(self) -> None:
        self._exit(f"metricjax: {self._shutdown['text']}", self._shutdown["code"])

    def _no_heartbeat(self, host: int) -> str:
        return (
            f"{self._host(host)} has given no sign of life for {self._limit:.0f} s; "
            f"{_RESUME}"
        )

    def _host(self, host: int) -> str:
        return f"host {host} ({self._names.get(host, 'never heard of')})"

    def _on_broken_connection(self) -> None:
        """Host 0 closed the connection: its process has ended, and with it the store.

        Called by jaxlib, from a thread of its own.
        """
        self._store_silence = math.inf  # do not wait for answers of the store
        self._exit(
            f"metricjax: {self._host(0)} can no longer be reached: it has ended or has "
            f"lost its connection; {_RESUME}",
            1,
        )

    def _request_shutdown(self, text: str, code: int) -> None:
        """Write a shutdown to the store; if there is one already, adopt that one."""
        self._shutdown = {"text": text, "code": code}
        # The store refuses to overwrite a key, which makes this an atomic first-wins.
        with suppress(jax.errors.JaxRuntimeError):
            self._client.key_value_set(f"{_SHUTDOWN}first", json.dumps(self._shutdown))
            return
        with suppress(jax.errors.JaxRuntimeError):
            for _, first in self._client.key_value_dir_get(_SHUTDOWN):
                self._shutdown = json.loads(first)

    def _exit(self, text: str, code: int) -> None:
        """End this process; host 0, which holds the store, after all others."""
        # Never released: the first caller decides what is printed, and any other
        # thread must neither print a second message nor go on with the run.
        if not self._exiting.acquire(blocking=False):
            threading.Event().wait()  # another thread is already exiting
        if self._store_silence < 2 * self._interval:
            self._leave_in_order()
        self._end_process(text, code)

    def _leave_in_order(self) -> None:
        """Announce the exit; on host 0 wait until the other hosts have done so.

        They read the shutdown from host 0's store. If it ended first, they would
        report a lost connection instead of the reason.
        """
        deadline = time.monotonic() + self._limit
        with suppress(jax.errors.JaxRuntimeError):
            self._client.key_value_set(f"{_LEAVING}{self._index}", "", True)
            while self._index == 0 and time.monotonic() < deadline:
                gone = {key for key, _ in self._client.key_value_dir_get(_LEAVING)}
                for host, silence in self._silence.items():
                    if silence >= self._limit:  # a lost host announces nothing
                        gone.add(f"{_LEAVING}{host}")
                if len(gone) == self._count:
                    return
                time.sleep(self._interval / 4)

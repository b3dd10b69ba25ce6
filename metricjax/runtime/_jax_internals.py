"""The private parts of JAX that a run of several hosts needs, all in this file.

JAX has no public way to (1) reach the key-value store of `jax.distributed` and (2) be
told, instead of killed, when the connection to host 0 breaks. Both are taken from
`jax._src` here and nowhere else. A test checks them against the installed jax; where a
new version changes them, this file is all that must be mended.
"""

import ctypes
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from jax._src import distributed

# Process number, number of processes, and the client of the key-value store, which is
# None before `jax.distributed.initialize` and where there is one host.
state = distributed.global_state

# Called when the connection to host 0 breaks; the last one counts.
on_broken_connection: list[Callable[[], None]] = []


@contextmanager
def report_broken_connections(end: Callable[[], None]) -> Iterator[None]:
    """Connect inside; `end` is called, here and later, if the connection breaks.

    By itself jaxlib prints pages and aborts. It offers a callback instead, but jaxlib
    0.10 and 0.11 fail to call one written in Python, and C++ terminates the process; so
    the same function is also installed as C++'s terminate handler. Append to
    `on_broken_connection` to replace `end`.
    """
    on_broken_connection[:] = [end]

    def broken(*_) -> None:
        on_broken_connection[-1]()

    call_on_cpp_terminate(broken)
    client = distributed._jax.get_distributed_runtime_client
    with_callback = functools.partial(client, missed_heartbeat_callback=broken)
    distributed._jax.get_distributed_runtime_client = with_callback
    try:
        yield
    finally:
        distributed._jax.get_distributed_runtime_client = client


@functools.cache
def call_on_cpp_terminate(function: Callable[[], None]) -> Any:
    """Call a function where C++ would terminate the process for an uncaught error.

    Does nothing where the C++ library is not libstdc++. The result must be kept: it is
    the C function, which Python would free.
    """
    try:
        set_terminate = ctypes.CDLL("libstdc++.so.6")._ZSt13set_terminatePFvvE
    except (AttributeError, OSError):
        return None
    handler = ctypes.CFUNCTYPE(None)(function)
    set_terminate.restype = ctypes.c_void_p
    set_terminate(handler)
    return handler

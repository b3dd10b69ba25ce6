"""The private parts of JAX that multi-host runs need; nowhere else uses `jax._src`.

JAX has no public way to (1) access the key-value store of `jax.distributed` and (2)
handle a lost connection to host 0 instead of being aborted by it.
`tests/runtime/test_jax_internals.py` checks both against the installed jax. If a new
version changes them, this is the only file to fix.
"""

import ctypes
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from jax._src import distributed

# Process index, number of processes and the client of the key-value store. The client
# is None before `jax.distributed.initialize` and in single-host runs.
state = distributed.global_state

# Handlers for a lost connection to host 0; only the last one is called.
on_broken_connection: list[Callable[[], None]] = []


@contextmanager
def report_broken_connections(handler: Callable[[], None]) -> Iterator[None]:
    """Call `handler` if a connection made inside breaks, now or at any later time.

    Append to `on_broken_connection` to replace the handler later.
    """
    on_broken_connection[:] = [handler]

    def broken(*_) -> None:
        # Looked up when called: the watchdog replaces the handler after connecting.
        on_broken_connection[-1]()

    # Without a callback, jaxlib logs pages of C++ and aborts the process. jaxlib 0.10
    # and 0.11 accept a Python callback but fail when they call it, and the C++
    # exception then terminates the process. So `broken` is installed a second time, as
    # the terminate handler of C++.
    call_on_cpp_terminate(broken)
    client = distributed._jax.get_distributed_runtime_client
    with_callback = functools.partial(client, missed_heartbeat_callback=broken)
    distributed._jax.get_distributed_runtime_client = with_callback
    try:
        yield
    finally:
        distributed._jax.get_distributed_runtime_client = client


# Cached to keep the C function alive: C++ points to it for as long as the process runs.
@functools.cache
def call_on_cpp_terminate(function: Callable[[], None]) -> Any:
    """Call `function` when an uncaught C++ exception would terminate the process.

    Does nothing if the C++ standard library is not libstdc++.
    """
    try:
        set_terminate = ctypes.CDLL("libstdc++.so.6")._ZSt13set_terminatePFvvE
    except (AttributeError, OSError):
        return None
    handler = ctypes.CFUNCTYPE(None)(function)
    set_terminate.restype = ctypes.c_void_p
    set_terminate(handler)
    return handler

"""What is used of JAX's private modules is there in the installed version."""

import inspect

import jax
import jaxlib
from jax._src import distributed

from metricjax.runtime import _jax_internals


def test_the_state_of_the_hosts_has_what_is_used():
    """A jax that renames one of these must fail here, not on a pod."""
    for name in ("client", "num_processes", "process_id"):
        assert hasattr(_jax_internals.state, name), (jax.__version__, name)


def test_the_client_takes_a_callback_for_broken_connections():
    make = distributed._jax.get_distributed_runtime_client
    told = f"{make.__doc__} {getattr(make, '__nb_signature__', '')}"
    assert "missed_heartbeat_callback" in told, jaxlib.__version__
    source = inspect.getsource(distributed.State.initialize)
    assert "_jax.get_distributed_runtime_client(" in source, jax.__version__


def test_the_patch_is_undone():
    before = distributed._jax.get_distributed_runtime_client
    callbacks = list(_jax_internals.on_broken_connection)
    original = _jax_internals.call_on_cpp_terminate
    try:
        _jax_internals.call_on_cpp_terminate = lambda function: None
        with _jax_internals.report_broken_connections(lambda: None):
            assert distributed._jax.get_distributed_runtime_client is not before
    finally:
        _jax_internals.call_on_cpp_terminate = original
        _jax_internals.on_broken_connection[:] = callbacks
    assert distributed._jax.get_distributed_runtime_client is before

"""Exchange small JSON values between hosts, without using their devices.

Come here for anything that all hosts must know before or beside a collective. The
values go through the key-value store of `jax.distributed`, which works even if devices
are busy, broken or missing.
"""

import json
import platform
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

from metricjax.runtime import _jax_internals

_DAY = 24 * 3600 * 1000  # milliseconds
# Calls of `gather` so far, by topic.
_calls: Counter[str] = Counter()


def gather(topic: str, value: Any) -> list[tuple[str, Any]]:
    """All-gather of a JSON value over the hosts; also serves as a barrier.

    Every host must call it, with the same topics in the same order. Blocks until all
    hosts have called; `watchdog.watched` ends the wait if one of them is lost.

    Args:
      topic: a name for the exchange, part of its key in the store.
      value: this host's value, anything that JSON can represent.

    Returns:
      (`host i (name)`, value) of each host, in host order.
    """
    state = _jax_internals.state
    if state.client is None or state.num_processes == 1:
        return [("host 0", value)]
    # Keys in the store cannot be reused: the number of the call makes each one unique,
    # and is the same on all hosts because they call in the same order.
    _calls[topic] += 1
    prefix = f"metricjax/{topic}/{_calls[topic]}"
    message = json.dumps([platform.node(), value])
    state.client.key_value_set(f"{prefix}/{state.process_id}", message)
    values = []
    for host in range(state.num_processes):
        # A slow host is no error. The timeout only has to outlast the watchdog's.
        message = state.client.blocking_key_value_get(f"{prefix}/{host}", _DAY)
        name, host_value = json.loads(message)
        values.append((f"host {host} ({name})", host_value))
    return values


def is_first() -> bool:
    """Whether this is host 0, which writes files on behalf of all."""
    return _jax_internals.state.process_id == 0


def printer() -> Callable[[str], None]:
    """`print` on host 0; on the others a function that prints nothing."""
    return partial(print, flush=True) if is_first() else _ignore


def _ignore(sentence: str) -> None:
    """Print nothing."""

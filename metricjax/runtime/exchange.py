"""Small facts exchanged between the hosts of a run, without their devices."""

import json
import platform
from collections import Counter
from typing import Any

from metricjax.runtime import _jax_internals

_DAY = 24 * 3600 * 1000  # milliseconds
_times_asked: Counter[str] = Counter()


def gather(topic: str, value: Any) -> list[tuple[str, Any]]:
    """What each host has to say on a topic, in the order of the hosts.

    To be called on all hosts, for the same topics in the same order. It waits for as
    long as the others are alive, see `watchdog.watched`.

    Args:
      topic: what it is about.
      value: what this host says; anything that JSON can hold.

    Returns:
      (`host i (name)`, value) of each.
    """
    state = _jax_internals.state
    if state.client is None or state.num_processes == 1:
        return [("host 0", value)]
    _times_asked[topic] += 1
    place = f"metricjax/{topic}/{_times_asked[topic]}"
    said = json.dumps([platform.node(), value])
    state.client.key_value_set(f"{place}/{state.process_id}", said)
    found = []
    for host in range(state.num_processes):
        said = state.client.blocking_key_value_get(f"{place}/{host}", _DAY)
        name, theirs = json.loads(said)
        found.append((f"host {host} ({name})", theirs))
    return found


def is_first() -> bool:
    """Whether this is host 0, which writes for all."""
    return _jax_internals.state.process_id == 0

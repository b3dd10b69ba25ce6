"""Join several hosts into one run, as Cloud TPU or the environment names them."""

import os
import signal
import sys
import threading
from contextlib import suppress
from typing import Any, NoReturn

import jax

from metricjax.errors import InputError
from metricjax.runtime import _jax_internals


def connect(patience: float = 300.0) -> None:
    """Join the other hosts, where the environment says that there are some.

    Cloud TPU pods announce themselves to `jax.distributed`; elsewhere
    `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID` name the hosts.
    Must run before the first use of a device.

    Args:
      patience: how long to wait for the others, in seconds. If they do not come, the
        process ends with a sentence and exit code 2.
    """
    announced = _announced()
    if announced is None:
        return
    sentence = (
        f"metricjax: not all hosts came together within {patience:.0f} s: start the "
        "same command on each of them, and see that they reach the first."
    )
    # Its heartbeats are for a watch that is slower than ours; see `watchdog.Watch`.
    patiently = {"initialization_timeout": round(patience)}
    patiently["heartbeat_timeout_seconds"] = 7 * 24 * 3600
    try:
        with _jax_internals.report_broken_connections(lambda: end_process(sentence, 2)):
            jax.distributed.initialize(**announced, **patiently)
    except (RuntimeError, TypeError):
        end_process(sentence, 2)
    if threading.current_thread() is threading.main_thread():
        # jax.distributed takes SIGTERM for its own notice of preemption.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _announced() -> dict[str, Any] | None:
    """What `jax.distributed.initialize` is told; None where there is one host."""
    if "JAX_COORDINATOR_ADDRESS" in os.environ:
        return {
            "coordinator_address": os.environ["JAX_COORDINATOR_ADDRESS"],
            "num_processes": _number("JAX_NUM_PROCESSES"),
            "process_id": _number("JAX_PROCESS_ID"),
        }
    return {} if os.environ.get("TPU_WORKER_HOSTNAMES", "").count(",") else None


def _number(variable: str) -> int:
    text = os.environ.get(variable, "")
    if not text.isdecimal():
        raise InputError(
            f"JAX_COORDINATOR_ADDRESS is set, but {variable} is {text!r}: set it to a "
            "number, or unset the address to run on one host."
        )
    return int(text)


def end_process(text: str, code: int) -> NoReturn:
    """Say it and be gone: what else the process does may hang without the others."""
    with suppress(OSError, ValueError):
        sys.stdout.flush()
        if sys.stdout.isatty():
            sys.stdout.write("\x1b[?25h\n")  # the progress line hides the cursor
            sys.stdout.flush()
    with suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)
    os._exit(code)

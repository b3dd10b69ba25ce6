"""Join several hosts into one run, from Cloud TPU metadata or environment variables."""

import os
import signal
import sys
import threading
from contextlib import suppress
from typing import Any, NoReturn

import jax

from metricjax.errors import InputError
from metricjax.runtime import _jax_internals

_WEEK = 7 * 24 * 3600  # seconds


def connect(patience: float = 300.0) -> None:
    """Join the other hosts, if the environment names any.

    `jax.distributed` detects Cloud TPU pods by itself; elsewhere set
    `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID`. Must be called
    before the first use of a device.

    Args:
      patience: timeout in seconds. If a host is still missing then, the process ends
        with a one-line message and exit code 2.
    """
    settings = _distributed_settings()
    if settings is None:
        return
    sentence = (
        f"metricjax: not all hosts came together within {patience:.0f} s: start the "
        "same command on each of them, and check that they can reach host 0."
    )
    settings["initialization_timeout"] = round(patience)
    # Turns JAX's own failure detection off: `watchdog.Watch` detects a lost host
    # earlier and names it, while JAX would abort the process without a message.
    settings["heartbeat_timeout_seconds"] = _WEEK
    try:
        with _jax_internals.report_broken_connections(lambda: end_process(sentence, 2)):
            jax.distributed.initialize(**settings)
    except (RuntimeError, TypeError):
        end_process(sentence, 2)
    if threading.current_thread() is threading.main_thread():
        # jax.distributed installs its own SIGTERM handler, for preemption notices. The
        # training loop handles the signal itself.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _distributed_settings() -> dict[str, Any] | None:
    """Arguments of `jax.distributed.initialize`; None in a single-host run."""
    if "JAX_COORDINATOR_ADDRESS" in os.environ:
        return {
            "coordinator_address": os.environ["JAX_COORDINATOR_ADDRESS"],
            "num_processes": _integer("JAX_NUM_PROCESSES"),
            "process_id": _integer("JAX_PROCESS_ID"),
        }
    return {} if os.environ.get("TPU_WORKER_HOSTNAMES", "").count(",") else None


def _integer(variable: str) -> int:
    text = os.environ.get(variable, "")
    if not text.isdecimal():
        raise InputError(
            f"JAX_COORDINATOR_ADDRESS is set, but {variable} is {text!r}: set it to a "
            "number, or unset the address to run on one host."
        )
    return int(text)


def end_process(text: str, code: int) -> NoReturn:
    """Print a message and exit immediately, without any cleanup.

    Ordinary exit runs handlers of JAX that wait for the other hosts, and those may be
    gone. Safe to call from any thread.
    """
    with suppress(OSError, ValueError):
        sys.stdout.flush()
        if sys.stdout.isatty():
            sys.stdout.write("\x1b[?25h\n")  # the progress line hides the cursor
            sys.stdout.flush()
    with suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)
    os._exit(code)

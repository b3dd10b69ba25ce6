"""What all commands share: one sentence for a mistake, and the exit codes."""

import argparse
import os
import sys
from collections.abc import Callable
from typing import NoReturn

import metricjax
from metricjax.errors import InputError

_HELP = {"--help", "-h", "-help"}
# Set where a run has several hosts.
_HOSTS = {"JAX_COORDINATOR_ADDRESS", "TPU_WORKER_HOSTNAMES"}


class Parser(argparse.ArgumentParser):
    """A parser that reports a mistake in one sentence."""

    def __init__(self):
        super().__init__(prog="metricjax", add_help=False, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see --help.")


def answer(
    arguments: list[str] | None,
    usage: str,
    run: Callable[[list[str]], int],
    *,
    stopped: str | None = "stopped.",
    without_arguments: bool = False,
) -> int:
    """Run a command line; returns the exit code.

    Args:
      arguments: None: those of this process.
      usage: what --help prints; also printed, with exit code 2, where there are no
        arguments.
      run: called with the arguments, returns the exit code.
      stopped: printed after Ctrl-C; None: KeyboardInterrupt is raised instead.
      without_arguments: whether the command also runs without any.

    Returns:
      What `run` returns; 0 after --help or --version; 2 after an `InputError`; 130
      after Ctrl-C. Other errors are bugs in metricjax: they are raised.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if "--version" in arguments:
        print(f"metricjax {metricjax.__version__}")
        return 0
    if _HELP & set(arguments) or not (arguments or without_arguments):
        print(usage, end="")
        return 0 if arguments else 2
    if _HOSTS & set(os.environ):
        # Silence C++ logs; lost hosts are reported by the watchdog in one sentence.
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        return run(arguments)
    except InputError as error:
        print(f"metricjax: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if stopped is None:
            raise
        print(f"metricjax: {stopped}", file=sys.stderr)
        return 130

"""What all commands do alike: one sentence for a mistake, and the exit codes."""

import argparse
import sys
from collections.abc import Callable
from typing import NoReturn

from metricjax.errors import InputError


class Parser(argparse.ArgumentParser):
    """Arguments of which a mistake is told in one sentence."""

    def __init__(self):
        super().__init__(prog="metricjax", add_help=False, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see --help.")


def answer(
    arguments: list[str] | None,
    usage: str,
    run: Callable[[list[str]], int],
    *,
    stopped: str = "stopped.",
) -> int:
    """Run a command line; returns the exit code.

    Args:
      arguments: None: those of this process.
      usage: what --help prints, and who gives no arguments.
      run: given the arguments, returns the exit code.
      stopped: what to say after Ctrl-C.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or {"--help", "-h", "-help"} & set(arguments):
        print(usage, end="")
        return 0 if arguments else 2
    try:
        return run(arguments)
    except InputError as error:
        print(f"metricjax: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"metricjax: {stopped}", file=sys.stderr)
        return 130

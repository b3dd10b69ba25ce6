"""The `metricjax` console script; `python -m metricjax` is the same.

Each command is a module with a `main(arguments)`, imported only when that command runs.
To add a command, add a line to `COMMANDS`.
"""

import importlib
import sys
from typing import NamedTuple

from metricjax.cli.parser import answer
from metricjax.errors import InputError, suggestion


class Command(NamedTuple):
    """One command.

    Attributes:
      module: of `metricjax`, with the command's `main`.
      summary: one line for the overview.
      shared: the module has several commands; its `main` takes the command's name.
    """

    module: str
    summary: str
    shared: bool = False


COMMANDS = {
    "train": Command(
        "main", "train, evaluate and write a report; resumable", shared=True
    ),
    "plan": Command(
        "main", "estimate memory, time and the largest batch of a run", shared=True
    ),
    "folds": Command("main", "cross-validation over the training classes", shared=True),
    "compare": Command(
        "main", "compare finished runs in a table with intervals", shared=True
    ),
    "embed": Command("embed", "embed images into a .npz or .parquet file"),
    "search": Command("search", "find the gallery images nearest to a query image"),
    "serve": Command("serve", "serve a web page and an API for image search"),
    "explore": Command("explore", "write an HTML page to browse images by neighbours"),
    "calibrate": Command(
        "calibrate", "find similarity thresholds for given false match rates"
    ),
    "export": Command("export", "export a trained network as ONNX or StableHLO"),
    "prepare": Command("prepare", "pack images into shards for fast reading"),
    "check": Command(
        "prepare", "check a data set for problems before training", shared=True
    ),
    "doctor": Command("doctor", "check whether this machine is ready for a run"),
}
# Given without a command, these mean `metricjax train`.
_TRAIN_FLAGS = ("--config", "--mode", "--print_config")
_HEAD = """\
metricjax: deep metric learning for image retrieval in JAX/Flax.

  metricjax COMMAND [...]

"""
_TAIL = """
  metricjax COMMAND --help   options and examples of a command
  metricjax --version        print the version

Examples:

  metricjax train --config configs/quickstart.py
  metricjax check photos.zip
  metricjax train --config configs/cgd_resnet50.py:folder --config.data.root=photos.zip
  metricjax search runs/quickstart --gallery photos.zip new.jpg

`python -m metricjax.NAME` works too, with train, plan, folds and compare as
`python -m metricjax.main [--mode NAME]`.
"""
USAGE = (
    _HEAD
    + "".join(f"  {name:<11}{one.summary}\n" for name, one in COMMANDS.items())
    + _TAIL
)


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if arguments and arguments[0] in COMMANDS:
        return _run(arguments[0], arguments[1:])
    return answer(arguments, USAGE, _refuse)


def _run(name: str, arguments: list[str]) -> int:
    command = COMMANDS[name]
    run = importlib.import_module(f"metricjax.{command.module}").main
    return run(arguments, command=name) if command.shared else run(arguments)


def _refuse(arguments: list[str]) -> int:
    """Raise an `InputError` for a command line that does not begin with a command."""
    first = arguments[0]
    if first.startswith("-"):
        flag = first.split("=")[0]
        command = "train" if flag.startswith(_TRAIN_FLAGS) else "COMMAND"
        raise InputError(
            f"{flag} needs a command before it: write metricjax {command} {flag} ...; "
            "see metricjax --help."
        )
    raise InputError(
        f"there is no command {first!r}{suggestion(first, list(COMMANDS))}: choose one "
        f"of {', '.join(COMMANDS)}."
    )


if __name__ == "__main__":
    sys.exit(main())

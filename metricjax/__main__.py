"""`metricjax NAME ...`: one door to every command; `python -m metricjax` is the same.

Each command is a module with a `main(arguments)` of its own, which is imported when the
command is used. Add a command here: a line in `COMMANDS`.
"""

import importlib
import sys
from typing import NamedTuple

from metricjax.cli.parser import answer
from metricjax.errors import InputError, suggestion


class Command(NamedTuple):
    """A command: its module, what it does, and whether the module has several."""

    module: str
    summary: str
    shared: bool = False


COMMANDS = {
    "train": Command(
        "main", "train, evaluate and write a report; resumes", shared=True
    ),
    "plan": Command(
        "main", "what a run will need: memory, time, batch size", shared=True
    ),
    "folds": Command("main", "cross-validation over the training classes", shared=True),
    "compare": Command(
        "main", "finished runs side by side, with intervals", shared=True
    ),
    "embed": Command("embed", "embeddings of images, as .npz or .parquet"),
    "search": Command("search", "the images of a gallery nearest to a query"),
    "serve": Command("serve", "a web page and API that search by picture"),
    "explore": Command("explore", "an HTML page to browse a set by neighbours"),
    "calibrate": Command(
        "calibrate", "thresholds for same or different at false match rates"
    ),
    "export": Command("export", "a trained network as ONNX or StableHLO"),
    "prepare": Command("prepare", "pack images into shards for fast reading"),
    "check": Command("prepare", "is a data set fit for training?", shared=True),
    "doctor": Command("doctor", "is this machine fit for a run?"),
}
_HEAD = """\
metricjax: deep metric learning for image retrieval in JAX/Flax.

  metricjax COMMAND [...]

"""
_TAIL = """
  metricjax COMMAND --help   what a command takes, with examples
  metricjax --version        the version

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
    """Raise the `InputError` of a command line that begins with no command."""
    first = arguments[0]
    if first.startswith("-"):
        command = "train" if first.startswith("--config") else "COMMAND"
        raise InputError(
            f"{first.split('=')[0]} stands before any command: write metricjax "
            f"{command} {first.split('=')[0]} ...; see metricjax --help."
        )
    raise InputError(
        f"{first!r} is no command{suggestion(first, list(COMMANDS))}: choose one of "
        f"{', '.join(COMMANDS)}."
    )


if __name__ == "__main__":
    sys.exit(main())

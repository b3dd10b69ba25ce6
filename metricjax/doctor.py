"""`metricjax doctor`: is this machine, are these hosts fit for a run?"""

import argparse
import sys
import uuid
from collections.abc import Iterator
from dataclasses import asdict, replace

from metricjax.cli.parser import Parser, answer
from metricjax.cli.progress_bar import progress_bar
from metricjax.diagnostics import host_checks
from metricjax.diagnostics.host_checks import FAILED, OK, WARNING, Check

USAGE = """\
metricjax doctor: is this machine fit for a run?

  metricjax doctor [--workdir DIR] [--data ROOT]

Prints one line a check, with the remedy where something is wrong: versions that belong
together, hosts, devices, a two-second all-reduce over them, compilation, writing to the
workdir, the rate at which images are decoded, memory and disk. Takes about ten seconds
and leaves nothing behind. For a run of several hosts start it on all of them, as the
run would be.

  --workdir DIR  where runs are to be kept (default: runs); also gs://bucket/dir
  --data ROOT    what data.root is to be: is it there and readable?
  --help, --version
                 this text; the version

Examples:

  metricjax doctor
  metricjax doctor --workdir gs://bucket/runs --data photos.zip

Exit code: 0 nothing failed; 2 something failed, or the command line is wrong; 1 a fault
of metricjax, with a traceback.
"""
_COLOURS = {OK: "green", WARNING: "yellow", FAILED: "bold red"}
# The checks that come out the same on all hosts.
_OF_ALL = ("hosts", "sharing")
# About as many lines there are.
_LINES = 9
# How long the hosts wait for each other, in seconds.
_PATIENCE = 60.0


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return answer(
        arguments, USAGE, lambda given: _run(_parse(given)), without_arguments=True
    )


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser()
    parser.add_argument("--workdir", default="runs")
    parser.add_argument("--data")
    return parser.parse_args(arguments)


def _run(options: argparse.Namespace) -> int:
    first = host_checks.versions()
    try:
        from metricjax.diagnostics import device_checks
        from metricjax.runtime import connection, exchange, watchdog
    except Exception as error:  # Versions that do not fit raise nearly anything.
        return _tell([first, host_checks.not_importable(error)])
    connection.connect(_PATIENCE)
    with watchdog.watched(_PATIENCE):
        checks = [first]
        with progress_bar("looking") as progress:
            for check in _examine(options, device_checks, exchange.gather):
                checks.append(check)
                progress(len(checks), _LINES)
        token = uuid.uuid4().hex
        own = [token, [asdict(check) for check in checks]]
        said = exchange.gather("checks", own)
        for host, (_, theirs) in said[1:]:
            checks += _of_another(host, [Check(**one) for one in theirs])
        is_first = said[0][1][0] == token
        return _tell(checks, is_first)


def _examine(options: argparse.Namespace, of_devices, gather) -> Iterator[Check]:
    """The checks that need jax, in the same order on every host."""
    from metricjax.diagnostics import decoding_rate
    from metricjax.planning import hardware

    yield of_devices.hosts()
    devices = of_devices.devices()
    yield devices
    # Together or not at all: a host without its devices would be waited for.
    verdicts = [status for _, status in gather("devices", devices.status)]
    if FAILED not in verdicts:
        with of_devices.cache_set_aside() as directory:
            yield of_devices.all_reduce()
            yield of_devices.compilation(directory)
    workdir = host_checks.workdir(options.workdir)
    yield workdir
    writable = [status for _, status in gather("writable", workdir.status)]
    sharing = FAILED not in writable and of_devices.sharing(options.workdir)
    if sharing:
        yield sharing
    if options.data is not None:
        yield host_checks.data(options.data)
    yield decoding_rate.examine()
    yield host_checks.memory(hardware.free_memory())


def _of_another(host: str, checks: list[Check]) -> list[Check]:
    """What is wrong on another host, under its name; not what all say of each other."""
    return [
        replace(check, sentence=f"on {host}: {check.sentence}")
        for check in checks
        if check.status != OK and check.name not in _OF_ALL
    ]


def _tell(checks: list[Check], aloud: bool = True) -> int:
    """Print the table; returns the exit code."""
    if aloud:
        _print(checks)
    return 2 if any(check.status == FAILED for check in checks) else 0


def _print(checks: list[Check]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if not console.is_terminal:
        console = Console(width=1000)  # A line a check, for who searches in it.
    table = Table.grid(padding=(0, 2))
    for check in checks:
        status = Text(check.status, _COLOURS[check.status])
        table.add_row(status, check.name, Text(check.sentence))
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())

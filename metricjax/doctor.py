"""`metricjax doctor`: checks whether these hosts are ready for a run.

The checks themselves are in `metricjax.diagnostics`.
"""

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
metricjax doctor: check whether this machine is ready for a run.

  metricjax doctor [--workdir DIR] [--data ROOT]

Prints one line per check, and how to fix what is wrong: compatible package versions,
hosts, devices, a two-second all-reduce over them, compilation, writing to the
workdir, image decoding rate, memory and disk. Takes about ten seconds and leaves no
files behind. For a multi-host run, start it on every host, just as you start the run.

  --workdir DIR  where runs will be saved (default: runs); also gs://bucket/dir
  --data ROOT    the future data.root: does it exist, is it readable?
  --help, --version
                 this text; the version

Examples:

  metricjax doctor
  metricjax doctor --workdir gs://bucket/runs --data photos.zip

Exit code: 0 nothing failed; 2 something failed, or the command line is wrong; 1 a bug
in metricjax, with a traceback.
"""
_COLOURS = {OK: "green", WARNING: "yellow", FAILED: "bold red"}
# Checks with the same result on every host; printed once.
_SHARED_CHECKS = ("hosts", "sharing")
# For the progress bar; the number varies by one or two.
_EXPECTED_CHECKS = 9
# Seconds that hosts wait for each other.
_HOST_TIMEOUT = 60.0


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return answer(
        arguments,
        USAGE,
        lambda given: _run(_parse(given)),
        stopped=None,
        without_arguments=True,
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
    except Exception as error:  # Incompatible versions raise nearly anything.
        return _report([first, host_checks.not_importable(error)])
    connection.connect(_HOST_TIMEOUT)
    with watchdog.watched(_HOST_TIMEOUT):
        checks = [first]
        with progress_bar("checking") as progress:
            for check in _device_checks(options, device_checks, exchange.gather):
                checks.append(check)
                progress(len(checks), _EXPECTED_CHECKS)
        token = uuid.uuid4().hex
        own = [token, [asdict(check) for check in checks]]
        gathered = exchange.gather("checks", own)
        for host, (_, theirs) in gathered[1:]:
            checks += _problems_on(host, [Check(**one) for one in theirs])
        is_first = gathered[0][1][0] == token
        return _report(checks, is_first)


def _device_checks(
    options: argparse.Namespace, device_checks, gather
) -> Iterator[Check]:
    """The checks that need jax, in the same order on every host."""
    from metricjax.diagnostics import decoding_rate
    from metricjax.planning import hardware

    yield device_checks.hosts()
    devices = device_checks.devices()
    yield devices
    # On all hosts or on none: the others would wait for a host without devices.
    statuses = [status for _, status in gather("devices", devices.status)]
    if FAILED not in statuses:
        with device_checks.cache_set_aside() as directory:
            yield device_checks.all_reduce()
            yield device_checks.compilation(directory)
    workdir = host_checks.workdir(options.workdir)
    yield workdir
    writable = [status for _, status in gather("writable", workdir.status)]
    sharing = FAILED not in writable and device_checks.sharing(options.workdir)
    if sharing:
        yield sharing
    if options.data is not None:
        yield host_checks.data(options.data)
    yield decoding_rate.check()
    yield host_checks.memory(hardware.free_memory())


def _problems_on(host: str, checks: list[Check]) -> list[Check]:
    """Warnings and failures of another host, prefixed with its name."""
    return [
        replace(check, sentence=f"on {host}: {check.sentence}")
        for check in checks
        if check.status != OK and check.name not in _SHARED_CHECKS
    ]


def _report(checks: list[Check], print_table: bool = True) -> int:
    """Print the table; returns the exit code."""
    if print_table:
        _print(checks)
    return 2 if any(check.status == FAILED for check in checks) else 0


def _print(checks: list[Check]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if not console.is_terminal:
        console = Console(width=1000)  # One line per check, so that grep works.
    table = Table.grid(padding=(0, 2))
    for check in checks:
        status = Text(check.status, _COLOURS[check.status])
        table.add_row(status, check.name, Text(check.sentence))
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())

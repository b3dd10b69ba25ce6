"""A progress bar on standard error."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal, nothing elsewhere; yields what to call with (done, all)."""
    from rich.console import Console
    from rich.progress import (
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        TimeRemainingColumn,
    )

    class Rate(ProgressColumn):
        """Things a second."""

        def render(self, task) -> str:
            speed = task.finished_speed or task.speed
            return "" if speed is None else f"{speed:,.0f}/s"

    console = Console(stderr=True)
    with Progress(
        *Progress.get_default_columns()[:3],
        MofNCompleteColumn(),
        Rate(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as bar:
        task, began = bar.add_task(title, total=None), []

        def show(done: int, total: int) -> None:
            if began:
                bar.update(task, completed=done, total=total)
            else:  # What an earlier start has done says nothing of the rate.
                began.append(done)
                bar.reset(task, completed=done, total=total)

        yield show

"""Writes metrics during training: metrics.jsonl, TensorBoard and the progress line."""

import json
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from metricjax.errors import disk_errors
from metricjax.storage.atomic import write_atomically

# Format of each metric in the progress line.
_SHOWN = {
    "loss": "loss {:.3f}",
    "images_per_second": "{:,.0f} img/s",
    "data_wait": "data-wait {:.0%}",
    "positive_distance": "pos {:.2f}",
    "negative_distance": "neg {:.2f}",
    "active": "active {:.0%}",
}


class MetricWriter:
    """Writes and prints the metrics of a run; inactive on all hosts but the first.

    `metrics.jsonl` has one object a line: `step`, `kind` ("train", "validation" or
    "compiled") and values by name; or kind "warning" and a `message`. TensorBoard event
    files go to `tensorboard/` if tensorboardX is installed. A terminal shows one
    progress line, redrawn in place; elsewhere every update is printed as a line.

    Args:
      workdir: the run's directory, which exists.
      steps: total number of steps.
      start_step: the step of the checkpoint that the run resumes from. Lines of later
        steps are dropped: the run that wrote them was killed before it saved them.
      active: whether this process writes and prints at all.
    """

    def __init__(self, workdir: Path, steps: int, start_step: int, active: bool = True):
        self._steps, self._active = steps, active
        self._path = Path(workdir) / "metrics.jsonl"
        self._console = Console(highlight=False, soft_wrap=True, quiet=not active)
        self._live = None
        self._validation = ""
        self._files = ExitStack()
        if not active:
            return
        keep_until(self._path, start_step)
        with disk_errors(self._path):
            file = open(self._path, "a", encoding="utf-8")
            self._file = self._files.enter_context(file)
            self._board = _Events.open(Path(workdir) / "tensorboard", start_step)
            if self._board is not None:
                self._files.callback(self._board.close)
        if self._console.is_terminal:
            self._live = Live(console=self._console, auto_refresh=False, transient=True)
            self._live.start()

    def __enter__(self) -> "MetricWriter":
        return self

    def __exit__(self, kind, *_) -> None:
        if self._live is not None:
            self._live.stop()
        # Do not hide the error that stopped the run behind a full disk.
        with suppress(OSError) if kind else disk_errors(self._path):
            self._files.close()

    def say(self, sentence: str) -> None:
        """Print a line; on a terminal it stays above the progress line."""
        self._console.print(sentence, markup=False)

    def record(self, step: int, kind: str, values: Mapping[str, float]) -> None:
        """Write the values of a step. A value that is not finite is written as null.

        Raises:
          InputError: the disk is full.
        """
        if not self._active:
            return
        finite = {k: v if math.isfinite(v) else None for k, v in values.items()}
        self._write({"step": step, "kind": kind, **finite})
        if self._board is not None:
            with disk_errors(self._path):
                self._board.write(step, {f"{kind}/{k}": v for k, v in values.items()})

    def warn(self, step: int, sentence: str) -> None:
        """Print and record a warning about a step.

        Raises:
          InputError: the disk is full.
        """
        if not self._active:
            return
        self.say(f"warning: {sentence}")
        self._write({"step": step, "kind": "warning", "message": sentence})

    def _write(self, line: Mapping[str, Any]) -> None:
        with disk_errors(self._path):
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()

    def compiled(self, step: int, cost: Mapping[str, float]) -> None:
        """Print and record the cost of the program that starts with step `step`."""
        self.record(step, "compiled", cost)
        forms = {
            "compile_seconds": "compiled the training step in {:.1f} s",
            "gflop": "{:.2f} GFLOP",
            "mebibytes": "{:.0f} MiB a device",
        }
        known = [form.format(cost[k]) for k, form in forms.items() if k in cost]
        if cost.get("cached"):
            known.insert(1, "most of it done by an earlier start")
        self.say(", ".join(known))

    def progress(self, step: int, values: Mapping[str, float], seconds: float) -> None:
        """Update the progress line; `seconds` is the estimated time left."""
        shown = [form.format(values[k]) for k, form in _SHOWN.items() if k in values]
        parts = [f"step {step}/{self._steps}", *shown, f"eta {duration(seconds)}"]
        line = "  ".join([*parts, self._validation] if self._validation else parts)
        if self._live is not None:
            self._live.update(Text(line, no_wrap=True, overflow="ellipsis"))
            self._live.refresh()
        else:
            self.say(line)

    def validated(self, step: int, metric: str, value: float) -> None:
        """Show a validation metric in the progress line."""
        self._validation = f"val {metric} {value:.3f}"
        if self._live is None:
            self.say(f"step {step}/{self._steps}  {self._validation}")


class Clock:
    """Measures images per second and the share of time spent waiting for data."""

    def __init__(self):
        self._began, self._waited, self._images = time.perf_counter(), 0.0, 0

    def waited(self, seconds: float, images: int) -> None:
        """Record a batch of `images` and the seconds spent waiting for it."""
        self._waited += seconds
        self._images += images

    def read(self) -> dict[str, float]:
        """Rates since the last call; starts a new measurement."""
        elapsed = max(time.perf_counter() - self._began, 1e-9)
        rates = {
            "images_per_second": self._images / elapsed,
            "data_wait": self._waited / elapsed,
        }
        self.__init__()
        return rates


def duration(seconds: float) -> str:
    """`42s`, `3m10s` or `5h02m`."""
    seconds = round(max(seconds, 0))
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m{seconds % 60:02d}s"
    return f"{seconds // 3600}h{seconds % 3600 // 60:02d}m"


def read_history(path: Path) -> list[dict]:
    """The lines of a metrics.jsonl, without any that a kill has truncated."""
    history = []
    if Path(path).exists():
        for line in Path(path).read_text(encoding="utf-8").splitlines():
            try:
                history.append(json.loads(line))
            except json.JSONDecodeError:
                continue
    return history


def keep_until(path: Path, step: int) -> None:
    """Drop the lines of steps after `step`, atomically."""
    lines = [line for line in read_history(path) if line["step"] <= step]
    write_atomically(path, "".join(json.dumps(line) + "\n" for line in lines))


class _Events:
    """TensorBoard's event file, written directly instead of from a thread.

    tensorboardX's thread dies silently when the disk is full; its queue then fills up
    and blocks the run.
    """

    def __init__(self, writer, messages, start_step: int):
        self._writer, self._messages = writer, messages
        self._flushed = 0.0
        # Makes TensorBoard discard later steps that an earlier process has logged.
        start = messages.SessionLog(status=messages.SessionLog.START)
        self._write(start_step + 1, session_log=start)

    @classmethod
    def open(cls, directory: Path, start_step: int) -> "_Events | None":
        """Create an event file in the directory; None without tensorboardX."""
        try:
            with _without_torch():
                from tensorboardX.event_file_writer import EventsWriter
                from tensorboardX.proto import event_pb2
        except ImportError:
            return None
        directory.mkdir(exist_ok=True)
        writer = EventsWriter(str(directory / "events"), f".{os.getpid()}")
        return cls(writer, event_pb2, start_step)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Write the scalars of a step; flushed at least every 30 seconds."""
        summary = self._messages.Event().summary
        for name, value in values.items():
            summary.value.add(tag=name, simple_value=value)
        self._write(step, summary=summary)
        if time.monotonic() - self._flushed > 30:
            self._writer.flush()
            self._flushed = time.monotonic()

    def _write(self, step: int, **content) -> None:
        now = time.time()
        self._writer.write_event(
            self._messages.Event(wall_time=now, step=step, **content)
        )

    def close(self) -> None:
        self._writer.close()


@contextmanager
def _without_torch() -> Iterator[None]:
    """Hide torch from imports inside, unless it is already imported.

    tensorboardX imports it if it can, which would add seconds to every start.
    """
    if "torch" in sys.modules:
        yield
        return
    sys.modules["torch"] = None
    try:
        yield
    finally:
        del sys.modules["torch"]

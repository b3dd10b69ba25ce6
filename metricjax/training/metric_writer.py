"""What a run writes while it goes: metrics.jsonl, TensorBoard, the progress line."""

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

_SHOWN = {
    "loss": "loss {:.3f}",
    "images_per_second": "{:,.0f} img/s",
    "data_wait": "data-wait {:.0%}",
    "positive_distance": "pos {:.2f}",
    "negative_distance": "neg {:.2f}",
    "active": "active {:.0%}",
}


class MetricWriter:
    """Writes the metrics of a run; only the first host has one that writes.

    `metrics.jsonl` gets one object a line: `step`, `kind` ("train", "validation" or
    "compiled"), names and numbers; or kind "warning" and a `message`. TensorBoard event
    files stand in `tensorboard/` where tensorboardX is installed. On a terminal the
    progress line is redrawn in place, elsewhere every call prints a line.

    Args:
      workdir: the run's directory, which exists.
      steps: how many steps the run has.
      start_step: where it goes on; lines of later steps, written by a run that was
        killed after its last checkpoint, are dropped.
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
        # What stopped the run is worth more than that the last lines had no room.
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
        """Say and write that something seems wrong after a step.

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
        """Say and write what the program costs that step `step` is the first to run."""
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
        """Show where the run is; `seconds` is the estimated time left."""
        shown = [form.format(values[k]) for k, form in _SHOWN.items() if k in values]
        parts = [f"step {step}/{self._steps}", *shown, f"eta {duration(seconds)}"]
        line = "  ".join([*parts, self._validation] if self._validation else parts)
        if self._live is not None:
            self._live.update(Text(line, no_wrap=True, overflow="ellipsis"))
            self._live.refresh()
        else:
            self.say(line)

    def validated(self, step: int, metric: str, value: float) -> None:
        """Say what validation found."""
        self._validation = f"val {metric} {value:.3f}"
        if self._live is None:
            self.say(f"step {step}/{self._steps}  {self._validation}")


class Clock:
    """Where the time between two reports went: images per second, share of waiting."""

    def __init__(self):
        self._began, self._waited, self._images = time.perf_counter(), 0.0, 0

    def waited(self, seconds: float, images: int) -> None:
        """A batch of `images` came after `seconds` of waiting for it."""
        self._waited += seconds
        self._images += images

    def read(self) -> dict[str, float]:
        """The rates since the last call, and start again."""
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
    """The lines of a metrics.jsonl; one that was cut short by a kill is left out."""
    history = []
    if Path(path).exists():
        for line in Path(path).read_text(encoding="utf-8").splitlines():
            try:
                history.append(json.loads(line))
            except json.JSONDecodeError:
                continue
    return history


def keep_until(path: Path, step: int) -> None:
    """Drop the lines of steps after `step`, whole or not at all."""
    kept = [line for line in read_history(path) if line["step"] <= step]
    write_atomically(path, "".join(json.dumps(line) + "\n" for line in kept))


class _Events:
    """TensorBoard's event file, written at once rather than from a thread.

    A thread that the disk has no room for dies unheard, and its queue blocks the run.
    """

    def __init__(self, writer, messages, start_step: int):
        self._writer, self._messages = writer, messages
        self._flushed = 0.0
        # From here on, steps of an earlier process do not count.
        start = messages.SessionLog(status=messages.SessionLog.START)
        self._write(start_step + 1, session_log=start)

    @classmethod
    def open(cls, directory: Path, start_step: int) -> "_Events | None":
        """A new file in the directory, or None where tensorboardX is not installed."""
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
        """Scalars of a step, in the file within half a minute."""
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
    """Let what is imported inside take torch for absent, unless it is imported already.

    tensorboardX imports it where it can, which takes seconds of every start.
    """
    if "torch" in sys.modules:
        yield
        return
    sys.modules["torch"] = None
    try:
        yield
    finally:
        del sys.modules["torch"]

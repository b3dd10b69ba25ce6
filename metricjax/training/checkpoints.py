"""Checkpoints: save asynchronously, keep the latest two and the best, restore checked.

Every checkpoint stores a digest of its arrays. A truncated or damaged one is detected
when it is restored, and the run resumes from the one before.
"""

import hashlib
import logging
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from itertools import zip_longest
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import preservation_policy

from metricjax.errors import InputError, disk_errors
from metricjax.runtime import exchange
from metricjax.runtime.mesh import to_host

# How many of the latest checkpoints are kept. Two, so that a damaged last one costs
# one interval and not the run.
_LATEST = 2


@contextmanager
def _writing(directory: Path) -> Iterator[None]:
    """Turn a full disk into an `InputError`, without warnings after it."""
    try:
        with disk_errors(directory):
            yield
    except InputError:
        # Orbax drops its pending writes; Python would warn about them at exit.
        warnings.filterwarnings(
            "ignore", "coroutine .* was never awaited", RuntimeWarning
        )
        raise


def digest(tree: Any) -> str:
    """SHA-256 over paths, types, shapes and bytes of a tree's arrays."""
    sha = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.ascontiguousarray(leaf)
        name = jax.tree_util.keystr(path)
        sha.update(f"{name} {array.dtype} {array.shape}\n".encode())
        sha.update(array.tobytes())
    return sha.hexdigest()


class Checkpoints:
    """The checkpoints of one run: its two latest and the best so far.

    `save` copies the state from the devices and returns; a background thread writes it.
    Use as a context manager, or call `close`, to wait for the last write.

    Args:
      directory: for the checkpoints; created when needed.
      metric: the validation metric that selects the best; larger is better.
      own: whether each host has a directory of its own; then only host 0 saves. By
        default all hosts share one and write it together.
    """

    def __init__(self, directory: Path, metric: str, own: bool = False):
        self._directory = Path(directory).absolute()
        self._metric, self._own = metric, own
        _quieten_orbax()
        policy = preservation_policy.AnyPreservationPolicy(
            [
                preservation_policy.LatestN(_LATEST),
                preservation_policy.BestN(
                    get_metric_fn=lambda metrics: metrics[metric],
                    reverse=False,
                    n=1,
                    keep_checkpoints_without_metrics=False,
                ),
            ]
        )
        self._manager = ocp.CheckpointManager(
            self._directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policy,
                best_fn=lambda metrics: metrics[metric],
                create=not own,
                cleanup_tmp_directories=True,
                multiprocessing_options=_single_host() if own else _all_hosts(),
            ),
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def save(self, step: int, state: Any, metrics: dict[str, float] | None) -> None:
        """Save the state after `step` steps, with its validation metrics if it has any.

        Raises:
          InputError: the disk is full; earlier checkpoints are untouched.
        """
        with _writing(self._directory):
            host = to_host(state)
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    # With a shared directory, each host writes a part of the arrays.
                    state=ocp.args.StandardSave(host if self._own else state),
                    about=ocp.args.JsonSave({"sha256": digest(host)}),
                ),
                metrics=metrics,
                force=True,
            )

    def restore_latest(
        self, abstract: Any, say: Callable[[str], None]
    ) -> tuple[int, Any] | None:
        """Restore the newest readable checkpoint, as (step, state).

        Args:
          abstract: shapes, types and shardings of the state to restore; the devices may
            differ from those that saved it.
          say: called with a sentence for every checkpoint that cannot be restored. It
            is renamed to STEP.unreadable, so that the run can save that step again.

        Returns:
          None if there is no readable checkpoint.
        """
        steps = self._steps()
        for step, before in zip_longest(steps, steps[1:]):
            state, reason = self._read(step, abstract)
            if not reason:
                return step, state
            back = "the start" if before is None else f"step {before}"
            say(
                f"{self._directory / str(step)} cannot be restored ({reason}): it is "
                f"set aside as {step}.unreadable, going back to {back}."
            )
            self._set_aside(step)
        return None

    def restore_best(
        self, abstract: Any, say: Callable[[str], None]
    ) -> tuple[int, Any] | None:
        """Restore the best readable checkpoint by validation, as (step, state).

        Ties go to the latest. Arguments as for `restore_latest`.
        """
        metrics = {step: self._manager.metrics(step) for step in self._steps()}
        scores = {s: m[self._metric] for s, m in metrics.items() if m is not None}
        for step in sorted(scores, key=lambda s: (scores[s], s), reverse=True):
            state, reason = self._read(step, abstract)
            if not reason:
                return step, state
            say(
                f"{self._directory / str(step)} is the best checkpoint, but cannot be "
                f"restored ({reason}); taking the best of the others."
            )
        return None

    def wait(self) -> None:
        """Wait until all saved checkpoints are written."""
        with _writing(self._directory):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait for the last write and release the directory."""
        with _writing(self._directory):
            self._manager.close()

    def _steps(self) -> list[int]:
        return sorted(self._manager.all_steps(), reverse=True)

    def _set_aside(self, step: int) -> None:
        """Rename a damaged checkpoint, so that it is ignored but not lost."""
        if self._own or jax.process_index() == 0:
            aside = self._directory / f"{step}.unreadable"
            shutil.rmtree(aside, ignore_errors=True)
            (self._directory / str(step)).rename(aside)
        multihost_utils.sync_global_devices(f"set aside checkpoint {step}")
        self._manager.reload()

    def _read(self, step: int, abstract: Any) -> tuple[Any, str]:
        """(state, "") or (None, the reason), the same decision on all hosts.

        A host that read it alone would resume at another step than the rest.
        """
        state, reason = self._read_on_this_host(step, abstract)
        for host, failure in exchange.gather("checkpoint", reason):
            if failure:
                return None, failure if failure == reason else f"on {host}: {failure}"
        return state, ""

    def _read_on_this_host(self, step: int, abstract: Any) -> tuple[Any, str]:
        try:
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(abstract),
                    about=ocp.args.JsonRestore(),
                ),
            )
        # Orbax and tensorstore raise many types for a file that is short or missing.
        except Exception as error:
            return None, _reason(error)
        if digest(to_host(restored["state"])) != restored["about"]["sha256"]:
            return None, "its digest does not fit what it holds"
        return restored["state"], ""


def _single_host() -> ocp.options.MultiprocessingOptions:
    """For a manager that does not synchronize with other hosts."""
    index = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=index,
        active_processes={index},
        barrier_sync_key_prefix=f"host{index}",
    )


def _all_hosts() -> ocp.options.MultiprocessingOptions:
    return ocp.options.MultiprocessingOptions()


def _reason(error: BaseException) -> str:
    """The message of an exception's root cause, in one short line."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = str(error.args[0]) if error.args else str(error)
    lines = text.partition(" [tensorstore_spec")[0].strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


@cache
def _quieten_orbax() -> None:
    """Suppress orbax's logs and stray tracebacks; its exceptions remain.

    Before it raises a failed write, orbax logs pages about it. Other reads and writes
    in progress at that time print tracebacks of their own, at any later time.
    """
    hook = sys.unraisablehook

    def is_wanted(record: logging.LogRecord) -> bool:
        stray = "exception was never retrieved" in str(record.msg)
        return "orbax" not in record.pathname and not stray

    def quieter_hook(unraisable) -> None:
        text = str(unraisable.exc_value)
        strays = ("Event loop is closed", "TensorStore", "OCDBT")
        if not any(stray in text for stray in strays):
            hook(unraisable)

    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(is_wanted)
    sys.unraisablehook = quieter_hook

"""Checkpoints: the latest ones and the best, written beside the run, read back checked.

A checkpoint carries a digest of what it holds. One that was cut short or damaged is
found out when it is read, and the run goes on from the one before.
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

_KEPT = 2


@contextmanager
def _writing(directory: Path) -> Iterator[None]:
    """A full disk as one sentence, and nothing behind it."""
    try:
        with disk_errors(directory):
            yield
    except InputError:
        # What orbax was still to write is dropped, of which Python warns as it ends.
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

    Saving copies the state from the devices and returns; writing goes on behind. Use as
    a context manager, or call `close`, so that the last write is waited for.

    Args:
      directory: created when the first checkpoint is saved.
      metric: the validation metric that `best` goes by, larger is better.
      own: whether each host has such a directory for itself; then the first alone saves
        into its own. By default all share one.
    """

    def __init__(self, directory: Path, metric: str, own: bool = False):
        self._directory = Path(directory).absolute()
        self._metric, self._own = metric, own
        _quieten_orbax()
        policy = preservation_policy.AnyPreservationPolicy(
            [
                preservation_policy.LatestN(_KEPT),
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
                multiprocessing_options=_alone() if own else _together(),
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
                    # Of arrays that other hosts have as well, they write a part.
                    state=ocp.args.StandardSave(host if self._own else state),
                    about=ocp.args.JsonSave({"sha256": digest(host)}),
                ),
                metrics=metrics,
                force=True,
            )

    def restore_latest(
        self, abstract: Any, say: Callable[[str], None]
    ) -> tuple[int, Any] | None:
        """The newest checkpoint that can be read whole, as (step, state).

        Args:
          abstract: shapes, types and shardings of the state to make; the devices may be
            others than those that saved it.
          say: called with a sentence for every checkpoint that had to be passed over;
            it is renamed to STEP.unreadable, so that the run can save that step again.

        Returns:
          None where there is no readable checkpoint.
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
        """The readable checkpoint with the best validation metric, as (step, state).

        Among equals it is the latest. Arguments as for `restore_latest`.
        """
        found = {step: self._manager.metrics(step) for step in self._steps()}
        scores = {s: m[self._metric] for s, m in found.items() if m is not None}
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
        """Wait until what was saved is written."""
        with _writing(self._directory):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait for the last write and let go of the directory."""
        with _writing(self._directory):
            self._manager.close()

    def _steps(self) -> list[int]:
        return sorted(self._manager.all_steps(), reverse=True)

    def _set_aside(self, step: int) -> None:
        """Rename a checkpoint, so that it is one no more but still there."""
        if self._own or jax.process_index() == 0:
            aside = self._directory / f"{step}.unreadable"
            shutil.rmtree(aside, ignore_errors=True)
            (self._directory / str(step)).rename(aside)
        multihost_utils.sync_global_devices(f"set aside checkpoint {step}")
        self._manager.reload()

    def _read(self, step: int, abstract: Any) -> tuple[Any, str]:
        """(state, "") or (None, why not), alike on all hosts."""
        state, reason = self._read_here(step, abstract)
        for host, said in exchange.gather("checkpoint", reason):
            if said:
                return None, said if said == reason else f"on {host}: {said}"
        return state, ""

    def _read_here(self, step: int, abstract: Any) -> tuple[Any, str]:
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


def _alone() -> ocp.options.MultiprocessingOptions:
    """For a manager that knows of no other host."""
    index = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=index,
        active_processes={index},
        barrier_sync_key_prefix=f"host{index}",
    )


def _together() -> ocp.options.MultiprocessingOptions:
    return ocp.options.MultiprocessingOptions()


def _reason(error: BaseException) -> str:
    """What an exception says at its root, in one short line."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = str(error.args[0]) if error.args else str(error)
    lines = text.partition(" [tensorstore_spec")[0].strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


@cache
def _quieten_orbax() -> None:
    """Let orbax raise what it has to say, and no more.

    It logs pages before it raises that a write failed, and the reads and writes that
    were under way beside it print tracebacks of their own at any later time.
    """
    hook = sys.unraisablehook

    def worth_saying(record: logging.LogRecord) -> bool:
        stray = "exception was never retrieved" in str(record.msg)
        return "orbax" not in record.pathname and not stray

    def quieter_hook(unraisable) -> None:
        text = str(unraisable.exc_value)
        strays = ("Event loop is closed", "TensorStore", "OCDBT")
        if not any(stray in text for stray in strays):
            hook(unraisable)

    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(worth_saying)
    sys.unraisablehook = quieter_hook

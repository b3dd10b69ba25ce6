"""Checkpoints: the latest ones and the best, written beside the run, read back checked.

A checkpoint carries a digest of what it holds. One that was cut short or damaged is
found out when it is read, and the run goes on from the one before.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from metricjax.errors import disk_errors
from metricjax.mesh import to_host

_KEPT = 2


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
    """

    def __init__(self, directory: Path, metric: str):
        self._directory = Path(directory).absolute()
        self._metric = metric
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
                create=True,
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
        with disk_errors(self._directory):
            host = to_host(state)
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state),
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
            it is deleted, so that the run can save that step again.

        Returns:
          None where there is no readable checkpoint.
        """
        for step in sorted(self._manager.all_steps(), reverse=True):
            state, reason = self._read(step, abstract)
            if state is not None:
                return step, state
            say(
                f"{self._directory / str(step)} cannot be restored ({reason}); going "
                "back to the checkpoint before it."
            )
            self._manager.delete(step)
        return None

    def restore_best(self, abstract: Any) -> tuple[int, Any] | None:
        """The checkpoint with the best validation metric, as (step, state)."""
        step = self._manager.best_step()
        if step is None:
            return None
        state, _ = self._read(step, abstract)
        return None if state is None else (step, state)

    def wait(self) -> None:
        """Wait until what was saved is written."""
        with disk_errors(self._directory):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait for the last write and let go of the directory."""
        with disk_errors(self._directory):
            self._manager.close()

    def _read(self, step: int, abstract: Any) -> tuple[Any, str]:
        """(state, "") or (None, why not)."""
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
            return None, _first_line(error)
        if digest(to_host(restored["state"])) != restored["about"]["sha256"]:
            return None, "its digest does not fit what it holds"
        return restored["state"], ""


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]

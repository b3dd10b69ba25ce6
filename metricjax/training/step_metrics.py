"""Reads step metrics from the devices; warns or stops when they look wrong."""

import time

import jax

from metricjax import optimizers
from metricjax.data import pipeline
from metricjax.objectives import objective
from metricjax.runtime import mesh
from metricjax.training import monitors, nonfinite
from metricjax.training.metric_writer import Clock, MetricWriter
from metricjax.training.programs import TrainPrograms
from metricjax.training.step import TrainState


class StepMetrics:
    """Passes the metrics of each step from the devices to the metric writer.

    The host runs `mesh.AHEAD` steps ahead of the devices: a step's metrics are read
    when the next steps are already queued, so that reading never leaves a device idle.
    Suspicious metrics become warnings; a non-finite step ends the run. Use as a context
    manager, which observes compilations.
    """

    def __init__(self, programs: TrainPrograms, writer: MetricWriter, start: int):
        self._programs, self._writer = programs, writer
        self._config, self._start, self._saved = programs.config, start, start
        self._rate = optimizers.schedule(
            programs.config.optimizer, programs.config.steps
        )
        self._pending = []
        self._batch = self._state = None
        hierarchy = programs.config.objective.hierarchy
        # The first steps in which all parameters should get a gradient.
        self._first = {start + 1, hierarchy.warmup + 1 if hierarchy else 0}
        rates = programs.config.optimizer.group_rates
        groups = programs.abstract_state.variables["params"]
        self._starvation = monitors.Starvation()
        self._monitors = [
            monitors.Collapse(monitors.resting_values(programs.config)),
            *(monitors.NoGradient(g) for g in groups if rates.get(g, 1.0)),
            self._starvation,
        ]
        self._recompilation = monitors.Recompilation()
        self._began = time.perf_counter()
        self._clock = Clock()

    def __enter__(self) -> "StepMetrics":
        self._recompilation.listen()
        return self

    def __exit__(self, *_) -> None:
        self._recompilation.close()

    def wait_for(self, batches: pipeline.Batches) -> dict:
        """The next batch; measures the time spent waiting for it."""
        asked = time.perf_counter()
        batch = next(batches)
        self._clock.waited(time.perf_counter() - asked, self._config.batch_size)
        self._batch = {name: batch[name] for name in ("images", "labels")}
        return self._batch

    def validated(self, done: int) -> None:
        """Call after validation, whose time must not count as training time."""
        self._warn(done, self._recompilation.sentences())
        self._recompilation.everything_is_compiled()
        self._starvation.pause()
        self._clock = Clock()

    def saved(self, done: int) -> None:
        """Call after a checkpoint of this step was saved."""
        self._saved = done

    def add(self, done: int, metrics: dict, state: TrainState) -> None:
        """Queue the metrics of a step and the state after it, without waiting for them.

        Raises:
          InputError: an earlier step was not finite, or gives parameters of a loss no
            gradient.
        """
        self._pending.append((done, metrics, self._batch))
        self._state = state
        if len(self._pending) > mesh.AHEAD:
            self._read(*self._pending.pop(0))

    def drain(self) -> None:
        """Read all queued metrics, waiting for their steps."""
        while self._pending:
            self._read(*self._pending.pop(0))

    def _read(self, done: int, metrics: dict, batch: dict) -> None:
        jax.block_until_ready(metrics)
        finite, _ = mesh.to_host(metrics.pop("finite"))
        if not finite:
            self._writer.say(f"step {done} is not finite; looking into it")
            raise nonfinite.not_finite(self._programs, self._state, batch, self._saved)
        if done in self._first:
            objective.check_gradients(mesh.to_host(metrics))
        if done % self._config.log_every and done != self._config.steps:
            return
        values = {
            name: float(total) / max(float(count), 1e-12)
            for name, (total, count) in mesh.to_host(metrics).items()
        }
        values |= self._clock.read()
        values["learning_rate"] = float(self._rate(done - 1))
        self._writer.record(done, "train", values)
        self._warn(done, (monitor(done, values) for monitor in self._monitors))
        self._warn(done, self._recompilation.sentences())
        each = (time.perf_counter() - self._began) / (done - self._start)
        self._writer.progress(done, values, each * (self._config.steps - done))

    def _warn(self, done, sentences) -> None:
        for sentence in sentences:
            if sentence:
                self._writer.warn(done, sentence)

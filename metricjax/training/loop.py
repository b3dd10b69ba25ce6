"""The training loop: from a new or interrupted run to results.json and report.html.

Read this file top down to see what a run does, and in which order.
"""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax

from metricjax.config.schema import RunConfig
from metricjax.data import pipeline
from metricjax.inference import evaluate_split
from metricjax.runtime import exchange, mesh
from metricjax.training import host_checks, remote_workdir, step
from metricjax.training.finalize import finish
from metricjax.training.metric_writer import MetricWriter
from metricjax.training.run import Run
from metricjax.training.step_metrics import StepMetrics
from metricjax.training.workdir import claim


def train(config: RunConfig, workdir: Path | str, name: str) -> bool:
    """Train from the start or the latest checkpoint, then write results and report.

    Args:
      config: the settings.
      workdir: the run's directory, or the address of one in a bucket; created if
        absent, resumed if it holds a run of the same settings.
      name: what to call the config in results and report.

    Returns:
      False if the run was asked to stop (SIGTERM, Ctrl-C) and saved a checkpoint.

    Raises:
      InputError: a mistake in settings, data or environment that the user can fix.
    """
    began = time.perf_counter()
    say = exchange.printer()
    with remote_workdir.opened(workdir, config, say) as opened:
        finished = _train(config, opened, name, began, say)
        if finished:
            opened.finish()
    return finished


def _train(config, opened, name, began, say) -> bool:
    run, workdir = Run.open(config, opened.path), opened.path
    host_checks.check_same(config, run.dataset)
    first = jax.process_index() == 0
    run.print_summary(say)
    floor = evaluate_split.pixel_floor(run.dataset.test, run.transform, run.skipped)
    say(f"raw pixels, nearest neighbour by cosine: Recall@1 {floor:.3f}")
    if first:
        claim(workdir, config)
        opened.push()
    host_checks.check_shared(opened.address)
    with opened.checkpoints(config.evaluation.select_by) as checkpoints:
        restored = checkpoints.restore_latest(run.programs.abstract_state, say)
        start, state = restored or (0, run.init_state())
        if start >= config.steps and (workdir / "report.html").exists():
            say(f"this run is complete\nreport: {opened.address}/report.html")
            return True
        if restored:
            say(f"resuming after step {start} of {config.steps}")
        with MetricWriter(workdir, config.steps, start, active=first) as writer:
            state, stopped = _loop(run, state, start, checkpoints, writer)
        if stopped:
            return False
        checkpoints.wait()
        selected = checkpoints.restore_best(run.programs.abstract_state, say)
        finish(run, state, selected, floor, name, began, lambda s: say(opened.shown(s)))
    return True


def _loop(run, state, start, checkpoints, writer) -> tuple[step.TrainState, bool]:
    """Run the steps after `start`; returns (state, whether it was asked to stop)."""
    config = run.config
    if start >= config.steps:
        return state, False
    program, cost = run.compile_train_step()
    writer.compiled(start + 1, cost)
    hierarchy, votes = config.objective.hierarchy, mesh.StopVotes(run.programs.mesh)
    with (
        StepMetrics(run.programs, writer, start) as step_metrics,
        _open_batches(run, start) as batches,
        _stop_requests() as asked_to_stop,
    ):
        for done in range(start + 1, config.steps + 1):
            if hierarchy and hierarchy.due(done - 1):
                step_metrics.drain()
                state = run.regroup(state, done - 1)
            batch = step_metrics.wait_for(batches)
            state, metrics = program(
                state,
                mesh.global_batch(run.programs.mesh, batch),
                run.programs.root_key,
            )
            step_metrics.add(done, metrics, state)
            last, stop = done == config.steps, votes.stop(asked_to_stop.is_set())
            validation = None
            if last or done % config.eval_every == 0:
                step_metrics.drain()
                validation = _validate(run, state, done, writer)
                step_metrics.validated(done)
            if validation or stop or done % config.checkpoint_every == 0:
                # A run resumed from here writes the metrics of later steps only, so
                # those up to this step must be in the file.
                step_metrics.drain()
                checkpoints.save(done, state, validation)
                step_metrics.saved(done)
            if stop and not last:
                checkpoints.wait()
                writer.say(
                    f"stopped after step {done}; run the same command again to resume"
                )
                return state, True
    return state, False


def _open_batches(run, start) -> pipeline.Batches:
    """This host's rows of the batches after step `start`."""
    return pipeline.train_batches(
        run.train,
        run.sampler,
        run.transform,
        seed=run.config.seed,
        start_step=start,
        num_steps=run.config.steps,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        threads=run.config.data.threads,
        cache_bytes=int(run.config.data.cache_gib * 2**30),
        skipped=run.skipped,
    )


def _validate(run, state, done, writer) -> dict[str, float]:
    """Retrieval metrics on the images that select the best checkpoint."""
    metrics = run.evaluate(state.variables, run.validation, bootstrap=0)
    values = {name: v for name, v in metrics.items() if isinstance(v, float)}
    writer.record(done, "validation", values)
    select_by = run.config.evaluation.select_by
    writer.validated(done, select_by, values[select_by])
    return values


@contextmanager
def _stop_requests() -> Iterator[threading.Event]:
    """An event that SIGTERM or Ctrl-C sets; a second Ctrl-C interrupts as usual."""
    asked = threading.Event()
    # Python allows signal handlers in the main thread only.
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def ask(number, frame):
        asked.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {s: signal.signal(s, ask) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

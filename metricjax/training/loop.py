"""A run from its start, or where it stopped, to results.json and report.html."""

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
from metricjax.runtime import mesh
from metricjax.training import host_checks, remote_workdir, step
from metricjax.training.finalize import finish
from metricjax.training.metric_writer import MetricWriter
from metricjax.training.run import Run
from metricjax.training.step_metrics import StepMetrics
from metricjax.training.workdir import claim


def train(config: RunConfig, workdir: Path | str, name: str) -> bool:
    """Train, or go on training, and finish with results.json and report.html.

    Args:
      config: the settings.
      workdir: the run's directory, or the address of one in a bucket; made if absent,
        resumed from if it holds a run of the same settings.
      name: what to call the config in results and report.

    Returns:
      False if the run was asked to stop (SIGTERM, Ctrl-C) and saved itself instead.

    Raises:
      InputError: whatever the user can mend.
    """
    began = time.perf_counter()
    say = print if jax.process_index() == 0 else _silent
    with remote_workdir.opened(workdir, config, say) as place:
        finished = _train(config, place, name, began, say)
        if finished:
            place.finish()
    return finished


def _train(config, place, name, began, say) -> bool:
    run, workdir = Run.open(config, place.path), place.path
    host_checks.check_same(config, run.dataset)
    first = jax.process_index() == 0
    run.introduce(say)
    floor = evaluate_split.pixel_floor(run.dataset.test, run.transform, run.skipped)
    say(f"raw pixels, nearest neighbour by cosine: Recall@1 {floor:.3f}")
    if first:
        claim(workdir, config)
        place.push()
    host_checks.check_shared(place.address)
    with place.checkpoints(config.evaluation.select_by) as checkpoints:
        restored = checkpoints.restore_latest(run.programs.abstract_state, say)
        start, state = restored or (0, run.init_state())
        if start >= config.steps and (workdir / "report.html").exists():
            say(f"this run is complete\nreport: {place.address}/report.html")
            return True
        if restored:
            say(f"resuming after step {start} of {config.steps}")
        with MetricWriter(workdir, config.steps, start, active=first) as writer:
            state, stopped = _loop(run, state, start, checkpoints, writer)
        if stopped:
            return False
        checkpoints.wait()
        selected = checkpoints.restore_best(run.programs.abstract_state, say)
        finish(run, state, selected, floor, name, began, lambda s: say(place.shown(s)))
    return True


def _loop(run, state, start, checkpoints, writer) -> tuple[step.TrainState, bool]:
    """The steps from `start` on; returns the state and whether it was told to stop."""
    config = run.config
    if start >= config.steps:
        return state, False
    program, cost = run.compile_train_step()
    writer.compiled(start + 1, cost)
    hierarchy, votes = config.objective.hierarchy, mesh.StopVotes(run.programs.mesh)
    with (
        StepMetrics(run.programs, writer, start) as meter,
        _open_batches(run, start) as batches,
        _stop_requests() as asked_to_stop,
    ):
        for done in range(start + 1, config.steps + 1):
            if hierarchy and hierarchy.due(done - 1):
                meter.drain()
                state = run.regrouped(state, done - 1)
            batch = meter.wait_for(batches)
            state, metrics = program(
                state,
                mesh.global_batch(run.programs.mesh, batch),
                run.programs.root_key,
            )
            meter.add(done, metrics, state)
            last, stop = done == config.steps, votes.stop(asked_to_stop.is_set())
            found = None
            if last or done % config.eval_every == 0:
                meter.drain()
                found = _validate(run, state, done, writer)
                meter.validated(done)
            if found or stop or done % config.checkpoint_every == 0:
                # A run that resumes here writes the lines of later steps only.
                meter.drain()
                checkpoints.save(done, state, found)
                meter.saved(done)
            if stop and not last:
                checkpoints.wait()
                writer.say(
                    f"stopped after step {done}; run the same command again to resume"
                )
                return state, True
    return state, False


def _open_batches(run, start) -> pipeline.Batches:
    """This host's batches from a step on."""
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
    """Retrieval metrics of the images that choose the best checkpoint."""
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


def _silent(sentence: str) -> None:
    """Hosts but the first say nothing."""

"""A run from its start, or where it stopped, to results.json and report.html."""

import importlib.metadata
import json
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import jax

from metricjax import (
    agreement,
    analyses,
    bucket,
    explore,
    judging,
    mesh,
    outcomes,
    step,
    thresholds,
)
from metricjax.checkpoints import digest
from metricjax.config import RunConfig, to_dict
from metricjax.data import pipeline
from metricjax.errors import disk_errors
from metricjax.journal import Journal, read_history
from metricjax.meter import Meter
from metricjax.models import pretrained
from metricjax.reports import page
from metricjax.run import Run
from metricjax.wording import counted
from metricjax.workdir import claim, write_atomically, written_whole


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
    with bucket.opened(workdir, config, say) as place:
        finished = _train(config, place, name, began, say)
        if finished:
            place.finish()
    return finished


def _train(config, place, name, began, say) -> bool:
    run, workdir = Run.open(config, place.path), place.path
    agreement.check_same(config, run.dataset)
    first = jax.process_index() == 0
    run.introduce(say)
    floor = judging.pixel_floor(run.dataset.test, run.transform, run.skipped)
    say(f"raw pixels, nearest neighbour by cosine: Recall@1 {floor:.3f}")
    if first:
        claim(workdir, config)
        place.push()
    agreement.check_shared(place.address)
    with place.checkpoints(config.evaluation.select_by) as checkpoints:
        restored = checkpoints.restore_latest(run.abstract_state, say)
        start, state = restored or (0, run.init_state())
        if start >= config.steps and (workdir / "report.html").exists():
            say(f"this run is complete\nreport: {place.address}/report.html")
            return True
        if restored:
            say(f"resuming after step {start} of {config.steps}")
        with Journal(workdir, config.steps, start, active=first) as journal:
            state, stopped = _loop(run, state, start, checkpoints, journal)
        if stopped:
            return False
        checkpoints.wait()
        selected = checkpoints.restore_best(run.abstract_state, say)
        _finish(run, state, selected, floor, name, began, lambda s: say(place.shown(s)))
    return True


def _loop(run, state, start, checkpoints, journal) -> tuple[step.TrainState, bool]:
    """The steps from `start` on; returns the state and whether it was told to stop."""
    config = run.config
    if start >= config.steps:
        return state, False
    program, cost = run.compile_train_step()
    journal.compiled(start + 1, cost)
    hierarchy, votes = config.objective.hierarchy, mesh.StopVotes(run.mesh)
    with (
        Meter(run, journal, start) as meter,
        _open_batches(run, start) as batches,
        _stop_requests() as asked_to_stop,
    ):
        for done in range(start + 1, config.steps + 1):
            if hierarchy and hierarchy.due(done - 1):
                meter.drain()
                state = run.regrouped(state, done - 1)
            batch = meter.wait_for(batches)
            state, metrics = program(
                state, mesh.global_batch(run.mesh, batch), run.root_key
            )
            meter.add(done, metrics, state)
            last, stop = done == config.steps, votes.stop(asked_to_stop.is_set())
            found = None
            if last or done % config.eval_every == 0:
                meter.drain()
                found = _validate(run, state, done, journal)
                meter.validated(done)
            if found or stop or done % config.checkpoint_every == 0:
                # A run that resumes here writes the lines of later steps only.
                meter.drain()
                checkpoints.save(done, state, found)
                meter.saved(done)
            if stop and not last:
                checkpoints.wait()
                journal.say(
                    f"stopped after step {done}; run the same command again to go on"
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


def _validate(run, state, done, journal) -> dict[str, float]:
    """Retrieval metrics of the images that choose the best checkpoint."""
    metrics = run.judge(state.variables, run.validation, bootstrap=0)
    values = {name: v for name, v in metrics.items() if isinstance(v, float)}
    journal.record(done, "validation", values)
    select_by = run.config.evaluation.select_by
    journal.validated(done, select_by, values[select_by])
    return values


def _finish(run, state, selected, floor, name, began, say) -> None:
    """Judge the selected parameters on the test classes; write all that is left."""
    selected_step, chosen = selected or (run.config.steps, state)
    test, evaluation = run.dataset.test, run.config.evaluation
    untrained = run.embed(run.init_state().variables, test)
    trained = run.embed(chosen.variables, test)
    judge = partial(
        judging.judge,
        split=test,
        config=evaluation,
        bootstrap=evaluation.bootstrap,
        devices=run.mesh,
        by_class=True,
    )
    results = judge(trained, per_query=True)
    per_query = results.pop("per_query")
    results |= judging.cluster(trained, test, evaluation, run.config.seed, run.mesh)
    if run.config.model.ensemble > 1:
        results["learners"] = judging.judge_learners(
            trained, test, evaluation, run.config.model.ensemble
        )
    held_out = None
    if not evaluation.select_on_test:
        held_out = run.embed(chosen.variables, run.validation), run.validation
    history = read_history(run.workdir / "metrics.jsonl")
    results |= {
        "floor": floor,
        "untrained": judge(untrained),
        "validation": _last(history, "validation", selected_step),
        "compiled": _last(history, "compiled"),
        "selected_step": selected_step,
        "selected_by": f"{evaluation.select_by} on "
        + ("test" if evaluation.select_on_test else "held-out training")
        + " classes",
        "selected_on_test": evaluation.select_on_test,
        "parameters_sha256": digest(mesh.to_host(state.trained)),
        "config": name,
        "seed": run.config.seed,
        "steps": run.config.steps,
        "dataset": run.describe(),
        "warnings": [x["message"] for x in history if x["kind"] == "warning"],
        "seconds": round(time.perf_counter() - began, 1),
        "versions": _versions(),
    }
    if jax.process_index() != 0:
        return
    calibrated, verification = thresholds.of_run(
        held_out,
        (trained, test),
        bootstrap=evaluation.bootstrap,
        seed=run.config.seed,
    )
    results |= calibrated
    pretrained.save(
        run.workdir / "model.safetensors", run.model, mesh.to_host(chosen.variables)
    )
    with written_whole(run.workdir / outcomes.FILE) as temporary:
        temporary.write_bytes(outcomes.pack(per_query, test))
    results_path = run.workdir / "results.json"
    write_atomically(results_path, json.dumps(results, indent=1) + "\n")
    explorer = run.workdir / "explorer.html"
    explore.write(
        explorer,
        trained,
        test,
        per_query,
        title=explore.title_of(run.config.data.root, run.dataset.name),
        seed=run.config.seed,
        report="report.html",
        threads=run.config.data.threads,
    )
    report = run.workdir / "report.html"
    queries = judging.sample_queries(trained, test, run.config.seed)
    learnt = mesh.to_host((chosen.variables, state.proxies, state.objective))
    found = analyses.of_run(run, *learnt, trained, queries, results)
    with disk_errors(report):
        page.write(
            report,
            results=results,
            history=[line for line in history if line["kind"] != "compiled"],
            config=to_dict(run.config),
            galleries={
                "before": judging.gallery(untrained, test, queries),
                "after": judging.gallery(trained, test, queries),
            },
            image=test.read,
            name=lambda index: test.names[index],
            studies=[*verification, *found],
            explorer=explorer.name,
        )
    low, high = results["intervals"]["recall@1"]
    say(
        f"unseen classes: Recall@1 {results['recall@1']:.3f} (95% interval {low:.3f} "
        f"to {high:.3f}), untrained {results['untrained']['recall@1']:.3f}, raw pixels "
        f"{floor:.3f}"
    )
    if len(run.skipped):
        unreadable = run.skipped.items()
        images = counted(len(unreadable), "image")
        say(f"{images} could not be read, the first {unreadable[0][0]}")
    say(f"results: {results_path}\nreport: {report}")


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


def _last(history, kind, at_step=None) -> dict[str, float]:
    """The last line of a kind, of one step if it is given, without its kind."""
    for line in reversed(history):
        if line["kind"] == kind and at_step in (None, line["step"]):
            return {name: value for name, value in line.items() if name != "kind"}
    return {}


def _versions() -> dict[str, str]:
    names = ("metricjax", "jax", "jaxlib", "flax", "optax", "numpy")
    return {name: importlib.metadata.version(name) for name in names}


def _silent(sentence: str) -> None:
    """Hosts but the first say nothing."""

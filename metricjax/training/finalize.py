"""The end of a run: evaluate the test classes, write results and report."""

import importlib.metadata
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax

from metricjax.comparison import per_query
from metricjax.config.parsing import to_dict
from metricjax.errors import counted, disk_errors
from metricjax.explorer import explorer_page
from metricjax.inference import evaluate_split, verify_split
from metricjax.models import pretrained
from metricjax.reports import page
from metricjax.runtime import mesh
from metricjax.storage.atomic import atomic_file, write_atomically
from metricjax.training import paper_analyses
from metricjax.training.checkpoints import digest
from metricjax.training.metric_writer import read_history
from metricjax.training.run import Run
from metricjax.training.step import TrainState


def finish(
    run: Run,
    state: TrainState,
    selected: tuple[int, TrainState] | None,
    floor: float,
    name: str,
    began: float,
    say: Callable[[str], None],
) -> None:
    """Evaluate the selected parameters on the test classes; write all result files.

    Args:
      run: the run.
      state: the state after the last step.
      selected: (step, state) of the best checkpoint; None: use the last.
      floor: Recall@1 of raw pixels.
      name: what to call the config.
      began: `time.perf_counter()` at the start.
      say: prints a sentence.
    """
    selected_step, chosen = selected or (run.config.steps, state)
    test = run.dataset.test
    untrained = run.embed(run.init_state().variables, test)
    trained = run.embed(chosen.variables, test)
    results, outcomes = _evaluated(run, trained, untrained)
    held_out = None
    if not run.config.evaluation.select_on_test:
        held_out = run.embed(chosen.variables, run.validation), run.validation
    history = read_history(run.workdir / "metrics.jsonl")
    results |= {"floor": floor, "selected_step": selected_step, "config": name}
    results |= _origin(run, history, selected_step)
    results["parameters_sha256"] = digest(mesh.to_host(state.trained))
    results["seconds"] = round(time.perf_counter() - began, 1)
    if jax.process_index() != 0:
        return
    calibrated, verification = verify_split.of_run(
        held_out,
        (trained, test),
        bootstrap=run.config.evaluation.bootstrap,
        seed=run.config.seed,
    )
    results |= calibrated
    pretrained.save(
        run.workdir / "model.safetensors",
        run.programs.model,
        mesh.to_host(chosen.variables),
    )
    with atomic_file(run.workdir / per_query.FILE) as temporary:
        temporary.write_bytes(per_query.pack(outcomes, test))
    results_path = run.workdir / "results.json"
    write_atomically(results_path, json.dumps(results, indent=1) + "\n")
    learned = mesh.to_host((chosen.variables, state.proxies, state.objective))
    embedded = untrained, trained
    report = _write_pages(
        run, embedded, outcomes, learned, verification, results, history
    )
    _print_results(run, results, say)
    say(f"results: {results_path}\nreport: {report}")


def _evaluated(run, trained, untrained):
    """(results on the test classes, outcome of each query)."""
    test, evaluation = run.dataset.test, run.config.evaluation
    evaluate = partial(
        evaluate_split.evaluate,
        split=test,
        config=evaluation,
        bootstrap=evaluation.bootstrap,
        devices=run.programs.mesh,
        by_class=True,
    )
    results = evaluate(trained, per_query=True)
    outcomes = results.pop("per_query")
    results |= evaluate_split.cluster(
        trained, test, evaluation, run.config.seed, run.programs.mesh
    )
    learners = run.config.model.ensemble
    if learners > 1:
        each = evaluate_split.evaluate_learners(trained, test, evaluation, learners)
        results["learners"] = each
    return results | {"untrained": evaluate(untrained)}, outcomes


def _origin(run, history, selected_step) -> dict:
    """Where results come from: settings, data, model selection, versions."""
    evaluation = run.config.evaluation
    classes = "test" if evaluation.select_on_test else "held-out training"
    return {
        "validation": _last(history, "validation", selected_step),
        "compiled": _last(history, "compiled"),
        "selected_by": f"{evaluation.select_by} on {classes} classes",
        "selected_on_test": evaluation.select_on_test,
        "seed": run.config.seed,
        "steps": run.config.steps,
        "dataset": run.dataset_summary(),
        "warnings": [x["message"] for x in history if x["kind"] == "warning"],
        "versions": _versions(),
    }


def _write_pages(
    run, embedded, outcomes, learned, verification, results, history
) -> Path:
    """Write explorer.html and report.html; returns the path of the report."""
    test, config = run.dataset.test, run.config
    untrained, trained = embedded
    explorer, report = run.workdir / "explorer.html", run.workdir / "report.html"
    explorer_page.write(
        explorer,
        trained,
        test,
        outcomes,
        title=explorer_page.title_of(config.data.root, run.dataset.name),
        seed=config.seed,
        report=report.name,
        threads=config.data.threads,
    )
    queries = evaluate_split.sample_queries(trained, test, config.seed)
    analyses = paper_analyses.of_run(run, *learned, trained, queries, results)
    with disk_errors(report):
        page.write(
            report,
            results=results,
            history=[line for line in history if line["kind"] != "compiled"],
            config=to_dict(config),
            galleries={
                "before": evaluate_split.query_neighbors(untrained, test, queries),
                "after": evaluate_split.query_neighbors(trained, test, queries),
            },
            image=test.read,
            name=lambda index: test.names[index],
            studies=[*verification, *analyses],
            explorer=explorer.name,
        )
    return report


def _print_results(run, results, say) -> None:
    low, high = results["intervals"]["recall@1"]
    say(
        f"unseen classes: Recall@1 {results['recall@1']:.3f} (95% interval {low:.3f} "
        f"to {high:.3f}), untrained {results['untrained']['recall@1']:.3f}, raw pixels "
        f"{results['floor']:.3f}"
    )
    if len(run.skipped):
        unreadable = run.skipped.items()
        images = counted(len(unreadable), "image")
        say(f"{images} could not be read, the first {unreadable[0][0]}")


def _last(history, kind, at_step=None) -> dict[str, float]:
    """The values of the last metrics line of a kind, at `at_step` if it is given."""
    for line in reversed(history):
        if line["kind"] == kind and at_step in (None, line["step"]):
            return {name: value for name, value in line.items() if name != "kind"}
    return {}


def _versions() -> dict[str, str]:
    names = ("metricjax", "jax", "jaxlib", "flax", "optax", "numpy")
    return {name: importlib.metadata.version(name) for name in names}

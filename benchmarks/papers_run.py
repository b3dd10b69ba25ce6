"""One case trained and evaluated: a run without its files and pages."""

from collections import deque
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np

from metricjax.config.schema import RunConfig
from metricjax.data import pipeline
from metricjax.data.datasets import Dataset, Split
from metricjax.inference import evaluate_split
from metricjax.inference.embedder import Embedded
from metricjax.models import pretrained
from metricjax.runtime import mesh
from metricjax.training.run import Run

METRICS = ("map@r", "r_precision", "recall@1", "recall@2", "recall@4", "recall@8")


def in_memory(dataset: Dataset) -> Dataset:
    """The same images, decoded once."""
    return replace(dataset, train=_decoded(dataset.train), test=_decoded(dataset.test))


def _decoded(split: Split) -> Split:
    images = [split.read(index) for index in range(len(split))]
    return replace(split, reader=images.__getitem__)


def trained(config: RunConfig, dataset: Dataset, networks: int = 1) -> dict:
    """What test classes say of a case.

    Args:
      config: the settings.
      dataset: its images, see `in_memory`.
      networks: trained one after the other from seeds of their own, each of an equal
        part of the embedding: the ensemble of separate networks.

    Returns:
      The metrics, those of the learners if there are several, `selected_step`, and
      `not_finite_after`, the last finite step where there was one that was not.
    """
    members = [
        _trained(_member(config, networks, number), dataset)
        for number in range(networks)
    ]
    run = members[0][0]
    rows = [embedded.embeddings / np.sqrt(networks) for _, embedded, _ in members]
    embedded = Embedded(np.concatenate(rows, axis=1), members[0][1].valid)
    test, evaluation = dataset.test, config.evaluation
    found = evaluate_split.evaluate(embedded, test, evaluation, bootstrap=0)
    results = {name: found[name] for name in METRICS}
    learners = networks * run.config.model.ensemble
    if learners > 1:
        each = evaluate_split.evaluate_learners(embedded, test, evaluation, learners)
        results["learners"] = each
    return results | {
        name: value for _, _, about in members for name, value in about.items()
    }


def pixels(config: RunConfig, dataset: Dataset) -> float:
    """Recall@1 of raw pixels."""
    run = Run.build(config, Path("."), dataset, mesh.make_mesh())
    return evaluate_split.pixel_floor(dataset.test, run.transform, run.skipped)


def _member(config, networks, number):
    if networks == 1:
        return config
    model = replace(config.model, dim=config.model.dim // networks)
    return replace(config, model=model, seed=1000 * (config.seed + 1) + number)


def save_trained(config: RunConfig, dataset: Dataset, path: Path) -> None:
    """Train, and write the weights of the step that held-out classes chose."""
    run, variables, _ = _selected(config, dataset)
    path.parent.mkdir(parents=True, exist_ok=True)
    pretrained.save(path, run.programs.model, variables)


def _trained(config, dataset):
    """A run, its test embeddings at the step that held-out classes chose, and which."""
    run, variables, about = _selected(config, dataset)
    return run, run.embed(variables, dataset.test), about


def _selected(config, dataset):
    """A run, its parameters at the step that held-out classes chose, and which."""
    run = Run.build(config, Path("."), dataset, mesh.make_mesh())
    program, _ = run.compile_train_step()
    state, best, pending = run.init_state(), None, deque()
    select_by, hierarchy = config.evaluation.select_by, config.objective.hierarchy
    with pipeline.train_batches(
        run.train,
        run.sampler,
        run.transform,
        seed=config.seed,
        start_step=0,
        num_steps=config.steps,
        threads=config.data.threads,
    ) as batches:
        for done, batch in enumerate(batches, start=1):
            if hierarchy and hierarchy.due(done - 1):
                state = run.regroup(state, done - 1)
            local = {name: batch[name] for name in ("images", "labels")}
            state, metrics = program(
                state,
                mesh.global_batch(run.programs.mesh, local),
                run.programs.root_key,
            )
            pending.append(metrics)
            if len(pending) > mesh.AHEAD:
                jax.block_until_ready(pending.popleft())
            if done % config.eval_every == 0 or done == config.steps:
                if int(state.step) < 0:  # from then on it stays as it was
                    break
                found = run.evaluate(state.variables, run.validation, bootstrap=0)
                if best is None or found[select_by] > best[0]:
                    kept = jax.tree.map(np.array, mesh.to_host(state.variables))
                    best = found[select_by], done, kept
    step = int(state.step)
    about = {"not_finite_after": -1 - step} if step < 0 else {}
    if best is None:
        best = 0.0, 0, run.init_state().variables
    about |= {"validation": best[0], "selected_step": best[1]}
    return run, best[2], about

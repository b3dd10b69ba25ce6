"""Class-disjoint cross-validation: a run for each part of the training classes.

Each fold holds out its part to choose the checkpoint, and all are judged on the test
classes: alone, whose mean has a t-interval over folds, and with their embeddings side
by side.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from metricjax.comparison.per_query import digest_of_images
from metricjax.comparison.runs import METRICS, Estimate
from metricjax.comparison.tables import TITLES, markdown, plain
from metricjax.config.schema import RunConfig
from metricjax.data.datasets import Dataset
from metricjax.errors import InputError
from metricjax.evaluation.intervals import t_interval
from metricjax.inference import evaluate_split
from metricjax.inference.embedder import Embedded
from metricjax.inference.trained_model import TrainedModel
from metricjax.runtime import exchange
from metricjax.storage.directories import open_storage
from metricjax.training import loop
from metricjax.training.run import open_data

# Of each fold, in the summary beside its metrics.
_KEPT = ("selected_step", "validation", "queries", "parameters_sha256")


def train_folds(config: RunConfig, workdir: Path | str, name: str) -> bool:
    """Train, or go on training, a run for each fold, and sum them up.

    Args:
      config: the settings; `data.folds` is 2 or more.
      workdir: the run of fold i is in its `fold{i}`; results.json and table.md of all
        are written there.
      name: what to call the config.

    Returns:
      False if a run was asked to stop and saved itself instead.

    Raises:
      InputError: whatever the user can mend.

    Source:
      Musgrave, Belongie and Lim, A Metric Learning Reality Check (ECCV 2020), section
      3, "separated" (the mean) and "concatenated" (side by side).
    """
    _check(config, workdir)
    say = print if jax.process_index() == 0 else _silent
    addresses = [f"{workdir}/fold{number}" for number in range(config.data.folds)]
    for number, address in enumerate(addresses):
        say(f"fold {number}, one of {config.data.folds}: {address}")
        data = dataclasses.replace(config.data, fold=number)
        place = address if isinstance(workdir, str) else Path(address)
        fold = dataclasses.replace(config, data=data)
        if not loop.train(fold, place, f"{name}, fold {number}"):
            return False
    exchange.gather("folds", None)  # The first host is the last to have written.
    _summarize(config, workdir, name, addresses, say)
    return True


def _check(config: RunConfig, workdir: Path | str) -> None:
    if not config.data.folds:
        raise InputError(
            "--mode folds has config.data.folds=0: say how many parts of the training "
            "classes to hold out in turn, --config.data.folds=4."
        )
    if config.data.fold:
        raise InputError(
            f"--mode folds trains every fold, but config.data.fold is "
            f"{config.data.fold}: leave that out, or leave out --mode."
        )
    if "config.json" in open_storage(workdir).names():
        raise InputError(
            f"--workdir {workdir} holds a single run: choose another directory for "
            "the folds."
        )


def _summarize(config, workdir, name, addresses: list[str], say) -> None:
    """Write and print what all folds say together."""
    dataset = open_data(config)
    runs = [TrainedModel.open(address) for address in addresses]
    joined = _side_by_side(runs, dataset)
    folds = [run.results for run in runs]
    metrics = [key for key in folds[0]["intervals"] if key in folds[0]]
    values = {key: np.array([fold[key] for fold in folds]) for key in metrics}
    together = evaluate_split.evaluate(
        joined, dataset.test, config.evaluation, config.evaluation.bootstrap,
        by_class=True,
    )  # fmt: skip
    together["dim"] = joined.embeddings.shape[1]
    results: dict[str, Any] = {
        "protocol": f"{len(runs)} class-disjoint folds of the training classes",
        "mean": {key: float(of.mean()) for key, of in values.items()},
        "intervals": {key: t_interval(of) for key, of in values.items()},
        "concatenated": together,
        "folds": [
            {key: fold[key] for key in (*metrics, "intervals", *_KEPT)}
            for fold in folds
        ],
        "config": name,
        "seed": config.seed,
        "dataset": dataset.name,
        "test_sha256": digest_of_images(dataset.test),
    }
    if jax.process_index() != 0:
        return
    table = _table(results)
    place = open_storage(workdir)
    place.write("table.md", table.encode())
    place.write("results.json", (json.dumps(results, indent=1) + "\n").encode())
    say(f"\n{table}\nresults: {workdir}/results.json")


def _side_by_side(runs: list[TrainedModel], dataset: Dataset) -> Embedded:
    """The embeddings of all runs as one, of unit length."""
    found = [run.embed(dataset.test) for run in runs]
    rows = np.concatenate([one.embeddings for one in found], axis=1)
    valid = np.logical_and.reduce([one.valid for one in found])
    return Embedded(rows / np.float32(np.sqrt(len(found))), valid)


def _table(results: dict[str, Any]) -> str:
    """Markdown: each fold, their mean, their embeddings joined."""
    folds, together = results["folds"], results["concatenated"]
    rows = [["", *(TITLES[metric] for metric in METRICS)]]
    for number, fold in enumerate(folds):
        rows.append([f"fold {number}", *_cells(fold, fold["intervals"])])
    mean = _cells(results["mean"], results["intervals"])
    rows.append([f"mean of {len(folds)}", *mean])
    title = f"joined, {together['dim']} numbers"
    rows.append([title, *_cells(together, together["intervals"])])
    return (
        f"{markdown(rows)}\n\nOn the test classes, in percent. In brackets: 95% "
        "intervals, of the mean a t-interval over folds, else a bootstrap over test "
        "classes.\n"
    )


def _cells(values, intervals) -> list[str]:
    return [plain(Estimate(values[m], *intervals[m]), "") for m in METRICS]


def _silent(sentence: str) -> None:
    """Hosts but the first say nothing."""

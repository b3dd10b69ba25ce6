"""Class-disjoint cross-validation (`metricjax folds`): one run for each fold.

Each fold holds out its part of the training classes to select the checkpoint. All are
evaluated on the test classes: separately, with the mean and its t-interval over folds,
and with their embeddings concatenated.
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

# Copied from each fold's results into the summary, beside its metrics.
_COPIED = ("selected_step", "validation", "queries", "parameters_sha256")


def train_folds(config: RunConfig, workdir: Path | str, name: str) -> bool:
    """Train or resume a run for each fold, and summarize them.

    Args:
      config: the settings; `data.folds` is 2 or more.
      workdir: fold i is the run in `workdir/fold{i}`; the summary is written to
        results.json and table.md.
      name: what to call the config.

    Returns:
      False if a run was asked to stop and saved a checkpoint.

    Raises:
      InputError: a mistake in settings, data or environment that the user can fix.

    Source:
      Musgrave, Belongie and Lim, A Metric Learning Reality Check (ECCV 2020), section
      3, "separated" (the mean) and "concatenated".
    """
    _check(config, workdir)
    say = exchange.printer()
    addresses = [f"{workdir}/fold{number}" for number in range(config.data.folds)]
    for number, address in enumerate(addresses):
        say(f"fold {number}, one of {config.data.folds}: {address}")
        data = dataclasses.replace(config.data, fold=number)
        fold_workdir = address if isinstance(workdir, str) else Path(address)
        fold = dataclasses.replace(config, data=data)
        if not loop.train(fold, fold_workdir, f"{name}, fold {number}"):
            return False
    exchange.gather("folds", None)  # A barrier: host 0 has written its files.
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
    """Evaluate the folds together; write and print the summary."""
    dataset = open_data(config)
    runs = [TrainedModel.open(address) for address in addresses]
    joined = _concatenated(runs, dataset)
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
        "mean": {key: float(each.mean()) for key, each in values.items()},
        "intervals": {key: t_interval(each) for key, each in values.items()},
        "concatenated": together,
        "folds": [
            {key: fold[key] for key in (*metrics, "intervals", *_COPIED)}
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
    storage = open_storage(workdir)
    storage.write("table.md", table.encode())
    storage.write("results.json", (json.dumps(results, indent=1) + "\n").encode())
    say(f"\n{table}\nresults: {workdir}/results.json")


def _concatenated(runs: list[TrainedModel], dataset: Dataset) -> Embedded:
    """The embeddings of all runs concatenated, of unit length."""
    parts = [run.embed(dataset.test) for run in runs]
    rows = np.concatenate([part.embeddings for part in parts], axis=1)
    valid = np.logical_and.reduce([part.valid for part in parts])
    return Embedded(rows / np.float32(np.sqrt(len(parts))), valid)


def _table(results: dict[str, Any]) -> str:
    """Markdown table: each fold, their mean, their concatenated embeddings."""
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

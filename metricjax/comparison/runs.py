"""Finished runs side by side: what differs between them, and whether it shows.

Runs of the same settings over several seeds (or folds) are one entry, whose interval
is a t-interval over its runs; the interval of a single run is the bootstrap over test
classes. Two entries are compared by what they share: the seeds, or the test queries.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from metricjax.comparison import per_query
from metricjax.config import identity
from metricjax.config.parsing import from_config_dict
from metricjax.errors import InputError
from metricjax.evaluation.intervals import (
    bootstrap_over_classes,
    t_interval,
    welch_interval,
)
from metricjax.storage.directories import Storage, open_storage

METRICS = ("recall@1", "r_precision", "map@r")
# What runs of one entry may differ in.
_REPEATED = ("seed", "data.fold")
_RESAMPLES = 10_000


class Estimate(NamedTuple):
    """A mean or a difference of means, with its 95% interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class Finished:
    """A run that has ended.

    Attributes:
      address: its directory, as the user called it.
      settings: `{"a.b": value}`, without those that its repetitions differ in.
      repetition: (seed, fold).
      results: what its results.json holds.
      queries: what its queries.npz holds.
    """

    address: str
    settings: dict[str, Any]
    repetition: tuple[int, int]
    results: dict[str, Any]
    queries: dict[str, np.ndarray] = field(repr=False)

    @property
    def images(self) -> str:
        """A digest of the images that it was tested on."""
        return str(self.queries["test_sha256"])


@dataclass(frozen=True, eq=False)
class Entry:
    """Runs that differ in nothing but seed and fold: a line of the table."""

    name: str
    runs: tuple[Finished, ...]

    def estimate(self, metric: str) -> Estimate:
        """The mean over runs of the mean over queries."""
        values = self.values(metric)
        if len(values) > 1:
            return Estimate(float(values.mean()), *t_interval(values))
        low, high = self.runs[0].results["intervals"][metric]
        return Estimate(float(values[0]), low, high)

    def values(self, metric: str) -> np.ndarray:
        return np.array([run.results[metric] for run in self.runs])

    @property
    def repetitions(self) -> list[tuple[int, int]]:
        return [run.repetition for run in self.runs]


@dataclass(frozen=True)
class Difference:
    """What an entry has more than another.

    Attributes:
      entry, base: their names.
      how: what was compared with what.
      estimates: by metric.
    """

    entry: str
    base: str
    how: str
    estimates: dict[str, Estimate]


def read(addresses: Sequence[str]) -> list[Entry]:
    """Finished runs, those of the same settings together, in the order they came.

    Args:
      addresses: workdirs, here or in buckets; one of folds stands for its runs.

    Raises:
      InputError: there is no finished run, the same run comes twice, or runs were not
        tested on the same images.
    """
    runs: list[Finished] = []
    for address in addresses:
        runs += [_finished(one) for one in _expanded(address)]
    groups: list[list[Finished]] = []
    for run in runs:
        own = [g for g in groups if g[0].settings == run.settings]
        for other in own[0] if own else ():
            if other.repetition == run.repetition:
                raise InputError(
                    f"{other.address} and {run.address} have the same settings and the "
                    "same seed, so that they are one run: name one of them."
                )
        own[0].append(run) if own else groups.append([run])
    for run in runs[1:]:
        check_images(runs[0], run, seeds_pair=True)
    names = [chr(ord("A") + n) if n < 26 else f"#{n}" for n in range(len(groups))]
    return [Entry(name, tuple(g)) for name, g in zip(names, groups, strict=True)]


def difference(entry: Entry, base: Entry, *, seed: int = 0) -> Difference:
    """What an entry has more than another, paired by whatever the two share.

    By seed (and fold) where both have the same, two or more; else over the runs of both
    where both have several; else by query, classes resampled, which tells nothing of
    other seeds.

    Args:
      seed: of the resampling.

    Raises:
      InputError: they were not tested on the same images.
    """
    sizes = len(entry.runs), len(base.runs)
    paired = set(entry.repetitions) == set(base.repetitions)
    for run in entry.runs:
        for other in base.runs:
            check_images(run, other, seeds_pair=paired)
    if min(sizes) > 1 and paired:
        order = [base.repetitions.index(one) for one in entry.repetitions]
        found = {}
        for metric in METRICS:
            each = entry.values(metric) - base.values(metric)[order]
            found[metric] = Estimate(float(each.mean()), *t_interval(each))
        how = f"paired by {len(order)} {_repeated([*entry.runs, *base.runs])}"
    elif min(sizes) > 1:
        found = {}
        for metric in METRICS:
            both = entry.values(metric), base.values(metric)
            value = float(both[0].mean() - both[1].mean())
            found[metric] = Estimate(value, *welch_interval(*both))
        how = f"{sizes[0]} and {sizes[1]} runs, unpaired"
    else:
        found, count = _by_query(entry, base, seed)
        how = f"paired by {count:,} queries"
    return Difference(entry.name, base.name, how, found)


def _by_query(entry: Entry, base: Entry, seed: int) -> tuple[dict[str, Estimate], int]:
    """Estimates from the queries that all runs have, and how many these are."""
    every = [run.queries for run in (*entry.runs, *base.runs)]
    common = every[0]["query"]
    for queries in every[1:]:
        common = np.intersect1d(common, queries["query"])

    def mean(runs):
        chosen = [np.searchsorted(run.queries["query"], common) for run in runs]
        columns = [
            np.stack([run.queries[metric][rows] for metric in METRICS], axis=1)
            for run, rows in zip(runs, chosen, strict=True)
        ]
        return np.mean(columns, axis=0, dtype=np.float64)

    each = mean(entry.runs) - mean(base.runs)
    labels = every[0]["label"][np.searchsorted(every[0]["query"], common)]
    pairs = bootstrap_over_classes(each, labels, resamples=_RESAMPLES, seed=seed)
    if len(np.unique(labels)) < 2:
        pairs = [(-1.0, 1.0)] * len(METRICS)
    values = each.mean(axis=0).tolist()
    found = {
        metric: Estimate(value, *pair)
        for metric, value, pair in zip(METRICS, values, pairs, strict=True)
    }
    return found, len(common)


def differing_settings(entries: Sequence[Entry]) -> dict[str, list[Any]]:
    """Settings that not all entries have alike: name, and the value of each entry."""
    every = [entry.runs[0].settings for entry in entries]
    names = sorted(set().union(*every))
    return {
        name: [settings.get(name) for settings in every]
        for name in names
        if any(settings.get(name) != every[0].get(name) for settings in every)
    }


def check_images(run: Finished, other: Finished, *, seeds_pair: bool) -> None:
    """Raise `InputError` unless two runs were tested on the same images.

    Args:
      seeds_pair: only runs of the same seed are compared with each other. Of a data set
        without files, that is enough: its test images are drawn from the seed.
    """
    if run.images == other.images:
        return
    drawn = not run.results["dataset"]["fingerprint"]
    same_kind = run.results["dataset"]["name"] == other.results["dataset"]["name"]
    if drawn and same_kind:
        if seeds_pair and run.repetition[0] != other.repetition[0]:
            return
        remedy = "the seed draws them, so compare runs of the same seeds"
    else:
        remedy = "compare runs on the same data"
    raise InputError(
        f"{run.address} and {other.address} were tested on different images "
        f"({_tested(run)}; {_tested(other)}): {remedy}."
    )


def _tested(run: Finished) -> str:
    dataset = run.results["dataset"]
    of = dataset["test"]
    return f"{dataset['name']}, {of['images']:,} images of {of['classes']:,} classes"


def _repeated(runs: Sequence[Finished]) -> str:
    folds = len({run.repetition[1] for run in runs}) > 1
    seeds = len({run.repetition[0] for run in runs}) > 1
    return "seeds and folds" if folds and seeds else "folds" if folds else "seeds"


def _expanded(address: str) -> list[str]:
    """The address itself, or of several folds each run."""
    names = open_storage(address).names()
    folds = sorted(name for name in names if name.startswith("fold"))
    if "config.json" in names or not folds:
        return [str(address)]
    return [f"{str(address).rstrip('/')}/{fold}" for fold in folds]


def _finished(address: str) -> Finished:
    storage = open_storage(address)
    config = storage.read("config.json")
    if config is None:
        raise InputError(
            f"{address} holds no run (no config.json): name the workdir of one."
        )
    results = storage.read("results.json")
    if results is None:
        raise InputError(
            f"The run in {address} is not finished (results.json is missing): run its "
            "command again until it says where the report is."
        )
    queries = storage.read(per_query.FILE)
    if queries is None:
        raise InputError(
            f"The run in {address} has kept no values of single queries "
            f"({per_query.FILE} is missing): remove its report.html and run its "
            "command again, which evaluates it again without training."
        )
    settings = identity.settings_that_count(
        from_config_dict(_json(config, storage, "config.json"))
    )
    repetition = tuple(settings.pop(name) for name in _REPEATED)
    found = _json(results, storage, "results.json")
    wanted = {*METRICS, "dataset", "intervals"}
    if not wanted <= set(found):
        raise InputError(
            f"{address}/results.json lacks {sorted(wanted - set(found))[0]}: it is not "
            "what a run writes; remove its report.html and run its command again."
        )
    return Finished(
        address=address,
        settings=settings,
        repetition=repetition,
        results=found,
        queries=per_query.unpack(queries, f"{address}/{per_query.FILE}"),
    )


def _json(content: bytes, storage: Storage, name: str) -> dict[str, Any]:
    try:
        found = json.loads(content)
        if not isinstance(found, dict):
            raise ValueError("it holds no settings or results")
    except ValueError as error:
        raise InputError(
            f"{storage.root}/{name} cannot be read ({error}): it is damaged; "
            "restore it, or leave this run out."
        ) from error
    return found

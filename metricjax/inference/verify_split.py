"""Same or different? Thresholds set on held-out classes and tried on unseen ones."""

import math
from collections.abc import Mapping
from typing import Any

from metricjax import evaluation
from metricjax.data.datasets import Split
from metricjax.errors import InputError
from metricjax.evaluation import verification
from metricjax.inference.embedder import Embedded
from metricjax.inference.evaluate_split import some_classes
from metricjax.reports import verification as page
from metricjax.reports.studies import Study

# Images of a run whose pairs are compared, at most: a few seconds on two cores.
_COMPARED = 20_000


def of_run(
    held_out: tuple[Embedded, Split] | None,
    test: tuple[Embedded, Split],
    *,
    bootstrap: int,
    seed: int,
) -> tuple[dict[str, Any], list[Study]]:
    """Thresholds from the classes held out of training, and the test of them.

    All pairs are compared, of more than 20,000 images those of whole classes drawn by
    the seed. Images that are neither query nor gallery are left out; other than that
    the roles do not matter, see `evaluation.calibrate`.

    Args:
      held_out: images of training classes that were not trained on; None: there are
        none, and so no thresholds.
      test: those that the run is evaluated by.
      bootstrap, seed: of the intervals.

    Returns:
      Of results.json `thresholds`, a list of what `evaluation.calibrate` gives for each
      false match rate and, as `test`, what `evaluation.reached` says of it there; and
      `verification`: `held_out` and `test` with `pairs` and `equal_error_rate`, and
      `notes` on what could not be told. Then the study for the report, if there is one.
    """
    if held_out is None:
        notes = ["There are no thresholds, for no classes were held out to set them."]
        return {"thresholds": [], "verification": {"notes": notes}}, []
    options = {"bootstrap": bootstrap, "seed": seed}
    try:
        found = evaluation.calibrate(*_compared(*held_out, seed), **options)
    except InputError as error:
        notes = [f"There are no thresholds from the held-out classes: {error}"]
        return {"thresholds": [], "verification": {"notes": notes}}, []
    thresholds, notes = found["thresholds"], too_few(found)
    parts = {"held_out": found}
    try:
        similarities = [one["similarity"] for one in thresholds]
        there = evaluation.reached(*_compared(*test, seed), similarities, **options)
    except InputError as error:
        notes.append(f"The thresholds are not tried on the test classes: {error}")
    else:
        parts["test"] = there
        for one, rates in zip(thresholds, there["reached"], strict=True):
            one["test"] = {k: v for k, v in rates.items() if k != "similarity"}
    summary = {
        part: {name: values[name] for name in ("pairs", "equal_error_rate")}
        for part, values in parts.items()
    }
    results = {"thresholds": thresholds, "verification": {**summary, "notes": notes}}
    return results, [page.study(thresholds, parts, notes)]


def too_few(found: Mapping[str, Any]) -> list[str]:
    """A sentence on the rates that there are too few pairs for, if there are any."""
    if not found["too_few"]:
        return []
    rates = ", ".join(f"{100 * rate:g}%" for rate in found["too_few"])
    needed = math.ceil(verification.LEAST_FALSE_MATCHES / max(found["too_few"]))
    return [
        f"There is no threshold for false match rates of {rates}: {needed:,} pairs of "
        f"different classes are needed, and there are {found['pairs']['different']:,}."
    ]


def _compared(embedded: Embedded, split: Split, seed: int):
    """Embeddings and labels of the images whose pairs are compared."""
    asked = embedded.valid & (split.is_query | split.is_gallery)
    rows = some_classes(asked, split, seed, _COMPARED)
    return embedded.embeddings[rows], split.labels[rows]

"""Thresholds of similarity for the report: a table and two drawings."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from metricjax.reports import figures
from metricjax.reports.figures import Panel
from metricjax.reports.studies import Study, Table, line

_PARTS = {"held_out": "held-out", "test": "test"}


def study(
    thresholds: Sequence[Mapping],
    parts: Mapping[str, Mapping],
    notes: Sequence[str] = (),
) -> Study:
    """Same or different: thresholds of similarity and what they reach.

    Args:
        thresholds: as `evaluation.calibrate` gives them, each with `test`, what it
            reaches on other classes, or none of them.
        parts: "held_out" and, if thresholds were tried there, "test": each with
            `pairs`, `equal_error_rate` and `curve` as `evaluation.calibrate` has them.
        notes: sentences to add.
    """
    tried = "test" in parts
    columns = ["False matches allowed", "Similarity at least", "Same found, held-out"]
    columns += ["False matches, test", "Same found, test"] if tried else []
    digits = _digits([one["similarity"] for one in thresholds])
    rows = [_threshold(one, digits) for one in thresholds]
    pairs = parts["held_out"]["pairs"]
    said = "".join(f" {note}" for note in notes)
    return Study(
        "Same or different?",
        "Two images are taken for the same where their similarity is at least a "
        "threshold. False matches are the share of the pairs of different classes that "
        "are taken for the same, same found the share of the pairs of one class. "
        f"Thresholds are set on all {pairs['same']:,} pairs of one and "
        f"{pairs['different']:,} of different classes among training classes that were "
        f"held out{', then tried on the test classes' if tried else ''}; intervals are "
        f"95% over classes.{said}",
        (_rates(parts), _by_threshold(parts["held_out"]["curve"])),
        table=Table(tuple(columns), tuple(rows)) if rows else None,
    )


def _digits(similarities: Sequence[float]) -> int:
    """Decimals, three or as many more as tell the thresholds apart."""
    for digits in range(3, 7):
        if len({f"{one:.{digits}f}" for one in similarities}) == len(similarities):
            return digits
    return 7


def _threshold(one: Mapping, digits: int) -> tuple[str, tuple[tuple[str, str], ...]]:
    def cell(of, rate, interval):
        bounds = [_short(bound) for bound in of.get(interval, ())]
        return f"{_short(of[rate])}%", " to ".join(bounds) + ("%" if bounds else "")

    cells = [(f"{one['similarity']:.{digits}f}", "")]
    cells.append(cell(one, "true_match_rate", "interval"))
    if "test" in one:
        cells.append(cell(one["test"], "false_match_rate", "false_match_interval"))
        cells.append(cell(one["test"], "true_match_rate", "interval"))
    return f"{100 * one['false_match_rate']:g}%", tuple(cells)


def _short(rate: float) -> str:
    """Per cent in two digits, or three."""
    return f"{100 * rate:.2g}" if rate < 0.01 else f"{100 * rate:.3g}"


def _rates(parts: Mapping[str, Mapping]) -> Panel:
    """What share of the same is found at each rate of false matches."""
    curves, legend = [], []
    for part, found in parts.items():
        curve = found["curve"]
        exponents = np.log10(curve["false_match_rate"])[::-1]
        distinct = np.append(np.diff(exponents) > 0, True)
        true = np.asarray(curve["true_match_rate"])[::-1][distinct]
        curves.append(line(_PARTS[part], exponents[distinct], true, true[-1]))
        error = found["equal_error_rate"]
        legend.append((_PARTS[part], f"equal error rate {100 * error:.3g}%"))
    panel = figures.panel(
        "Same found, by false matches", curves, percent=True,
        along="false match rate", tell=lambda power: f"{100 * 10**power:.3g}%",
    )  # fmt: skip
    return dataclasses.replace(panel, legend=tuple(legend))


def _by_threshold(curve: Mapping[str, Sequence[float]]) -> Panel:
    similarities = np.asarray(curve["similarity"])
    curves = [
        line(name, similarities, np.asarray(curve[rate]), curve[rate][-1])
        for name, rate in (
            ("same found", "true_match_rate"),
            ("false matches", "false_match_rate"),
        )
    ]
    panel = figures.panel(
        "By threshold, held-out classes", curves, percent=True, along="similarity",
        whole=False,
    )  # fmt: skip
    return dataclasses.replace(panel, legend=tuple((c.name, "") for c in curves))

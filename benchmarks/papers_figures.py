"""The lines of `papers.py` drawn: Recall@1 of every case, and of every seed."""

from pathlib import Path

import numpy as np
import papers_cases

from metricjax.evaluation.intervals import t_interval


def draw(name: str, runs: list[dict], directory: Path) -> None:
    """Write TABLE.svg and TABLE.png: a panel for each data set, a row for each case."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    found = [d for d in papers_cases.DATA if any(run["data"] == d for run in runs)]
    cases = [
        case.name
        for case in papers_cases.TABLES[name].cases
        if any(run["case"] == case.name for run in runs)
    ]
    figure, panels = plt.subplots(
        1, len(found), figsize=(1.8 + 3.6 * len(found), 0.25 * len(cases) + 1.1),
        sharey=True, squeeze=False,
    )  # fmt: skip
    for axes, data in zip(panels[0], found, strict=True):
        own = [run for run in runs if run["data"] == data]
        for place, case in enumerate(cases):
            _row(axes, place, [run for run in own if run["case"] == case])
        axes.set_title(data.capitalize(), fontsize=10)
        axes.set_xlabel("Recall@1, points", fontsize=9)
        axes.tick_params(labelsize=8.5)
        axes.grid(axis="both", color="0.92")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0][0].set_yticks(range(len(cases)), cases)
    panels[0][0].invert_yaxis()
    figure.tight_layout()
    for end in ("svg", "png"):
        file = directory / f"{name}.{end}"
        about = {"Date": None} if end == "svg" else None
        figure.savefig(file, dpi=150, metadata=about)
    plt.close(figure)


def _row(axes, place, runs):
    """Seeds as faint dots, their mean with its 95% interval."""
    values = np.array([100 * run["results"]["recall@1"] for run in runs])
    if not len(values):
        return
    axes.scatter(values, [place] * len(values), s=9, color="0.6", zorder=2)
    mean = values.mean()
    axes.scatter([mean], [place], s=26, color="#20558a", zorder=3)
    if len(values) > 1:
        low, high = t_interval(values)
        axes.plot([low, high], [place, place], color="#20558a", linewidth=1.4)

"""Drawings of the comparisons: Recall@1 of every case and seed, and along the way."""

from pathlib import Path

import numpy as np
import papers_cases

from metricjax.evaluation.intervals import t_interval

COLOURS = ("#20558a", "#c2612c", "#6b8e23", "#7a4a99", "#3a9a9a")


def draw(name: str, runs: list[dict], directory: Path) -> None:
    """Write TABLE.svg and TABLE.png: a panel for each data set, a row for each case."""
    plt = _pyplot()
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
        _plain(axes)
    panels[0][0].set_yticks(range(len(cases)), cases)
    panels[0][0].invert_yaxis()
    _save(figure, directory / f"{name}.svg")


def draw_sweeps(name: str, runs: list[dict], directory: Path) -> None:
    """Write TABLE_sweeps.svg and .png: Recall@1 along each setting of the table."""
    sweeps = papers_cases.TABLES[name].sweeps
    found = [d for d in papers_cases.DATA if any(run["data"] == d for run in runs)]
    if not sweeps:
        return
    figure, panels = _pyplot().subplots(
        len(found), len(sweeps), figsize=(4.5 * len(sweeps), 3.0 * len(found)),
        squeeze=False,
    )  # fmt: skip
    for row, data in zip(panels, found, strict=True):
        own = [run for run in runs if run["data"] == data]
        for axes, sweep in zip(row, sweeps, strict=True):
            _sweep(axes, sweep, own)
            axes.set_ylabel(f"{data.capitalize()}: Recall@1", fontsize=9)
            axes.set_xlabel(sweep.setting, fontsize=9)
    _save(figure, directory / f"{name}_sweeps.svg")


def _sweep(axes, sweep, runs):
    """Lines of means, a little apart, so that their 95% intervals stay legible."""
    values = [value for value, _ in next(iter(sweep.lines.values()))]
    for number, (label, line) in enumerate(sweep.lines.items()):
        places, means, reach = [], [], []
        for value, case in line:
            seen = [100 * r["results"]["recall@1"] for r in runs if r["case"] == case]
            if seen:
                shift = 0.07 * (number - (len(sweep.lines) - 1) / 2)
                places.append(values.index(value) + shift)
                means.append(np.mean(seen))
                many = len(seen) > 1
                reach.append(t_interval(np.array(seen))[1] - means[-1] if many else 0)
        colour = COLOURS[number]
        axes.errorbar(places, means, reach, color=colour, label=label, lw=1.2,
                      marker="o", ms=3.5, elinewidth=0.8)  # fmt: skip
    axes.set_xticks(range(len(values)), values)
    axes.set_xlim(-0.4, len(values) - 0.6)
    if len(sweep.lines) > 1:
        place = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0), "ncols": 3}
        axes.legend(fontsize=8, frameon=False, **place)
    _plain(axes)


def draw_curves(runs_of: dict[str, list[dict]], path: Path) -> None:
    """Recall@1 by steps and by seconds of training; a thin line for each seed.

    Args:
      runs_of: side -> runs, each with `points` (step, seconds, Recall@1).
      path: the file, .svg; a .png is written beside it.
    """
    figure, panels = _pyplot().subplots(1, 2, figsize=(9, 3.2), sharey=True)
    for (side, runs), colour in zip(runs_of.items(), COLOURS, strict=False):
        points = np.array([run["points"] for run in runs])  # [seed, point, 3]
        for axes, column in zip(panels, (0, 1), strict=True):
            for one in points:
                axes.plot(
                    one[:, column], 100 * one[:, 2], color=colour, alpha=0.25, lw=0.8
                )
            mean = points.mean(axis=0)
            axes.plot(mean[:, column], 100 * mean[:, 2], color=colour, label=side)
    panels[0].set_ylabel("Recall@1, points", fontsize=9)
    panels[0].legend(fontsize=8.5, frameon=False)
    for axes, label in zip(panels, ("steps", "seconds of training steps"), strict=True):
        axes.set_xlabel(label, fontsize=9)
        _plain(axes)
    _save(figure, path)


def _pyplot():
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.rcParams["svg.hashsalt"] = "papers"  # the same drawing is the same file
    return pyplot


def _plain(axes):
    axes.tick_params(labelsize=8.5)
    axes.grid(axis="both", color="0.92")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _save(figure, path):
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    figure.savefig(path.with_suffix(".png"), dpi=150)
    _pyplot().close(figure)


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

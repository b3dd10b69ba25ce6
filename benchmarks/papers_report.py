"""The lines of `papers.py` as tables: every case, and what the papers claim of them."""

import json
from pathlib import Path

import numpy as np
import papers_cases
import papers_figures

from metricjax.evaluation.intervals import t_interval

METRIC = "recall@1"


def lines(path: Path) -> list[dict]:
    """One dict a run, none without a file; a line that was cut short is left out."""
    found = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def write(directory: Path) -> None:
    """Write TABLE.md and drawings beside each TABLE.jsonl of the directory."""
    for name, table in papers_cases.TABLES.items():
        path = directory / f"{name}.jsonl"
        if runs := lines(path):
            path.with_suffix(".md").write_text(markdown(name, table, runs))
            papers_figures.draw(name, runs, directory)
            papers_figures.draw_sweeps(name, runs, directory)


def markdown(name: str, table: papers_cases.Table, runs: list[dict]) -> str:
    """The page of a table."""
    runs = [{"where": run["gpu"] or run["cpu"], **run} for run in runs]
    parts = [
        f"# {table.title}",
        "",
        f"`python benchmarks/papers.py {name} --root DIR`, {_all(runs, 'where')}, jax "
        f"{_all(runs, 'jax')}; commit {_all(runs, 'commit')}. Recall@1 and "
        "MAP@R in points on unseen classes: means over seeds with 95% t-intervals. The "
        "best step was chosen on held-out training classes.",
        "",
        f"![Recall@1 of every case]({name}.svg)",
    ]
    if table.sweeps:
        parts += ["", f"![Recall@1 along each setting]({name}_sweeps.svg)"]
    for data in papers_cases.DATA:
        own = [run for run in runs if run["data"] == data]
        if own:
            parts += _section(data, table, own)
    return "\n".join(parts) + "\n"


def _section(data, table, runs):
    of_case = {
        case.name: {run["seed"]: run for run in runs if run["case"] == case.name}
        for case in table.cases
    }
    floors = [run["results"]["floor"] for run in runs if "floor" in run["results"]]
    pixels = f"; raw pixels {100 * floors[0]:.1f}" if floors else ""
    yield from (
        "",
        f"## {data.capitalize()}",
        "",
        f"Seeds {_all(runs, 'seed')}; {runs[0]['steps']} steps{pixels}.",
        "",
        "| | seeds | Recall@1 | MAP@R | each learner |",
        "|---|---|---|---|---|",
    )
    for case, by_seed in of_case.items():
        if by_seed:
            yield _row(case, list(by_seed.values()))
    yield from ("", "| claim | difference | holds here? |", "|---|---|---|")
    for claim in table.claims:
        both = of_case[claim.better], of_case[claim.worse]
        shared = sorted(both[0].keys() & both[1].keys())
        if shared:
            yield _claim(claim, *([by[s] for s in shared] for by in both))


def _row(case, runs):
    learners = [r["results"]["learners"] for r in runs if "learners" in r["results"]]
    alone = [100 * np.mean(each[METRIC]) for each in learners]
    alone = f"{np.mean(alone):.1f}" if alone else ""
    cut = sum("not_finite_after" in run["results"] for run in runs)
    if cut:
        case += f" ({cut} of {len(runs)} runs met a loss that is not finite)"
    means = " | ".join(_mean(runs, metric) for metric in (METRIC, "map@r"))
    return f"| {case} | {len(runs)} | {means} | {alone} |"


def _all(runs, what):
    """All that is found in the runs' lines, once each."""
    return ", ".join(sorted({str(run[what]) for run in runs}))


def _mean(runs, metric):
    values = np.array([100 * run["results"][metric] for run in runs])
    if len(values) < 2:
        return f"{values[0]:.1f}"
    low, high = t_interval(values)
    return f"{values.mean():.1f} ({low:.1f} to {high:.1f})"


def _claim(claim, better, worse):
    pairs = zip(better, worse, strict=True)
    apart = np.array([100 * (b["results"][METRIC] - w["results"][METRIC])
                      for b, w in pairs])  # fmt: skip
    text = f"| {claim.better} above {claim.worse}: {claim.source} | {apart.mean():+.1f}"
    if len(apart) < 2:
        return f"{text} | one seed |"
    low, high = t_interval(apart)
    verdict = "yes" if low > 0 else "no, the reverse" if high < 0 else "not shown"
    return f"{text} ({low:+.1f} to {high:+.1f}) | {verdict} |"

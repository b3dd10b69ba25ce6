"""The lines of `papers.py` as tables: every case, and what the papers claim of them."""

import json
import statistics
from pathlib import Path

import numpy as np
import papers_cases

from metricjax.evaluation.intervals import t_interval

METRIC = "recall@1"


def lines(path: Path) -> list[dict]:
    """One dict a run; a line that was cut short is left out."""
    found = []
    for line in path.read_text().splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def write(directory: Path) -> None:
    """Write TABLE.md beside each TABLE.jsonl of the directory."""
    for path in sorted(directory.glob("*.jsonl")):
        table = papers_cases.TABLES[path.stem]
        path.with_suffix(".md").write_text(markdown(path.stem, table, lines(path)))


def markdown(name: str, table: papers_cases.Table, runs: list[dict]) -> str:
    """The page of a table."""
    about = runs[-1]
    parts = [
        f"# {table.title}",
        "",
        f"`python benchmarks/papers.py {name} --root DIR`, {about['machine']}; "
        f"commits {', '.join(sorted({run['commit'] for run in runs}))}. Recall@1 and "
        "MAP@R in points on unseen classes: means over seeds with 95% t-intervals. The "
        "best step was chosen on held-out training classes.",
    ]
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
    seeds = sorted({run["seed"] for run in runs})
    yield from (
        "",
        f"## {data.capitalize()}",
        "",
        f"Seeds {', '.join(map(str, seeds))}; {runs[0]['steps']} steps; raw pixels "
        f"{100 * runs[0]['results']['floor']:.1f}.",
        "",
        "| | Recall@1 | MAP@R | each learner | images/s | s a run |",
        "|---|---|---|---|---|---|",
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
    learners = [np.mean(r["results"]["learners"][METRIC]) for r in runs if _each(r)]
    alone = f"{100 * np.mean(learners):.1f}" if learners else ""
    speeds = [run["images_per_second"] for run in runs if run["images_per_second"]]
    speed = f"{statistics.median(speeds):.0f}" if speeds else ""
    seconds = statistics.median(run["seconds"] for run in runs)
    return (
        f"| {case} | {_mean(runs, METRIC)} | {_mean(runs, 'map@r')} | {alone} | "
        f"{speed} | {seconds:.0f} |"
    )


def _each(run):
    return "learners" in run["results"]


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

"""The comparisons of the papers: every case is a config, every claim is judged."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import papers_cases  # noqa: E402
import papers_report  # noqa: E402

from metricjax.config import from_config_dict  # noqa: E402


@pytest.mark.parametrize("name", papers_cases.TABLES)
def test_every_case_is_a_config(name):
    table = papers_cases.TABLES[name]
    names = [case.name for case in table.cases]
    assert len(set(names)) == len(names)
    for case in names:
        for data in papers_cases.DATA:
            config = from_config_dict(papers_cases.config_of(name, case, data))
            assert config.model.dim == papers_cases.DIM
            assert config.steps == papers_cases.STEPS
    for claim in table.claims:
        assert table.case(claim.better) is not table.case(claim.worse)


def _line(case, seed, recall):
    results = {"recall@1": recall, "map@r": recall / 2, "floor": 0.1}
    return {
        "data": "omniglot", "seed": seed, "case": case, "results": results,
        "seconds": 10.0, "steps": 400, "commit": "abc", "cpu": "two cores", "gpu": "",
        "jax": "0.10",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("gain", "verdict"), [(0.1, "yes"), (-0.1, "no, the reverse"), (0.0, "not shown")]
)
def test_claims_are_judged_by_paired_seeds(gain, verdict):
    noise = {0: 0.0, 1: 0.2, 2: -0.2}  # of a seed, far larger than the gain
    lines = [_line("S", s, 0.5 + n) for s, n in noise.items()]
    lines += [
        _line("SM", s, 0.5 + n + gain + 0.001 * (s - 1)) for s, n in noise.items()
    ]
    page = papers_report.markdown("cgd", papers_cases.TABLES["cgd"], lines)
    row = next(line for line in page.splitlines() if line.startswith("| SM above S:"))
    assert row.endswith(f"| {verdict} |") and f"| {100 * gain:+.1f} (" in row
    assert "| SM above M:" not in page  # M was not run

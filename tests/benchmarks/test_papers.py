"""The comparisons of the papers: every case is a config, every claim is judged."""

import json
import sys

import jax
import jax.numpy as jnp
import pytest
from paths import BENCHMARKS

sys.path.insert(0, str(BENCHMARKS))

import papers  # noqa: E402
import papers_cases  # noqa: E402
import papers_curves  # noqa: E402
import papers_report  # noqa: E402
import papers_run  # noqa: E402
import synthesizers  # noqa: E402
import tiny  # noqa: E402

from metricjax.config.parsing import from_config_dict  # noqa: E402
from metricjax.training import loop  # noqa: E402
from metricjax.training.run import open_data  # noqa: E402


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
            quick = papers_cases.config_of(name, case, data, quick=True)
            assert from_config_dict(quick).steps == 20
    for claim in table.claims:
        assert table.case(claim.better) is not table.case(claim.worse)


def test_a_case_that_is_none_is_refused(capsys):
    assert papers.parse(["cgd", "--cases", "S;SM"]).names == ["S", "SM"]
    with pytest.raises(SystemExit):
        papers.parse(["cgd", "--cases", "S;ABE-8"])
    assert "'ABE-8'" in capsys.readouterr().err


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


@pytest.mark.slow
def test_a_case_is_trained_and_judged_as_a_run_is(tmp_path):
    """The metrics of `python -m metricjax.main` with the same settings."""
    text = tiny.CONFIG.replace('"shapes"', repr(str(tiny.draw_shapes(tmp_path / "s"))))
    names = {}
    exec(text, names)
    config = from_config_dict(names["get_config"]())
    assert loop.train(config, tmp_path / "run", "tiny")
    expected = json.loads((tmp_path / "run" / "results.json").read_text())
    dataset = papers_run.in_memory(open_data(config))
    found = papers_run.trained(config, dataset)
    assert found["selected_step"] == expected["selected_step"]
    for metric in papers_run.METRICS:
        assert found[metric] == expected[metric]
    assert "learners" not in found and "not_finite_after" not in found
    several = papers_run.trained(config, dataset, networks=2)
    assert len(several["learners"]["recall@1"]) == 2


def test_time_to_a_recall_lies_between_the_points():
    points = [[0, 0.0, 0.1], [50, 2.0, 0.3], [100, 6.0, 0.2], [150, 8.0, 0.5]]
    assert papers_curves._time_to(points, 0.2) == pytest.approx(1.0)
    assert papers_curves._time_to(points, 0.4) == pytest.approx(6.0 + 2.0 * 2 / 3)
    assert papers_curves._time_to(points, 0.05) == 0.0
    assert papers_curves._time_to(points, 0.6) is None


@pytest.mark.parametrize(
    ("loss", "method"), [("triplet", "hdml"), ("n_pair", "hdml"), ("triplet", "daml")]
)
def test_generators_learn_and_their_features_get_a_gradient(loss, method):
    head = synthesizers.Head(loss, method)
    features = jax.random.normal(jax.random.key(1), (8, synthesizers.FEATURES))
    state = head.init(features)
    after, value, slopes = jax.jit(head.step)(state, features, jnp.arange(8) // 2)
    assert jnp.isfinite(value) and float(jnp.abs(slopes).max()) > 0
    moved = jax.tree.map(
        lambda a, b: bool(jnp.any(a != b)), state[0]["generator"], after[0]["generator"]
    )
    assert any(jax.tree.leaves(moved))

"""The retrieval benchmark: all ways find the same, and its table says what it saw."""

import json
import sys

import numpy as np
import pytest
from paths import BENCHMARKS

sys.path.insert(0, str(BENCHMARKS))

import harness  # noqa: E402
import retrieval  # noqa: E402
import retrieval_cases as cases  # noqa: E402
import retrieval_ours  # noqa: E402

SMALL = cases.Case(601, 90, 2, 12, 1.0, 32)


def test_all_ways_find_the_same():
    pytest.importorskip("torch")
    pytest.importorskip("faiss")
    pytest.importorskip("pytorch_metric_learning")
    import retrieval_torch

    embeddings, labels = cases.embeddings(SMALL)
    ours = retrieval_ours.measure(embeddings, labels)
    assert 0.3 < ours["map@r"] < ours["recall@1"] < 0.99
    for way, measure in retrieval_torch.WAYS.items():
        found = measure(embeddings, labels)
        for name in cases.METRICS:
            assert found[name] == pytest.approx(ours[name], abs=1e-6), (way, name)


@pytest.mark.parametrize("name", ["sop", "cars"])
def test_cases_have_the_sizes_of_the_test_sets(name):
    case = cases.CASES[name]
    sizes = cases._sizes(case, np.random.default_rng(0))
    assert sizes.sum() == case.images and len(sizes) == case.classes
    assert sizes.min() >= case.smallest and sizes.max() <= case.largest


def test_table(tmp_path, capsys, monkeypatch):
    good = {"median_ms": 8e3, "min_ms": 7e3, "first_s": 9.0, "peak_mib": 512.0}
    values = dict.fromkeys(cases.METRICS, 0.5)
    row = {
        "kind": "row",
        "case": "quick",
        "results": {
            "ours": {**good, "rounds": 2},
            "faiss": {**good, "median_ms": 24e3, "rounds": 2},
            "topk": {"error": "memory"},
            "pml": {**good, "rounds": 0},
        },
        "metrics": {"ours": values, "faiss": values, "pml": {**values, "map@r": 0.51}},
        "rate": 2 * 3001**2 * 64 / 4,
    }
    entries = {"kind": "run", **harness.machine("benchmarks/retrieval.py")}, row
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, entries)))
    monkeypatch.setattr(retrieval, "RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["retrieval.py", "--table", str(file)])
    retrieval.main()
    text = (tmp_path / "retrieval.md").read_text()
    assert text in capsys.readouterr().out
    assert "| metricjax | 8 (7) | 2 | 9 | 2.00 | 1.00 x | 512 | 0 |" in text
    assert "| 24 (7) | 2 | 9 | 6.00 | 3.00 x | 512 | 0 |" in text
    assert "| cannot: memory |" in text
    assert "| 8 (7) | first | 9 | 2.00 | 1.00 x | 512 | 0.01 |" in text

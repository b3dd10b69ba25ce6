"""Thresholds of similarity as the report shows them."""

import pytest

from metricjax.reports import verification

PART = {
    "pairs": {"same": 10, "different": 100},
    "equal_error_rate": 0.2,
    "curve": {
        "similarity": [0.1, 0.9],
        "true_match_rate": [1.0, 0.5],
        "false_match_rate": [1.0, 0.1],
    },
}


@pytest.mark.parametrize(
    ("similarities", "shown"),
    [((0.5, 0.75), ["0.500", "0.750"]), ((0.99912, 0.99938), ["0.9991", "0.9994"])],
)
def test_thresholds_are_told_apart(similarities, shown):
    thresholds = [
        {"similarity": one, "false_match_rate": 0.1, "true_match_rate": 0.5}
        for one in similarities
    ]
    study = verification.study(thresholds, {"held_out": PART})
    assert [cells[0][0] for _, cells in study.table.rows] == shown

"""Curves: which panel, what range, what is left out."""

import re

import pytest

from metricjax.reports import figures


def lines(**names):
    return [
        {"step": 5, "kind": "train", **names},
        {"step": 9, "kind": "train", **names},
    ]


def test_known_names_share_panels_and_others_get_their_own():
    main, others = figures.panels(
        lines(
            **{
                "loss": 1.0,
                "triplet_loss": 0.4,
                "triplet_loss/positive_distance": 0.4,
                "active_share": 0.2,
                "learning_rate": 1e-3,
                "images_per_second": 900.0,
                "gradient_norm": 2.0,
            }
        )
        + [{"step": 9, "kind": "validation", "recall@1": 0.5}]
    )
    assert [panel.title for panel in main] == [
        "Retrieval on held-out training classes",
        "Loss",
        "Distance of pairs",
        "Active share",
        "Learning rate",
        "Images per second",
    ]
    assert [name for name, _ in main[1].legend] == ["loss", "triplet_loss"]
    assert main[0].legend == (("recall@1", "50%"),)
    assert [panel.title for panel in others] == ["gradient_norm"]


def test_what_is_not_finite_is_left_out_and_later_lines_win():
    history = [
        {"step": 1, "kind": "train", "loss": float("inf")},
        {"step": 2, "kind": "train", "loss": 7.0},
        {"step": 2, "kind": "train", "loss": 3.0, "words": "none"},
    ]
    main, others = figures.panels(history)
    assert main[0].legend == (("loss", "3"),) and others == []
    assert figures.recorded(history, "loss") == [3.0]
    assert figures.recorded(history, "distance") == []


@pytest.mark.parametrize("values", [[0.0], [5.0, 5.0], [-1e-9, 1e-9], [1e30, -3.0]])
def test_every_range_can_be_drawn_inside_the_frame(values):
    history = [
        {"step": step, "kind": "train", "loss": value}
        for step, value in enumerate(values)
    ]
    (panel,), _ = figures.panels(history)
    (points,) = re.findall(r'<polyline class="line s0" points="([^"]*)"', panel.svg)
    for point in points.split():
        x, y = map(float, point.split(","))
        assert 0 <= x <= figures.WIDTH and 0 <= y <= figures.HEIGHT


@pytest.mark.parametrize("values", [[0.9975, 1.0], [0.30001, 0.30004], [12345, 12349]])
def test_no_two_ticks_say_the_same(values):
    history = [
        {"step": step, "kind": "train", "loss": value}
        for step, value in enumerate(values)
    ]
    (panel,), _ = figures.panels(history)
    said = re.findall(r'text-anchor="end">([^<]*)</text>', panel.svg)
    assert len(said) >= 3 and len(set(said)) == len(said)


def test_a_long_run_stays_small_and_shows_its_spikes():
    history = [
        {"step": step, "kind": "train", "loss": 100.0 if step == 50_001 else 1.0}
        for step in range(100_000)
    ]
    (panel,), _ = figures.panels(history)
    assert len(panel.svg) < 20_000
    assert 'class="band' in panel.svg and ">100<" in panel.svg


def test_the_selected_step_is_marked_among_validation_metrics_only():
    history = lines(loss=1.0) + [
        {"step": step, "kind": "validation", "map@r": 0.5} for step in (5, 9)
    ]
    validation, loss = figures.panels(history, selected_step=9)[0]
    assert "step 9 was selected" in validation.svg
    assert 'class="mark"' not in loss.svg


@pytest.mark.parametrize(
    "value, text",
    [(0, "0"), (1500, "1,500"), (12_000, "12k"), (12_345.6, "12,346"), (3e-5, "3e-05")],
)
def test_numbers_are_short(value, text):
    assert figures.number(value) == text

"""What the report shows of a trained model: the numbers, and which run has which."""

import numpy as np
import pytest

from metricjax.cli import config_flags
from metricjax.inference import evaluate_split
from metricjax.models import cgd, pooling
from metricjax.reports import page
from metricjax.runtime import mesh
from metricjax.training import paper_analyses
from metricjax.training.run import Run

pytestmark = pytest.mark.usefixtures("quick")

FEATURES = np.random.default_rng(0).random((3, 4, 5, 6)).astype(np.float32)


def shares_of_the_formula(letter, p):
    """Descriptor by descriptor, from what each position adds to each channel."""
    features = FEATURES.astype(np.float64)
    powers = features**p
    mean = powers / powers.sum(axis=(1, 2), keepdims=True)
    gem = np.mean(powers, axis=(1, 2)) ** (1 / p)
    largest = features.max(axis=(1, 2), keepdims=True)
    weights = pooling.center_weights(4, 5).astype(np.float64)[..., None]
    weights /= weights.sum()
    spoc = (
        features.mean(axis=(1, 2)),
        features / features.sum(axis=(1, 2))[:, None, None],
    )
    mac = largest[:, 0, 0], (features == largest).astype(np.float64)
    by_letter = {
        "S": spoc,
        "M": mac,
        "G": (gem, mean),
        "A": (
            spoc[0] + mac[0],
            (spoc[0][:, None, None] * spoc[1] + mac[0][:, None, None] * mac[1])
            / (spoc[0] + mac[0])[:, None, None],
        ),
        "W": (
            (features * weights).sum(axis=(1, 2)),
            features * weights / (features * weights).sum(axis=(1, 2), keepdims=True),
        ),
        "V": (
            (powers * weights).sum(axis=(1, 2)) ** (1 / p),
            powers * weights / (powers * weights).sum(axis=(1, 2), keepdims=True),
        ),
    }
    descriptor, shares = by_letter[letter]
    parts = descriptor**2 / np.sum(descriptor**2, axis=1, keepdims=True)
    return np.sum(parts[:, None, None] * shares, axis=-1)


@pytest.mark.parametrize("letter", sorted(set(cgd.DESCRIPTORS) - {"R"}))
def test_shares_of_positions(letter):
    got = np.asarray(paper_analyses.position_shares(letter, FEATURES, 2.5))
    np.testing.assert_allclose(got.sum(axis=(1, 2)), 1.0, rtol=1e-5)
    np.testing.assert_allclose(got, shares_of_the_formula(letter, 2.5), rtol=2e-4)


def test_nothing_in_the_map_has_no_shares():
    got = paper_analyses.position_shares("S", np.zeros((1, 2, 2, 3), np.float32))
    np.testing.assert_array_equal(got, np.zeros((1, 2, 2)))


def test_pairs_of_learners_and_images_are_counted_once():
    rng = np.random.default_rng(0)
    labels = np.array([0, 0, 0, 1, 1, 2])
    rows = rng.normal(size=(6, 3, 4))
    rows[:, 2] = rows[:, 1]  # two learners that have learnt the same
    counts = paper_analyses.learner_similarities(
        rows.reshape(6, 12), labels, learners=3
    )
    unit = rows / np.linalg.norm(rows, axis=2, keepdims=True)
    expected = {"self": [[] for _ in range(3)], "positive": [], "negative": []}
    for learner in range(3):
        one = {"positive": [], "negative": []}
        for i in range(6):
            for other in range(3):
                if other != learner:
                    value = unit[i, learner] @ unit[i, other]
                    expected["self"][learner].append(value)
            for j in range(i):
                kind = "positive" if labels[i] == labels[j] else "negative"
                one[kind].append(unit[i, learner] @ unit[j, learner])
        for kind, values in one.items():
            expected[kind].append(values)
    for kind, values in expected.items():
        for learner in range(3):
            want, _ = np.histogram(np.clip(values[learner], -1, 1), 80, (-1, 1))
            # A value on the border of two bins may fall into either.
            assert np.abs(np.cumsum(counts[kind][learner] - want)).max() <= 1
    assert counts["self"][1][-1] == 6


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("points", [0, 2, 5])
def test_shortest_distances_between_pairs(points, normalize):
    rows = np.random.default_rng(1).normal(size=(5, 2, 6))
    rows = (rows / np.linalg.norm(rows, axis=2, keepdims=True)).astype(np.float32)
    got = paper_analyses.shortest_distances(rows, points, normalize)
    for a in range(5):
        assert np.isnan(got[a, a])
        for b in range(5):
            if a == b:
                continue
            segments = []
            for first, second in rows[[a, b]].astype(np.float64):
                steps = np.linspace(0, 1, points + 2)[:, None]
                segment = (1 - steps) * first + steps * second
                if normalize:
                    segment /= np.linalg.norm(segment, axis=1, keepdims=True)
                segments.append(segment)
            each = segments[0][:, None] - segments[1][None]
            want = np.linalg.norm(each, axis=2).min()
            np.testing.assert_allclose(got[a, b], want, rtol=1e-4)


CASES = {
    "cgd": (
        {"model.descriptors": "SMGWVR", "model.dim": 60, "model.learnable_p": True},
        ["What the descriptors are made of"],
    ),
    "independent": (
        {"model.architecture": "A", "model.descriptors": "SG", "model.dim": 16},
        [
            "What the descriptors are made of",
            "How alike the learners are",
            "Each learner and the ensemble",
        ],
    ),
    "abe": (
        {"model.head": "abe", "model.learners": 4},
        [
            "Where the learners look",
            "What the descriptors are made of",
            "How alike the learners are",
            "Each learner and the ensemble",
        ],
    ),
    "m_heads": (
        {"model.head": "m_heads", "model.learners": 2},
        [
            "What the descriptors are made of",
            "How alike the learners are",
            "Each learner and the ensemble",
        ],
    ),
    "whole map": ({"model.whole": 16}, []),
    "expansion": (
        {"objective.terms": "ee_triplet"},
        ["What the descriptors are made of", "Harder negatives by embedding expansion"],
    ),
    "hierarchy": (
        {"objective.terms": "hierarchical_proxy"},
        ["What the descriptors are made of", "Classes in groups"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_each_run_has_its_analyses(tiny, tmp_path, case):
    changes, titles = CASES[case]
    text = tiny.config.read_text()
    terms = changes.get("objective.terms", "triplet")
    options = "{}"
    if "proxy" in terms:
        options = '{"clusters": (3, 2), "level_weights": (1, 0.1, 0.1), "warmup": 8}'
    text = text.replace("triplet={}, softmax={}", f"{terms}={options}")
    (tmp_path / "config.py").write_text(text)
    settings = {"data.root": tiny.shapes, "evaluation.bootstrap": 2}
    settings |= {k: v for k, v in changes.items() if not k.startswith("objective")}
    flags = [f"--config.{name}={value}" for name, value in settings.items()]
    config = config_flags.parse(
        ["--config", str(tmp_path / "config.py"), *flags]
    ).config
    run = Run.open(config, tmp_path / "run")
    state = run.init_state()
    if config.objective.hierarchy:
        state = run.regroup(state, 8)
    test = run.dataset.test
    embedded = run.embed(state.variables, test)
    results = evaluate_split.evaluate(embedded, test, config.evaluation, 2)
    if config.model.ensemble > 1:
        results["learners"] = evaluate_split.evaluate_learners(
            embedded, test, config.evaluation, config.model.ensemble
        )
    learnt = mesh.to_host((state.variables, state.proxies, state.objective))
    found = paper_analyses.of_run(run, *learnt, embedded, np.arange(6), results)
    assert [study.title for study in found] == titles
    html = page.render(
        results=results, history=[], config={}, galleries={}, image=test.read,
        name=str, studies=found,
    )  # fmt: skip
    for title in titles:
        assert title in html
    assert ("Analyses" in html) == bool(titles)
    assert "nan" not in html.lower()
    if config.objective.hierarchy:
        assert "in group 1 of level 2" in html and "in group 2 of level 2" in html
        before = run.init_state()
        learnt = mesh.to_host((before.variables, before.proxies, before.objective))
        found = paper_analyses.of_run(run, *learnt, embedded, np.arange(6), results)
        assert "Classes in groups" not in [study.title for study in found]
